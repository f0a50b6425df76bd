"""What is refused, and how it is said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from api_compare import Pair, forget_operators
from test_calls import Net, randn
from torch import nn

import shorthaul as sh


def run(f: Any, *inputs: Any, strict: bool = False) -> Any:
    m = sh.optimize(Net(f), strict=strict)
    return m, m(*inputs)


def unknown(m: Net, x: Any) -> Any:
    return torch.special.i0e(x * m.w)


def test_operator_without_an_entry_falls_back_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_operators(monkeypatch, "special_i0e")
    p = Pair(Net(unknown), strict=False)
    p.step(randn(5, 8, grad=True))
    for n in (4, 6):
        p.step(randn(n, 8, grad=True))
    (reason, origin), *_ = p.regions[0].fallbacks
    assert "special_i0e" in reason and "test_errors.py" in origin.source
    assert "special_i0e" in str(p.ours.report())
    assert not p.regions[0].fallback


def test_strict_refuses_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_operators(monkeypatch, "special_i0e")
    with pytest.raises(Exception, match=r"(?s)strict=True refuses.*special_i0e.*test_errors\.py:\d+ in 'return torch\.special\.i0e"):
        run(unknown, randn(5, 8), strict=True)


def test_operator_without_a_derivative() -> None:
    def f(m: Net, x: Any) -> Any:
        return torch.special.i0e(x * m.w) + torch.special.zeta(x * m.w + 9, x + 9)

    m = sh.optimize(Net(f), strict=True)
    with pytest.raises(Exception, match="zeta"):
        m(randn(5, 8, grad=True))
    m = sh.optimize(Net(f))
    with pytest.warns(sh.FallbackWarning, match=r"(?s)zeta.*test_errors\.py"):
        y = m(randn(5, 8, grad=True))
    assert torch.equal(y, f(m, randn(5, 8)))
    assert "zeta" in str(m.report())


def test_unsupported_dtype_falls_back_with_a_warning() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w.to(torch.complex128)).abs().sum()

    m = sh.optimize(Net(f))
    x = randn(5, 8).to(torch.complex128)
    with pytest.warns(sh.FallbackWarning, match="(?s)complex.*test_errors.py"):
        y = m(x)
    assert torch.allclose(y, f(m, x))
    with pytest.raises(Exception, match="complex"):
        run(f, x, strict=True)


def test_in_place_change_that_gradients_flow_through() -> None:
    def f(m: Net, x: Any) -> Any:
        x.mul_(m.w)
        return x.sum()

    m = sh.optimize(Net(f))
    x = randn(5, 8)
    with pytest.warns(sh.FallbackWarning, match="changed in place and gradients flow"):
        m(x).backward()
    assert torch.allclose(x, randn(5, 8) * m.w)
    assert torch.allclose(m.w.grad, randn(5, 8).sum(0))


def test_wrong_shape_and_dtype_at_call_time() -> None:
    m = sh.optimize(nn.Linear(8, 4))
    m(torch.randn(3, 8))
    with pytest.raises(Exception, match="8"):
        m(torch.randn(3, 7))
    with pytest.raises(Exception, match=r"(?i)dtype|double|float"):
        m(torch.randn(3, 8, dtype=torch.float64))
    assert m(torch.randn(5, 8)).shape == (5, 4)


def test_tensor_subclasses_fall_back_visibly_or_work() -> None:
    class Marked(torch.Tensor):
        pass

    m = sh.optimize(Net(lambda m, x: (x * m.w).sum()))
    x = randn(5, 8).as_subclass(Marked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = m(x)
    assert torch.allclose(y.as_subclass(torch.Tensor), (randn(5, 8) * m.w).sum())
    compiled = [r for r in m.report().regions if not r.fallback]
    assert not compiled or any(issubclass(w.category, sh.FallbackWarning) for w in caught) or type(y) in (Marked, torch.Tensor)


def test_tensor_subclass_parameter_is_named() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    def f(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sum()

    x = TwoTensor(torch.randn(4), torch.randn(4))
    with pytest.warns(sh.FallbackWarning, match="TwoTensor.*subclass"):
        y = torch.compile(f, backend=sh.backend)(x)
    assert torch.allclose(y.a, x.a.sum() * 2)


def test_other_devices_are_refused() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sum()

    with pytest.warns(sh.FallbackWarning, match="meta"):
        y = torch.compile(f, backend=sh.backend)(torch.randn(4, device="meta"))
    assert y.device.type == "meta"


def test_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, not function.*torch\.compile"):
        sh.optimize(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="TorchScript"):
        sh.optimize(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="tuple"):
        sh.capture(nn.Linear(2, 2), torch.randn(1, 2))  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        sh.optimise  # noqa: B018


def test_capture_refuses_graph_breaks_with_the_line() -> None:
    def f(m: Net, x: Any) -> Any:
        h = x * m.w
        print("side effect")
        if h.sum() > 0:
            return h
        return h * 2

    with pytest.raises(sh.Unsupported, match=r"(?s)test_errors\.py"):
        sh.capture(Net(f), (randn(5, 8),))


def test_no_compiler_still_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from shorthaul import api
    from shorthaul.runtime import target
    from shorthaul.runtime.build import NoCompiler

    def missing(*_: Any, **__: Any) -> Any:
        raise NoCompiler

    monkeypatch.setattr(api, "load", lambda *_: None)
    monkeypatch.setattr(target, "compile_program", missing)
    m = sh.optimize(nn.Linear(8, 4))
    with pytest.warns(sh.FallbackWarning, match=r"(no C\+\+ compiler|compiler that CXX names)"):
        m(torch.randn(3, 8)).sum().backward()
    assert m.weight.grad is not None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left.*SHORTHAUL_CACHE_DIR"),
        (ValueError("odd"), "an error inside Shorthaul, please report it: ValueError: odd"),
    ],
)
def test_failed_compilation_still_trains(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    from shorthaul import api
    from shorthaul.runtime import target

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(api, "load", lambda *_: None)
    monkeypatch.setattr(target, "compile_program", fails)
    m = sh.optimize(nn.Linear(8, 4))
    with pytest.warns(sh.FallbackWarning, match=words):
        m(torch.randn(3, 8)).sum().backward()
    assert m.weight.grad is not None
    assert "runs in eager mode" in str(m.report())
    with pytest.raises(Exception, match=str(error)[-5:]):
        sh.optimize(nn.Linear(8, 4), strict=True)(torch.randn(3, 8))


def test_error_of_the_module_is_the_user_s_own() -> None:
    def f(m: Net, x: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(f, randn(5, 8))


def test_compiled_graph_checks_what_it_is_called_with() -> None:
    """Called past Dynamo's guards, a compiled graph refuses tensors whose addresses it must not take."""
    from shorthaul.frontends.dynamo import capture_graph

    gm, examples, inputs = capture_graph(Net(lambda m, x: (x * m.w).sum()), (randn(5, 8),))
    graph = sh.backend(gm, examples)
    assert torch.allclose(graph(*inputs)[0], (inputs[0] * inputs[1]).sum())
    at = next(i for i, t in enumerate(inputs) if t.shape == (5, 8))
    shape = r"shape \(4, 8\), compiled for torch.float64 and \(5, 8\)"
    for wrong, words in ((randn(4, 8), shape), (randn(5, 8).float(), "dtype torch.float32")):
        with pytest.raises(sh.CallError, match=words):
            graph(*inputs[:at], wrong, *inputs[at + 1 :])


