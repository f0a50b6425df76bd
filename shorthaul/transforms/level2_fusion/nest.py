"""Nested kernels: several maps under one outer loop, with what passes between them kept local.

A nest is `Map(outer, [Map(inner, tasklet), tasklet, ...], locals)`: a softmax, a normalization or a whole fused chain over rows. The
functions here work on maps alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import read
from shorthaul.symbolic import Expr, Symbol, evaluate, free_symbols, product, prove_le

from ..base import Refusal, require
from .compose import (
    code_cost,
    fused_name,
    is_injection,
    match_params,
    merge_origins,
    merge_same_domain,
    reading,
    same_size,
    substitute_producer,
    tasklet_of,
    unique_write,
    used_reads,
    written_params,
)

IntLike = Union[int, Expr]
CHEAP = 3


def as_statements(m: Map, outer: Sequence[Symbol]) -> list[Map]:
    """The body of a map under the given outer parameters: flat inner maps (without parameters for a lone tasklet)."""
    if m.tasklet is None or set(m.params) == set(outer):
        require(set(m.params) == set(outer), "the nested kernel runs over other rows")
        return [n if isinstance(n, Map) else Map((), (n,), name=m.name, origins=n.origins, phase=m.phase) for n in m.body]
    inner = tuple(p for p in m.params if p not in outer)
    return [Map(inner, m.body, name=m.name, origins=m.origins, phase=m.phase)]


def outer_dims(m: Map, mid: str, outer: Sequence[Symbol]) -> dict[int, Symbol]:
    """Dimensions of `mid` that the outer parameters run over in every access of `m`; raises Refusal unless each parameter has one."""
    found: dict[int, Symbol] | None = None
    for a in m.accesses():
        if a.memlet.container != mid:
            continue
        require(not (a.is_write and a.memlet.is_indirect), "the producer scatters: its row would have to be cleared first")
        dims = {d: s for d, s in enumerate(a.memlet.subset) if isinstance(s, Symbol) and s in outer}
        require(not any(s in outer for s in a.memlet.symbols if s not in dims.values()), "the rows are addressed by an expression")
        require(found is None or found == dims, "the intermediate is accessed at other rows")
        found = dims
    found = found or {}
    require(all(p in found.values() or p.size == 1 for p in outer), "the intermediate does not belong to one row")
    require(len(set(found.values())) == len(found), "the intermediate is accessed along a diagonal")
    return found


def localize(statements: list[Map], mid: Container, dims: Mapping[int, Symbol], keep: bool, local: str) -> tuple[list[Map], Container]:
    """Make `mid` a local called `local` of the enclosing map: its row dimensions go. With `keep` the container is still written.

    Returns the statements and the local's declaration.
    """
    shape = tuple(n for d, n in enumerate(mid.shape) if d not in dims)

    def shrink(m: Memlet) -> Memlet:
        return m.with_(container=local, subset=tuple(s for d, s in enumerate(m.subset) if d not in dims))

    result: list[Map] = []
    for s in statements:
        t = s.tasklet
        assert t is not None
        if all(m.container != mid.name for m in (*t.reads.values(), *t.writes.values())):
            result.append(s)
            continue
        reads = {k: shrink(m) if m.container == mid.name else m for k, m in t.reads.items()}
        writes: dict[str, Memlet] = {}
        code = dict(t.code)
        after: list[Map] = []
        for k, m in t.writes.items():
            if m.container != mid.name:
                writes[k] = m
                continue
            writes[k] = shrink(m)
            if keep and m.combine is None:
                label = unique_write({**t.writes, **writes}, k, m)
                writes[label], code[label] = m, code[k]
            elif keep:
                # the accumulator is local; its final value is stored once the inner map is done
                kept = tuple(p for p in s.params if p in m.symbols)
                store = Tasklet({"out": read("value", mid.dtype)}, reads={"value": shrink(m).with_(combine=None, scan=None)},
                                writes={"out": m.with_(combine=None, scan=None)}, origins=s.origins, phase=s.phase)  # fmt: skip
                after.append(rename(Map(kept, (store,), name="store", origins=s.origins, phase=s.phase), {}))
        body = t.with_(code=code, reads=reads, writes=writes)
        result += [s.with_(body=(body,)), *after]
    return result, Container(local, mid.dtype, shape, packed_strides(mid, dims), storage="register")


def packed_strides(c: Container, gone: Mapping[int, Symbol]) -> tuple[IntLike, ...] | None:
    """Strides without gaps for what is left of a container, in its own order of dimensions; None for row-major."""
    kept = [d for d in range(len(c.shape)) if d not in gone]
    if c.strides is None:
        return None
    sizes = {d: c.strides[d] for d in kept}
    order = sorted(kept, key=lambda d: (_estimate(sizes[d]), -d))
    strides: dict[int, IntLike] = {}
    step: IntLike = 1
    for d in order:
        strides[d] = step
        step = step * c.shape[d]
    return tuple(strides[d] for d in kept)


def _estimate(e: IntLike) -> int:
    """A number that orders strides: symbolic sizes count 64."""
    return e if isinstance(e, int) else evaluate(e, dict.fromkeys(free_symbols(e), 64))


@dataclass(frozen=True)
class Joined:
    """The statements of two maps one after the other under common rows, what passes between them local; nothing is substituted yet."""

    rows: tuple[Symbol, ...]
    statements: tuple[Map, ...]
    locals: Mapping[str, Container]


def fuse_rows(a: Map, b: Map, pairs: Sequence[tuple[Symbol, Symbol]], mids: Mapping[str, Container],
              keep: frozenset[str]) -> tuple[Map, Joined]:  # fmt: skip
    """One nested map over the rows `pairs` (parameter of `a`, parameter of `b`) that runs `a` and then `b`; also before its body is tidied.

    mids: containers that pass from `a` to `b`; they become locals, those in `keep` are written out too. Raises Refusal.
    """
    joined = _join(a, b, pairs, mids, keep)
    body, locals_ = tidy(list(joined.statements), dict(joined.locals), frozenset(joined.locals))
    origins = merge_origins(a, b)
    return Map(joined.rows, unwrap(body), locals_, name=fused_name(a, b), origins=origins, phase=b.phase), joined


def _join(a: Map, b: Map, pairs: Sequence[tuple[Symbol, Symbol]], mids: Mapping[str, Container], keep: frozenset[str]) -> Joined:
    for pa, pb in pairs:
        require(same_size(pa.size, pb.size) and same_size(_low(pa), _low(pb)), f"rows differ in number: {pa.size} and {pb.size}")
    outer_a = tuple(pa for pa, _ in pairs)
    statements_a = as_statements(a, outer_a)
    b_renamed = rename(b, {}, {pb: pa for pa, pb in pairs}, fresh=False)
    statements_b = as_statements(b_renamed, outer_a)
    locals_ = {**a.locals, **b.locals}
    clash = a.locals.keys() & b.locals.keys()
    require(not clash, f"both kernels have a local called {', '.join(sorted(clash))}")
    whole_a = Map(outer_a, tuple(statements_a), a.locals, phase=a.phase)
    whole_b = Map(outer_a, tuple(statements_b), b.locals, phase=b.phase)
    require(not any(x.memlet.scan in outer_a for m in (whole_a, whole_b) for x in m.accesses()), "values are combined from row to row")
    statements = statements_a + statements_b
    read_by_b = whole_b.read_containers()
    for name, c in mids.items():
        dims = outer_dims(whole_a, name, outer_a)
        if name in read_by_b:  # a component of a tuple combiner may go along unread
            require(outer_dims(whole_b, name, outer_a) == dims, "the consumer reads other rows than the producer writes")
        local = f"{name}__row"
        known = local in a.locals  # an earlier fusion keeps the value in a local already: only the reads change
        if known:
            body_b, declared = localize(statements[len(statements_a) :], c, dims, True, local)
            if name not in keep:
                statements_a = [kept for s in statements_a if (kept := without_write(s, name)) is not None]
            statements = [*statements_a, *body_b]
        else:
            statements, declared = localize(statements, c, dims, name in keep, local)
            statements_a = statements[: len(statements) - len(statements_b)]
        locals_[local] = declared
    return Joined(outer_a, tuple(statements), locals_)


def without_write(s: Map, name: str) -> Map | None:
    """A statement that does not write the container, None when nothing is left of it."""
    t = tasklet_of(s)
    kept = {k: m for k, m in t.writes.items() if m.container != name}
    if len(kept) == len(t.writes):
        return s
    if not kept:
        return None
    code = {k: t.code[k] for k in kept}
    used = used_reads(t, code.values()) | {i.name for m in kept.values() for i in m.subset if isinstance(i, Indirect)}
    return s.with_(body=(t.with_(code=code, writes=kept, reads={k: m for k, m in t.reads.items() if k in used}),))


def _low(p: Symbol) -> IntLike:
    return p.lower if p.lower is not None else 0


def unwrap(statements: Sequence[Map]) -> tuple[Node, ...]:
    """Statements without parameters become plain tasklets."""
    return tuple(s.body[0] if not s.params else s for s in statements)


def tidy(statements: list[Map], locals_: dict[str, Container], local_names: frozenset[str]) -> tuple[list[Map], dict[str, Container]]:
    """Fuse inside a body: elementwise producers into their readers, siblings over the same inner points into one pass."""
    changed = True
    while changed:
        changed = _fuse_chain(statements, local_names) or _fuse_siblings(statements)
    used = {m.container for s in statements for t in s.body for m in (*t.reads.values(), *t.writes.values())}
    return statements, {k: c for k, c in locals_.items() if k in used}


def _reads(s: Map) -> set[str]:
    return {m.container for m in tasklet_of(s).reads.values()}


def _writes(s: Map) -> set[str]:
    return {m.container for m in tasklet_of(s).writes.values()}


def _fuse_chain(statements: list[Map], local_names: frozenset[str]) -> bool:
    for i, a in enumerate(statements):
        for c, combine in sorted((m.container, m.combine or "") for m in tasklet_of(a).writes.values() if m.container in local_names):
            readers = [j for j in range(i + 1, len(statements)) if c in _reads(statements[j])]
            if not readers:
                if all(w == c for w in _writes(a)):
                    del statements[i]
                    return True
                continue
            if combine or any(c in _writes(s) for k, s in enumerate(statements) if k != i):
                continue  # with another writer (a concatenation) this one holds only a part of what is read
            single = len(tasklet_of(a).writes) == 1
            if len(readers) > 1 and single and code_cost(tasklet_of(a).code.values()) <= CHEAP and len(tasklet_of(a).reads) <= 2:
                taken = [_try_substitute(statements, i, j, c, frozenset(), replace_first=False) for j in readers]
                if all(taken):
                    del statements[i]
                if any(taken):
                    return True  # those that took it in no longer read it
            j = readers[0]
            external = frozenset(w for w in _writes(a) if w != c or len(readers) > 1)
            # values that someone between the two reads keep the producer where it is
            if any(not external.isdisjoint(_reads(s)) for s in statements[i + 1 : j]):
                continue
            if any(not _reads(a).isdisjoint(_writes(s)) for s in statements[i + 1 : j]):
                continue
            if external and _differ(a.domain, statements[j].domain):
                continue  # it cannot visit each element once
            if _try_substitute(statements, i, j, c, external, replace_first=True):
                return True
    return False


def _differ(m: IntLike, n: IntLike) -> bool:
    return isinstance(m, int) and isinstance(n, int) and m != n


def _try_substitute(statements: list[Map], i: int, j: int, mid: str, keep: frozenset[str], *, replace_first: bool) -> bool:
    try:
        if code_cost(tasklet_of(statements[i]).code.values()) > CHEAP:
            require(not _repeats(statements[i], statements[j], mid), "the consumer reads each element several times")
        fused = substitute_producer(statements[i], statements[j], mid, keep=keep)
    except Refusal:
        return False
    statements[j] = fused
    if replace_first:
        del statements[i]
    return True


def _repeats(a: Map, b: Map, mid: str) -> bool:
    """Whether `b` would evaluate elements of `mid` again and again with other operands in between: a window. What does not depend on
    an inner parameter is evaluated before its loop."""
    dims = written_params(a, mid)
    for m in tasklet_of(b).reads.values():
        if m.container != mid:
            continue
        values = reading(a, dims, m).substitution
        moving = [q for q in b.params if any(isinstance(e, Expr) and q in free_symbols(e) for e in values.values())]
        if prove_le(product(q.size for q in moving), a.domain) is not True and not is_injection(values, moving):
            return True
    return False


def _fuse_siblings(statements: list[Map]) -> bool:
    for i, a in enumerate(statements):
        if not a.params:
            continue
        written = set(_writes(a))
        for j in range(i + 1, len(statements)):
            b = statements[j]
            if b.params and written.isdisjoint(_reads(b)) and len(a.params) == len(b.params):
                renaming = _same_points(a, b)
                if renaming is not None:
                    try:
                        merged = merge_same_domain(b, a, {q: p for p, q in renaming.items()})
                    except Refusal:
                        merged = None
                    if merged is not None:
                        statements[i] = merged
                        del statements[j]
                        return True
            written |= _writes(b)
    return False


def _same_points(a: Map, b: Map) -> dict[Symbol, Symbol] | None:
    """A renaming of the parameters of `a` to those of `b`, through reads that both have."""
    pairs = [(x, y) for x in tasklet_of(a).reads.values() for y in tasklet_of(b).reads.values()
             if x.container == y.container and not x.guard and not y.guard and not x.is_indirect and not y.is_indirect
             and any(s in a.params for s in x.subset if isinstance(s, Symbol))]  # fmt: skip
    if not pairs:
        return None
    renaming = match_params(pairs[:1], a.params, b.params)
    if renaming is None or len(renaming) != len(a.params) or not all(same_size(p.size, q.size) for p, q in renaming.items()):
        return None
    return renaming
