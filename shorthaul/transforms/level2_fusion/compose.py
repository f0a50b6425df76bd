"""Composing maps: substituting one flat map into another, and merging two maps that run over the same points.

These functions work on maps alone, so the same rules serve at the top level of a program and inside the body of a nested map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from shorthaul.ir.memlet import Condition, Indirect, Memlet, Span
from shorthaul.ir.nodes import Map, Node, Origin, Tasklet
from shorthaul.ir.scalar import (
    Scalar,
    apply,
    const,
    index_value,
    read,
    reads_of,
    rewrite,
    substitute_indices,
    walk,
    where,
)
from shorthaul.ir.scalar_ops import COMBINERS, SCALAR_OPS
from shorthaul.symbolic import Expr, FloorDiv, Mod, Symbol, affine, free_symbols, prove_eq, prove_le, prove_lt

from ..base import require

IntLike = Union[int, Expr]


def code_cost(codes: Iterable[Scalar]) -> int:
    """What evaluating the code once costs, in adds."""
    return sum(SCALAR_OPS[n.op].cost for n in walk(*codes) if n.op in SCALAR_OPS)


def tasklet_of(m: Map) -> Tasklet:
    """The tasklet of a flat map."""
    t = m.tasklet
    assert t is not None
    return t


def same_size(a: IntLike, b: IntLike) -> bool:
    return a is b or a == b or prove_eq(a, b) is True


@dataclass(frozen=True)
class Reading:
    """How a consumer reads a producer's element: the producer's parameters as expressions of the consumer's, and the guard.

    Where the consumer reads by an index that is data, the parameter becomes an `Indirect` to the consumer's connector (see `of_consumer`).
    """

    values: tuple[tuple[Symbol, IntLike | Indirect], ...]
    guard: tuple[Condition, ...]
    fill: int | float | bool | None

    @property
    def substitution(self) -> dict[Symbol, Any]:
        """By parameter, for memlets."""
        return dict(self.values)

    @property
    def numbers(self) -> dict[Symbol, IntLike]:
        """What is no `Indirect`, for code."""
        return {p: e for p, e in self.values if not isinstance(e, Indirect)}


def of_consumer(connector: str) -> str:
    """The name under which a producer's memlets refer to a connector of the consumer."""
    return f"consumer:{connector}"


def written_params(a: Map, mid: str) -> dict[int, Symbol]:
    """Dimension of `mid` -> parameter of `a` that runs over it; raises Refusal unless `a` writes every element of `mid` once, plainly."""
    t = a.tasklet
    require(t is not None, "the producer is a nested kernel, not one tasklet")
    assert t is not None
    writes = [m for m in t.writes.values() if m.container == mid]
    require(len(writes) == 1, "the producer writes the intermediate more than once")
    m = writes[0]
    require(m.combine is None, "the producer combines values into the intermediate; see ReductionFusion")
    require(not m.guard, "the producer writes the intermediate under a condition")
    dims: dict[int, Symbol] = {}
    for d, s in enumerate(m.subset):
        if isinstance(s, Symbol) and s in a.params:
            require(s not in dims.values(), "the producer writes along a diagonal")
            dims[d] = s
        else:
            require(isinstance(s, int), f"the producer writes dimension {d} of the intermediate through the expression {s}")
    missing = [p for p in a.params if p not in dims.values() and p.size != 1]
    require(not missing, "the producer writes elements of the intermediate more than once")
    return dims


def reading(a: Map, dims: Mapping[int, Symbol], memlet: Memlet, gathers: bool = False) -> Reading:
    """How the memlet (a read of the intermediate) addresses the producer's points. gathers: also through indices that are data, where
    the producer does nothing with the parameter but read by it."""
    values: dict[Symbol, IntLike | Indirect] = {p: p.lower for p in a.params}  # type: ignore[misc]
    for d, s in enumerate(memlet.subset):
        data = isinstance(s, (Span, Indirect))
        require(not data or (gathers and isinstance(s, Indirect)), "the consumer reads the intermediate through indices that are data")
        if d in dims:
            p = dims[d]
            if isinstance(s, Indirect):
                require(_reads_by(a, p), "the producer computes with what the consumer's indices, which are data, say")
                s = Indirect(of_consumer(s.name))
            values[p] = s  # type: ignore[assignment]
    return Reading(tuple(values.items()), memlet.guard, memlet.fill)


