"""What the tests of the ecosystem share: small networks, and the same work done with an eager and an optimized one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import shorthaul as sh


class Net(nn.Module):
    """Linear, batch norm, a bounded activation, and a head: smooth, so that float64 runs agree closely."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))))


def mlp(outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, outputs))


def batch(seed: int = 0, n: int = 5, width: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def twins(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The same module twice: eager, and optimized."""
    torch.manual_seed(0)
    eager = make().to(dtype)
    return eager, sh.optimize(copy.deepcopy(eager), **options)


def agree(eager: nn.Module, ours: nn.Module, tolerance: float = 1e-10) -> None:
    """The same state, the same gradients (None in the same places)."""
    theirs = dict(eager.named_parameters())
    assert list(theirs) == [n for n, _ in ours.named_parameters()]
    for n, p in ours.named_parameters():
        q = theirs[n]
        assert (p.grad is None) == (q.grad is None), n
        if p.grad is not None:
            close(p.grad, q.grad, tolerance, f"the gradient of {n}")
    state = eager.state_dict()
    assert list(state) == list(ours.state_dict())
    for n, t in ours.state_dict().items():
        close(t, state[n], tolerance, n)


def close(actual: Any, expected: Any, tolerance: float = 1e-10, what: str = "value") -> None:
    assert actual.dtype == expected.dtype, what
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}")


def compiled(module: Any) -> list[Any]:
    """The regions of an optimized module, none of which fell back to eager mode."""
    regions = module.report().regions
    assert regions and not any(r.fallback for r in regions), [r.fallback for r in regions]
    return regions


def step(module: Callable[..., Any], *inputs: Any) -> torch.Tensor:
    """One call and backward; gradients accumulate."""
    loss = module(*inputs).square().mean()
    loss.backward()
    return loss.detach()
