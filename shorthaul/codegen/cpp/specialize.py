"""Specialization by bounds: guards and index comparisons that the ranges of parameters decide, and splitting ranges where they do.

Padding makes every access of a tile conditional, though the conditions fail on its rim only. `split_rim` cuts a nest
into the part where all guards hold, which then has none, and the rim, where what remains is mostly a constant.
"""

from __future__ import annotations

from dataclasses import replace

from shorthaul.ir.dtypes import bool_
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, const, rewrite, walk
from shorthaul.symbolic import IntLike, Symbol, bounds, index, prove_le, substitute

from .linearize import Code, Nest, Ref, decompose, int_size, one_tasklet, simplify


def specialize(code: Code) -> Code:
    """The tasklet without the conditions that the bounds of its parameters decide."""
    reads: dict[str, Ref] = {}
    constants: dict[str, Scalar] = {}
    needed = {n for r in (*code.reads.values(), *code.writes.values()) for n, _ in r.indirect}
    for name, r in code.reads.items():
        verdicts = [_holds(c) for c in r.guard]
        if any(v is False for v in verdicts) and name not in needed:
            constants[name] = const(r.fill if r.fill is not None else 0, r.dtype)
        else:
            reads[name] = replace(r, guard=tuple(c for c, v in zip(r.guard, verdicts, strict=True) if v is not True))

    def leaf(n: Scalar) -> Scalar | None:
        if n.op == "read":
            return constants.get(str(n.attr))
        return _decided(n)

    memo: dict[Scalar, Scalar] = {}
    values = {}
    for k, v in code.code.items():
        for node in walk(v):  # decide comparisons before their users are rebuilt, and conjunctions behind them
            if node in memo:
                continue
            found = leaf(node)
            memo[node] = found if found is not None else _folded(rewrite(node, leaf, dict(memo)))
        values[k] = memo[v]
    used = {n.attr for n in walk(*values.values()) if n.op == "read"} | needed
    return Code({n: r for n, r in reads.items() if n in used}, code.writes, values, code.origin)


def _holds(c: Condition) -> bool | None:
    if c.relation == "ge":
        return prove_le(0, c.expr)
    if isinstance(c.expr, int):
        return c.expr == 0
    low, high = bounds(c.expr)
    return False if (low is not None and low > 0) or (high is not None and high < 0) else None


def _decided(n: Scalar) -> Scalar | None:
    """The value of a comparison of index expressions, where bounds tell it."""
    if n.op not in ("lt", "le", "gt", "ge") or not all(a.op in ("index", "const") for a in n.args) or n.args[0].dtype.is_float:
        return None
    a, b = (x.attr for x in n.args)
    if n.op in ("gt", "ge"):
        a, b = b, a
    strict = n.op in ("lt", "gt")
    verdict = prove_le(a + 1 if strict else a, b)  # type: ignore[operator,arg-type]
    return None if verdict is None else const(verdict, bool_)


def _folded(n: Scalar) -> Scalar:
    """Conjunctions and disjunctions with a constant."""
    if n.op in ("and", "or") and n.dtype is bool_:
        for a, b in (n.args, n.args[::-1]):
            if a.op == "const":
                return (b if a.attr else a) if n.op == "and" else (a if a.attr else b)
    return n


def split_rim(nest: Nest, code: Code) -> list[Nest]:
    """The nest as its inside, where guards on single parameters hold, and the strips around it. One nest if there is nothing to split."""
    inside: dict[Symbol, tuple[int, int]] = {}
    for r in code.reads.values():
        for c in r.guard:
            coefficients, rest, nonlinear = decompose(c.expr, frozenset(nest.params))
            if c.relation != "ge" or nonlinear or len(coefficients) != 1 or not isinstance(rest, int):
                continue
            ((p, k),) = coefficients.items()
            if not isinstance(k, int) or abs(k) != 1 or not isinstance(p.size, int):
                continue
            low, high = inside.get(p, (0, p.size - 1))
            inside[p] = (max(low, -rest), high) if k == 1 else (low, min(high, rest))
    inside = {p: (a, b) for p, (a, b) in inside.items() if (a, b) != (0, p.size - 1)}  # type: ignore[operator]
    if not inside or any(a > b for a, b in inside.values()):
        return [_part(nest, code, {})]
    out = []
    fixed: dict[Symbol, tuple[int, int]] = {}
    for p, (a, b) in inside.items():  # strips of the first parameter go over all others, later ones over the inside of earlier ones
        if a > 0:
            out.append(_part(nest, code, {**fixed, p: (0, a - 1)}))
        if b < int_size(p) - 1:
            out.append(_part(nest, code, {**fixed, p: (b + 1, int_size(p) - 1)}))
        fixed[p] = (a, b)
    return [_part(nest, code, fixed), *out]


def _part(nest: Nest, code: Code, ranges: dict[Symbol, tuple[int, int]]) -> Nest:
    values: dict[Symbol, IntLike] = {}
    params = []
    for p in nest.params:
        if p in ranges:
            low, high = ranges[p]
            q = index(f"{p.name}_{low}", high - low + 1)
            values[p] = q + low
            params.append(q)
        else:
            params.append(p)
    part = code.rewritten(lambda e: e if isinstance(e, int) else substitute(e, values))
    return simplify(one_tasklet(Nest(params, [specialize(part)], {}, nest.name)))
