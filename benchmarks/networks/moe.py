"""A mixture of experts (Shazeer et al., 2017): each token goes to the two experts that a router chooses for it.

How many tokens an expert gets is known only at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


class Experts(nn.Module):
    """A router and MLPs; the `chosen` experts with the largest scores see a token, weighted by their probabilities."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )
        self.chosen = chosen

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, width) -> the same."""
        weights, experts = torch.topk(torch.softmax(self.router(x), -1), self.chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            tokens, place = torch.nonzero(experts == i, as_tuple=True)
            y = y.index_add(0, tokens, expert(x[tokens]) * weights[tokens, place].unsqueeze(-1))
        return y


class MixtureOfExperts(nn.Module):
    """Residual blocks of experts behind layer norms, and a classifier of the tokens."""

    def __init__(self, inputs: int = 64, width: int = 256, hidden: int = 1024, experts: int = 8, chosen: int = 2,
                 depth: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(Experts(width, hidden, experts, chosen) for _ in range(depth))
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, inputs) -> (tokens, classes)."""
        x = self.embed(x)
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        return self.classifier(x)


def build(small: bool, dropout: float | None) -> MixtureOfExperts:
    return MixtureOfExperts(12, 16, 24, 3, 2, 2) if small else MixtureOfExperts()


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random tokens and their classes."""
    count, inputs = (size or 24, 12) if small else (size or 4096, 64)
    return (torch.randn(count, inputs, generator=generator),), torch.randint(0, CLASSES, (count,), generator=generator)
