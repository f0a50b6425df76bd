"""Footprints: how many distinct elements of each container a map touches.

The subscripts of an access are split into components that share no parameter, so that the elements it touches are a product of
small sets: a range of integers where the subscript is affine (clipped by the guard), else an enumeration of the component's points.
Several accesses to one container are united, after the dimensions that they have in common are set aside. What cannot be counted
(indirect subscripts, symbolic sizes in irregular shapes) is bounded from above by the bounding box and by the number of accesses.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from shorthaul.ir.containers import Container
from shorthaul.ir.interpret_values import evaluate_index
from shorthaul.ir.memlet import Condition, Indirect
from shorthaul.ir.nodes import Access, Map
from shorthaul.ir.propagate import access_box
from shorthaul.symbolic import Expr, Symbol, affine, bounds, free_symbols, maximum, minimum, product, prove_eq, prove_le

IntLike = Union[int, Expr]
ENUMERATED = 1 << 21  # points of a component, or elements of a union, that are enumerated at most


@dataclass(frozen=True)
class Footprint:
    """Distinct elements of one container that a map reads or writes. `exact` is False where the number is an upper bound."""

    elements: IntLike
    exact: bool = True


@dataclass(frozen=True)
class _Set:
    """The subscripts of some dimensions that an access takes: a range (of one dimension), listed points, or only their number."""

    dims: tuple[int, ...]
    count: IntLike
    key: tuple
    start: IntLike | None = None  # of a range of step one
    points: np.ndarray | None = None  # shape (count, len(dims))
    exact: bool = True


Image = tuple[_Set, ...]
_cache: weakref.WeakKeyDictionary[Map, tuple[tuple[Container, ...], dict[tuple[str, str], Footprint]]] = weakref.WeakKeyDictionary()


def footprints(node: Map, containers: Mapping[str, Container]) -> dict[tuple[str, str], Footprint]:
    """Footprint of every container outside the map, keyed by (container, "read" or "write").

    A combining write defines its whole container. Results are cached while the containers stay the same objects.
    """
    found = _cache.get(node)
    if found is not None and all(containers.get(c.name) is c for c in found[0]):
        return found[1]
    groups: dict[tuple[str, str], list[Access]] = {}
    for a in node.accesses():
        if not a.is_local:
            groups.setdefault((a.memlet.container, "write" if a.is_write else "read"), []).append(a)
    result = {key: footprint_of(accesses, containers[key[0]]) for key, accesses in groups.items()}
    _cache[node] = (tuple({containers[name] for name, _ in groups}), result)
    return result


def footprint_of(accesses: Iterable[Access], c: Container) -> Footprint:
    """The distinct elements of a container that accesses of one side touch together."""
    images: dict[tuple, Image] = {}
    for a in accesses:
        if a.memlet.combine is not None and a.memlet.scan is None:
            return Footprint(c.size)
        image = _image(a, c)
        if image is None:
            return Footprint(c.size)
        if not any(isinstance(s.count, int) and s.count == 0 for s in image):
            images[tuple(s.key for s in image)] = image
    return _union(list(images.values()), c)


# one access ---------------------------------------------------------------------------------------------------------------
def _image(a: Access, c: Container) -> Image | None:
    """The elements of one access; None for the whole container."""
    m = a.memlet
    scope = frozenset(a.params)
    if not m.guard and _is_whole(m.subset, c, scope):
        return None
    uses: list[frozenset[Symbol]] = []
    for s in m.subset:
        if isinstance(s, Indirect):
            index = a.tasklet.reads[s.name]
            # what the index varies with; the element that it names is not known
            uses.append(frozenset().union(*(free_symbols(e) for e in index.subset if isinstance(e, Expr))) & scope)
        else:
            uses.append(_params_of(s, scope))
    guards = [(g, _params_of(g.expr, scope)) for g in m.guard]
    todo = {p for used in (*uses, *(used for _, used in guards)) for p in used}
    done: set[Symbol] = set()
    while todo:  # a range that depends on other parameters is a condition on both
        p = todo.pop()
        done.add(p)
        if not _fixed_range(p, scope):
            assert p.lower is not None and p.upper is not None
            for g in (Condition(p - p.lower), Condition(p.upper - p)):
                guards.append((g, _params_of(g.expr, scope)))
                todo |= guards[-1][1] - done
    groups = _components(uses, [g for _, g in guards])
    sets: list[_Set] = []
    for dims, params in groups:
        own = [g for g, used in guards if used <= params and (used or not params)]
        if dims and params:
            sets.append(_component(a, c, dims, params, own))
        elif dims:
            sets += [_component(a, c, (d,), params, []) for d in dims]
        if (not dims or not params) and own and _never(params, own):
            return (_Set((), 0, ("never",)),)
    return tuple(sets)


def _never(params: frozenset[Symbol], guard: list[Condition]) -> bool:
    """Whether conditions on parameters that no subscript uses (or on none) are known to exclude every point."""
    if any((prove_le(g.expr, -1) if g.relation == "ge" else prove_eq(g.expr, 0) is False) is True for g in guard):
        return True
    found = _enumerate([0], params, guard, (0,))
    return found is not None and found.count == 0


def _is_whole(subset: Sequence[object], c: Container, scope: frozenset[Symbol]) -> bool:
    seen: set[Symbol] = set()
    for s, n in zip(subset, c.shape, strict=True):
        if isinstance(s, Symbol):
            if s in seen or s not in scope or not _spans(s, n, scope):
                return False
            seen.add(s)
        elif not (isinstance(s, int) and s == 0 and isinstance(n, int) and n == 1):
            return False
    return True


def _spans(p: Symbol, n: IntLike, scope: frozenset[Symbol]) -> bool:
    """Whether the parameter runs from 0 to n - 1."""
    if not isinstance(p.lower, int) or p.lower != 0:
        return False
    if isinstance(p.upper, int) and isinstance(n, int):
        return p.upper == n - 1
    return _fixed_range(p, scope) and (p.size is n or prove_eq(p.size, n) is True)


def _params_of(s: object, scope: frozenset[Symbol]) -> frozenset[Symbol]:
    return free_symbols(s) & scope if isinstance(s, Expr) else frozenset()


def _fixed_range(p: Symbol, scope: frozenset[Symbol]) -> bool:
    return all(not isinstance(e, Expr) or free_symbols(e).isdisjoint(scope) for e in (p.lower, p.upper))


def _components(uses: Sequence[frozenset[Symbol]], guards: Iterable[frozenset[Symbol]]) -> list[tuple[tuple[int, ...], frozenset[Symbol]]]:
    """Dimensions (and conditions) that share parameters, together with those parameters."""
    groups: list[tuple[set[int], set[Symbol]]] = []
    for d, used in enumerate(uses):
        groups.append(({d}, set(used)))
    groups += [(set(), set(used)) for used in guards]
    merged: list[tuple[set[int], set[Symbol]]] = []
    for dims, params in groups:
        rest = []
        for other in merged:
            if params & other[1]:
                dims, params = dims | other[0], params | other[1]
            else:
                rest.append(other)
        merged = [*rest, (dims, params)]
    return sorted(((tuple(sorted(dims)), frozenset(params)) for dims, params in merged), key=lambda g: g[0])


def _component(a: Access, c: Container, dims: tuple[int, ...], params: frozenset[Symbol], guard: list[Condition]) -> _Set:
    subset = [a.memlet.subset[d] for d in dims]
    if any(isinstance(s, Indirect) for s in subset):
        box = product(c.shape[d] if isinstance(s, Indirect) else _extent_of(a, c, d) for d, s in zip(dims, subset, strict=True))
        named = tuple(a.tasklet.reads[s.name] if isinstance(s, Indirect) else s for s in subset)
        return _Set(dims, minimum(box, _points(params)), ("indirect", dims, repr(named)), exact=False)
    if len(dims) == 1 and isinstance(subset[0], (int, Expr)):
        found = _range(subset[0], params, guard, c.shape[dims[0]], dims)
        if found is not None:
            return found
    listed = _enumerate(subset, params, guard, dims)
    if listed is not None:
        return listed
    if not guard and len(dims) == 1 and isinstance(subset[0], Expr) and _is_injective(subset[0], params):
        return _Set(dims, _points(params), ("injective", dims, subset[0]))
    box = product(_extent_of(a, c, d) for d in dims)
    return _Set(dims, minimum(box, _points(params)), ("box", dims, repr(subset), repr(guard)), exact=False)


def _extent_of(a: Access, c: Container, d: int) -> IntLike:
    return access_box(a, c)[d].size


def _points(params: Iterable[Symbol]) -> IntLike:
    return product(p.size for p in params)


def _range(e: IntLike, params: frozenset[Symbol], guard: list[Condition], size: IntLike, dims: tuple[int, ...]) -> _Set | None:
    """The values of an affine subscript where they are a range; None where they are not, or it is not known."""
    if not params:
        return _Set(dims, 1, ("range", dims, e, 1), e)
    parts = affine(e, params)
    if parts is None or any(not _fixed_range(p, params) for p in params):
        return None
    coefficients, low = parts
    if not all(p in coefficients or not guard for p in params):
        return None
    length: IntLike = 1
    terms = [(a, p) for p, a in coefficients.items()]
    for a, p in sorted(terms, key=lambda t: (0, abs(t[0]), "") if isinstance(t[0], int) else (1, 0, str(t[0]))):
        assert p.lower is not None and p.upper is not None
        n = p.size
        if isinstance(n, int) and n == 1:
            low = low + a * p.lower
            continue
        sign = 1 if prove_le(0, a) is True else -1 if prove_le(a, 0) is True else 0
        if sign == 0 or prove_le(a * sign, length) is not True:
            return None
        low = low + a * (p.lower if sign > 0 else p.upper)
        length = length + (n - 1) * a * sign
    high = low + length - 1
    for g in guard:
        # conditions subscript - x >= 0 and x - subscript >= 0 clip the range
        below, above = e - g.expr, e + g.expr
        if g.relation == "ge" and _params_of(below, params) == frozenset():
            low = maximum(low, below)
        elif g.relation == "ge" and _params_of(above, params) == frozenset():
            high = minimum(high, above)
        else:
            return None
    count = high - low + 1
    if isinstance(count, int):
        count = max(0, count)
    return _Set(dims, count, ("range", dims, low, count), low)


def _is_injective(e: IntLike, params: frozenset[Symbol]) -> bool:
    """Whether every point of the parameters gives another value: each coefficient exceeds what the smaller ones span."""
    parts = affine(e, params)
    if parts is None or not all(_fixed_range(p, params) for p in params):
        return False
    numbers = sorted(((abs(a), p) for p, a in parts[0].items() if isinstance(a, int)), key=lambda t: t[0])
    if {p for _, p in numbers} != params:
        return False
    span: IntLike = 1
    for a, p in numbers:
        if prove_le(span, a) is not True:
            return False
        span = span + (p.size - 1) * a
    return True


def _enumerate(subset: Sequence[object], params: frozenset[Symbol], guard: Iterable[Condition], dims: tuple[int, ...]) -> _Set | None:
    """The distinct subscripts, by evaluating every point; None where a size is symbolic or there are too many points."""
    values: dict[Symbol, np.ndarray] = {}
    ordered = sorted(params, key=lambda p: p.name)
    hull: dict[Symbol, tuple[int, int]] = {}
    for p in ordered:
        ends = _hull(p)
        if ends is None:
            return None
        hull[p] = ends
    sizes = [max(0, hull[p][1] - hull[p][0] + 1) for p in ordered]
    if math.prod(sizes) > ENUMERATED:
        return None
    for i, p in enumerate(ordered):
        shape = [1] * len(ordered)
        shape[i] = sizes[i]
        values[p] = np.arange(hull[p][0], hull[p][1] + 1).reshape(shape)
    columns = []
    where = np.ones(sizes, bool)
    try:
        for g in guard:
            v = evaluate_index(g.expr, values, {})
            where &= np.asarray(v >= 0 if g.relation == "ge" else v == 0)
        for s in subset:
            if not isinstance(s, (int, Expr)):
                return None
            columns.append(np.broadcast_to(np.asarray(evaluate_index(s, values, {})), sizes)[where])
    except KeyError:  # a symbolic size
        return None
    points = _distinct(columns)
    return _Set(dims, len(points), ("points", dims, points.tobytes()), points=points)


def _distinct(columns: Sequence[np.ndarray]) -> np.ndarray:
    if not columns or not columns[0].size:
        return np.zeros((0, len(columns)), np.int64)
    lows = [int(c.min()) for c in columns]
    spans = [int(c.max()) - low + 1 for c, low in zip(columns, lows, strict=True)]
    linear: np.ndarray = np.zeros(columns[0].shape, np.int64)
    for column, low, span in zip(columns, lows, spans, strict=True):
        linear = linear * span + (column - low)
    if math.prod(spans) <= 4 * ENUMERATED:  # marking is faster than sorting
        mark = np.zeros(math.prod(spans), bool)
        mark[linear] = True
        linear = np.flatnonzero(mark)
    else:
        linear = np.unique(linear)
    back = np.unravel_index(linear, spans)
    return np.stack([b + low for b, low in zip(back, lows, strict=True)], axis=1)


def _hull(p: Symbol) -> tuple[int, int] | None:
    if isinstance(p.lower, int) and isinstance(p.upper, int):
        return p.lower, p.upper
    if p.lower is None or p.upper is None:
        return None
    low, high = bounds(p.lower)[0], bounds(p.upper)[1]
    return None if low is None or high is None else (low, high)


# several accesses -----------------------------------------------------------------------------------------------------------
def _union(images: list[Image], c: Container) -> Footprint:
    if not images:
        return Footprint(0)
    if len(images) == 1:
        return Footprint(product(s.count for s in images[0]), all(s.exact for s in images[0]))
    common: IntLike = 1
    exact = True
    shared = {s.key for s in images[0]}.intersection(*({s.key for s in image} for image in images[1:]))
    for s in images[0]:
        if s.key in shared:
            common, exact = common * s.count, exact and s.exact
    rest = [tuple(s for s in image if s.key not in shared) for image in images]
    united = _merged(rest)
    if united is None:
        united = _marked(rest, c)
    if united is not None:
        return Footprint(common * united, exact)
    total: IntLike = 0
    for image in rest:
        total = total + product(s.count for s in image)
    dims = [d for s in rest[0] for d in s.dims]
    return Footprint(common * minimum(total, product(c.shape[d] for d in dims)), False)


def _merged(images: list[Image]) -> IntLike | None:
    """The union of ranges along one dimension, where one follows or covers the other provably."""
    ranges: list[tuple[IntLike, IntLike]] = []
    for image in images:
        if len(image) != 1 or image[0].start is None:
            return None
        ranges.append((image[0].start, image[0].start + image[0].count - 1))
    numbers = [(a, b) for a, b in ranges if isinstance(a, int) and isinstance(b, int)]
    if len(numbers) == len(ranges):
        total, reach = 0, min(a for a, _ in numbers) - 1
        for a, b in sorted(numbers):
            total += max(0, b - max(a - 1, reach))
            reach = max(reach, b)
        return total
    low, high = ranges[0]
    for start, end in ranges[1:]:
        if prove_le(low, start) is not True:
            (low, high), (start, end) = (start, end), (low, high)
        if prove_le(low, start) is not True or prove_le(start, high + 1) is not True:
            return None
        if prove_le(high, end) is True:
            high = end
        elif prove_le(end, high) is not True:
            return None
    return high - low + 1


def _marked(images: list[Image], c: Container) -> int | None:
    """The union by marking elements."""
    dims = sorted({d for image in images for s in image for d in s.dims})
    shape = [n for d in dims if isinstance(n := c.shape[d], int)]
    if len(shape) < len(dims) or math.prod(shape) > ENUMERATED:
        return None
    mark = np.zeros(shape, bool)
    for image in images:
        index: dict[int, np.ndarray] = {}
        for i, s in enumerate(image):
            points = s.points
            if points is None and isinstance(s.start, int) and isinstance(s.count, int):
                points = np.arange(s.start, s.start + s.count)[:, None]
            if points is None:
                return None
            axes = [1] * len(image)
            axes[i] = len(points)
            for k, d in enumerate(s.dims):
                index[d] = points[:, k].reshape(axes)
        mark[tuple(index[d] for d in dims)] = True
    return int(np.count_nonzero(mark))
