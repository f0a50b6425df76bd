"""Symbolic sizes: one compilation serves every size, forward and backward, and agrees with eager mode on a grid of sizes.

Grids have sizes around vector widths and tiles, and sizes for which a window, a half or a row has nothing left over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import benchmarks.networks as networks
import shorthaul as sh
from shorthaul.testing import sample

LIMIT = 1e-11  # of float64 values and gradients, relative to the largest


class Net(nn.Module):
    """A function with some parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.batch_norm = nn.BatchNorm2d(4)
        self.double()

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def joined(m: Net, x: torch.Tensor, y: torch.Tensor) -> Any:
    """Two lengths together, normalized as one, and taken apart."""
    z = m.norm(m.linear(torch.cat([x, y], 1)).tanh())
    a, b = z[:, : x.shape[1]], z[:, x.shape[1] :]
    return torch.softmax(a @ b.transpose(1, 2), -1) @ b, z.mean(1)


def halves(m: Net, x: torch.Tensor) -> Any:
    n = x.shape[1] // 2
    return (x[:, :n] * x[:, n : 2 * n]).sum(1), m.linear(x[:, ::2]).exp(), x[:, -1] * x.shape[1]


def padded(m: Net, x: torch.Tensor) -> Any:
    """Padded to a multiple of 4, in windows of 4, and cut again."""
    b, t, c = x.shape
    z = F.pad(x, (0, 0, 0, (-t) % 4))
    windows = z.reshape(b, z.shape[1] // 4, 4, c)
    return torch.softmax(m.linear(windows), 2).flatten(1, 2)[:, :t], windows.amax(2)


def images(m: Net, x: torch.Tensor) -> Any:
    """Strided convolution, batch statistics, a depthwise window and pooling over heights and widths that halve."""
    h = m.depthwise(F.silu(m.batch_norm(m.conv(x))))
    return F.max_pool2d(h, 2), F.avg_pool2d(h, 3, stride=2, padding=1).flatten(1).sum(1), F.adaptive_avg_pool2d(h, 1)


def attended(m: Net, x: torch.Tensor) -> Any:
    q = m.linear(x).unflatten(-1, (2, 4)).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).flatten(2)
    return m.norm(x + y), y.cumsum(1), torch.arange(x.shape[1], dtype=x.dtype) * y[..., 0]


def skipped(m: Net, x: torch.Tensor) -> Any:
    """Halved, doubled, and joined with what it came from: that the sizes are equal only a guard knows."""
    wide = torch.cat([x, x[:, :1]], 1)
    h = F.interpolate(m.conv(x), scale_factor=2.0)
    return h * wide, (wide + h.sin()).exp(), torch.cat([h, wide], 1).sin(), torch.stack([wide, h]).cos(), torch.where(h > 0, wide, h)


def reduced(m: Net, x: torch.Tensor) -> Any:
    return x.sum(0), x.flatten(0, 1).var(0), x.std(1), x.logsumexp(1), (x - x.mean((0, 1))).square().mean(), x.amin(1)


def numbers(m: Net, x: torch.Tensor) -> Any:
    """Python floats that follow from sizes, and sizes that are rounded from them."""
    n, k = x.shape[:2]
    shares = x * (1.0 / n), x / math.sqrt(k), x * (n / (2.5 * k)), x * n**-0.5, x * float(max(n, k)), x + math.log2(n)
    return *(y.sin() for y in shares), x[:, : int(0.5 * k)].exp(), F.interpolate(x, scale_factor=1.5).cos()


