"""Blocks of layers at sizes that whole small networks do not have: where windows, lanes and images end unevenly."""

from __future__ import annotations

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



@pytest.mark.parametrize(("count", "side"), [(1, 32), (4, 128)])  # one piece of work, and many
def test_statistics_of_many_values_far_from_zero(count: int, side: int) -> None:
    """The deviation is a hundredth of the mean: a difference of squares would lose four digits, long sums the root of their length."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.SiLU(), nn.BatchNorm2d(16, momentum=1.0))
    x = 20 + 0.2 * torch.randn(count, 16, side, side)  # SiLU is the identity there, to the bit
    sh.optimize(model, strict=True)(x)
    exact = x.double().transpose(0, 1).flatten(1)
    eps = torch.finfo(torch.float32).eps
    assert torch.allclose(model[1].running_mean.double(), exact.mean(1), rtol=2 * eps)
    assert torch.allclose(model[1].running_var.double(), exact.var(1), rtol=32 * eps)
