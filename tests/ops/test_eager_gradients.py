"""Gradients that follow eager PyTorch where mathematics leaves a choice, and of 16-bit floats."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(f: Callable[..., Any], *values: torch.Tensor) -> list[torch.Tensor | None]:
    points = [v.detach().clone().requires_grad_() if v.is_floating_point() else v for v in values]
    y = f(*points)
    y.backward(torch.linspace(0.5, 1.5, y.numel()).to(y.dtype).reshape(y.shape))
    return [p.grad for p in points]


LOSSES: dict[str, Callable[..., Any]] = {
    "mse": F.mse_loss,
    "smooth l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "soft margin": lambda x, t: F.soft_margin_loss(x, t.detach().sign()) + t.sum() * 0,
    "cross entropy of bits": lambda x, t: F.binary_cross_entropy_with_logits(x, t.sigmoid()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_16_bit_floats_have_gradients_of_their_own(name: str) -> None:
    x, t = torch.randn(6, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 6)
    exact = gradients(LOSSES[name], x.to(BF16).double(), t.to(BF16).double())
    eager = gradients(LOSSES[name], x.to(BF16), t.to(BF16))
    ours = gradients(torch.compile(LOSSES[name], backend="shorthaul"), x.to(BF16), t.to(BF16))  # a fallback would be an error
    for a, e, r in zip(ours, eager, exact, strict=True):
        assert a is not None and e is not None and r is not None and a.dtype is BF16
        assert (a.double() - r).abs().max() <= max(1.5 * (e.double() - r).abs().max().item(), 2**-8 * r.abs().max().item())


def test_clamp_between_tensors_at_ties() -> None:
    """All orders and ties of x and the bounds; equal bounds get no gradient, as in PyTorch."""
    x, low, high = torch.tensor(list(itertools.product([0.0, 1.0, 2.0], repeat=3))).unbind(1)
    compiled = gradients(torch.compile(torch.clamp, backend="shorthaul"), x, low, high)
    for ours, eager in zip(compiled, gradients(torch.clamp, x, low, high), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0)


def test_gradient_of_logcumsumexp_of_large_16_bit_floats() -> None:
    """Results of ten thousand are rounded to multiples of 64: the gradient comes from sums that are not."""
    x = torch.full((5,), 9984.0, dtype=BF16)
    f = lambda v: torch.logcumsumexp(v, 0).sum()  # noqa: E731
    (ours,) = gradients(torch.compile(f, backend="shorthaul"), x)
    (exact,) = gradients(f, x.double())
    assert ours is not None
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=0)