LENGTHS = [(5, 7), (2, 2), (3, 2), (7, 8), (4, 9), (17, 16), (33, 5), (2, 65)]
# (function, its inputs, the dimensions that are marked, compilations): PyTorch compiles again where a size that follows from others is 1,
# and once more when the size that this depends on changes after that
CASES: list[tuple[Callable[..., Any], Callable[[int, int], Sequence[torch.Tensor]], set[tuple[int, int]], int]] = [
    (joined, lambda n, k: (randn(2, n, 8), randn(2, k, 8)), {(0, 1), (1, 1)}, 1),
    (halves, lambda n, k: (randn(n, k, 8),), {(0, 0), (0, 1)}, 3),
    (padded, lambda n, k: (randn(n, k, 8),), {(0, 0), (0, 1)}, 2),
    (images, lambda n, k: (randn(2, 3, 4 * n, 4 * k + 1),), {(0, 2), (0, 3)}, 1),
    (attended, lambda n, k: (randn(n, k, 8),), {(0, 0), (0, 1)}, 1),
    (reduced, lambda n, k: (randn(n, k, 8),), {(0, 0), (0, 1)}, 1),
    (numbers, lambda n, k: (randn(n, k, 8),), {(0, 0), (0, 1)}, 2),
    (skipped, lambda n, k: (randn(2, 3, 2 * n, 4 * k),), {(0, 2), (0, 3)}, 1),
]


def compare(eager: nn.Module, ours: nn.Module, call: Callable[[nn.Module], torch.Tensor], what: str, limit: float = LIMIT) -> None:
    """Run a loss on both, and compare it and all gradients."""
    found = []
    for m in (eager, ours):
        m.zero_grad()
        torch.manual_seed(1)
        loss = call(m)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in m.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= limit * (1 + a.abs().max()), what


@pytest.mark.parametrize("case", sample(CASES, 3), ids=lambda c: c[0].__name__)
def test_one_compilation_serves_a_grid_of_sizes(case: tuple) -> None:
    function, make, dynamic, compilations = case
    eager = Net(function)
    ours = sh.optimize(copy.deepcopy(eager))
    for i, (n, k) in enumerate(LENGTHS):
        inputs = make(n, k)

        def call(m: nn.Module, inputs: Sequence[torch.Tensor] = inputs, i: int = i) -> torch.Tensor:
            leaves = [x.clone().requires_grad_() for x in inputs]
            if i == 0:
                for at, dim in dynamic:
                    torch._dynamo.mark_dynamic(leaves[at], dim)
            total: Any = 0.0
            for y in m(*leaves):
                total = total + (y * torch.linspace(0.5, 1.5, max(y.numel(), 1), dtype=y.dtype)[: y.numel()].reshape(y.shape)).sum()
            return total + 0.0 * sum(x.sum() for x in leaves)

        compare(eager, ours, call, f"{function.__name__} at {n}, {k}")
    assert len(ours.report().regions) <= compilations, [r.reason for r in ours.report().regions]


@pytest.mark.parametrize("case", CASES[:1], ids=lambda c: c[0].__name__)
def test_empty_and_single_sizes(case: tuple) -> None:
    function, make, _, _ = case
    eager = Net(function)
    ours = sh.optimize(copy.deepcopy(eager))
    for n, k in [(3, 4), (2, 5), (1, 4), (4, 1), (0, 4), (5, 3)]:
        compare(eager, ours, lambda m, n=n, k=k: sum(y.sum() for y in m(*make(n, k))), f"{function.__name__} at {n}, {k}")
    assert len(ours.report().regions) <= 5, [r.reason for r in ours.report().regions]


NETWORKS = [n for n in networks.REGISTRY if n not in ("mixture_of_experts", "chain")]  # experts: tests/api/test_runtime_sizes.py


@pytest.mark.parametrize("name", sample(NETWORKS, 1))
def test_networks_train_at_any_batch_size(name: str) -> None:
    """The second batch size makes the batch symbolic; no further one compiles."""
    found = networks.network(name, small=True, dropout=0.0)
    eager = found.module.double()
    ours = sh.optimize(copy.deepcopy(eager))
    for size in (3, 5, 2, 4):
        inputs, targets = networks.batch(name, small=True, size=size)

        def call(m: nn.Module, inputs: Any = inputs, targets: torch.Tensor = targets) -> torch.Tensor:
            wide = [x.double() if x.is_floating_point() else x for x in (*inputs, targets)]
            return found.loss_fn(m(*wide[:-1]), wide[-1])

        compare(eager, ours, call, f"{name} at {size}", 1e-9)  # the rule for whole networks: small batches amplify rounding
    assert len(ours.report().regions) <= 2, [r.reason for r in ours.report().regions]
