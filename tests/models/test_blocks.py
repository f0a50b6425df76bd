"""Blocks of layers at sizes that whole small networks do not have: where windows, lanes and images end unevenly."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shorthaul as sh
from shorthaul.testing import judge_training, sample


def separable(channels: int, kernel: int, stride: int) -> nn.Module:
    """A depthwise convolution between batch norms, as in an inverted residual."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.SiLU(),
        nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.SiLU(),
    )


def residual(channels: int, kernel: int, stride: int) -> nn.Module:
    """A convolution between batch norms, with ReLU and pooling."""
    return nn.Sequential(
        nn.Conv2d(channels, channels + 3, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels + 3),
        nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True),
    )


# channels, kernel, stride, height, width, batch
SHAPES = [
    (320, 5, 1, 4, 4, 3),  # the kernel is larger than the image
    (160, 5, 2, 8, 8, 2),
    (64, 3, 1, 5, 5, 3),
    (64, 5, 1, 2, 2, 3),
    (20, 3, 1, 4, 7, 2),
    (33, 3, 2, 9, 6, 2),
    (48, 5, 1, 14, 14, 2),
    (16, 3, 1, 31, 17, 1),
    (96, 3, 2, 15, 15, 2),
    (7, 7, 1, 12, 3, 2),
    (40, 5, 2, 17, 9, 1),
]


def mean_of_squares(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target[: output.numel()].view_as(output))


# Every shape of the separable block, whose windows are kernels of our own, and some of the rest.
ALWAYS = [(s, separable, torch.float32) for s in SHAPES]
REST = [(s, b, d) for s in SHAPES for b in (separable, residual) for d in (torch.float64, torch.float32)
        if (b, d) != (separable, torch.float32)]  # fmt: skip
CASES = [*ALWAYS, *sample(REST, 4)]


@pytest.mark.parametrize(("shape", "block", "dtype"), CASES,
                         ids=[f"{b.__name__}-{'-'.join(map(str, s))}-{str(d)[6:]}" for s, b, d in CASES])  # fmt: skip
def test_gradients_of_blocks(
    shape: tuple[int, ...], block: Callable[[int, int, int], nn.Module], dtype: torch.dtype
) -> None:
    channels, kernel, stride, height, width, count = shape

    def one_batch(seed: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, channels, height, width, generator=generator).requires_grad_()
        return [((x,), torch.randn(count * (channels + 3) * height * width, generator=generator))]

    verdict = judge_training(
        lambda: block(channels, kernel, stride),
        mean_of_squares,
        one_batch,
        dtype=dtype,
        seeds=(0,),
        title=f"{block.__name__} {shape}",
    )
    assert verdict.ok, verdict



def test_statistics_of_many_values_are_exact() -> None:
    """Means that are small beside the values, over long columns: plain float32 sums are wrong by the square root of their length."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 20, 1, bias=False), nn.BatchNorm2d(20, momentum=1.0))
    exact = copy.deepcopy(model).double()
    x = torch.randn(4, 4, 128, 128)
    sh.optimize(model, strict=True)(x)
    exact(x.double())
    deviation = exact[1].running_var.sqrt()
    error = (model[1].running_mean - exact[1].running_mean).abs() / deviation
    assert float(error.max()) < 2 * torch.finfo(torch.float32).eps
    assert torch.allclose(model[1].running_var.double(), exact[1].running_var, rtol=8 * torch.finfo(torch.float32).eps)
