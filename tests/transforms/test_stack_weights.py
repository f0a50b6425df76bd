"""StackWeights: several products of one value as one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import assert_compiled
from test_fold_transpose import net as maps
from torch import nn
from transform_nets import apply_checked, assert_refuses, matches, only, results, values

import shorthaul as sh
from shorthaul.analysis.movement import movement
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program
from shorthaul.pipeline import STAGES
from shorthaul.transforms.level3_layout.stack_weights import StackWeights
from shorthaul.workbench import apply


def net(build: Callable[..., Any], **options: Any) -> Program:
    """A scheduled program."""
    p = maps(build, **options)
    STAGES["Schedule"](p)
    return p


def products(b: Any, x: Any, *weights: Any, equation: str = "mk,nk->mn") -> list[Any]:
    """tanh of the product with each weight."""
    return [b.op("tanh", x=b.op("contract", {"equation": equation}, a=x, b=w)) for w in weights]


def two(rows: int, equation: str = "mk,nk->mn", shapes: tuple[Any, ...] = ((3, 4), (5, 4)), train: bool = False, **more: Any) -> Any:
    a, b = shapes
    return net(lambda b, x, v, w: products(b, x, v, w, equation=equation), train=train, x=(rows, 4), parameters={"v": a, "w": b}, **more)


def test_one_product_instead_of_two() -> None:
    p = two(40)
    inputs = values(p)
    expected = results(p, inputs)
    m = only(matches(StackWeights(), p))
    StackWeights().check(m)
    assert StackWeights().saves(m) == (40 * 4 - 2 * (3 + 5) * 4) * 8
    apply_checked(StackWeights(), m)
    (call,) = [n for n in p.nodes if isinstance(n, LibraryCall)]
    (y,) = p.writes_of(call)
    assert p.containers[y].shape == (40, 8)
    assert len([n for n in p.nodes if isinstance(n, Map) and n.name == "stack"]) == 2
    assert_compiled(p, inputs, expected)


@pytest.mark.parametrize("equation", ["mk,kn->mn", "mk,nk->nm"])
def test_other_orders_of_dimensions(equation: str) -> None:
    shapes = ((4, 3), (4, 5)) if equation == "mk,kn->mn" else ((3, 4), (5, 4))
    p = two(40, equation, shapes, train=True)
    inputs = values(p)
    expected = results(p, inputs)
    apply_checked(StackWeights(), next(m for m in matches(StackWeights(), p) if m.shared == "x" and m.first.phase == "forward"))
    assert_compiled(p, inputs, expected)


def test_biases_are_stacked_too() -> None:
    def build(b: Any, x: Any, v: Any, w: Any, c: Any, d: Any) -> list[Any]:
        return [b.op("tanh", x=b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w, bias=c)) for w, c in ((v, c), (w, d))]

    p = net(build, x=(60, 4), parameters={"v": (3, 4), "w": (5, 4), "c": (3,), "d": (5,)})
    inputs = values(p)
    expected = results(p, inputs)
    apply_checked(StackWeights(), next(m for m in matches(StackWeights(), p) if m.shared == "x" and m.first.phase == "forward"))
    assert_compiled(p, inputs, expected)


def test_where_copying_costs_more_only_on_request() -> None:
    p = two(8)
    m = only(matches(StackWeights(), p))
    assert_refuses(StackWeights(), m, "copying the weights side by side moves 256 bytes more than reading x once saves")
    before, moved = fingerprint(p), movement(p).bytes
    apply(p, "StackWeights", always=True)
    assert moved - movement(p).bytes == p.log[-1].notes["saves"] == -256
    p.undo()
    assert fingerprint(p) == before


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a result": (lambda: net(lambda b, x, v, w: [b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=c) for c in (v, w)], train=False,
                             x=(40, 4), v=(3, 4), w=(5, 4)), "the caller gets"),
    "the same weight": (lambda: net(lambda b, x, v: products(b, x, v, v), train=False, x=(40, 4), v=(3, 4)), "have the same weight"),
    "a batch": (lambda: net(lambda b, x, v, w: products(b, x, v, w, equation="bmk,bnk->bmn"), train=False, x=(2, 40, 4), v=(2, 3, 4),
                            w=(2, 5, 4)), "have a dimension of the batch|not one dimension of their own"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_refuses_with_the_reason(how: str) -> None:
    build, reason = REFUSED[how]
    p = build()
    found = next(m for m in matches(StackWeights(), p) if m.shared == "x")
    before = fingerprint(p)
    notes: list[Any] = []
    assert not StackWeights().try_apply(found, notes)
    assert any(part in notes[0].reason for part in reason.split("|")), notes[0].reason
    assert fingerprint(p) == before


def test_parameters_are_typed() -> None:
    p = two(40)
    before = fingerprint(p)
    with pytest.raises(TypeError, match="always is bool"):
        apply(p, "StackWeights", always=1)
    assert fingerprint(p) == before


class Attention(nn.Module):
    """Queries, keys and values by a layer each."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def test_queries_keys_and_values_train_as_before() -> None:
    torch.manual_seed(0)
    eager = Attention().double()
    ours = sh.optimize(copy.deepcopy(eager))
    x = torch.randn(4, 24, 16, dtype=torch.float64)
    keys = list(ours.state_dict())
    for step in range(2):
        found = []
        for m in (eager, ours):
            leaf = x.clone().requires_grad_()
            m.zero_grad()
            m(leaf).square().sum().backward()
            found.append([leaf.grad, *(p.grad for p in m.parameters())])
            with torch.no_grad():
                for p in m.parameters():
                    p -= 0.01 * p.grad  # the stacked copy follows
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-11, msg=f"step {step}")
    assert list(ours.state_dict()) == keys
    log = ours.report().regions[0].program.log
    assert len([r for r in log if r.name == "StackWeights"]) == 1
