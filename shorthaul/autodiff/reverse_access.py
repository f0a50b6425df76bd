"""Transposing a read: the write that adds to the gradient of what an iteration reads, as a gather where that is possible.

    before:  map i, j: y[i] += x[2*i + j] * w[j]
    scatter: map i, j: gx[2*i + j] (sum) = gy[i] * w[j]
    gather:  map e, j: gx[e] (sum) = gy[(e - j)//2] * w[j]   if (e - j) mod 2 == 0 and 0 <= (e - j)//2 < I

The gather has one parameter per dimension of the operand and solves each subscript for one of the map's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from shorthaul.ir.builder import fresh_params
from shorthaul.ir.memlet import Condition, Indirect, Memlet, simplify_guard
from shorthaul.ir.scalar import Scalar, apply, const, index_value, substitute_indices, symbols_of, walk, where
from shorthaul.symbolic import Expr, Symbol, affine, bounds, floordiv, free_symbols, mod, prove_eq, substitute

IntLike = Union[int, Expr]


@dataclass(frozen=True)
class Transposed:
    """A flat map that computes the contribution: `write` names the operand's container, to be replaced by its gradient's."""

    params: tuple[Symbol, ...]
    reads: dict[str, Memlet]
    write: Memlet
    value: Scalar


def transpose(params: tuple[Symbol, ...], reads: Mapping[str, Memlet], target: Memlet, shape: Sequence[IntLike],
              value: Scalar) -> Transposed:  # fmt: skip
    """The map that adds `value` (scalar code over `reads`, at each point of `params`) to the element that `target` reads.

    shape: that of the target's container. A gather where the subscripts can be solved, else a scatter that combines by sum.
    """
    found = _gather(params, reads, target, shape, value)
    if found is not None:
        return found
    return Transposed(tuple(params), dict(reads), target.with_(fill=None, combine="sum", scan=None), value)


def _gather(params: tuple[Symbol, ...], reads: Mapping[str, Memlet], target: Memlet, shape: Sequence[IntLike],
            value: Scalar) -> Transposed | None:  # fmt: skip
    if any(isinstance(s, Indirect) or not isinstance(s, (int, Expr)) for s in target.subset):
        return None
    if any(isinstance(e, Expr) and not free_symbols(e).isdisjoint(params) for p in params for e in (p.lower, p.upper)):
        return None
    solved: dict[Symbol, IntLike] = {}
    conditions: list[Condition] = []
    place: list[IntLike] = []
    kept: list[Symbol] = []
    elements = fresh_params(shape, "e")
    # dimensions with fewer parameters first: what they fix is known in the others
    order = sorted(range(len(shape)), key=lambda d: _count(target.subset[d], params))
    position: dict[int, IntLike] = {}
    for d in order:
        s = target.subset[d]
        assert not isinstance(s, Indirect) and isinstance(s, (int, Expr))
        e = s if isinstance(s, int) else substitute(s, solved)
        if isinstance(shape[d], int) and shape[d] == 1 and prove_eq(e, 0) is True:
            position[d] = 0
            continue
        element = elements[d]
        position[d] = element
        kept.append(element)
        free = [p for p in params if p not in solved]
        parts = affine(e, free)
        if parts is None:
            return None
        coefficients, rest = parts
        if not coefficients:
            conditions.append(Condition(element - e, "eq"))
            continue
        p = _choice(coefficients)
        if p is None:
            return None
        a = coefficients[p]
        rest = e - a * p
        assert isinstance(a, int)
        distance = (element - rest) if a > 0 else (rest - element)
        if abs(a) != 1:
            conditions.append(Condition(mod(distance, abs(a)), "eq"))
            distance = floordiv(distance, abs(a))
        assert p.lower is not None and p.upper is not None
        conditions += [Condition(distance - p.lower), Condition(p.upper - distance)]
        solved = {q: substitute(v, {p: distance}) if isinstance(v, Expr) else v for q, v in solved.items()}
        conditions = [Condition(substitute(c.expr, {p: distance}) if isinstance(c.expr, Expr) else c.expr, c.relation) for c in conditions]
        solved[p] = distance
    place = [position[d] for d in range(len(shape))]
    guard = simplify_guard((*conditions, *target.substitute(solved).guard))
    new_params = (*[e for d, e in enumerate(elements) if position[d] is e], *[p for p in params if p not in solved])
    reduced = len(new_params) > len(kept)
    new_reads = {k: _guarded(m.substitute(solved), guard) for k, m in reads.items()}
    value = substitute_indices(value, solved) if symbols_of(value) else value
    if guard and not _vanishes(value, new_reads, guard):
        value = where(_holds(guard), value, const(0, value.dtype))
    write = Memlet(target.container, tuple(place), combine="sum" if reduced else None)
    return Transposed(tuple(new_params), new_reads, write, value)


def _count(s: object, params: Sequence[Symbol]) -> int:
    return len(free_symbols(s).intersection(params)) if isinstance(s, Expr) else 0


def _choice(coefficients: Mapping[Symbol, IntLike]) -> Symbol | None:
    """The parameter to solve for: of constant coefficient, and the one with the largest range, so that the sum over the others is short."""
    best: Symbol | None = None
    for p, a in coefficients.items():
        if isinstance(a, int) and p.lower is not None and p.upper is not None and (best is None or _range(p) > _range(best)):
            best = p
    return best


def _range(p: Symbol) -> float:
    assert p.upper is not None and p.lower is not None
    if isinstance(p.size, int):
        return p.size
    _, high = bounds(p.size)
    # a size that is only known at run time counts as large: kernels' extents are constants as a rule
    return float("inf") if high is None else float(high)


def _guarded(m: Memlet, guard: tuple[Condition, ...]) -> Memlet:
    """The read under further conditions; conditions that it does not need for staying in range are harmless."""
    if not guard:
        return m
    return m.with_(guard=simplify_guard((*m.guard, *guard)), fill=0 if m.fill is None else m.fill)


def _vanishes(value: Scalar, reads: Mapping[str, Memlet], guard: tuple[Condition, ...]) -> bool:
    """Whether the value is a product with a factor that the guard makes zero, and no factor that could be infinite there."""
    if not all(n.op in ("mul", "read", "const", "cast", "neg") and n.dtype.is_float for n in walk(value)):
        return False
    return any(n.op == "read" and reads[n.attr].fill == 0 and set(guard) <= set(reads[n.attr].guard) for n in walk(value))  # type: ignore[index]


def _holds(guard: tuple[Condition, ...]) -> Scalar:
    """The conjunction as scalar code."""
    terms = [apply("ge" if c.relation == "ge" else "eq", index_value(c.expr), 0) for c in guard]
    result = terms[0]
    for t in terms[1:]:
        result = result & t
    return result
