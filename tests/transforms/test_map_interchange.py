"""MapInterchange: the order of a kernel's loops by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from loop_kernels import check, prefixes, product, statistics, transposition

from shorthaul.codegen.cpp.emit import emit_kernel
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.transforms.base import Refusal
from shorthaul.workbench import apply


def the_map(p: Program) -> Map:
    (node,) = p.nodes
    assert isinstance(node, Map)
    return node


@pytest.mark.parametrize("build", [product, statistics])
@pytest.mark.parametrize(("move", "to"), [(2, 0), (0, 2), (1, 0)])
def test_any_order_computes_the_same(build: Callable[[], Program], move: int, to: int) -> None:
    p = build()
    before = the_map(p).params
    check(p, "MapInterchange", move=move, to=to)
    rest = [q for q in before if q is not before[move]]
    assert the_map(p).params == (*rest[:to], before[move], *rest[to:])


def test_the_target_keeps_the_order() -> None:
    """The innermost loop of the source is the last parameter; left to itself the target orders by strides, and both orders are the same."""
    texts = set()
    for move in (None, 0, 1):
        p = transposition()
        if move is not None:
            apply(p, "MapInterchange", move=move, to=1 - move)
        if move == 1:
            apply(p, "MapInterchange")  # back
        texts.add(emit_kernel(the_map(p), p.containers).source)
    assert len(texts) >= 2


@pytest.mark.parametrize(
    ("build", "parameters", "error", "reason"),
    [
        (transposition, {"move": 2}, Refusal, "it has 2 loops: there is none at position 2"),
        (transposition, {"move": 1, "to": 1}, Refusal, "is at position 1 already"),
        (prefixes, {}, Refusal, "prefixes are kept along"),
        (transposition, {"move": -1}, ValueError, "move is one of 0 to 15"),
        (transposition, {"move": "1"}, TypeError, "move is int"),
        (transposition, {"order": 1}, TypeError, "has no parameter 'order'"),
    ],
)
def test_refusals(build: Callable[[], Program], parameters: dict[str, Any], error: type[Exception], reason: str) -> None:
    p = build()
    before = fingerprint(p)
    with pytest.raises(error, match=reason):
        apply(p, "MapInterchange", **parameters)
    assert fingerprint(p) == before and not [r for r in p.log if r.name == "MapInterchange"]


@pytest.mark.slow
def test_every_order_of_a_product() -> None:
    for order in itertools.permutations(range(3)):
        p = product(5, 20, 18)
        current = list(range(3))
        for to, which in enumerate(order):
            if current.index(which) != to:
                check(p, "MapInterchange", move=current.index(which), to=to)
                current.insert(to, current.pop(current.index(which)))
