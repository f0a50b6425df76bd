"""Writes that meet: whether several points of a map may combine into one element although its subscripts depend on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Indirect, Memlet, Span
from shorthaul.symbolic import Expr, Symbol, affine, free_symbols

IntLike = Union[int, Expr]


def may_meet(m: Memlet, params: Iterable[Symbol], container: Container) -> bool:
    """Whether points that differ in the parameters of a combining write's subscripts may meet in one element: where a subscript is data,
    and where an address is not seen to be one to one (`y[i // 2]`, or `y[2 * i + j]` with three values of j)."""
    if m.is_indirect:
        return True
    used = [p for p in params if not (isinstance(p.size, int) and p.size == 1) and any(p in _symbols(s) for s in m.subset)]
    plain = [s for s in m.subset if isinstance(s, Symbol)]
    if len(set(plain)) == len(plain) and set(plain) >= set(used):
        return False
    address: IntLike = 0
    for s, stride in zip(m.subset, container.actual_strides, strict=True):
        if isinstance(s, (Span, Indirect)):
            return True
        address = address + s * stride
    form = affine(address, used)
    if form is None:
        return True
    steps = []
    for p in used:
        k = form[0].get(p, 0)
        if not isinstance(k, int) or k <= 0 or not isinstance(p.size, int):
            return True
        steps.append((k, p.size))
    span = 1
    for k, n in sorted(steps):
        if k < span:
            return True
        span += k * (n - 1)
    return False


def telling(m: Memlet) -> frozenset[Symbol]:
    """Parameters whose different values reach different elements whatever the others are: those that are a subscript by themselves."""
    return frozenset(s for s in m.subset if isinstance(s, Symbol))


def _symbols(e: object) -> frozenset[Symbol]:
    return free_symbols(e) if isinstance(e, Expr) else frozenset()
