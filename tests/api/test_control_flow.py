"""`torch.cond`, `torch.while_loop`, `scan` and `map` inside optimized modules, forward and backward, as in eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from api_compare import Pair, loss
from test_calls import Net, randn
from torch._higher_order_ops.map import map as over_slices
from torch._higher_order_ops.scan import scan

import shorthaul as sh
from shorthaul.ir.nodes import Branch, Loop
from shorthaul.testing import sample

FLOAT = torch.float64


def branch(m: Net, x: torch.Tensor) -> Any:
    """Parameters of one side only, of both, and of neither."""
    y = x * m.w
    a, b = torch.cond(y.sum() > 0, lambda y: (y @ m.v, y + 1), lambda y: ((y * m.w).tanh() @ m.v * 2, y.softmax(-1)), (y,))
    return a * 2, b, y


def nested(m: Net, x: torch.Tensor) -> Any:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x[0, 0] > 0.2, lambda x: x * m.w, lambda x: (x @ m.v).sum(-1, keepdim=True) * m.w, (x,))

    return torch.cond(x.sum() > 0, inner, lambda x: x.exp() * 2, (x,))


def recurrent(m: Net, x: torch.Tensor) -> Any:
    return scan(lambda h, x: ((h * m.w + x).tanh(), (h * x) @ m.v), x[0] * 2, x)


def backwards(m: Net, x: torch.Tensor) -> Any:
    last, (a, b) = scan(lambda h, x: ((h[0] + x, h[1] * m.w), (h[0] * h[1], x.sin())), (m.w * 1, m.w * x[0]), x, reverse=True)
    return last, a, b


def sliced(m: Net, x: torch.Tensor) -> Any:
    return over_slices(lambda x, w: (x * w).softmax(-1) @ m.v, x, m.w)


def counted(m: Net, x: torch.Tensor) -> Any:
    return torch.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, (x * m.w).tanh() * (i + 1)), (torch.tensor(0), x))


def until(m: Net, x: torch.Tensor) -> Any:
    """The number of iterations depends on data, and is zero for some."""
    return torch.while_loop(lambda x, n: x.square().sum() < 90, lambda x, n: (x * 1.5 + m.w.square() * 0.1, n + 1), (x, torch.tensor(0)))


def of_each(m: Net, x: torch.Tensor) -> Any:
    """A branch inside a loop."""

    def step(h: torch.Tensor, x: torch.Tensor) -> Any:
        y = torch.cond(x.sum() > 0, lambda x: (x @ m.v).sum() * m.w, lambda x: x * m.w, (x,))
        return h + y, y * h

    return scan(step, torch.zeros(8, dtype=FLOAT), x)


def inputs() -> list[torch.Tensor]:
    return [randn(5, 8, grad=True), (-randn(5, 8)).detach().requires_grad_(), (randn(5, 8) * 0.1).detach().requires_grad_()]


@pytest.mark.parametrize("f", sample([branch, nested, recurrent, backwards, sliced, counted, until, of_each], 5))
def test_trains_as_in_eager_mode(f: Callable[..., Any]) -> None:
    if f is of_each and torch.__version__ < "2.13":
        pytest.skip("before 2.13 PyTorch's own gradient of a branch in a scan is wrong, so there is nothing to compare with")
    m = Net(f)
    p = Pair(m)
    for x in inputs():
        for k in (p.eager, p.ours):
            k.zero_grad()
            for q in k.parameters():
                q.grad = torch.zeros_like(q)  # eager mode gives a parameter of the other side zeros or nothing
        p.step(x)
    (region,) = p.regions
    assert not region.graph_break and not region.fallbacks
    assert any(isinstance(n, (Branch, Loop)) for n in region.program.nodes)


def test_symbolic_sizes_go_into_bodies() -> None:
    p = Pair(Net(recurrent))
    for n in (5, 3, 9, 4):
        p.step(randn(n, 8, grad=True))
    assert len(p.regions) == 2
    p = Pair(Net(branch))
    for n in (5, 3, 9):
        p.step(randn(n, 8, grad=True))
    assert len(p.regions) == 2


def test_evaluation_and_no_grad() -> None:
    p = Pair(Net(until))

    def run(m: Any) -> Any:
        with torch.no_grad():
            return m(inputs()[2])

    p.both(run)
    assert not any(n.phase == "backward" for n in p.regions[0].program.nodes)


def test_sizes_that_depend_on_data_inside_a_branch() -> None:
    def f(m: Net, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: (x * m.w)[x > 0.5].sum(), lambda x: (x * m.w).sum(), (x,))

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        p = Pair(Net(f))
        for x in inputs():
            p.step(x)
    assert not p.regions[0].graph_break


def test_dropout_in_bodies_has_one_mask_forward_and_backward() -> None:
    def f(m: Net, x: torch.Tensor) -> Any:
        drop = torch.nn.functional.dropout
        ones = torch.cond(x.sum() > 0, lambda x: drop(x * m.w, 0.5), lambda x: x * m.w, (x,))
        _, each = scan(lambda h, x: (h + x, drop(x * m.w, 0.5)), torch.zeros(8, dtype=FLOAT), x)
        return ones, each

    m = sh.optimize(Net(f))
    x = torch.ones(64, 8, dtype=FLOAT, requires_grad=True)
    for y in m(x):
        (g,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        kept = y != 0
        torch.testing.assert_close(g, torch.where(kept, 2 * m.w.detach(), 0.0))
        assert 0.35 < kept.double().mean() < 0.65
        assert len({tuple(row.tolist()) for row in kept}) > 30  # iterations draw different numbers


def test_checkpointed_and_retained() -> None:
    def f(m: Net, x: torch.Tensor) -> Any:
        def block(x: torch.Tensor) -> torch.Tensor:
            y = torch.cond(x.sum() > 0, lambda x: x * m.w, lambda x: x.tanh(), (x,))
            return scan(lambda h, x: ((h + x).tanh(), h * x), x[0] * 1, y)[1]

        # eager mode cannot have control flow inside a checkpoint region
        return torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if m.checkpoint else block(x)

    p = Pair(Net(f))
    p.eager.checkpoint, p.ours.checkpoint = False, True

    def run(m: Any) -> Any:
        x = inputs()[0]
        y = m(x)
        loss(y).backward(retain_graph=True)
        loss(y).backward()
        return y, x.grad

    p.both(run)


def test_the_program_shows_bodies_and_counts_their_movement() -> None:
    program = sh.capture(Net(recurrent), (randn(5, 8, grad=True),))
    text = str(program)
    assert "loop 5 times (" in text and "loop 5 times in reverse (" in text and "cotangent_of_result0 <- gradient_of_x0" in text
    program.optimize(check=True)
    moved = program.movement()
    assert moved.bytes > 0 and moved.eager_bytes > 0
    longer = sh.capture(Net(recurrent), (randn(10, 8, grad=True),))
    longer.optimize()
    assert 1.8 < longer.movement().bytes / moved.bytes < 2.2


def test_report_counts_what_is_in_bodies() -> None:
    m = sh.optimize(Net(branch))
    m(randn(5, 8)).__getitem__(0).sum().backward()
    (region,) = m.report().regions
    assert region.operators["branch"] == 1
    inside = sum(1 for n in region.program.nodes if isinstance(n, Branch) for b in n.bodies for _ in b.nodes)
    assert inside and len(region.kernels) + sum(region.library_calls.values()) >= inside
    assert "branch 1" in str(m.report())


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda m, x: torch.cond(x.sum() > 0, lambda x: x * m.w, lambda x: (x * m.w)[:2], (x,)), "shape"),
        (lambda m, x: torch.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * m.w), (0, x)), "carr"),
    ],
)
def test_what_bodies_must_not_do_is_refused_or_left_to_eager_mode(f: Callable[..., Any], words: str) -> None:
    with pytest.raises(sh.Unsupported, match=rf"(?s){words}.*test_control_flow.py"):
        sh.capture(Net(f), (randn(5, 8),))
