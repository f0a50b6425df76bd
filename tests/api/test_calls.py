"""How an optimized module may be called, and what it may return."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from api_compare import Pair, assert_same, loss
from torch import nn

import shorthaul as sh


def randn(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


class Net(nn.Module):
    """A function with parameters `w` (vector of 8) and `v` (8 by 4)."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(8, generator=g, dtype=torch.float64))
        self.v = nn.Parameter(torch.randn(8, 4, generator=g, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        self.function = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def test_returns_the_same_object() -> None:
    m = nn.Linear(4, 4)
    parameters = list(m.parameters())
    assert sh.optimize(m) is m
    assert all(p is q for p, q in zip(m.parameters(), parameters, strict=True))
    assert type(m) is nn.Linear


def test_torch_compile_backend() -> None:
    m = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = randn(5, 8)
    expected = m(x)
    expected.square().sum().backward()
    gradients = [p.grad for p in m.parameters()]
    m.zero_grad()
    compiled = torch.compile(m, backend="shorthaul")
    actual = compiled(x)
    actual.square().sum().backward()
    assert_same(actual, expected)
    assert_same([p.grad for p in m.parameters()], gradients)


def test_torch_compile_of_a_function() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x * y).tanh().sum(-1)

    x, y = randn(6, 8, grad=True), randn(8, grad=True)
    expected = f(x, y)
    expected_gradients = torch.autograd.grad(expected.sum(), (x, y))
    actual = torch.compile(f, backend=sh.backend)(x, y)
    assert_same(actual, expected)
    assert_same(torch.autograd.grad(actual.sum(), (x, y)), expected_gradients)


def test_keyword_arguments_and_defaults() -> None:
    def f(m: Net, x: Any, *, scale: Any = None, shift: float = 0.5, flag: bool = False) -> Any:
        y = (x * m.w + shift) @ m.v
        if scale is not None:
            y = y * scale
        return y.tanh() if flag else y

    p = Pair(Net(f))
    p.step(randn(5, 8))
    p.step(randn(5, 8), shift=2.0)
    p.step(randn(5, 8), scale=randn(4, grad=True), flag=True)
    p.step(x=randn(5, 8), flag=True)


def test_integer_and_bool_inputs() -> None:
    def f(m: Net, x: Any, mask: Any, index: Any, n: Any) -> Any:
        y = torch.where(mask, x * m.w, x) + index.to(x.dtype)
        return y * n, mask & (index > 2), index + 1

    p = Pair(Net(f))
    index = torch.arange(40).reshape(5, 8)
    p.step(randn(5, 8, grad=True), randn(5, 8) > 0, index, torch.tensor(3))
    p.step(randn(5, 8, grad=True), randn(5, 8) > 0, index.int(), 2)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    features: list[torch.Tensor]


def test_outputs_in_dictionaries_and_tuples() -> None:
    def f(m: Net, x: Any) -> Any:
        h = (x * m.w).tanh()
        return {"h": h, "more": [h @ m.v, {"n": x.shape[0], "none": None}], "pair": (h.sum(), h.detach())}

    Pair(Net(f)).step(randn(5, 8, grad=True))


def test_outputs_in_a_dataclass() -> None:
    def f(m: Net, x: Any) -> Any:
        h = (x * m.w).tanh()
        return Output(h @ m.v, [h, h.sum(0)])

    p = Pair(Net(f))

    def step(m: nn.Module) -> Any:
        out = m(randn(5, 8))
        assert type(out) is Output
        loss(out).backward()
        return [out.logits, *out.features]

    p.both(step)


def test_outputs_that_are_views_of_each_other() -> None:
    def f(m: Net, x: Any) -> Any:
        y = x * m.w
        return y, y[1:], y.view(-1), y.t()

    p = Pair(Net(f))
    p.step(randn(5, 8, grad=True))
    with torch.no_grad():
        y, tail, flat, transposed = p.ours(randn(5, 8))
        assert tail.data_ptr() == y[1:].data_ptr() and flat._base is y and transposed.data_ptr() == y.data_ptr()


def test_outputs_that_are_inputs_and_their_views() -> None:
    def f(m: Net, x: Any) -> Any:
        return x, x.t(), (x * m.w).sum(), x

    p = Pair(Net(f))
    p.step(randn(5, 8, grad=True))
    x = randn(5, 8)
    same, view, _, again = p.ours(x)
    assert same is x and again is x and view._base is x


def test_same_tensor_returned_twice() -> None:
    def f(m: Net, x: Any) -> Any:
        y = x * m.w
        return y, y

    p = Pair(Net(f))
    p.step(randn(5, 8))
    first, second = p.ours(randn(5, 8))
    assert first is second


def test_same_tensor_passed_twice() -> None:
    def f(m: Net, x: Any, y: Any) -> Any:
        return (x * m.w + y.sin()).sum(-1)

    p = Pair(Net(f))
    x = randn(5, 8)
    for inputs in ((x, x), (x, x.clone()), (x, x)):
        p.both(lambda m, inputs=inputs: loss(m(*inputs)).backward())
        p.both(lambda m: m.zero_grad())


def test_input_is_mutated() -> None:
    def f(m: Net, x: Any, state: Any) -> Any:
        y = (x * m.w + state).tanh()
        state.mul_(0.9).add_(y.detach().sum(0))
        return y

    p = Pair(Net(f))

    def step(m: nn.Module) -> Any:
        state = randn(8)
        first = m(randn(5, 8), state)
        kept = state.clone()
        second = m(randn(5, 8), state)
        loss((first, second)).backward()
        return first, second, kept, state

    p.both(step)


def test_input_is_mutated_through_a_view() -> None:
    def f(m: Net, x: Any, state: Any) -> Any:
        state[1:3] = x.detach().sum(0)
        state.t()[0].add_(1.0)
        return (x * m.w * state.sum(0)).sum(-1)

    p = Pair(Net(f), strict=False)

    def step(m: nn.Module) -> Any:
        state = randn(4, 8)
        y = m(randn(5, 8), state)
        loss(y).backward()
        return y, state

    p.both(step)


def test_buffers_are_updated() -> None:
    def f(m: Net, x: Any) -> Any:
        m.count += 1
        m.mean.lerp_(x.detach().mean(0), 0.1)
        return (x - m.mean) * m.w

    p = Pair(Net(f))
    for _ in range(3):
        p.step(randn(5, 8))
    assert int(p.ours.count) == 3
    assert p.ours.count is dict(p.ours.named_buffers())["count"]


def test_buffer_read_by_the_backward_phase_and_written() -> None:
    """The backward phase needs the value from before the write."""

    def f(m: Net, x: Any) -> Any:
        y = (x * m.w * m.mean.clone()).sum(-1)
        m.mean.add_(1.0)
        return y

    Pair(Net(f)).step(randn(5, 8, grad=True))


def test_graph_breaks() -> None:
    seen = []

    def f(m: Net, x: Any) -> Any:
        h = (x * m.w).tanh()
        torch._dynamo.graph_break()
        seen.append(float(h.detach().sum()))
        h = h @ m.v
        if h.sum() > 0:
            return h * 2
        return h * 3

    p = Pair(Net(f))
    p.step(randn(5, 8, grad=True))
    p.step(-randn(5, 8), )
    assert len(p.regions) >= 3
    assert not any(r.fallback for r in p.regions)
    assert len(seen) == 4


def test_submodule_left_to_eager() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(randn(8))

        def forward(self, x: Any) -> Any:
            assert not torch.compiler.is_compiling()
            return x * self.w

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner, self.after = nn.Linear(8, 8), sh.disable(Inner()), nn.Linear(8, 4)

        def forward(self, x: Any) -> Any:
            return self.after(self.inner(self.before(x).tanh()).tanh())

    torch.manual_seed(0)
    p = Pair(Outer())
    p.step(randn(5, 8))
    assert len(p.regions) == 2


def test_train_and_eval() -> None:
    def f(m: Net, x: Any) -> Any:
        return ((x * m.w).tanh() if m.training else x + m.w) @ m.v

    p = Pair(Net(f))
    for mode in (True, False, True, False):
        p.eager.train(mode)
        p.ours.train(mode)
        p.step(randn(5, 8))
    assert len(p.regions) == 2


def test_optimizing_again_and_other_levels() -> None:
    def f(m: Net, x: Any) -> Any:
        return ((x * m.w).tanh() @ m.v).softmax(-1)

    for level in range(5):
        p = Pair(Net(f), level=level)
        p.step(randn(5, 8, grad=True))
        assert len(p.regions) == 1
        sh.optimize(p.ours, level=4)
        assert not p.regions
        p.step(randn(5, 8, grad=True))
    with pytest.raises(ValueError, match="level is 0, 1, 2, 3 or 4, not 7"):
        sh.optimize(nn.Linear(2, 2), level=7)


def test_captured_constants() -> None:
    table = torch.arange(8, dtype=torch.float64)

    def f(m: Net, x: Any) -> Any:
        constant = torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64)
        return (x * m.w + table) @ m.v + constant, constant * 2

    Pair(Net(f)).step(randn(5, 8))