def _reads_by(a: Map, p: Symbol) -> bool:
    """Whether the parameter is a plain subscript wherever the map's tasklet uses it."""
    t = tasklet_of(a)
    for m in t.reads.values():
        inside = [s for s in m.subset if isinstance(s, Expr) and s is not p]
        inside += [c.expr for c in m.guard if isinstance(c.expr, Expr)]
        if any(p in free_symbols(e) for e in inside) or any(isinstance(s, Span) for s in m.subset):
            return False
    return not any(n.op == "index" and p in free_symbols(n.attr) for n in walk(*t.code.values()))  # type: ignore[arg-type]


def is_bijection(values: Mapping[Symbol, IntLike], params: Sequence[Symbol]) -> bool:
    """Whether (params) -> (values) visits every point of the box of `values`' symbols exactly once.

    Decided for affine forms that are numbers of mixed radix (merged dimensions) and for digits of a parameter (split ones).
    """
    used: set[Symbol] = set()
    digits: dict[Symbol, list[tuple[IntLike, IntLike]]] = {}
    for p, e in values.items():
        digit = _digit(p, e)
        if digit is not None:
            digits.setdefault(digit[0], []).append(digit[1:])
            continue
        if isinstance(e, int):
            if not same_size(p.size, 1):
                return False
            continue
        own = [q for q in params if q in free_symbols(e)]
        if any(q in used for q in own):
            return False
        used.update(own)
        form = affine(e, own)
        if form is None or not same_size(form[1], p.lower if p.lower is not None else 0):
            return False
        step: IntLike = 1
        remaining = dict(form[0])
        while remaining:
            q = next((q for q, c in remaining.items() if same_size(c, step)), None)
            if q is None or q.lower != 0:
                return False
            step = step * q.size
            del remaining[q]
        if not same_size(step, p.size):
            return False
    for q, places in digits.items():
        weight: IntLike = 1
        while places:
            place = next((i for i, (w, _) in enumerate(places) if same_size(w, weight)), None)
            if place is None:
                return False
            weight = weight * places.pop(place)[1]
        if q in used or q not in params or not same_size(weight, q.size):
            return False
    return all(q in used or q in digits or same_size(q.size, 1) for q in params)


def _digit(p: Symbol, e: IntLike) -> tuple[Symbol, IntLike, IntLike] | None:
    """(q, weight, p.size) where e is the digit q // weight % p.size of the parameter q, counted from 0."""
    inner: IntLike = e
    if isinstance(e, Mod):
        if p.lower != 0 or not same_size(e.divisor, p.size):
            return None
        inner = e.dividend
    elif not isinstance(e, FloorDiv):
        return None
    q, weight = (inner.dividend, inner.divisor) if isinstance(inner, FloorDiv) else (inner, 1)
    if not isinstance(q, Symbol) or q.lower != 0 or (isinstance(e, FloorDiv) and (p.lower != 0 or not same_size(weight * p.size, q.size))):
        return None
    return q, weight, p.size


def is_injection(values: Mapping[Symbol, IntLike], params: Sequence[Symbol]) -> bool:
    """Whether (params) -> (values) takes no two points to one (affine forms whose coefficients exceed what the smaller ones span)."""
    used: set[Symbol] = set()
    for e in values.values():
        own = [q for q in params if isinstance(e, Expr) and q in free_symbols(e)]
        if not own:
            continue
        form = affine(e, own)
        if form is None or not used.isdisjoint(own) or not all(isinstance(c, int) for c in form[0].values()):
            return False
        used.update(own)
        span: IntLike = 1
        steps = [(abs(c), q) for q, c in form[0].items() if isinstance(c, int)]
        for c, q in sorted(steps, key=lambda t: t[0]):
            if prove_le(span, c) is not True:
                return False
            span = span + (q.size - 1) * c
    return all(q in used or same_size(q.size, 1) for q in params)


def used_reads(t: Tasklet, codes: Iterable[Scalar]) -> set[str]:
    """Connectors of a tasklet that the code needs, those that hold indices of others included."""
    return _with_their_indices(t, reads_of(*codes))


class Connectors:
    """Collects the reads of a merged tasklet: equal memlets share one connector."""

    def __init__(self) -> None:
        self.reads: dict[str, Memlet] = {}
        self._by_memlet: dict[Memlet, str] = {}

    def add(self, memlet: Memlet) -> str:
        name = self._by_memlet.get(memlet)
        if name is None:
            base = memlet.container
            name, i = base, 1
            while name in self.reads:
                i += 1
                name = f"{base}__{i}"
            self.reads[name] = memlet
            self._by_memlet[memlet] = name
        return name

    def take(self, reads: Mapping[str, Memlet], values: Mapping[Symbol, IntLike], guard: tuple[Condition, ...] = (),
             known: Mapping[str, str] | None = None) -> dict[str, str]:  # fmt: skip
        """Add a tasklet's reads after substitution (and under a further guard); returns old connector -> new connector. known: new names
        of connectors that the substitution brings in."""
        names: dict[str, str] = dict(known or {})
        for k, m in sorted(reads.items(), key=lambda item: item[1].is_indirect):
            new = m.substitute(values) if values else m
            new = new.rename_reads(names)
            if guard:
                new = new.with_(guard=tuple(dict.fromkeys((*new.guard, *guard))), fill=new.fill if new.fill is not None else 0)
            names[k] = self.add(new)
        return names


