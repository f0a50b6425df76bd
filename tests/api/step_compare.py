"""A network trained by TrainStep and by the ordinary loop in eager mode, compared step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import shorthaul as sh


class Net(torch.nn.Module):
    """A convolution, a normalization, two products: parameters of one, two and four dimensions, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.hidden = torch.nn.Linear(4 * 16, 12)
        self.out = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.tanh(self.hidden(y.flatten(1))))


def network(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(1)
    return Net().to(dtype)


def batch(i: int, dtype: torch.dtype = torch.float64, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(100 + i)
    return torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=g).to(dtype), torch.randint(0, 3, (n,), generator=g)


Optimizers = Callable[[torch.nn.Module], torch.optim.Optimizer]


class Pair:
    """Two equal networks: one for TrainStep, one for the ordinary loop."""

    def __init__(self, make: Optimizers, *, model: torch.nn.Module | None = None, loss_fn: Any = torch.nn.functional.cross_entropy,
                 **options: Any) -> None:  # fmt: skip
        self.ours = network() if model is None else model
        self.theirs = copy.deepcopy(self.ours)
        self.optimizer, self.eager = make(self.ours), make(self.theirs)
        self.loss_fn = loss_fn
        self.step = sh.TrainStep(self.ours, loss_fn, self.optimizer, **options)

    def eager_step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.eager.zero_grad()
        loss = self.loss_fn(self.theirs(x), y)
        loss.backward()
        self.eager.step()
        return loss.detach()

    def both(self, i: int, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch(i, next(self.ours.parameters()).dtype, **kwargs)
        return self.step(x, y), self.eager_step(x, y)

    def train(self, steps: int, first: int = 0) -> None:
        for i in range(first, first + steps):
            ours, theirs = self.both(i)
            close(ours, theirs, f"loss of step {i}")

    def check(self, limit: float = 1e-9) -> None:
        same_state(self.ours.state_dict(), self.theirs.state_dict(), limit)
        same_optimizer(self.optimizer, self.eager, limit)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Distance relative to the size of b (of 1e-3, where that is larger)."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / max(float(b.norm()), 1e-3))


def close(a: torch.Tensor, b: torch.Tensor, what: str, limit: float = 1e-9) -> None:
    assert a.shape == b.shape and a.dtype is b.dtype, what
    assert error(a, b) <= limit, f"{what}: {error(a, b):.3g}"


def same_state(ours: dict[str, Any], theirs: dict[str, Any], limit: float = 1e-9) -> None:
    assert list(ours) == list(theirs)
    for k, v in theirs.items():
        close(ours[k], v, k, limit)


def same_optimizer(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, limit: float = 1e-9) -> None:
    """State dicts with the same entries, of the same types and values."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for i, entries in b["state"].items():
        assert a["state"][i].keys() == entries.keys()
        for name, v in entries.items():
            mine = a["state"][i][name]
            if isinstance(v, torch.Tensor):
                assert mine.stride() == v.stride() and mine.device == v.device
                close(mine, v, f"state {i} {name}", limit)
            else:
                assert mine == v, (i, name, mine, v)