def test_empty_tensors() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w).tanh() @ m.v, x.sum()

    p = Pair(Net(f))
    p.step(randn(0, 8, grad=True))
    p.step(randn(3, 8, grad=True))


def test_strided_inputs() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w).tanh()

    p = Pair(Net(f))
    p.step(randn(8, 5).t())
    p.step(randn(5, 16)[:, ::2])
    p.step(randn(1, 8).expand(5, 8))
    p.step(randn(5, 8))


def test_output_strides_are_those_of_eager() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w).t().contiguous().t(), x.t() * 2

    p = Pair(Net(f))
    x = randn(5, 8)
    for a, b in zip(p.ours(x), p.eager(x), strict=True):
        assert a.stride() == b.stride()


def test_nan_and_infinity_come_out_as_in_eager() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w).log(), (x / x).sum(0), x.sqrt(), (x * 1e308 * 1e10).softmax(-1), x.clamp(0, 1), x.relu()

    x = torch.tensor([[0.0, -1.0, float("nan"), float("inf"), 1.0, -0.0, 2.0, float("-inf")]] * 3, dtype=torch.float64)
    Pair(Net(f)).step(x.requires_grad_(), equal_nan=True)


def test_module_without_parameters_and_function_without_tensors() -> None:
    class Square(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * x

    Pair(Square()).step(randn(3, grad=True))


def test_nested_modules_are_optimized_once() -> None:
    inner = sh.optimize(nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double())
    outer = nn.Sequential(inner, nn.Linear(8, 4)).double()
    x = randn(3, 8)
    y = outer(x)
    sh.optimize(outer)
    assert_same(outer(x), y)
    assert len(outer.report().regions) == 1
