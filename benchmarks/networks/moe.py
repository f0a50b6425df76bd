"""A mixture of experts (Shazeer et al., 2017): each token goes to the two experts that a router chooses for it.

How many tokens an expert gets is known only at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class Expert(nn.Module):
    """A two-layer MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """(tokens, width) and (tokens,) -> (tokens, width), scaled by the router's weight."""
        return self.narrow(F.gelu(self.widen(x))) * weight.unsqueeze(-1)


class Experts(nn.Module):
    """A router and experts; the `chosen` experts with the largest scores see a token, weighted by their probabilities."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))
        self.chosen = chosen

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, width) -> weights and numbers of the chosen experts, both (tokens, chosen)."""
        weights, experts = torch.topk(torch.softmax(self.router(x), -1), self.chosen)
        return weights / weights.sum(-1, keepdim=True), experts

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, width) -> the same."""
        weights, experts = self.route(x)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            tokens, place = torch.nonzero(experts == i, as_tuple=True)
            y = y.index_add(0, tokens, expert(x[tokens], weights[tokens, place]))
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
