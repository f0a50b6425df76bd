"""The rules of the verifier inside a map: scopes, ranges, dtypes, combiners, locals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Union

from shorthaul.symbolic import Expr, Symbol, affine, free_symbols, prove_eq, prove_lt

from .containers import Container
from .memlet import Guard, Indirect, Memlet, Span
from .nodes import Map, Tasklet
from .propagate import extent
from .scalar import walk
from .scalar_ops import COMBINERS

IntLike = Union[int, Expr]
Found = Iterator[tuple[str, str]]


@dataclass
class _Scope:
    """What is visible at a place in a nest. depth: how many parameters are around the declaration of each local."""

    containers: Mapping[str, Container]
    sizes: frozenset[Symbol]
    params: tuple[Symbol, ...] = ()
    locals: dict[str, Container] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)  # locals, so far in program order

    def container(self, name: str) -> Container | None:
        return self.locals.get(name) or self.containers.get(name)


def check_map(m: Map, containers: Mapping[str, Container], symbols: tuple[Symbol, ...]) -> Found:
    """(rule, reason) of what is wrong inside a top-level map."""
    yield from _map(m, _Scope(containers, frozenset(symbols)))
    combined, read = set(), set()
    for a in m.accesses():
        if not a.is_local:
            if not a.is_write:
                read.add(a.memlet.container)
            elif a.memlet.combine:
                combined.add(a.memlet.container)
    for name in sorted(combined & read):
        yield "combine", f"reads {name} and combines into it"


def _map(m: Map, outer: _Scope) -> Found:
    names = {p.name for p in outer.params} | {s.name for s in outer.sizes}
    for p in m.params:
        if not isinstance(p, Symbol) or p.lower is None or p.upper is None:
            yield "params", f"parameter {p} has no bounds"
            return
        if p.name in names:
            yield "params", f"parameter {p} has the name of an enclosing parameter or a size"
        names.add(p.name)
    visible = outer.sizes.union(outer.params, m.params)
    for p in m.params:
        for bound in (p.lower, p.upper):
            if isinstance(bound, Expr) and not free_symbols(bound) <= visible:
                yield "scope", f"the range of {p} uses {_names(free_symbols(bound) - visible)}"
    scope = _Scope(outer.containers, outer.sizes, outer.params + m.params, {**outer.locals, **m.locals},
                   {**outer.depth, **dict.fromkeys(m.locals, len(outer.params) + len(m.params))}, outer.written)  # fmt: skip
    for name, c in m.locals.items():
        if c.storage not in ("register", "shared"):
            yield "locals", f"the local {name} has {c.storage} storage"
        if name != c.name or name in outer.containers or name in outer.locals:
            yield (
                "names",
                f"the local {name} "
                + ("has the name of another container" if name == c.name else f"calls itself {c.name}"),
            )
        scope.written.discard(name)
    for child in m.body:
        if isinstance(child, Map):
            yield from _map(child, scope)
        elif isinstance(child, Tasklet):
            yield from _tasklet(child, scope)
        else:
            yield "form", f"holds {child}: a map's body has maps and tasklets only"
            continue
        if m.locals:
            yield from _local_combines(child, m)


def _local_combines(child: Map | Tasklet, m: Map) -> Found:
    """A part of the body that combines into a local of `m` does not read it."""
    tasklets = [child] if isinstance(child, Tasklet) else [t for _, t in child.tasklets()]
    combined = {w.container for t in tasklets for w in t.writes.values() if w.combine and w.scan is None}
    read = {r.container for t in tasklets for r in t.reads.values()}
    for name in sorted(combined & read & m.locals.keys()):
        yield "combine", f"reads the local {name} and combines into it"


def _tasklet(t: Tasklet, scope: _Scope) -> Found:
    if set(t.code) != set(t.writes):
        yield "code", f"computes {_list(t.code)} but writes {_list(t.writes)}"
        return
    for name, m in t.reads.items():
        yield from _memlet(name, m, t, scope, "read")
        if m.combine or m.scan is not None:
            yield "combine", f"the read {m} combines"
        if m.guard and m.fill is None:
            yield "fill", f"the guarded read {m} has no fill"
        if m.container in scope.locals and m.container not in scope.written:
            yield "order", f"reads the local {m.container}, which nothing before it writes"
    yield from _code(t, scope)
    groups: dict[str, list[str]] = {}
    for name, m in t.writes.items():
        yield from _memlet(name, m, t, scope, "write")
        if m.fill is not None:
            yield "fill", f"the write {m} has a fill"
        if m.combine is None:
            if m.scan is not None:
                yield "combine", f"{m} scans along {m.scan} without a combiner"
            yield from _every_iteration(m, scope)
        elif m.combine not in COMBINERS:
            yield "combine", f"unknown combiner {m.combine!r} of {m}"
        else:
            if m.scan is not None and (m.scan not in scope.params or m.scan not in m.symbols):
                yield "combine", f"{m} scans along {m.scan}, which is not a parameter that its subscripts use"
            if len(COMBINERS[m.combine].components) > 1:
                groups.setdefault(m.combine, []).append(name)
        scope.written.add(m.container)
    for combiner, found in groups.items():
        parts = COMBINERS[combiner].components
        if set(found) != set(parts):
            yield "combine", f"the writes of combiner {combiner} are {', '.join(parts)}, not {_list(found)}"
        elif len({(t.writes[k].subset, t.writes[k].guard, t.writes[k].scan) for k in parts}) > 1:
            yield "combine", f"the components of {combiner} are written to different elements"


def _memlet(name: str, m: Memlet, t: Tasklet, scope: _Scope, verb: str) -> Found:
    c = scope.container(m.container)
    if c is None:
        yield "names", f"{verb}s {m.container}, which does not exist here"
        return
    if len(m.subset) != len(c.shape):
        yield "rank", f"{m} has {len(m.subset)} subscripts for {c}"
        return
    for used in m.symbols:
        if used not in scope.params and used not in scope.sizes:
            yield "scope", f"{m} uses {used}, which is neither a parameter around it nor a size of the program"
            return
    for d, (s, n) in enumerate(zip(m.subset, c.shape, strict=True)):
        if isinstance(s, Span):
            yield "rank", f"{m}: a tasklet reads and writes single elements"
        elif isinstance(s, Indirect):
            source = t.reads.get(s.name)
            if source is None or s.name == name:
                yield (
                    "indirect",
                    f"{m} is subscripted by {s.name}, which is no {'other ' if source else ''}read of the tasklet",
                )
            else:
                k = scope.container(source.container)
                if k is not None and not k.dtype.is_integer:
                    yield "indirect", f"{m} is subscripted by {s.name}, whose dtype is {k.dtype}"
        else:
            yield from _range(m, d, s, n, scope)


def _range(m: Memlet, dimension: int, s: IntLike, n: IntLike, scope: _Scope) -> Found:
    if isinstance(s, Symbol) and isinstance(s.lower, int) and s.lower == 0 and (s.upper is n - 1 or s.upper == n - 1):
        return
    low = high = s
    if not m.guard and isinstance(s, Expr):
        # the extremes are attained where the subscript is affine and the domain rectangular
        params = frozenset(scope.params)
        parts = affine(s, scope.params)
        if parts is not None and all(_rectangular(p, params) for p in parts[0]):
            found = extent(s, params)
            low, high = found if found is not None else (s, s)
    if prove_lt(low, 0) is True or prove_lt(n - 1, high) is True:
        if _never(m.guard) or any(prove_lt(p.size, 1) is True for p in scope.params):
            return
        reach = f"{low}" if low is high else f"{low} to {high}"
        yield "range", f"{m}: subscript {s} of dimension {dimension} is {reach}, the size {n}"


def _never(guard: Guard) -> bool:
    """Whether a condition provably fails everywhere."""
    return any((prove_lt(c.expr, 0) is True) if c.relation == "ge" else (prove_eq(c.expr, 0) is False) for c in guard)


def _rectangular(p: Symbol, params: frozenset[Symbol]) -> bool:
    return all(not isinstance(e, Expr) or params.isdisjoint(free_symbols(e)) for e in (p.lower, p.upper))


def _every_iteration(m: Memlet, scope: _Scope) -> Found:
    """A write without a combiner depends on every parameter, or each of its iterations would write the same element."""
    if m.is_indirect:
        return
    used = m.symbols
    for p in scope.params[scope.depth.get(m.container, 0) :]:
        if p not in used and prove_eq(p.size, 1) is not True:
            yield "single writer", f"every iteration of {p} writes {m}: use a combiner, or {p} in its subscripts"


def _code(t: Tasklet, scope: _Scope) -> Found:
    for s in walk(*t.code.values()):
        if s.op == "read":
            m = t.reads.get(s.attr)  # type: ignore[call-overload]
            if m is None:
                yield "code", f"uses {s.attr}, which is no read of the tasklet"
                continue
            c = scope.container(m.container)
            if c is not None and s.dtype is not c.dtype:
                yield "dtype", f"reads {m} as {s.dtype}, but {c.name} is {c.dtype}"
        elif s.op == "index":
            for symbol in free_symbols(s.attr):  # type: ignore[arg-type]
                if symbol not in scope.params and symbol not in scope.sizes:
                    yield (
                        "scope",
                        f"the code uses {symbol}, which is neither a parameter around it nor a size of the program",
                    )
    for name, code in t.code.items():
        c = scope.container(t.writes[name].container)
        if c is not None and code.dtype is not c.dtype:
            yield "dtype", f"writes {code.dtype} to {c.name}, which is {c.dtype}: cast it"


def _names(symbols: frozenset[Symbol]) -> str:
    return ", ".join(sorted(s.name for s in symbols))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
