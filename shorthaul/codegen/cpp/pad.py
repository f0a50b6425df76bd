"""Padding of locals: a row or image that windows read beyond its ends gets a rim that holds the fill.

before:  local t[c, h]; t[c, i] = ...; y[c, a] (sum) = t[c, a + u - 1] if 0 <= a + u - 1 < h else 0
after:   local t[c, h + 2]; t[c, 0] = t[c, h + 1] = 0; t[c, i + 1] = ...; y[c, a] (sum) = t[c, a + u]

The window then runs without conditions on what its producer wrote, and needs no padded copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shorthaul.ir.builder import fresh_params
from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Condition, Memlet
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.scalar import const
from shorthaul.symbolic import Expr, IntLike, bounds, product, prove_eq, summation

MAX_RIM = 8  # elements at one end


@dataclass(frozen=True)
class _Rim:
    low: tuple[int, ...]
    high: tuple[int, ...]
    fill: int | float | bool


def pad_locals(m: Map) -> Map:
    """The map with rims around locals that are read under range conditions."""
    body: list[Node] = [pad_locals(n) if isinstance(n, Map) else n for n in m.body]
    local = dict(m.locals)
    rims: list[Node] = []
    for name, c in m.locals.items():
        rim = _rim(name, c, body)
        if rim is not None:
            shape = tuple(n + a + b for n, a, b in zip(c.shape, rim.low, rim.high, strict=True))
            local[name] = c.with_(shape=shape, strides=_strides(c, shape))
            body = [_shifted(n, name, c, rim) for n in body]
            rims += _fill(local[name], c, rim)
    return m.with_(body=(*rims, *body), locals=local) if rims or any(a is not b for a, b in zip(body, m.body, strict=True)) else m


def _memlets(nodes: list[Node], name: str) -> Iterator[tuple[Memlet, bool]]:
    for n in nodes:
        if isinstance(n, Map):
            if name not in n.locals:
                yield from _memlets(list(n.body), name)
        else:
            yield from ((r, False) for r in n.reads.values() if r.container == name)
            yield from ((w, True) for w in n.writes.values() if w.container == name)


def _rim(name: str, c: Container, body: list[Node]) -> _Rim | None:
    """How far reads reach beyond each end; None if they do not, or not in a way that a rim serves."""
    if not c.shape or not all(isinstance(n, int) for n in c.shape):
        return None
    low, high = [0] * len(c.shape), [0] * len(c.shape)
    fills = set()
    for r, is_write in _memlets(body, name):
        if r.is_indirect or not r.is_element:
            return None
        if is_write or not r.guard:
            continue
        if r.fill is None:
            return None
        for d, (s, n) in enumerate(zip(r.subset, c.shape, strict=True)):
            if not any(_is_range(x, s, n) for x in r.guard):  # type: ignore[arg-type]
                continue
            a, b = bounds(s)  # type: ignore[arg-type]
            assert isinstance(n, int)
            if a is None or b is None or -a > MAX_RIM or b - n + 1 > MAX_RIM:
                return None
            low[d], high[d] = max(low[d], -a), max(high[d], b - n + 1)
        fills.add((type(r.fill).__name__, r.fill))
    if len({f for _, f in fills}) != 1 or not any((*low, *high)):
        return None
    ((_, fill),) = list(fills)[:1]
    return _Rim(tuple(low), tuple(high), fill)


def _is_range(x: Condition, s: IntLike, n: IntLike) -> bool:
    """Whether a condition says that a subscript is not below, or not beyond, its dimension."""
    return x.relation == "ge" and (prove_eq(x.expr, s) is True or prove_eq(x.expr, n - 1 - s) is True)


def _strides(c: Container, shape: tuple[IntLike, ...]) -> tuple[IntLike, ...] | None:
    """Strides of the padded shape, dimensions in memory in the order they had."""
    if c.strides is None:
        return None
    extent = 1 + summation((n - 1) * s for n, s in zip(c.shape, c.strides, strict=True))
    if prove_eq(extent, product(c.shape)) is not True:
        return None
    strides: list[IntLike] = [0] * len(shape)
    step: IntLike = 1
    for d in sorted(range(len(shape)), key=lambda d: (c.strides[d], c.shape[d] != 1)):  # type: ignore[index]
        strides[d] = step
        step = step * shape[d]
    return tuple(strides)


def _shifted(node: Node, name: str, c: Container, rim: _Rim) -> Node:
    def fix(r: Memlet) -> Memlet:
        if r.container != name:
            return r
        guard = r.guard
        for s, n in zip(r.subset, c.shape, strict=True):
            if isinstance(s, (int, Expr)):
                guard = tuple(x for x in guard if not (r.fill is not None and _is_range(x, s, n)))  # type: ignore[arg-type]
        subset = tuple(s + k if isinstance(s, (int, Expr)) else s for s, k in zip(r.subset, rim.low, strict=True))
        return r.with_(subset=subset, guard=guard)

    return _rewritten(node, fix, name)


def _rewritten(node: Node, fix: Callable[[Memlet], Memlet], name: str) -> Node:
    if isinstance(node, Map):
        return node if name in node.locals else node.with_(body=tuple(_rewritten(n, fix, name) for n in node.body))
    return node.with_(reads={k: fix(r) for k, r in node.reads.items()}, writes={k: fix(w) for k, w in node.writes.items()})


def _fill(padded: Container, c: Container, rim: _Rim) -> Iterator[Map]:
    """Maps that write the rim: for each dimension the strips at its ends, over the inside of the dimensions before."""
    for d, n in enumerate(c.shape):
        for first, count in ((0, rim.low[d]), (rim.low[d] + n, rim.high[d])):
            if not count:
                continue
            sizes = [*c.shape[:d], count, *padded.shape[d + 1 :]]
            starts = [*rim.low[:d], first, *[0] * (len(sizes) - d - 1)]
            params = fresh_params(sizes)
            write = Memlet(padded.name, tuple(p + s for p, s in zip(params, starts, strict=True)))
            yield Map(params, (Tasklet({"rim": const(rim.fill, padded.dtype)}, writes={"rim": write}),))
