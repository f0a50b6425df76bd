"""MapCollapse: two loops of a kernel as one, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loop_kernels import check, kernel, prefixes, product, statistics, transposition

from shorthaul.ir.builder import at
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.transforms.base import Refusal
from shorthaul.workbench import apply


def walking() -> Program:
    """y[i, j, k] = x[i, j, k]² + 1."""
    access = ((6, 5, 7), lambda c, i, j, k: at(c, i, j, k))
    return kernel((6, 5, 7), {"x": access}, {"y": access}, lambda x: {"y": x * x + 1})


def sums() -> Program:
    """y[k] = the sum of x over its first two dimensions."""
    return kernel((6, 5, 7), {"x": ((6, 5, 7), lambda c, i, j, k: at(c, i, j, k))},
                  {"y": ((7,), lambda c, i, j, k: at(c, k, combine="sum"))}, lambda x: {"y": x})  # fmt: skip


@pytest.mark.parametrize(("build", "loop", "sizes"), [(walking, 0, [30, 7]), (walking, 1, [6, 35]), (sums, 0, [30, 7])])
def test_one_loop_computes_the_same(build: Callable[[], Program], loop: int, sizes: list[int]) -> None:
    p = build()
    check(p, "MapCollapse", loop=loop)
    (node,) = p.nodes
    assert isinstance(node, Map) and [q.size for q in node.params] == sizes


def test_all_loops_of_a_copy_become_one() -> None:
    p = walking()
    apply(p, "MapCollapse")
    check(p, "MapCollapse")
    (node,) = p.nodes
    assert isinstance(node, Map) and [q.size for q in node.params] == [6 * 5 * 7]


@pytest.mark.parametrize(
    ("build", "parameters", "error", "reason"),
    [
        (transposition, {}, Refusal, "x is not walked through without a gap"),
        (product, {}, Refusal, "not walked through without a gap"),
        (statistics, {"loop": 1}, Refusal, "s is not walked through without a gap"),
        (walking, {"loop": 2}, Refusal, "there is none at position 3"),
        (prefixes, {}, Refusal, "prefixes are kept along"),
        (walking, {"loop": 16}, ValueError, "loop is one of 0 to 15"),
    ],
)
def test_refusals(build: Callable[[], Program], parameters: dict[str, Any], error: type[Exception], reason: str) -> None:
    p = build()
    before = fingerprint(p)
    with pytest.raises(error, match=reason):
        apply(p, "MapCollapse", **parameters)
    assert fingerprint(p) == before
