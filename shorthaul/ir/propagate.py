"""Propagation of memlets out of a map: which box of each outside container the whole map reads and writes.

The outer memlet of a container is the bounding box of all accesses over the parameters of the map and of the maps inside
it, one `Span` per dimension, narrowed by guards that bound a subscript (`h + k - 1 >= 0`). A dimension is taken whole where it
is subscripted indirectly or by an expression whose extremes are not found.

A map knows its containers by name only, so a whole dimension is first `Span(0, dimension_size(container, dim))`, a
size with a name of its own; `propagate(map, containers)` puts the real size there and clips boxes of guarded accesses to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Union

from shorthaul.symbolic import (
    Expr,
    FloorDiv,
    Max,
    Min,
    Mod,
    Symbol,
    bounds,
    free_symbols,
    maximum,
    minimum,
    prove_eq,
    substitute,
)

from .containers import Container
from .memlet import Indirect, Memlet, Span
from .nodes import Access, Map

IntLike = Union[int, Expr]
Extent = tuple[IntLike, IntLike]
Outer = tuple[dict[str, Memlet], dict[str, Memlet]]


def dimension_size(container: str, dimension: int) -> Symbol:
    """The size of a dimension of a container that is known by name only."""
    return Symbol(f"size({container}, {dimension})", 0)


def propagate(map: Map, containers: Mapping[str, Container] | None = None) -> Outer:
    """(reads, writes) of a map by container name: the bounding box of all accesses to each outside container.

    Without `containers` a dimension that is needed whole has the size `dimension_size(...)`; with them, its real one. A
    write keeps the combiner that all its accesses share. Guards and fills are not part of an outer memlet.
    """
    reads: dict[str, list[Access]] = {}
    writes: dict[str, list[Access]] = {}
    for access in map.accesses():
        if not access.is_local:
            (writes if access.is_write else reads).setdefault(access.memlet.container, []).append(access)
    memo: dict[tuple[IntLike, frozenset[Symbol]], Extent | None] = {}
    return tuple(  # type: ignore[return-value]
        {
            name: _box(name, found, containers[name] if containers is not None else None, memo)
            for name, found in side.items()
        }
        for side in (reads, writes)
    )


def extent(expr: IntLike, params: frozenset[Symbol]) -> Extent | None:
    """(least, greatest) value of an expression while the params run over their ranges; symbolic in everything else.

    The result is sound, and exact when each parameter occurs once. None where no extreme is found.
    """
    return _extent(expr, params, {})


def _box(name: str, accesses: list[Access], container: Container | None, memo: dict) -> Memlet:
    boxes: list[list[Span]] = []
    seen: set[tuple] = set()
    for a in accesses:
        key = (a.memlet.subset, a.memlet.guard, a.params)
        if key not in seen:
            seen.add(key)
            boxes.append(_access_box(name, a, container, memo))
    spans = []
    for column in zip(*boxes, strict=True):
        spans.append(_union(column))
    combiners = {a.memlet.combine for a in accesses}
    return Memlet(name, tuple(spans), combine=combiners.pop() if len(combiners) == 1 else None)


def access_box(access: Access, container: Container | None = None) -> list[Span]:
    """The bounding box of one access over all parameters around it, one span per dimension."""
    return _access_box(access.memlet.container, access, container, {})


def _access_box(name: str, access: Access, container: Container | None, memo: dict) -> list[Span]:
    m = access.memlet
    params = frozenset(access.params)
    box: list[Span] = []
    for d, s in enumerate(m.subset):
        if isinstance(s, Indirect):
            box.append(_whole(name, d, container))
            continue
        if isinstance(s, int) or (isinstance(s, Expr) and params.isdisjoint(free_symbols(s))):
            box.append(Span(s, 1))
            continue
        first: IntLike = s.start if isinstance(s, Span) else s
        last = s.start + (s.size - 1) * s.step if isinstance(s, Span) else s
        lo, hi = _extent(first, params, memo), _extent(last, params, memo)
        if lo is None or hi is None:
            box.append(_whole(name, d, container))
            continue
        low, high = lo[0], hi[1]
        step = 1 if isinstance(s, Span) else _step(s, params)
        if m.guard:
            clipped = _clip(s, low, high, m, params) if not isinstance(s, Span) else (low, high)
            if container is not None:
                clipped = maximum(0, clipped[0]), minimum(container.shape[d] - 1, clipped[1])
            if clipped != (low, high):
                (low, high), step = clipped, 1
        box.append(Span(low, (high - low) // step + 1, step))
    return box


def _whole(name: str, dimension: int, container: Container | None) -> Span:
    return Span(0, dimension_size(name, dimension) if container is None else container.shape[dimension])


def _clip(subscript: Expr, low: IntLike, high: IntLike, m: Memlet, params: frozenset[Symbol]) -> Extent:
    """Narrow by conditions of the forms subscript - a >= 0 and b - subscript >= 0, a and b free of parameters."""
    for c in m.guard:
        below = subscript - c.expr
        if _is_free(below, params):
            low = maximum(low, below)
            if c.relation == "eq":
                high = minimum(high, below)
        above = subscript + c.expr
        if _is_free(above, params):
            high = minimum(high, above)
            if c.relation == "eq":
                low = maximum(low, above)
    return low, high


def _is_free(e: IntLike, params: frozenset[Symbol]) -> bool:
    return isinstance(e, int) or params.isdisjoint(free_symbols(e))


def _step(e: Expr, params: frozenset[Symbol]) -> int:
    """A constant that divides the difference of any two values of the expression."""
    step = 0
    for mono, c in e.terms.items():
        if not all(_is_free(atom, params) for atom in mono):
            step = math.gcd(step, c)
    return step or 1


def _union(spans: Sequence[Span]) -> Span:
    first = spans[0]
    if all(s == first for s in spans[1:]):
        return first
    low = minimum(*(s.start for s in spans))
    high = maximum(*(s.start + (s.size - 1) * s.step for s in spans))
    return Span(low, high - low + 1)


def _extent(e: IntLike, params: frozenset[Symbol], memo: dict) -> Extent | None:
    if isinstance(e, int):
        return e, e
    key = (e, params)
    if key in memo:
        return memo[key]
    if params.isdisjoint(free_symbols(e)):
        found: Extent | None = (e, e)
    elif isinstance(e, Symbol):
        found = _symbol_extent(e, params, memo)
    elif isinstance(e, FloorDiv):
        found = None
        inner = _extent(e.dividend, params, memo)
        if inner is not None and _is_free(e.divisor, params) and _sign(e.divisor) == 1:
            found = inner[0] // e.divisor, inner[1] // e.divisor
    elif isinstance(e, Mod):
        found = _mod_extent(e, params, memo)
    elif isinstance(e, (Min, Max)):
        inner_all = [_extent(a, params, memo) for a in e.args]
        found = None
        if None not in inner_all:
            pick = minimum if isinstance(e, Min) else maximum
            found = pick(*(i[0] for i in inner_all)), pick(*(i[1] for i in inner_all))  # type: ignore[index]
    else:
        found = _sum_extent(e, params, memo)
    memo[key] = found
    return found


def _symbol_extent(p: Symbol, params: frozenset[Symbol], memo: dict) -> Extent | None:
    if p.lower is None or p.upper is None:
        return None
    low, high = _extent(p.lower, params, memo), _extent(p.upper, params, memo)
    return None if low is None or high is None else (low[0], high[1])


def _mod_extent(e: Mod, params: frozenset[Symbol], memo: dict) -> Extent | None:
    if not _is_free(e.divisor, params) or _sign(e.divisor) != 1:
        return None
    inner = _extent(e.dividend, params, memo)
    if inner is None:
        return 0, e.divisor - 1
    low, high = inner
    if prove_eq(low // e.divisor, high // e.divisor) is True:
        return low % e.divisor, high % e.divisor
    least = bounds(low)[0]
    return 0, minimum(e.divisor - 1, high) if least is not None and least >= 0 else e.divisor - 1


def _sum_extent(e: Expr, params: frozenset[Symbol], memo: dict) -> Extent | None:
    low: IntLike = e.const
    high: IntLike = e.const
    for mono, c in e.terms.items():
        factor: IntLike = c
        moving: list[Extent] = []
        for atom in mono:
            if params.isdisjoint(free_symbols(atom)):
                factor = factor * atom
            else:
                inner = _extent(atom, params, memo)
                if inner is None:
                    return None
                moving.append(inner)
        if moving:
            least, greatest = moving[0]
            for lo, hi in moving[1:]:
                if _sign(least) < 0 or _sign(lo) < 0:
                    return None
                least, greatest = least * lo, greatest * hi
            sign = _sign(factor)
            if sign < -1:
                return None
            if sign == -1:
                least, greatest = greatest, least
            low, high = low + factor * least, high + factor * greatest
        else:
            low, high = low + factor, high + factor
    return low, high


def _sign(e: IntLike) -> int:
    """1 for a positive value, 0 for one that is not negative, -1 for one that is not positive, -2 when unknown."""
    low, high = bounds(e)
    if low is not None and low >= 0:
        return 1 if low > 0 else 0
    return -1 if high is not None and high <= 0 else -2


def bind_sizes(memlet: Memlet, container: Container) -> Memlet:
    """Put the container's sizes in the place of `dimension_size` symbols."""
    sizes = {dimension_size(container.name, d): n for d, n in enumerate(container.shape)}
    if memlet.symbols.isdisjoint(sizes):
        return memlet
    return memlet.map_expressions(lambda e: e if isinstance(e, int) else substitute(e, sizes))
