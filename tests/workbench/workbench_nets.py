"""A stack of equal blocks as a program, for the tests of what is done by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import shorthaul as sh
from shorthaul.demo.network import InvertedResidual


class Block(nn.Module):
    """Norm, linear layer, activation, residual: something for every fusion."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.silu(self.linear(self.norm(x))) * torch.sigmoid(x)


def stack(blocks: int = 3, width: int = 8, rows: int = 4) -> Any:
    """The program of a training step of `blocks` equal blocks."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(width) for _ in range(blocks)])
    return sh.capture(model, (torch.randn(rows, width, requires_grad=True),), train=True)


def residuals() -> Any:
    """The program of a training step of two inverted residuals with squeeze-excite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), *[InvertedResidual(8, 8) for _ in range(2)])
    return sh.capture(model, (torch.randn(2, 1, 12, 12),), train=True)
