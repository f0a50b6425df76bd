"""Warm start from capture records: the same numbers as the traced call, and never for a module, code or call that differs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from api_compare import assert_same, gradients, loss, state
from torch import nn
from torch.nn import functional as F

import shorthaul as sh
from shorthaul.warm import calls
from shorthaul.warm.live_state import LiveState

SCALE = 2.0
TABLE = {"a": [1.0, 2.0]}


def helper(x: torch.Tensor, power: int = 1) -> torch.Tensor:
    return x * SCALE**power + TABLE["a"][0]


def closing(offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x + offset

    return shifted


@dataclasses.dataclass
class Config:
    slope: float = 0.1
    names: tuple[str, ...] = ("a", "b")


class Base(nn.Module):
    factor = 3.0

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Net(Base):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
        self.config, self.shift, self.shifted = Config(), 0.5, closing(0.25)
        self.weights = [0.25, 0.5]
        self.register_buffer("offset", torch.full((4,), 0.125))

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        y = self.last(self.act(self.scaled(self.first(x)))) * gain
        for layer in self.layers:
            y = layer(y)
        y = F.leaky_relu(helper(y), self.config.slope) + self.shift + self.offset * sum(self.weights)
        return self.shifted(y) if self.training else y


X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTHAUL_WARM_START", "1")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recorded(cache: None) -> None:
    """A record of `Net` in training mode."""
    assert start_of(run(Net())[0]).endswith("a later start finds its capture record")


def run(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[nn.Module, Any]:
    sh.optimize(module)
    torch.manual_seed(3)
    out = module(*(args or (X,)), **kwargs)
    return module, out


def start_of(module: nn.Module) -> str:
    return module.report().regions[-1].start


def from_record(module: nn.Module) -> bool:
    return start_of(module).startswith("from its capture record")


def hit(module: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Whether a record would answer this call now. Nothing is traced or run."""
    entry = module._compiled_call_impl
    settings = calls.settings()
    return settings is not None and entry._find(args or (X,), kwargs, settings)[0] is not None


# --- the same numbers -------------------------------------------------------------------------------------------------


class Both(NamedTuple):
    sum: torch.Tensor
    parts: list[torch.Tensor]


@dataclasses.dataclass
class Out:
    value: torch.Tensor
    extra: dict[str, Any]


