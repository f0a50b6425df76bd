"""Combining writes that meet: parameters whose different values reach the same element although its address depends on them.

`y[i // 2] (sum) = x[i]` adds two iterations to each element, and `y[2*i + j] (sum) = x[i, j]` with three values of j overlaps. Such a
parameter is neither kept by the reduction nor reduced by it. Where a division is exact the parameter is split in two (`split`), of
which one is reduced; what is left is merged into memory one value after the other, as with subscripts that are read (`Group.scatters`).
"""

from __future__ import annotations

import functools

from shorthaul.symbolic import Expr, IntLike, Symbol, ceildiv, free_symbols, index, prove_le
from shorthaul.symbolic.expr import FloorDiv, Mod

from .linearize import Nest, decompose

Part = tuple[IntLike, IntLike, Symbol]  # coefficient, number of values, the parameter that it is or is a part of


@functools.lru_cache(maxsize=1 << 14)
def colliding(address: IntLike, params: frozenset[Symbol]) -> frozenset[Symbol]:
    """The parameters in which the address is not known to be one to one, together with those that they collide with."""
    coefficients, _, nonlinear = decompose(address, params)
    parts: list[Part] = [(a, p.size, p) for p, a in coefficients.items()]
    found = set()
    for p in nonlinear:
        digits = _digits(address, p)
        if digits is None or p in coefficients:
            found.add(p)
        else:
            parts += digits
    parts = [part for part in parts if not (isinstance(part[1], int) and part[1] == 1)]
    span: IntLike = 1
    numbers = sorted(((abs(a), n, p) for a, n, p in parts if isinstance(a, int)), key=lambda part: (part[0], part[2].name))
    for k, (step, n, _) in enumerate(numbers):
        if k and prove_le(span, step) is not True:
            found |= {q for _, _, q in numbers[: k + 1]}
        span = span + (n - 1) * step
    symbolic = [(a, n, p) for a, n, p in parts if isinstance(a, Expr) and a.const == 0 and len(a.terms) == 1]
    for a, n, p in symbolic:  # multiples of one symbolic stride
        for b, _, q in symbolic:
            if p is not q and a.terms.keys() == b.terms.keys():
                small, large = abs(next(iter(a.terms.values()))), abs(next(iter(b.terms.values())))
                if small <= large and prove_le(n * small, large) is not True:
                    found |= {p, q}
    return frozenset(found)


def _divisions(e: IntLike, p: Symbol) -> list[FloorDiv | Mod] | None:
    """The divisions in e of p by numbers; None where p occurs in another way than linearly."""
    found: list[FloorDiv | Mod] = []
    for mono in () if isinstance(e, int) else e.terms:
        for atom in mono:
            if atom is p or p not in free_symbols(atom):
                continue
            if len(mono) > 1 or not isinstance(atom, (FloorDiv, Mod)) or atom.dividend is not p or not isinstance(atom.divisor, int):
                return None
            found.append(atom)
    return found


def _digits(address: IntLike, p: Symbol) -> list[Part] | None:
    """(coefficient, size, p) of quotient and remainder of one division of p, where the address uses p as these two only."""
    divisions = _divisions(address, p)
    if divisions is None or {type(d) for d in divisions} != {FloorDiv, Mod} or len(divisions) != 2 or isinstance(address, int):
        return None
    if divisions[0].divisor != divisions[1].divisor:
        return None
    k = divisions[0].divisor
    return [(address.terms[d,], ceildiv(p.size, k) if isinstance(d, FloorDiv) else k, p) for d in divisions]


def split(nest: Nest) -> Nest:
    """The nest with parameters that collide through an exact division by k as k * outer + inner."""
    nest.body = [split(n) if isinstance(n, Nest) else n for n in nest.body]
    params = frozenset(nest.params)
    addresses = [r.address for c in nest.codes() for r in c.writes.values() if r.combine is not None and isinstance(r.address, Expr)]
    wanted = frozenset().union(*(colliding(a, params) for a in addresses))
    sizes: dict[Symbol, int] = {}
    for p in wanted:
        divisions = [_divisions(a, p) for a in addresses]
        smallest = min((int(d.divisor) for ds in divisions if ds for d in ds), default=0)  # type: ignore[arg-type]
        if smallest > 1 and isinstance(p.size, int) and p.size % smallest == 0:
            sizes[p] = smallest
    if not sizes:
        return nest
    values: dict[Symbol, IntLike] = {}
    parts: list[Symbol] = []
    for p in nest.params:
        if p in sizes:
            outer, inner = index(f"{p.name}o", p.size // sizes[p]), index(f"{p.name}i", sizes[p])
            values[p] = sizes[p] * outer + inner
            parts += [outer, inner]
        else:
            parts.append(p)
    return Nest(parts, nest.body, nest.locals, nest.name).rewritten_body(values)


__all__ = ["colliding", "split"]
