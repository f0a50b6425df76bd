"""CompactGradient: a sum of rows by index is kept for the rows that occur, and found again through a number for each row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from compiled import assert_compiled
from torch import nn
from transform_nets import apply_checked, assert_refuses, matches, network, only, results, values

import shorthaul as sh
from shorthaul.ir.dtypes import float64, int64
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import read
from shorthaul.ops.expand import expand
from shorthaul.transforms.fuse import default_fusions, fuse
from shorthaul.transforms.level4_global.compact_gradient import CompactGradient

ROWS, WIDTH = 60, 8


def step(b: Any, w: Any, g: Any) -> Any:
    """Something that an optimizer could do to every row."""
    return b.op("pointwise", {"code": read("x0", float64) * 0.9 - read("x1", float64) * 0.1}, x0=w, x1=g)


def summed(b: Any, w: Any, gy: Any, i: Any, padding_idx: int = -1) -> Any:
    return b.op("embedding_backward", {"rows": ROWS, "padding_idx": padding_idx}, g=gy, indices=i)


def plain(b: Any, w: Any, gy: Any, i: Any) -> Any:
    return step(b, w, summed(b, w, gy, i))


def padded(b: Any, w: Any, gy: Any, i: Any) -> Any:
    return step(b, w, summed(b, w, gy, i, padding_idx=1))


def read_twice(b: Any, w: Any, gy: Any, i: Any) -> Any:
    g = summed(b, w, gy, i)
    return [step(b, w, g), b.op("sum", {"dims": (0, 1), "keepdim": False}, x=b.op("mul", a=g, b=g))]


def by_indexing(b: Any, w: Any, gy: Any, i: Any) -> Any:
    return step(b, w, b.op("index_backward", {"dims": (0,), "shape": (ROWS, WIDTH), "wrap": False}, x=gy, i0=i))


def program(build: Any, lookups: tuple[int, ...] = (2, 2), fused: bool = True) -> Program:
    p = network(build, train=False, dtypes={"i": int64}, w=(ROWS, WIDTH), gy=(*lookups, WIDTH), i=lookups)
    if fused:
        fuse(p, default_fusions())
    return p


@pytest.mark.parametrize("build", [plain, padded, read_twice, by_indexing])
@pytest.mark.parametrize("fused", [True, False])
def test_keeps_the_rows_that_occur(build: Any, fused: bool) -> None:
    p = program(build, fused=fused)
    inputs = values(p)
    inputs["i"][...] = [[5, 1], [5, 58]]  # one row twice
    expected = results(p, inputs)
    m = only(matches(CompactGradient(1), p))
    apply_checked(CompactGradient(1), m)
    assert m.mid not in p.containers
    assert_compiled(p, inputs, expected)


def the_gradient_itself(b: Any, w: Any, gy: Any, i: Any) -> Any:
    return [summed(b, w, gy, i), plain(b, w, gy, i)]


def by_a_library(b: Any, w: Any, gy: Any, i: Any) -> Any:
    return b.op("contract", {"equation": "mk,nk->mn"}, a=summed(b, w, gy, i), b=w)


def gathered(b: Any, w: Any, gy: Any, i: Any) -> Any:
    return b.op("embedding", {}, weight=summed(b, w, gy, i), indices=i)


@pytest.mark.parametrize(
    ("build", "least", "reason"),
    [
        (the_gradient_itself, 1, "the caller gets every row"),
        (by_a_library, 1, "a library reads it"),
        (gathered, 1, "does not read it element by element"),
        (plain, 1 << 20, "4 lookups of 60 rows save 6"),
    ],
)
def test_refuses_with_the_reason(build: Any, least: int, reason: str) -> None:
    p = network(build, train=False, maps=False, dtypes={"i": int64}, w=(ROWS, WIDTH), gy=(2, 2, WIDTH), i=(2, 2))
    expand(p)
    found = [m for m in matches(CompactGradient(least), p) if p.containers[m.mid].role == "output" or build is not the_gradient_itself]
    assert_refuses(CompactGradient(least), only(found), reason)


def test_refuses_indices_that_its_kernel_computes() -> None:
    """Bags that begin at offsets: the row of a lookup is found, counted from the end where it is negative, and added to in one kernel."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(50, 4, mode="sum")

        def forward(self, i: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return self.table(i, offsets)

    torch.manual_seed(0)
    eager = Bag().double()
    ours = sh.optimize(copy.deepcopy(eager), strict=True)
    i, offsets = torch.tensor([3, 49, 3, 7]), torch.tensor([0, 1])
    for model in (eager, ours):
        model(i, offsets).square().sum().backward()
    torch.testing.assert_close(ours.table.weight.grad, eager.table.weight.grad, rtol=1e-12, atol=0)


class Bags(nn.Module):
    """Two tables, of which the second is looked up twice; their dense gradients are worth leaving out."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.first = nn.EmbeddingBag(rows, 16, mode="sum")
        self.second = nn.Embedding(rows, 16)
        self.head = nn.Linear(48, 1)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.first(i), self.second(i[:, 0]), self.second(i[:, 1] // 2)], 1)).squeeze(1)


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_with_any_optimizer_is_that_of_eager(optimizer: str) -> None:
    rows, found = 200_000, {}
    for engine in ("eager", "step"):
        torch.manual_seed(0)
        model = Bags(rows).double()
        stepper = OPTIMIZERS[optimizer](model.parameters())
        if engine == "step":
            step = sh.TrainStep(model, nn.functional.mse_loss, stepper)
        for n in range(3):
            g = torch.Generator().manual_seed(n)
            i, y = torch.randint(0, rows, (32, 3), generator=g), torch.randn(32, generator=g, dtype=torch.float64)
            i[:8] = 7  # a row that occurs often
            if engine == "step":
                step(i, y)
            else:
                stepper.zero_grad()
                nn.functional.mse_loss(model(i), y).backward()
                stepper.step()
        found[engine] = [p.detach() for p in model.parameters()]
    (region,) = step.report().regions
    assert sum(r.name == "CompactGradient" for r in region.program.log) == 3  # one a lookup
    for ours, eager in zip(found["step"], found["eager"], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-14)
