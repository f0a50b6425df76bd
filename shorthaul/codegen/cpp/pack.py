"""Packing: small operands whose lanes are far apart in memory are copied once, with their lanes side by side.

The weights of a depthwise convolution, k[c, 3, 3], are read for 16 channels at once: 16 loads of nine elements' distance, for every tap and
position. A copy [3, 3, c] at the start of the kernel costs one pass over a few kilobytes.
"""

from __future__ import annotations

import itertools

from shorthaul.ir.containers import Container
from shorthaul.ir.scalar import read
from shorthaul.symbolic import Symbol, prove_eq, summation

from .linearize import Code, Nest, Ref, decompose
from .plan import choose_vector, estimate

PACK_ELEMENTS = 1 << 18  # of an operand that is copied at most
REUSE = 16  # how often it must be read at least
_serial = itertools.count()


def packed(nest: Nest) -> Nest:
    """The nest with its strided small operands packed in front of it."""
    copies: dict[tuple[str, object, tuple[int, ...]], tuple[Nest, Container]] = {}
    new = _visit(nest, [], 1.0, copies)
    if not copies:
        return nest
    body = [n for n, _ in copies.values()]
    return Nest([], [*body, new], {c.name: c for _, c in copies.values()}, nest.name)


def _visit(nest: Nest, above: list[Symbol], trips: float, copies: dict) -> Nest:
    params = [*above, *nest.params]
    for p in nest.params:
        trips *= max(1, estimate(p.size))
    body: list[Nest | Code] = []
    code = nest.leaf
    if code is not None:
        body.append(_leaf(nest, code, params, trips, copies))
    else:
        body += [_visit(n, params, trips, copies) if isinstance(n, Nest) else n for n in nest.body]
    return Nest(nest.params, body, nest.locals, nest.name, nest.order, nest.lanes)


def _leaf(nest: Nest, code: Code, params: list[Symbol], trips: float, copies: dict) -> Code:
    v = nest.lanes if nest.order else choose_vector(code, nest.params)
    if v is None or not isinstance(v.size, int):
        return code
    reads = dict(code.reads)
    for name, ref in code.reads.items():
        new = _copy(ref, v, params, trips, code, copies)
        if new is not None:
            reads[name] = new
    return Code(reads, code.writes, code.code, code.origin)


def _copy(ref: Ref, v: Symbol, params: list[Symbol], trips: float, code: Code, copies: dict) -> Ref | None:
    """The packed access that takes the place of a strided one; None if it stays."""
    if ref.local or ref.guard or ref.indirect or any(w.container == ref.container for w in code.writes.values()):
        return None
    coefficients, rest, nonlinear = decompose(ref.address, frozenset(params))
    stride = coefficients.get(v)
    if nonlinear or not isinstance(stride, int) or abs(stride) == 1 or not isinstance(rest, int):
        return None
    used = [p for p in params if p in coefficients]
    if not all(isinstance(p.size, int) and isinstance(coefficients[p], int) for p in used):
        return None
    # the taps that were written out show as a constant: pack everything between two lanes
    between = 1
    others = sorted((p for p in used if p is not v), key=lambda p: -abs(coefficients[p]))  # type: ignore[arg-type]
    if not others and 0 <= rest < stride:
        between = stride
    elif rest != 0:
        return None
    elements = between
    for p in used:
        elements *= estimate(p.size)
    if elements > PACK_ELEMENTS or trips < REUSE * elements:
        return None
    order = [*others, v]
    shape = tuple(p.size for p in others)
    key = (ref.container, v if others else stride, tuple(coefficients[p] for p in order))  # type: ignore[misc]
    if key not in copies:
        name = f"packed#{next(_serial)}"
        c = Container(name, ref.dtype, (*shape, between, v.size) if between > 1 else (*shape, v.size), storage="register")
        from shorthaul.symbolic import index

        fresh = [index(f"k{n}", p.size) for n, p in enumerate(order)]
        tap = index("t", between)
        source = summation(p * coefficients[q] for p, q in zip(fresh, order, strict=True)) + (tap if between > 1 else 0)
        loops = [*fresh[:-1], *([tap] if between > 1 else []), fresh[-1]]
        target = summation(p * s for p, s in zip(loops, c.actual_strides, strict=True))
        copy = Code(
            {"x": Ref(ref.container, ref.dtype, source)}, {"y": Ref(name, ref.dtype, target, local=True)}, {"y": read("x", ref.dtype)}
        )
        copies[key] = (Nest(loops, [copy]), c)
    _, c = copies[key]
    strides = c.actual_strides
    if between > 1:
        address = rest * strides[0] + v
    else:
        address = summation(p * s for p, s in zip(order, strides, strict=True))
    return Ref(c.name, ref.dtype, address, local=True)


__all__ = ["packed", "prove_eq"]