def renamed(code: Scalar, names: Mapping[str, str], values: Mapping[Symbol, IntLike], memo: dict[Scalar, Scalar]) -> Scalar:
    """Scalar code with reads renamed and map parameters replaced."""

    def leaf(n: Scalar) -> Scalar | None:
        if n.op == "read":
            return read(names[n.attr], n.dtype)  # type: ignore[index]
        return None

    result = rewrite(code, leaf, memo)
    return substitute_indices(result, values) if values else result


def never(c: Condition) -> bool:
    """Whether the condition provably fails everywhere."""
    return (prove_lt(c.expr, 0) is True) if c.relation == "ge" else (prove_eq(c.expr, 0) is False)


def holds(guard: Iterable[Condition]) -> Scalar | None:
    """A guard as boolean scalar code, None if it is empty."""
    value: Scalar | None = None
    for c in guard:
        e = index_value(c.expr)
        test = apply("ge" if c.relation == "ge" else "eq", e, 0)
        value = test if value is None else value & test
    return value


def _with_their_indices(t: Tasklet, connectors: Iterable[str]) -> set[str]:
    """The connectors, and those that hold indices by which they are read."""
    found, todo = set(), list(connectors)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [s.name for s in t.reads[name].subset if isinstance(s, Indirect)]
    return found


def unique_write(writes: Mapping[str, Memlet], name: str, memlet: Memlet) -> str:
    """A connector name for a write that is not taken; the names of a tuple combiner's components cannot change."""
    if name not in writes:
        return name
    require(memlet.combine is None or len(COMBINERS[memlet.combine].components) == 1, "both maps combine tuples of the same kind")
    base, i = memlet.container, 1
    new = base
    while new in writes:
        i += 1
        new = f"{base}__{i}"
    return new


def require_one_scan(writes: Mapping[str, Memlet]) -> None:
    """Raise Refusal where one map would hold the prefixes of two dimensions: its innermost loop can run along one only."""
    along = {m.scan for m in writes.values() if m.scan is not None}
    require(len(along) <= 1, "they accumulate prefixes along different dimensions")


def substitute_producer(a: Map, b: Map, mid: str, *, keep: frozenset[str], name: str = "", gathers: bool = False) -> Map:
    """`b` with its reads of `mid` replaced by the code of `a`.

    gathers: see `reading`. keep: containers that `a` writes and something else needs; if there are any, `a` and `b` must run over the
    same points and the result writes them too. Raises Refusal where that cannot be done.
    """
    ta, tb = a.tasklet, b.tasklet
    require(tb is not None, "the consumer is a nested kernel")
    assert ta is not None and tb is not None
    written = {m.container: k for k, m in ta.writes.items()}
    mids = sorted(set(written) & {m.container for m in tb.reads.values()})
    dims = {c: written_params(a, c) for c in mids}
    reads_of_mid = {k: m for k, m in tb.reads.items() if m.container in dims}
    readings = {k: reading(a, dims[m.container], m, gathers) for k, m in reads_of_mid.items()}
    indices = {s.name for m in (*tb.reads.values(), *tb.writes.values()) for s in m.subset if isinstance(s, Indirect)}
    require(indices.isdisjoint(reads_of_mid), "the intermediate holds indices by which the consumer addresses memory")
    others = set(written) - {mid}
    if keep or others & keep:
        first = next(iter(readings.values()))
        require(all(r == first for r in readings.values()), "the intermediate is kept and the consumer reads it at several places")
        require(not first.guard, "the intermediate is kept and the consumer reads it under a condition")
        require(
            is_bijection(first.substitution, b.params),
            "the intermediate is kept and the consumer does not visit its elements once each",
        )
    pool = Connectors()
    values: dict[str, Scalar] = {}
    at_data = {s.name for m in reads_of_mid.values() for s in m.subset if isinstance(s, Indirect)}
    places = pool.take({k: m for k, m in tb.reads.items() if k in _with_their_indices(tb, at_data)}, {})
    known = {of_consumer(k): new for k, new in places.items()}
    for k, r in readings.items():
        names = pool.take(ta.reads, r.substitution, r.guard, known)
        value = renamed(ta.code[written[reads_of_mid[k].container]], names, r.numbers, {})
        inside = holds(r.guard)
        if inside is not None:
            assert r.fill is not None
            value = where(inside, value, const(r.fill, value.dtype))
        values[k] = value
    names_b = pool.take({k: m for k, m in tb.reads.items() if k not in readings}, {})
    memo: dict[Scalar, Scalar] = {}
    for n in walk(*tb.code.values()):
        if n.op == "read" and n.attr in values:
            memo[n] = values[n.attr]  # type: ignore[index]
    code: dict[str, Scalar] = {}
    writes: dict[str, Memlet] = {}
    if keep or others & keep:
        first = next(iter(readings.values()))
        names = pool.take(ta.reads, first.substitution)
        own: dict[Scalar, Scalar] = {}
        for k, m in ta.writes.items():
            if m.container in keep:
                along = first.substitution.get(m.scan, m.scan) if m.scan is not None else None
                require(along is None or isinstance(along, Symbol), "the prefixes that are kept are visited in another order")
                new = m.substitute(first.substitution)
                label = unique_write(writes, k, new)
                writes[label] = new.rename_reads(names)
                code[label] = renamed(ta.code[k], names, first.substitution, own)
    for k, m in tb.writes.items():
        new_code = narrow(renamed(tb.code[k], names_b, {}, memo))
        label = unique_write(writes, k, m)
        writes[label] = m.rename_reads(names_b)
        code[label] = new_code
    require_one_scan(writes)
    origins = merge_origins(a, b)
    used = set(reads_of(*code.values()))
    used |= {s.name for m in (*pool.reads.values(), *writes.values()) for s in m.subset if isinstance(s, Indirect)}
    tasklet = Tasklet(code, reads={k: m for k, m in pool.reads.items() if k in used}, writes=writes, origins=origins, phase=b.phase)
    return b.copy(body=(tasklet,), origins=origins, name=name or fused_name(a, b))


