"""Sizes that depend on data: captured whole where PyTorch is told to, by graph breaks otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from api_compare import Pair
from test_calls import Net, randn

import benchmarks.networks as networks
import shorthaul as sh
from shorthaul.runtime.executable import SizeError
from shorthaul.testing import sample

WHOLE = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}


@pytest.fixture
def whole() -> Iterator[None]:
    with torch._dynamo.config.patch(**WHOLE):
        yield


def some() -> torch.Tensor:
    return randn(5, 8, grad=True)


def inputs() -> list[torch.Tensor]:
    """Some, all, none and one of the elements positive."""
    x = some().detach()
    one = -x.abs()
    one[3, 2] = 0.7
    return [t.requires_grad_() for t in (x, x.abs(), -x.abs(), one)]


def masked(m: Net, x: torch.Tensor) -> Any:
    h = (x * m.w)[x > 0].tanh()
    return h, h.sum(), h.shape[0] * 2


def positions(m: Net, x: torch.Tensor) -> Any:
    return torch.nonzero(x > 0) * 2, torch.masked_select(x * m.w, x > 0.5), torch.where(x[:, 2] > 0)


def rows(m: Net, x: torch.Tensor) -> Any:
    """What a mixture of experts does: rows go different ways and come back."""
    left, right = x[x[:, 2] > 0], x[x[:, 2] <= 0]
    h = torch.cat([(left @ m.v).softmax(-1), (right * 2) @ m.v + 1])
    return h, h.sum(0), left.t() @ left


def counted(m: Net, x: torch.Tensor) -> Any:
    n = (x > 0).sum().item()
    return (x * m.w).flatten()[:n].exp(), (x * m.w).flatten()[n:].sum(), torch.full((n, 2), 3.0, dtype=x.dtype) * m.w.sum()


def split(m: Net, x: torch.Tensor) -> Any:
    n = (x > 0).sum().item()
    a, b = (x * m.w).flatten().split([n, 40 - n])
    return a.cumsum(0), b * n


def repeated(m: Net, x: torch.Tensor) -> Any:
    return torch.repeat_interleave(x * m.w, (x[:, 2] > 0).long() * 2, dim=0).sin()


def nested(m: Net, x: torch.Tensor) -> Any:
    """A size that depends on a size that depends on data."""
    h = (x * m.w)[x > 0]
    return h[h > 0.1] * 2, h.reshape(-1, 1) * m.w


@pytest.mark.parametrize("f", sample([masked, positions, rows, counted, split, repeated, nested], 5))
def test_captured_whole(whole: None, f: Callable[..., Any]) -> None:
    p = Pair(Net(f))
    for x in inputs():
        p.step(x, equal_nan=True)
    (region,) = p.regions
    assert not region.graph_break and not region.fallbacks


def test_several_counts_in_flight(whole: None) -> None:
    p = Pair(Net(rows))

    def run(m: Any) -> Any:
        outputs = [m(x) for x in inputs()]
        for y in reversed(outputs):
            sum(t.square().sum() for t in y).backward()
        return outputs

    p.both(run)


def test_a_symbolic_batch_and_counts(whole: None) -> None:
    p = Pair(Net(rows))
    for n in (5, 7, 3, 12):
        p.step(randn(n, 8, grad=True))
    assert len(p.regions) == 2


def test_what_a_check_says_is_checked(whole: None) -> None:
    def f(m: Net, x: torch.Tensor) -> Any:
        n = (x > 0).sum().item()
        torch._check(n <= 3)
        k = (x > 1).sum().item()
        torch._check(n + k <= 4)
        return torch.zeros(n, dtype=x.dtype) + m.w.sum(), torch.ones(k, dtype=x.dtype)

    p = Pair(Net(f))
    few = -torch.ones(5, 8, dtype=torch.float64)
    few[0, :2] = 2.0
    p.step(few)
    with pytest.raises(SizeError, match=r"the size u\d+ = 40 is not between .* and 3, computed by .*item.*test_runtime_sizes.py:\d+"):
        p.ours(some().detach().abs() + 0.1)
    few[0, :3] = 2.0
    with pytest.raises(SizeError, match=r"(?s)<= 4.*test_runtime_sizes.py:\d+"):
        p.ours(few)
    few[0, 2] = 0.5
    with pytest.raises(SizeError):
        p.ours(few)


def test_an_index_that_is_data_is_checked(whole: None) -> None:
    def f(m: Net, x: torch.Tensor, at: torch.Tensor) -> Any:
        i = (x > 0).sum() - 40 + at
        return (x * m.w).flatten()[i.item()], x[x > 0][at.reshape(1)]

    p = Pair(Net(f))
    for i in (0, 7, -1, -8):
        p.step(some().detach().abs(), torch.tensor(i))
    with pytest.raises(SizeError, match=r"out of range for dimension 0, which has size 40, at .*test_runtime_sizes.py"):
        p.ours(some().detach().abs(), torch.tensor(40))


def test_an_integer_tensor_that_is_given_is_a_size() -> None:
    """PyTorch reads it while it traces, without a graph break, and does not compile again for another value."""

    def f(m: Net, x: torch.Tensor, at: torch.Tensor) -> Any:
        return torch.narrow(x * m.w, 1, at, 3) * 2

    p = Pair(Net(f))
    for start in (2, 3, 5, 2):
        p.step(some(), torch.tensor(start))


def test_an_operator_without_an_entry_defines_its_size(whole: None) -> None:
    def f(m: Net, x: torch.Tensor) -> Any:
        values, inverse = torch.unique((x > 0).long(), return_inverse=True)
        return values * m.w.sum(), inverse

    p = Pair(Net(f), strict=False)
    for x in inputs():
        p.step(x.detach())
    assert len(p.regions) == 1


def test_routing_to_experts_by_graph_breaks() -> None:
    """Without being told, Dynamo ends a graph at every size that depends on data: right, and in the report with line and reason."""
    torch.manual_seed(0)
    p = Pair(networks.network("mixture_of_experts", small=True).module)
    for n in (24, 24, 17):
        p.step(randn(n, 12))
    assert len(p.regions) > 1
    text = str(p.ours.report())
    assert "parameters that no compiled region takes" in text and "Operator `aten.nonzero.default`'s output shape depends" in text


def test_routing_to_experts_whole(whole: None) -> None:
    torch.manual_seed(0)
    p = Pair(networks.network("mixture_of_experts", small=True).module, strict=False)
    for n in (24, 24, 17, 5):
        p.step(randn(n, 12))
    assert len(p.regions) == 2 and not any(r.graph_break for r in p.regions)


def test_the_program_says_what_defines_a_size(whole: None) -> None:
    program = sh.capture(Net(masked), (some(),))
    text = str(program)
    assert "nonzero(x: gt_scalar, count=u" in text and " = y.size(0)" in text
    program.optimize(check=True)
    assert program.movement().at().bytes > 0


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_number_read_from_a_tensor_has_no_gradient(whole: None, shape: tuple[int, ...]) -> None:
    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x * w.item()).sum() + torch.full_like(x, w.item()).sum()

    found = []
    for g in (f, torch.compile(f, backend="shorthaul")):
        x, w = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
        y = g(x, w)
        y.backward()
        found.append((y.detach(), x.grad))
        assert w.grad is None
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
