"""LibraryLayout: what a library returns is declared as the library lays it out."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transform_nets import assert_refuses, matches, only

import shorthaul as sh
from shorthaul.analysis.movement import movement
from shorthaul.ir.containers import strides_in_order
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.level3_layout.library_layout import LibraryLayout
from shorthaul.transforms.level4_global.alias_views import AliasViews


class Heads(nn.Module):
    """Self-attention as it is usually written: heads are a view of a matrix product's result."""

    def __init__(self, heads: int = 3, size: int = 8) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(heads * size, 3 * heads * size), nn.Linear(heads * size, heads * size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def program(level: int) -> Program:
    p = sh.capture(Heads(), (torch.randn(2, 5, 24, requires_grad=True),), train=True)
    p.optimize(level=level)
    return p


def permutations(p: Program) -> list[str]:
    return [n.name for n in p.nodes if isinstance(n, Map) and n.name.startswith("permute") and "sum" not in n.name]


def test_the_permutation_after_attention_becomes_a_view() -> None:
    p = program(2)
    before, moved = permutations(p), movement(p).bytes
    assert before
    places = {m.mid for m in LibraryLayout().matches(p)}
    apply_everywhere(p, [LibraryLayout()])
    verify(p)
    assert movement(p).bytes == moved  # a layout by itself moves nothing less
    for name in places & p.containers.keys():
        c = p.containers[name]
        if len(c.shape) == 4 and not c.is_external:
            assert c.actual_strides == strides_in_order(c.shape, (0, 2, 1, 3)), c
    claimed = len(p.log)
    apply_everywhere(p, [AliasViews()])
    assert len(permutations(p)) < len(before)
    assert moved - movement(p).bytes == sum(r.notes["saves"] for r in p.log[claimed:]) > 0
    verify(p)


def test_it_is_part_of_level_3_and_computes_the_same() -> None:
    assert len(permutations(program(3))) < len(permutations(program(2)))
    torch.manual_seed(0)
    eager = Heads().double()
    ours = sh.optimize(copy.deepcopy(eager))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    found = []
    for m in (eager, ours):
        leaf = x.clone().requires_grad_()
        m(leaf).square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in m.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_refuses_a_result_that_the_caller_gets() -> None:
    class Bare(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, v)

    q, k, v = (torch.randn(2, 5, 3, 8).transpose(1, 2) for _ in range(3))
    p = sh.capture(Bare(), (q, k, v), train=False)
    p.optimize(level=2)
    found = only(m for m in matches(LibraryLayout(), p) if m.mid in p.results)
    assert_refuses(LibraryLayout(), found, "the caller gets it")


def test_refuses_what_has_the_layout_already() -> None:
    p = program(3)
    for m in matches(LibraryLayout(), p):
        assert_refuses(LibraryLayout(), m, "layout")