def narrow(code: Scalar) -> Scalar:
    """Remove float32 -> 16 bits -> float32 round trips: a value that does not leave the kernel keeps its precision."""
    def leaf(n: Scalar) -> Scalar | None:
        if n.op == "cast" and n.args[0].op == "cast":
            source = n.args[0].args[0]
            if source.dtype is n.dtype and n.dtype.is_float and n.args[0].dtype.is_float and n.args[0].dtype.bits < n.dtype.bits:
                return narrow(source)
        return None

    return rewrite(code, leaf)


def match_params(a: Sequence[tuple[Memlet, Memlet]], pa: Sequence[Symbol], pb: Sequence[Symbol]) -> dict[Symbol, Symbol] | None:
    """A renaming pa -> pb that makes the first memlet of every pair equal to the second, for the parameters that occur plainly."""
    result: dict[Symbol, Symbol] = {}
    for ma, mb in a:
        for sa, sb in zip(ma.subset, mb.subset, strict=True):
            if isinstance(sa, Symbol) and sa in pa and isinstance(sb, Symbol) and sb in pb:
                if result.setdefault(sa, sb) is not sb:
                    return None
    if len(set(result.values())) != len(result):
        return None
    return result


def merge_same_domain(a: Map, b: Map, renaming: Mapping[Symbol, IntLike], name: str = "") -> Map:
    """One map over `b`'s points that does both tasklets (neither reads what the other writes)."""
    ta, tb = a.tasklet, b.tasklet
    assert ta is not None and tb is not None
    pool = Connectors()
    writes: dict[str, Memlet] = {}
    code: dict[str, Scalar] = {}
    for t, values in ((ta, renaming), (tb, {})):
        names = pool.take(t.reads, values)
        memo: dict[Scalar, Scalar] = {}
        for k, m in t.writes.items():
            label = unique_write(writes, k, m)
            writes[label] = m.substitute(values).rename_reads(names)
            code[label] = renamed(t.code[k], names, values, memo)
    require_one_scan(writes)
    origins = merge_origins(a, b)
    tasklet = Tasklet(code, reads=pool.reads, writes=writes, origins=origins, phase=b.phase)
    return b.copy(body=(tasklet,), origins=origins, name=name or fused_name(a, b))


def merge_origins(*nodes: Node) -> tuple[Origin, ...]:
    """Origins of several nodes, each once, in order."""
    return tuple(dict.fromkeys(o for n in nodes for o in n.origins))


def fused_name(*maps: Map) -> str:
    """A name that tells what was fused."""
    parts = list(dict.fromkeys(p for m in maps for p in m.name.split("+") if p))
    return "+".join(parts if len(parts) <= 6 else [*parts[:5], "…"])