class Stateful(nn.Module):
    """Batch statistics, dropout, views, an unchanged input, and results in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.line = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)
        self.tied = self.line.weight
        with torch.no_grad():
            self.line.weight.copy_(torch.linspace(-1, 1, 16).reshape(4, 4))
            self.line.bias.fill_(0.5)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None) -> Out:
        y = self.drop(self.norm(self.line(x))) @ self.tied
        if mask is not None:
            y = torch.where(mask, y, 0.0)
        return Out(y, {"both": Both(y.sum(), [y.t(), x]), "again": (y, 3, None, 0.5)})


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_a_start_from_a_record_gives_what_the_traced_call_gave(mode: str) -> None:
    def steps(module: nn.Module) -> Any:
        outs = []
        module.train(mode != "eval")
        for k in range(2):
            x = (X.double() + k).requires_grad_()
            with torch.set_grad_enabled(mode != "no_grad"):
                torch.manual_seed(k)
                out = module(x, mask=torch.arange(4) != 1)
            if mode != "no_grad":
                loss(out).backward()
            outs.append((out.value, out.extra, x.grad))
        return outs

    traced, warm, eager = (Stateful().double() for _ in range(3))
    sh.optimize(traced, strict=True)
    expected = steps(traced)
    assert "finds its capture record" in start_of(traced), start_of(traced)
    sh.optimize(warm, strict=True)
    found = steps(warm)
    assert from_record(warm) and len(warm.report().regions) == 1
    assert_same(found, expected)
    assert_same(gradients(warm), gradients(traced))
    assert_same(state(warm), state(traced))
    assert type(found[0][1]["both"]) is Both and found[0][1]["again"][0] is found[0][0]
    assert "operator" in str(warm.report()) and "start         from its capture record" in str(warm.report())
    if mode == "eval":  # no dropout: eager agrees
        assert_same(found, steps(eager))


def test_calling_twice_before_backward_and_accumulating(recorded: None) -> None:
    warm, eager = Net(), Net()
    sh.optimize(warm)
    for m in (warm, eager):
        (m(X).sum() + m(X + 1).square().sum()).backward()
    assert from_record(warm)
    for (n, p), q in zip(warm.named_parameters(), eager.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-4), n


def test_modes_and_sizes_after_a_warm_start_go_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))  # it leaves a record of eval mode, which other tests must not find
    run(Net())
    warm, eager = Net(), Net()
    sh.optimize(warm)
    small = torch.randn(5, 4)
    for x, training in ((X, True), (X, False), (small, True), (torch.randn(7, 4), True), (torch.randn(9, 4), True), (X, True)):
        warm.train(training)
        eager.train(training)
        assert torch.allclose(warm(x), eager(x), rtol=1e-5, atol=1e-5)
    starts = [r.start for r in warm.report().regions]
    assert starts[0].startswith("from its capture record")
    # one record, one for eval mode, one with a symbolic size: the record's size was one more observation
    assert len(starts) == 3, str(warm.report())
    again = Net().eval()
    sh.optimize(again)(X)
    assert from_record(again)
    again.train()(X)
    assert from_record(again) and again.report().regions[1].reason == "the module changed"


def test_copies_and_threads(recorded: None) -> None:
    warm = Net()
    sh.optimize(warm)
    expected = warm(X)
    twin = copy.deepcopy(warm)
    assert "_compiled_call_impl" not in vars(twin)
    sh.optimize(twin)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(twin(X))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4 and all(torch.equal(r, expected) for r in results)
    assert from_record(twin) and len(twin.report().regions) == 1


# --- what must not be answered ----------------------------------------------------------------------------------------


class Louder(Net):
    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor * 2


def other_class_of_the_same_name() -> type:
    class Net(Base):
        __init__ = globals()["Net"].__init__

        def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
            return self.last(self.act(self.first(x)))

    Net.__qualname__ = "Net"
    return Net


def with_code_of(function: types.FunctionType, source: str, name: str) -> types.CodeType:
    """The code of a function as an edited source file would give it."""
    space: dict[str, Any] = {}
    exec(compile(source, function.__code__.co_filename, "exec"), function.__globals__, space)
    return space[name].__code__


Change = Callable[[nn.Module, pytest.MonkeyPatch], Any]
EDITED = "def helper(x, power=1):\n    return x * SCALE ** power - TABLE['a'][0]"
CHANGES: dict[str, Change] = {
    "attribute": lambda m, p: setattr(m, "shift", 0.75),
    "attribute of another type": lambda m, p: setattr(m, "shift", 0),
    "attribute of an object": lambda m, p: setattr(m.config, "slope", 0.2),
    "another object": lambda m, p: setattr(m, "config", Config(0.3)),
    "class attribute": lambda m, p: p.setattr(Base, "factor", 4.0),
    "shadowed class attribute": lambda m, p: setattr(m, "factor", 4.0),
    "method": lambda m, p: p.setattr(Base, "scaled", lambda self, x: x),
    "method of the instance": lambda m, p: setattr(m, "scaled", lambda x: x),
    "forward of the instance": lambda m, p: setattr(m, "forward", lambda x: x),
    "global constant": lambda m, p: p.setitem(globals(), "SCALE", 2.5),
    "constant inside a global": lambda m, p: p.setitem(TABLE, "a", [1.5, 2.0]),
    "list inside a global": lambda m, p: p.setitem(TABLE, "a", [*TABLE["a"], 3.0]),
    "item of a list of the module": lambda m, p: m.weights.append(1.0),
    "global function": lambda m, p: p.setitem(globals(), "helper", lambda x: x),
    "code of a function": lambda m, p: p.setattr(helper, "__code__", with_code_of(helper, EDITED, "helper")),
    "default": lambda m, p: p.setattr(helper, "__defaults__", (2,)),
    "default of forward": lambda m, p: p.setattr(Net.forward, "__defaults__", (2.0,)),
    "closure": lambda m, p: setattr(m, "shifted", closing(0.5)),
    "closure cell": lambda m, p: setattr(m.shifted.__closure__[0], "cell_contents", 0.5),
    "function of PyTorch": lambda m, p: p.setattr(F, "leaky_relu", lambda x, slope: x),
    "function behind a layer of PyTorch": lambda m, p: p.setattr(F, "relu", lambda x, inplace=False: x),
    "forward of a layer of PyTorch": lambda m, p: p.setattr(nn.ReLU, "forward", lambda self, x: x),
    "builtin": lambda m, p: p.setitem(globals(), "sum", lambda values: 0.0),
    "training flag": lambda m, p: m.eval(),
    "training flag of a part": lambda m, p: m.act.eval(),
    "forward hook": lambda m, p: m.act.register_forward_hook(lambda mod, args, out: out * 2),
    "forward pre-hook": lambda m, p: m.register_forward_pre_hook(lambda mod, args: (args[0] * 2,)),
    "backward hook": lambda m, p: m.act.register_full_backward_hook(lambda mod, gi, go: (gi[0] * 2,)),
    "requires_grad": lambda m, p: m.first.weight.requires_grad_(False),
    "tying": lambda m, p: setattr(m.layers[1], "weight", m.layers[0].weight),
    "dtype": lambda m, p: m.double(),
    "shape": lambda m, p: setattr(m.first.weight, "data", torch.zeros(6, 4).t().contiguous().t()),
    "parameter instead of a buffer": lambda m, p: (m._buffers.pop("offset"), m.register_parameter("offset", nn.Parameter(torch.ones(4)))),
    "no buffer": lambda m, p: (delattr(m, "offset"), setattr(m, "offset", 0.0)),
    "layer": lambda m, p: setattr(m, "act", nn.Tanh()),
    "another layer in a list": lambda m, p: m.layers.append(nn.Linear(4, 4, bias=False)),
    "order of layers": lambda m, p: m.layers._modules.update({"0": m.layers[1], "1": m.layers[0]}),
    "class of a module": lambda m, p: setattr(m, "__class__", Louder),
    "class of the same name": lambda m, p: setattr(m, "__class__", other_class_of_the_same_name()),
    "parametrization": lambda m, p: nn.utils.parametrizations.weight_norm(m.first),
    "no bias": lambda m, p: setattr(m.first, "bias", None),
}  # fmt: skip
SAME_NUMBERS = {"order of layers"}  # the parameters are inputs: which comes first is no part of the graph


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_noticed_before_and_after_the_start(recorded: None, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warm, later = Net(), Net()
    sh.optimize(warm)
    assert hit(warm)
    digest = LiveState(warm).digest
    CHANGES[what](warm, monkeypatch)
    unnoticed = warm._compiled_call_impl._states[0].live.unchanged()
    assert not unnoticed, f"a change of {what} after the start"
    if what in SAME_NUMBERS:
        return
    assert not hit(warm)
    CHANGES[what](later, monkeypatch)
    assert LiveState(later).digest != digest, f"a change of {what} before the start"
    sh.optimize(later)
    assert not hit(later)


@pytest.mark.parametrize("what", ["attribute", "global constant", "code of a function", "forward hook", "tying", "order of layers"])
def test_after_a_change_the_numbers_are_those_of_eager(recorded: None, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warm, eager = Net(), Net()
    sh.optimize(warm)
    before = warm(X)
    assert from_record(warm)
    for m in (warm, eager):
        CHANGES[what](m, monkeypatch)
    after = warm(X)
    assert torch.allclose(after, eager(X), rtol=1e-5, atol=1e-6)
    assert not torch.equal(before, after)


OTHER_CALLS = ["shape", "strides", "dtype", "requires_grad", "argument", "keyword", "subclass", "same tensor", "attributes"]


@pytest.mark.parametrize("what", OTHER_CALLS)
def test_another_call_is_noticed(recorded: None, what: str) -> None:
    warm = Net()
    sh.optimize(warm)
    assert hit(warm) and hit(warm, X + 1)
    tagged = X.clone()
    torch._dynamo.mark_dynamic(tagged, 0)
    others: dict[str, tuple[tuple, dict[str, Any]]] = {
        "shape": ((torch.zeros(4, 4),), {}),
        "strides": ((torch.zeros(4, 3).t(),), {}),
        "dtype": ((X.double(),), {}),
        "requires_grad": ((X.clone().requires_grad_(),), {}),
        "argument": ((X, 2.0), {}),
        "keyword": ((X,), {"gain": 1.0}),
        "subclass": ((nn.Parameter(X.clone(), requires_grad=False),), {}),
        "same tensor": ((warm.layers[0].weight,), {}),
        "attributes": ((tagged,), {}),
    }
    args, kwargs = others[what]
    assert not hit(warm, *args, **kwargs)


def test_another_setting_is_noticed(recorded: None) -> None:
    warm = Net()
    sh.optimize(warm)
    assert hit(warm)
    with torch.no_grad():
        assert not hit(warm)
    with torch.inference_mode():
        assert not hit(warm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not hit(warm)
    with torch.device("cpu"):
        assert not hit(warm)
    with torch.autograd.graph.save_on_cpu():
        assert not hit(warm)
    with torch.compiler.set_stance("force_eager"):
        assert not hit(warm)
    hook = nn.modules.module.register_module_forward_hook(lambda m, a, o: o)
    assert not hit(warm)
    hook.remove()
    assert hit(warm)
    with torch._dynamo.config.patch(assume_static_by_default=False):
        fresh = Net()
        sh.optimize(fresh)
        assert not hit(fresh)
    strict = sh.optimize(Net(), strict=True)
    assert not hit(strict)
    shallow = sh.optimize(Net(), level=2)
    assert not hit(shallow)


def test_what_does_not_matter_does_not_matter(recorded: None) -> None:
    warm = Net()
    sh.optimize(warm)
    assert hit(warm)
    warm.epoch = 3  # nothing in the code has this name
    warm.first.weight = nn.Parameter(torch.ones(6, 4))  # another parameter of the same kind
    warm.load_state_dict(Net().state_dict())
    warm.first.weight.register_hook(lambda g: g * 2)
    assert hit(warm)
    out = warm(X)
    assert torch.allclose(out, Net()(X), rtol=1e-5, atol=1e-6)
    out.sum().backward()
    eager = Net()
    eager(X).sum().backward()
    assert torch.allclose(warm.first.weight.grad, 2 * eager.first.weight.grad, rtol=1e-4, atol=1e-5)


# --- no record --------------------------------------------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.log = 0, None, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Keeps(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x * 2
        return x + 1


class Appends(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(1)
        return x + len(self.log)


class Draws(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import random

        return x * random.random()


class Breaks(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print(end="")
        return x * 2


class Environment(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import os

        return x * len(os.environ.get("SHORTHAUL_NO_SUCH_NAME", "ab"))


class ByName(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * globals()["SCA" + "LE"]


class ReadsGradient(Counts):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if self.weight.grad is None else x - self.weight


class Stores(Counts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global SCALE
        SCALE = 2.0
        return x * 2


@pytest.mark.parametrize("kind", [Counts, Keeps, Appends, Draws, Breaks, Environment, ByName, ReadsGradient, Stores])
def test_calls_that_do_more_than_compute_leave_no_record(kind: type[nn.Module]) -> None:
    for _ in range(2):
        module, eager = kind(), kind()
        sh.optimize(module)
        for k in range(2):
            found, expected = module(X + k), eager(X + k)
            assert kind is Draws or torch.allclose(found, expected)
        starts = [r.start for r in module.report().regions]
        assert starts and not any("capture record" in s and "no capture record" not in s for s in starts), starts
        assert vars(module).get("calls") == vars(eager).get("calls") and len(module.log) == len(eager.log)


def test_a_damaged_record_is_made_anew(recorded: None) -> None:
    from shorthaul.runtime.cache import CacheWarning, default_directory

    for path in default_directory().glob("captures/*/*/value.json"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(CacheWarning, match="damaged"):
        module, out = run(Net())
    assert start_of(module).endswith("a later start finds its capture record")
    assert torch.allclose(out, Net()(X), rtol=1e-5, atol=1e-6)
    assert from_record(run(Net())[0])


def test_a_record_whose_program_is_gone_is_made_anew(recorded: None) -> None:
    import shutil

    from shorthaul.runtime.cache import default_directory

    shutil.rmtree(default_directory() / "programs")
    module, out = run(Net())
    assert not from_record(module)
    assert torch.allclose(out, Net()(X), rtol=1e-5, atol=1e-6)
    assert from_record(run(Net())[0])


def test_functions_in_partials_and_bound_methods_are_read() -> None:
    class Holds(nn.Module):
        def __init__(self, power: int) -> None:
            super().__init__()
            self.power = functools.partial(helper, power=power)
            self.bound = Base().scaled

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bound(self.power(x))

    digests = [LiveState(Holds(p)).digest for p in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
