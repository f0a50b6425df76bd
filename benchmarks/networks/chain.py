"""A chain that only moves data: tanh·sigmoid, layer norm, softmax. What fusion can win shows here undiluted."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Chain(nn.Module):
    """tanh(x)·sigmoid(x) → layer norm over the last dimension → softmax over it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width) -> (rows, width)."""
        return torch.softmax(self.norm(torch.tanh(x) * torch.sigmoid(x)), dim=-1)


def build(small: bool, dropout: float | None) -> Chain:
    return Chain(40 if small else 1024)


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """An input that needs its gradient, and a cotangent of the output."""
    rows, width = (size or 12, 40) if small else (size or 2048, 1024)
    x = torch.randn(rows, width, generator=generator).requires_grad_()
    return (x,), torch.randn(rows, width, generator=generator)
