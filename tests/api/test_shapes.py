"""Sizes that change between calls: at most one recompilation a dimension, then the program is symbolic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from api_compare import Pair, gradients, loss
from test_calls import Net, randn
from torch import nn


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4), nn.Softmax(-1))


def test_batch_size_changes(caplog: pytest.LogCaptureFixture) -> None:
    p = Pair(mlp())
    with caplog.at_level("INFO", logger="shorthaul"):
        for n in (6, 6, 3, 9, 4, 17, 6):
            p.step(randn(n, 8, grad=True))
    assert len(p.regions) == 2
    assert "size mismatch" in p.regions[1].reason
    (message,) = [r.getMessage() for r in caplog.records if r.name == "shorthaul"]
    assert message.startswith("region 1 of Sequential is a recompilation: ") and "size mismatch" in message


def test_two_dimensions_change() -> None:
    def f(m: Net, x: Any) -> Any:
        h = (x * m.w).tanh() @ m.v
        return h.softmax(1).sum(-1), h.transpose(1, 2).reshape(x.shape[0], -1)

    p = Pair(Net(f))
    for b, t in ((2, 5), (3, 5), (4, 5), (3, 6), (3, 7), (7, 4), (2, 5)):
        p.step(randn(b, t, 8, grad=True))
    assert len(p.regions) <= 3


def test_sizes_zero_and_one_may_be_compiled_again() -> None:
    p = Pair(mlp())
    for n in (6, 3, 1, 0, 5, 1, 8):
        p.step(randn(n, 8, grad=True))
    assert len(p.regions) <= 4


def test_several_sizes_in_flight() -> None:
    """Forward runs of different sizes wait for their backward runs at the same time."""
    p = Pair(mlp())
    p.step(randn(3, 8))

    def run(m: nn.Module) -> Any:
        outputs = [m(randn(n, 8)) for n in (5, 2, 7, 5, 11)]
        for y in reversed(outputs):
            loss(y).backward()
        return outputs

    p.both(run)


def test_marked_dynamic_from_the_start() -> None:
    p = Pair(mlp())

    def marked(m: nn.Module) -> Any:
        x = randn(6, 8)
        torch._dynamo.mark_dynamic(x, 0)
        return m(x)

    p.both(marked)
    for n in (4, 9, 12):
        p.step(randn(n, 8))
    assert len(p.regions) == 1


def test_size_arithmetic() -> None:
    def f(m: Net, x: Any) -> Any:
        n = x.shape[0]
        h = (x * m.w).reshape(n // 2, 2 * 8)
        pieces = torch.cat([h, h * 2]).reshape(-1, 8)
        return pieces.mean(), x[: n // 2].sum(0) / n, n * 3

    p = Pair(Net(f))
    for n in (4, 6, 8, 10):
        p.step(randn(n, 8, grad=True))
    assert len(p.regions) <= 2


def test_sizes_as_integer_arguments() -> None:
    def f(m: Net, x: Any, k: int) -> Any:
        return (x[:k] * m.w).tanh().sum() * k

    p = Pair(Net(f))
    for k in (2, 3, 4, 5):
        p.step(randn(6, 8, grad=True), k)
    assert len(p.regions) <= 3


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_floats_that_change(scale: float) -> None:
    def f(m: Net, x: Any, a: float) -> Any:
        return (x * m.w * a).sin()

    p = Pair(Net(f))
    for k in range(4):
        p.step(randn(6, 8, grad=True), scale + k)
    assert len(p.regions) <= 3


def test_layout_changes() -> None:
    """A transposed batch after a contiguous one is right, compiled again or not."""
    p = Pair(mlp())
    for x in (randn(6, 8), randn(8, 6).t(), randn(6, 16)[:, 4:12], randn(4, 8), randn(8, 5).t()):
        p.both(lambda m, x=x: loss(m(x)).backward())
        p.both(lambda m: m.zero_grad())
    assert any(g is None for g in gradients(p.ours).values())
