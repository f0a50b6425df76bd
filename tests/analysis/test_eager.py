"""The count of eager's traffic against PyTorch's own dispatch, and by hand on single operators."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import shorthaul.api as api
from shorthaul.analysis import eager_bytes

ALLOCATIONS = ("empty", "new_empty", "zeros", "new_zeros", "ones_like", "empty_like", "zeros_like", "detach", "alias")


def stored_bytes(t: torch.Tensor) -> int:
    """Bytes of the elements that exist: dimensions of stride zero hold one."""
    n = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        n *= size if stride else 1
    return n * t.element_size()


class Traffic(TorchDispatchMode):
    """Sums operands and results of every call that computes; views, allocations and metadata count nothing.

    A convolution's backward is one call that runs one kernel per gradient: each is counted with what it reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.by: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        operands = {id(t): t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)}
        results = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if name in ALLOCATIONS:
            return result
        storages = {t.untyped_storage().data_ptr() for t in operands.values()}
        if not func._schema.is_mutable and results and all(t.untyped_storage().data_ptr() in storages for t in results):
            return result
        read, written = sum(map(stored_bytes, operands.values())), sum(map(stored_bytes, results))
        if name == "convolution_backward":
            gy, x, w = args[:3]
            gx, gw, gb = result
            read = sum(stored_bytes(gy) + stored_bytes(other) for g, other in ((gx, w), (gw, x)) if g is not None)
            read += stored_bytes(gy) if gb is not None else 0
        if name == "embedding":
            read = written + stored_bytes(args[1])
        self.by[name] += read + written
        self.bytes += read + written
        return result


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite, projection, residual; batch norm in training mode."""

    def __init__(self, channels: int = 16, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand, self.bn1 = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise, self.bn2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 8, 1), nn.Conv2d(8, hidden, 1)
        self.project, self.bn3 = nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.bn1(self.expand(x)))
        y = F.silu(self.bn2(self.depthwise(y)))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.bn3(self.project(y * gate))


class Transformer(nn.Module):
    """Embedding, attention, two layer norms, a GELU network, a classifier with cross-entropy."""

    def __init__(self, width: int = 64, heads: int = 4, words: int = 100) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(words, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, words)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        n, t, d = x.shape
        q, k, v = (p.view(n, t, self.heads, d // self.heads).transpose(1, 2) for p in self.qkv(self.norm1(x)).split(d, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        x = x + self.dropout(self.out(y))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


class Squared(nn.Module):
    """A module and the mean of the squares of its output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).square().mean()


def measured(model: nn.Module, inputs: tuple) -> Traffic:
    with Traffic() as traffic:
        model(*inputs).backward()
    return traffic


@pytest.mark.parametrize("name", ["mbconv", "transformer"])
def test_agrees_with_what_pytorch_dispatches(name: str) -> None:
    torch.manual_seed(0)
    if name == "mbconv":
        model, inputs = Squared(MBConv()), (torch.randn(4, 16, 14, 14),)
    else:
        model, inputs = Transformer(), (torch.randint(100, (4, 32)), torch.randint(100, (4, 32)))
    program = api.capture(model.train(), inputs, train=True)
    counted = eager_bytes(program)
    traffic = measured(model, inputs)
    assert counted == pytest.approx(traffic.bytes, rel=0.10), dict(traffic.by)