def test_embedding_index_out_of_range_is_an_error_that_names_it() -> None:
    model = sh.optimize(torch.nn.Embedding(10, 4))
    assert model(torch.tensor([0, 9])).shape == (2, 4)
    for bad in (10, -1):
        with pytest.raises(IndexError, match=f"index {bad} .* out of range .* size 10"):
            model(torch.tensor([3, bad]))


@pytest.mark.parametrize(
    ("kind", "computed"), [("embedding", False), ("cross_entropy", True), ("gather", True), ("scatter_add", True)]
)
def test_an_index_out_of_range_is_an_error_wherever_it_comes_from(kind: str, computed: bool) -> None:
    """No kernel uses an address that is data unchecked, whether the index is an input or computed in the graph, and nothing is changed."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(10, 4))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, i: torch.Tensor) -> torch.Tensor:
            i = i * 2 - 3 if computed else i
            self.calls += 1
            if kind == "embedding":
                return torch.nn.functional.embedding(i, self.w)
            if kind == "cross_entropy":
                return torch.nn.functional.cross_entropy(self.w[: i.shape[0]], i, ignore_index=-7)
            if kind == "gather":
                return self.w.gather(0, i.unsqueeze(1))
            return torch.zeros(10, 4, dtype=self.w.dtype).scatter_add(0, i.unsqueeze(1).expand(-1, 4), self.w[: i.shape[0]])

    model = sh.optimize(Net(), strict=True)
    size = 4 if kind == "cross_entropy" else 10
    good, sign = torch.tensor([1, 3, 3, 1]), 2 if computed else 1
    inside = (good + 3) // 2 if computed else good
    model(inside).sum().backward()
    if kind == "cross_entropy":  # an ignored target need not be a class
        model(torch.tensor([-2 if computed else -7, *inside[1:]])).backward()
    calls = model.calls.clone()
    for bad in (size + 1, -3, 2**40 + 1):
        wrong = torch.tensor([*inside[:3], (bad + 3) // sign if computed else bad])
        with pytest.raises(IndexError, match=rf"index {bad} is out of range .* size {size}, at .*test_errors.py:\d+"):
            model(wrong)
    assert torch.equal(model.calls, calls), "a call that fails changes nothing"
    model(inside).sum().backward()


def test_an_index_into_nothing_is_an_error() -> None:
    model = sh.optimize(torch.nn.Embedding(0, 4))
    assert model(torch.zeros(0, dtype=torch.long)).shape == (0, 4)
    with pytest.raises(IndexError, match="out of range"):
        model(torch.tensor([0]))
