"""Layout reorders inside convolutions by library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shorthaul as sh
from shorthaul.analysis.movement import Movement


def moved(module: nn.Module, x: torch.Tensor, level: int) -> Movement:
    program = sh.capture(module, (x,), train=True)
    program.optimize(level=level)
    return program.movement()


def reorders(m: Movement) -> int:
    return sum(x.bytes for x in m.moved if x.container == "reorder")


def test_images_with_channels_outermost_are_reordered_in_every_call() -> None:
    """Forward: x (y is the caller's, in his layout); gradient by the weight: x and the incoming gradient. x needs no gradient."""
    found = moved(nn.Conv2d(16, 32, 3, padding=1, bias=False), torch.randn(2, 16, 10, 10), 2)
    x, y = 2 * 16 * 100 * 4, 2 * 32 * 100 * 4
    assert reorders(found) == 2 * x + 2 * (x + y)


def test_results_that_stay_inside_are_reordered_too() -> None:
    net = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.ReLU())
    x, y = 2 * 16 * 100 * 4, 2 * 32 * 100 * 4
    assert reorders(moved(net, torch.randn(2, 16, 10, 10), 2)) == 2 * (x + y) + 2 * (x + y)


@pytest.mark.parametrize("channels", [3, 4])
def test_images_of_few_channels_are_read_as_they_are(channels: int) -> None:
    found = moved(nn.Conv2d(channels, 32, 3, padding=1, bias=False), torch.randn(2, channels, 10, 10), 2)
    assert reorders(found) == 2 * (2 * 32 * 100 * 4)


def test_channels_last_needs_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 64, 4))
    assert reorders(moved(net, torch.randn(2, 3, 10, 10), 3)) == 0


def test_other_types_take_kernels_for_any_layout() -> None:
    net = nn.Conv2d(16, 32, 3).double()
    assert reorders(moved(net, torch.randn(2, 16, 10, 10, dtype=torch.float64), 2)) == 0


def test_a_single_position_has_both_layouts() -> None:
    assert reorders(moved(nn.Conv2d(16, 32, 1), torch.randn(2, 16, 1, 1), 2)) == 0
