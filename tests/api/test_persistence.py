"""State, copies, pickles, threads and the report of an optimized module."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from api_compare import Pair, assert_same, loss
from test_calls import randn
from torch import nn

import shorthaul as sh


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).tanh()) * scale


def test_state_dict_round_trip() -> None:
    p = Pair(Model())
    x = randn(5, 8)
    p.step(x)
    keys = list(p.eager.state_dict())
    assert list(p.ours.state_dict()) == keys
    changed = {k: v + 1 for k, v in p.ours.state_dict().items()}
    for m in (p.eager, p.ours):
        m.load_state_dict(changed)
    p.step(x)
    assert len(p.regions) == 1


def test_pickle_and_deepcopy() -> None:
    m = sh.optimize(Model())
    x = torch.randn(3, 8)
    y = m(x)
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), torch.load(buffer, weights_only=False)):
        assert type(twin) is Model
        assert torch.allclose(twin(x), y, atol=1e-6)
        assert not twin.report().regions
        sh.optimize(twin)
        assert torch.allclose(twin(x), y, atol=1e-6)
        assert len(twin.report().regions) == 1
    assert len(m.report().regions) == 1


def test_disabled_module_pickles() -> None:
    m = nn.Sequential(sh.disable(Model()), nn.Linear(4, 2))
    twin = pickle.loads(pickle.dumps(m))
    assert twin[0].forward.module is twin[0]
    assert copy.deepcopy(m)[0].forward.module is not m[0]
    x = torch.randn(3, 8)
    assert torch.equal(twin(x), m(x))


def test_signature_and_class_stay() -> None:
    m = Model()
    before = inspect.signature(m.forward), type(m), list(m.named_modules())
    sh.optimize(m)
    assert (inspect.signature(m.forward), type(m), list(m.named_modules())) == before
    assert inspect.signature(sh.disable(Model()).forward) == before[0]


def test_moving_to_another_dtype() -> None:
    m = sh.optimize(Model())
    twin = Model()
    for dtype in (torch.float32, torch.float64, torch.float32):
        m.to(dtype)
        twin.to(dtype)
        x = randn(3, 8).to(dtype)
        y = m(x)
        assert y.dtype is dtype
        assert torch.allclose(y, twin(x), atol=1e-5)


def test_optimizer_steps_in_place() -> None:
    p = Pair(Model())
    for make in (lambda q: torch.optim.SGD(q, 0.1, momentum=0.9), lambda q: torch.optim.AdamW(q, 0.01)):
        optimizers = {m: make(list(m.parameters())) for m in (p.eager, p.ours)}

        def train(m: nn.Module, optimizers: Any = optimizers) -> Any:
            losses = []
            for k in range(5):
                optimizers[m].zero_grad()
                y = loss(m(randn(5, 8) + k)).square()
                y.backward()
                optimizers[m].step()
                losses.append(y.detach())
            return losses

        p.both(train)


def test_two_threads() -> None:
    m = sh.optimize(Model().double())
    twin = Model().double()
    m(randn(5, 8))
    failures: list[str] = []

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(30):
            x = torch.randn(5, 8, dtype=torch.float64, generator=g).requires_grad_()
            twin_x = x.detach().clone().requires_grad_()
            (found,) = torch.autograd.grad(m(x).square().sum(), [x])
            (expected,) = torch.autograd.grad(twin(twin_x).square().sum(), [twin_x])
            if not torch.allclose(found, expected, rtol=1e-10):
                failures.append(f"thread {seed}: {found} instead of {expected}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert_same(list(twin.state_dict().values()), list(m.state_dict().values()))


def test_report() -> None:
    m = sh.optimize(Model())
    assert str(m.report()).startswith("Nothing is compiled yet: call the model once.")
    m(torch.randn(3, 8)).sum().backward()
    with torch.no_grad():
        m(torch.randn(3, 8))
    text = str(m.report())
    for words in ("2 regions, 2 compiled", "captured", "kernels", "library calls", "compile time", "functionalize", "bytes moved", "of it"):
        assert words in text, text
    assert "Region 1 (" in text and "grad_mode" in text.lower()
    record = m.report()
    assert record.regions[0].operators["contract"] == 2
    assert record.regions[0].kernels and sum(record.regions[0].library_calls.values())
    with pytest.raises(AttributeError):
        nn.Linear(2, 2).report  # noqa: B018


def test_report_names_graph_breaks_and_what_is_left_to_eager_mode() -> None:
    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x * 2

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.breaks, self.last = nn.Linear(4, 4), Breaks(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.breaks(self.first(x)))

    whole = sh.optimize(Two())
    whole(torch.randn(2, 4))
    assert "no compiled region takes" not in str(whole.report())
    broken = next(r for r in whole.report().regions if r.graph_break)
    assert "graph_break" in broken.graph_break and "test_persistence.py:" in broken.graph_break
    assert "graph break   " in str(whole.report())
    # PyTorch's own containers are compiled in parts around a break
    parts = sh.optimize(nn.Sequential(nn.Linear(4, 4), Breaks(), nn.Linear(4, 4)))
    parts(torch.randn(2, 4))
    assert not parts.report().unused
    # what is left to eager mode is named
    left = sh.optimize(nn.Sequential(nn.Linear(4, 4), sh.disable(nn.Linear(4, 4)), nn.Linear(4, 4)))
    left(torch.randn(2, 4))
    assert left.report().unused == ["1.weight", "1.bias"]
    assert "left to eager mode around a graph break): 1.weight, 1.bias" in str(left.report())


def test_program_methods() -> None:
    program = sh.capture(Model(), (torch.randn(3, 8),))
    assert [g for g, _ in program.signature.gradients]
    before = program.movement()
    program.optimize(level=4, check=True)
    after = program.movement()
    assert 0 < after.bytes < before.bytes
    assert after.eager_bytes == before.eager_bytes
    assert str(program.explain("MapFusion")).startswith("MapFusion (level 2)")
    assert "applied      " in program.explain()
    assert not sh.capture(Model(), (torch.randn(3, 8),), train=False).signature.gradients


def test_import_is_light() -> None:
    code = """import shorthaul, sys
assert 'torch' not in sys.modules, 'torch was imported'
print(sorted(set(dir(shorthaul)) & {'optimize', 'capture'}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['capture', 'optimize']"


def test_cached_programs_that_differ_in_constants_stay_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self, values: list[float]) -> None:
            super().__init__()
            self.values = values

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.tensor(self.values, dtype=x.dtype)

    for _ in range(2):
        for values in ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]):
            x = torch.ones(3, requires_grad=True)
            sh.optimize(Scaled(values))(x).sum().backward()
            assert x.grad.tolist() == values
