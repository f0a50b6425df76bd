"""What pooling by maximum saves for its gradient: the narrowest integers that say which element it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shorthaul as sh
from shorthaul.analysis.liveness import liveness

POOLS = {
    "windows": (nn.MaxPool2d(3, 2, 1), 32, "uint8"),
    "large windows": (nn.MaxPool2d(16), 32, "int32"),
    "parts of a small image": (nn.AdaptiveMaxPool2d(5), 16, "uint8"),
    "parts of an image": (nn.AdaptiveMaxPool2d((3, 7)), 40, "int16"),
    "parts of a large image": (nn.AdaptiveMaxPool2d(2), 200, "int32"),
    "spread windows": (nn.FractionalMaxPool2d(2, output_size=5), 17, "int16"),
}


@pytest.mark.parametrize("name", POOLS)
def test_positions_of_maxima_take_few_bytes(name: str) -> None:
    pool, size, dtype = POOLS[name]
    x = torch.randn(2, 3, size, size, requires_grad=True)
    model = nn.Sequential(nn.Tanh(), pool)
    p = sh.capture(model, (x,), train=True).optimize()
    saved = {str(p.containers[n].dtype) for n, _ in liveness(p).saved if not p.containers[n].dtype.is_float}
    assert dtype in saved and "int64" not in saved


@pytest.mark.parametrize("name", [n for n in POOLS if n != "spread windows"])  # which draws
def test_the_gradient_finds_them_again(name: str) -> None:
    pool, size, _ = POOLS[name]
    grads = []
    torch.manual_seed(0)
    data = torch.randn(2, 3, size, size)
    for model in (nn.Sequential(nn.Tanh(), pool), sh.optimize(nn.Sequential(nn.Tanh(), pool), strict=True)):
        x = data.clone().requires_grad_()
        (model(x) ** 2).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_indices_for_the_caller_stay_what_pytorch_returns() -> None:
    pool = nn.AdaptiveMaxPool2d(4, return_indices=True)
    x = torch.randn(2, 3, 16, 16)
    (y, i), (found, j) = pool(x), sh.optimize(nn.AdaptiveMaxPool2d(4, return_indices=True), strict=True)(x)
    assert j.dtype is torch.int64 and torch.equal(i, j) and torch.equal(y, found)
