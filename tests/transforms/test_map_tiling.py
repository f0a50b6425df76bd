"""MapTiling: a kernel's loops in tiles, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loop_kernels import check, prefixes, product, statistics, transposition

from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.transforms.base import Refusal
from shorthaul.workbench import apply


@pytest.mark.parametrize(("build", "loop", "size"), [(transposition, 0, 16), (product, 2, 8), (product, 0, 3), (statistics, 1, 5)])
def test_tiles_compute_the_same(build: Callable[[], Program], loop: int, size: int) -> None:
    p = build()
    (before,) = p.nodes
    assert isinstance(before, Map)
    check(p, "MapTiling", loop=loop, size=size)
    (after,) = p.nodes
    assert isinstance(after, Map)
    tiled = before.params[loop].size
    assert [q.size for q in after.params] == [tiled // size if k == loop else q.size for k, q in enumerate(before.params)] + [size]


def test_blocks_of_two_loops() -> None:
    """i, j → i in tiles, j in tiles, inside: the blocks of a transposition."""
    p = transposition(32, 48)
    check(p, "MapTiling", loop=0, size=16)
    check(p, "MapTiling", loop=1, size=8)
    (node,) = p.nodes
    assert isinstance(node, Map) and [q.size for q in node.params] == [2, 6, 16, 8]
    check(p, "MapInterchange", move=3, to=2)


@pytest.mark.parametrize(
    ("build", "parameters", "error", "reason"),
    [
        (transposition, {"size": 7}, Refusal, "are not known to be a multiple of 7"),
        (transposition, {"size": 32}, Refusal, "one tile of 32 would hold all"),
        (transposition, {"loop": 5}, Refusal, "there is none at position 5"),
        (prefixes, {"size": 2}, Refusal, "prefixes are kept along"),
        (transposition, {"size": 1}, ValueError, "size is one of 2 to"),
        (transposition, {"size": 8.0}, TypeError, "size is int"),
    ],
)
def test_refusals(build: Callable[[], Program], parameters: dict[str, Any], error: type[Exception], reason: str) -> None:
    p = build()
    before = fingerprint(p)
    with pytest.raises(error, match=reason):
        apply(p, "MapTiling", **parameters)
    assert fingerprint(p) == before
