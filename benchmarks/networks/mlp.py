"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers of the given widths with ReLU and dropout between them."""

    def __init__(self, widths: tuple[int, ...], dropout: float = 0.1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (wide, narrow) in enumerate(pairwise(widths)):
            if i:
                layers += [nn.ReLU(), nn.Dropout(dropout)]
            layers.append(nn.Linear(wide, narrow))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, widths[0]) -> (batch, widths[-1])."""
        return self.layers(x)


def build(small: bool, dropout: float | None) -> MLP:
    return MLP((24, 32, 32, 10) if small else (784, 1024, 1024, 10), 0.1 if dropout is None else dropout)


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    count = size or (8 if small else 256)
    x = torch.randn(count, 24 if small else 784, generator=generator)
    return (x,), torch.randint(0, 10, (count,), generator=generator)
