"""What changes of a kernel's loops share: parameters by position, what keeps their order, and the map over other parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Union

from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.rewrite import rename
from shorthaul.symbolic import Expr, Symbol, free_symbols

from ..base import require

IntLike = Union[int, Expr]
MOST = 16  # loops of a map that a position may name


def parameter(node: Map, position: int) -> Symbol:
    """The parameter at a position, 0 for the outermost. Raises Refusal where there is none."""
    require(0 <= position < len(node.params), f"it has {len(node.params)} loops: there is none at position {position}")
    return node.params[position]


def require_free(node: Map, moved: Sequence[Symbol]) -> None:
    """Raise Refusal where prefixes are kept along one of the parameters, or the range of a loop depends on one."""
    for a in node.accesses():
        if a.is_write and a.memlet.scan in moved:
            require(False, f"prefixes are kept along {a.memlet.scan}: its loop is sequential")
    for p in (*node.params, *_inner(node)):
        for e in (p.lower, p.upper):
            used = free_symbols(e) & set(moved) if isinstance(e, Expr) else ()
            require(not used, f"the range of {p} depends on {next(iter(used), None)}")


def over(node: Map, params: Sequence[Symbol], values: Mapping[Symbol, IntLike], *, as_written: bool) -> Map:
    """The map over other parameters, with old ones replaced by expressions of them. as_written: the target keeps the order of the loops."""
    body: tuple[Node, ...] = tuple(rename(n, {}, values, fresh=False) for n in node.body) if values else node.body
    schedule = node.schedule.with_options(as_written=True) if as_written else node.schedule
    changed: Map = node.with_(params=tuple(params), body=body, schedule=schedule)
    return changed


def _inner(node: Map) -> Iterator[Symbol]:
    for child in node.body:
        if isinstance(child, Map):
            yield from child.params
            yield from _inner(child)
