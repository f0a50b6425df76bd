"""From a map to loops over addresses: what the C++ strategies work on.

`lower` turns a map and its containers into a tree of `Nest` and `Code`, where every access is a linear address (in elements)
instead of a list of subscripts, and every parameter starts at 0. `simplify` then shortens the tree without changing
what it computes: parameters of one iteration disappear, neighbouring parameters that every access walks through contiguously
become one, and tasklets of one body that hand each other scalars become one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.memlet import Condition, Indirect, Memlet, Span
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar import Scalar, index_value, rewrite, substitute_reads, walk
from shorthaul.ir.scalar_ops import SCALAR_OPS
from shorthaul.symbolic import Atom, Expr, IntLike, Symbol, free_symbols, index, prove_eq, substitute, summation

_fresh = itertools.count()


@dataclass(frozen=True)
class Ref:
    """One element access. `address` counts elements from the container's pointer; each pair of `indirect` adds value * stride.
    `bounds`: for each of them the size that the value must stay below, and what it indexes, in words."""

    container: str
    dtype: DType
    address: IntLike
    indirect: tuple[tuple[str, IntLike], ...] = ()
    guard: tuple[Condition, ...] = ()
    fill: int | float | bool | None = None
    combine: str | None = None
    scan: Symbol | None = None
    local: bool = False
    bounds: tuple[tuple[IntLike, str], ...] = ()

    @property
    def expressions(self) -> list[IntLike]:
        return [self.address, *(s for _, s in self.indirect), *(n for n, _ in self.bounds), *(c.expr for c in self.guard)]

    def rewritten(self, fn: Callable[[IntLike], IntLike]) -> Ref:
        return replace(self, address=fn(self.address), indirect=tuple((n, fn(s)) for n, s in self.indirect),
                       guard=tuple(Condition(fn(c.expr), c.relation) for c in self.guard),
                       bounds=tuple((fn(n), what) for n, what in self.bounds))  # fmt: skip


@dataclass
class Code:
    """A tasklet: named reads, named writes, and the scalar code of each write."""

    reads: dict[str, Ref]
    writes: dict[str, Ref]
    code: dict[str, Scalar]
    origin: str = ""

    @functools.cached_property
    def cost(self) -> float:
        """Cost of the scalar code in units of one vector add."""
        return sum(SCALAR_OPS[n.op].cost if n.op in SCALAR_OPS else 1 for n in walk(*self.code.values()) if n.args)

    def expressions(self) -> Iterator[IntLike]:
        for r in (*self.reads.values(), *self.writes.values()):
            yield from r.expressions
        for n in walk(*self.code.values()):
            if n.op == "index":
                yield n.attr  # type: ignore[misc]

    def rewritten(self, fn: Callable[[IntLike], IntLike]) -> Code:
        memo: dict[Scalar, Scalar] = {}

        def leaf(n: Scalar) -> Scalar | None:
            return index_value(fn(n.attr)) if n.op == "index" else None  # type: ignore[arg-type]

        code = {k: rewrite(v, leaf, memo) for k, v in self.code.items()}
        return Code({k: r.rewritten(fn) for k, r in self.reads.items()}, {k: r.rewritten(fn) for k, r in self.writes.items()},
                    code, self.origin)  # fmt: skip


@dataclass
class Nest:
    """Loops over `params` (each from 0 to size - 1) around a body. `locals` live for one iteration."""

    params: list[Symbol]
    body: list[Union[Nest, Code]]
    locals: dict[str, Container] = field(default_factory=dict)
    name: str = ""
    order: tuple[Symbol, ...] = ()  # of the loops, if it is decided already; then `lanes` too
    lanes: Symbol | None = None

    @property
    def leaf(self) -> Code | None:
        """The only node of the body, if it is code."""
        return self.body[0] if len(self.body) == 1 and isinstance(self.body[0], Code) and not self.locals else None

    def expressions(self) -> Iterator[IntLike]:
        """Every index expression below, sizes of inner parameters and of locals included."""
        for c in self.locals.values():
            yield from c.shape
        for node in self.body:
            if isinstance(node, Nest):
                yield from (p.size for p in node.params)
            yield from node.expressions()

    def codes(self) -> Iterator[Code]:
        for node in self.body:
            if isinstance(node, Nest):
                yield from node.codes()
            else:
                yield node

    def rewritten(self, values: Mapping[Symbol, IntLike]) -> Nest:
        """Replace symbols below; parameters whose bounds change get a new symbol."""

        def fn(e: IntLike) -> IntLike:
            return e if isinstance(e, int) else substitute(e, values)

        params: list[Symbol] = []
        inner: dict[Symbol, IntLike] = dict(values)
        for p in self.params:
            size = fn(p.size)
            if size is not p.size and not (isinstance(size, int) and size == p.size):
                fresh = index(p.name, size)
                inner[p] = fresh
                params.append(fresh)
            else:
                params.append(p)
        if len(inner) > len(values):
            return Nest(params, self.body, self.locals, self.name).rewritten_body(inner)  # type: ignore[arg-type]
        return Nest(params, self.body, self.locals, self.name).rewritten_body(values)

    def rewritten_body(self, values: Mapping[Symbol, IntLike]) -> Nest:
        def fn(e: IntLike) -> IntLike:
            return e if isinstance(e, int) else substitute(e, values)

        def renamed(code: Code) -> Code:
            new = code.rewritten(fn)
            for k, r in new.writes.items():
                if r.scan is not None and r.scan in values:
                    new.writes[k] = replace(r, scan=values[r.scan])  # type: ignore[arg-type]
            return new

        body = [n.rewritten(values) if isinstance(n, Nest) else renamed(n) for n in self.body]
        local = {k: c.with_(shape=tuple(fn(s) for s in c.shape), strides=c.strides and tuple(fn(s) for s in c.strides))
                 for k, c in self.locals.items()}  # fmt: skip
        return Nest(self.params, body, local, self.name)


Form = tuple[dict[Symbol, IntLike], IntLike, frozenset[Symbol]]


@functools.lru_cache(maxsize=1 << 16)
def decompose(e: IntLike, params: frozenset[Symbol]) -> Form:
    """(coefficients, rest, params that the rest still uses because it is not linear in them). Do not modify the dictionary."""
    if isinstance(e, int) or free_symbols(e).isdisjoint(params):
        return {}, e, frozenset()
    coefficients: dict[Symbol, list[IntLike]] = {}
    rest: list[IntLike] = [e.const]
    nonlinear: frozenset[Symbol] = frozenset()
    for mono, c in e.terms.items():
        using = [a for a in mono if not free_symbols(a).isdisjoint(params)]
        if len(using) == 1 and isinstance(using[0], Symbol):
            value: IntLike = c
            for a in mono:
                if a is not using[0]:
                    value = value * a
            coefficients.setdefault(using[0], []).append(value)
        else:
            value = c
            for a in mono:
                value = value * a
                nonlinear |= free_symbols(a) & params
            rest.append(value)
    return {p: summation(v) for p, v in coefficients.items()}, summation(rest), nonlinear


def int_size(p: Symbol) -> int:
    """The size of a parameter that is known to be a number."""
    assert isinstance(p.size, int), f"the size of {p} is {p.size}"
    return p.size


@functools.lru_cache(maxsize=1 << 16)
def stride_of(e: IntLike, p: Symbol) -> IntLike | None:
    """The coefficient of p in e, 0 if p does not occur, None if e is not linear in p."""
    if isinstance(e, int) or p not in free_symbols(e):
        return 0
    coefficients, _, nonlinear = decompose(e, frozenset((p,)))
    return None if nonlinear else coefficients.get(p, 0)


def depends(e: IntLike, symbols: frozenset[Symbol]) -> frozenset[Symbol]:
    """Which of the symbols occur in e."""
    return frozenset() if isinstance(e, int) else free_symbols(e) & symbols


# lowering ------------------------------------------------------------------------------------------------------------
class _Lowering:
    def __init__(self, containers: Mapping[str, Container]) -> None:
        self.containers = containers

    def nest(self, m: Map, scope: dict[str, tuple[str, Container]]) -> Nest:
        scope = dict(scope)
        local = {}
        for name, c in m.locals.items():
            key = f"{name}#{next(_fresh)}"
            single = all(isinstance(n, int) and n == 1 for n in c.shape)  # one element is a scalar, whatever its shape
            dense = c.strides is not None and not single and prove_eq(_extent(c), c.size) is True
            local[key] = c.with_(name=key, strides=c.strides if dense else None, shape=() if single else c.shape)
            scope[name] = (key, local[key])
        values: dict[Symbol, IntLike] = {}
        params: list[Symbol] = []
        for p in m.params:
            if p.lower is None or p.upper is None:
                raise ValueError(f"map {m.label}: parameter {p} has no bounds")
            size = p.size if isinstance(p.size, int) else substitute(p.size, values)
            if not isinstance(p.lower, int) or p.lower != 0 or (size is not p.size and not isinstance(size, int)):
                fresh = index(p.name, size)
                lower = p.lower if isinstance(p.lower, int) else substitute(p.lower, values)
                values[p] = fresh + lower
                params.append(fresh)
            else:
                params.append(p)
        body: list[Nest | Code] = []
        for node in m.body:
            if isinstance(node, Map):
                body.append(self.nest(node, scope))
            elif isinstance(node, Tasklet):
                body.append(self.code(node, scope))
            else:
                raise TypeError(f"map {m.label}: a {node.kind} cannot stand in a map that becomes a C++ kernel")
        nest = Nest(params, body, local, m.label)
        return nest.rewritten_body(values) if values else nest

    def code(self, t: Tasklet, scope: Mapping[str, tuple[str, Container]]) -> Code:
        origin = "; ".join(str(o) for o in t.origins)
        return Code({k: self.ref(m, scope) for k, m in t.reads.items()}, {k: self.ref(m, scope) for k, m in t.writes.items()},
                    dict(t.code), origin)  # fmt: skip

    def ref(self, m: Memlet, scope: Mapping[str, tuple[str, Container]]) -> Ref:
        is_local = m.container in scope
        if not is_local and m.container not in self.containers:
            raise KeyError(f"container {m.container} of memlet {m} is not declared")
        key, c = scope[m.container] if is_local else (m.container, self.containers[m.container])
        if len(m.subset) != len(c.shape) and not (is_local and c.shape == ()):
            raise ValueError(f"memlet {m}: {len(m.subset)} subscripts for container {c}")
        address: list[IntLike] = []
        indirect: list[tuple[str, IntLike]] = []
        strides = c.actual_strides if len(c.shape) == len(m.subset) else (0,) * len(m.subset)
        bounds: list[tuple[IntLike, str]] = []
        for d, (s, stride) in enumerate(zip(m.subset, strides, strict=True)):
            if isinstance(s, Span):
                raise ValueError(f"memlet {m}: a tasklet accesses single elements, not spans")
            if isinstance(s, Indirect):
                indirect.append((s.name, stride))
                bounds.append((c.shape[d] if len(c.shape) == len(m.subset) else 1, f"dimension {d} of {c.name.split('#')[0]}"))
            else:
                address.append(s * stride)
        return Ref(key, c.dtype, summation(address), tuple(indirect), m.guard, m.fill, m.combine, m.scan, is_local,
                   tuple(bounds))  # fmt: skip


def _extent(c: Container) -> IntLike:
    """Elements from the first to the last in memory."""
    return 1 + summation((n - 1) * s for n, s in zip(c.shape, c.actual_strides, strict=True))


def lower(m: Map, containers: Mapping[str, Container]) -> Nest:
    """The map as a tree of loops over addresses. Raises ValueError or KeyError for what no kernel can express."""
    return _Lowering(containers).nest(m, {})


# simplification ------------------------------------------------------------------------------------------------------
def simplify(nest: Nest, merge: bool = True) -> Nest:
    """The same computation in fewer loops and tasklets. merge: loops may become one where every access walks on."""
    nest = _drop_single(nest)
    nest = one_tasklet(nest)
    if merge:
        nest = _merge_params(nest)
    nest.body = [simplify(n, merge) if isinstance(n, Nest) else n for n in nest.body]
    return one_tasklet(nest)


def _scans(nest: Nest) -> set[Symbol]:
    return {r.scan for c in nest.codes() for r in c.writes.values() if r.scan is not None}


def _drop_single(nest: Nest) -> Nest:
    single = [p for p in nest.params if isinstance(p.size, int) and p.size == 1]
    if not single:
        return nest
    kept = [p for p in nest.params if p not in single]
    out = Nest(kept, nest.body, nest.locals, nest.name).rewritten_body({})
    for code in out.codes():  # a prefix of one element is a plain reduction
        code.writes.update({k: replace(r, scan=None) for k, r in code.writes.items() if r.scan in single})
    return out.rewritten_body(dict.fromkeys(single, 0))


def one_tasklet(nest: Nest) -> Nest:
    """One tasklet out of several, and a nest inside a nest without anything beside it becomes one nest."""
    if len(nest.body) == 1 and isinstance(nest.body[0], Nest) and not nest.locals and not _scans(nest):
        inner = nest.body[0]
        sizes = frozenset(nest.params)
        if not any(depends(p.size, sizes) for p in inner.params):
            return one_tasklet(Nest(nest.params + inner.params, inner.body, inner.locals, nest.name or inner.name))
    if len(nest.body) < 2 or not all(isinstance(n, Code) for n in nest.body):
        return nest
    scalars = {k for k, c in nest.locals.items() if c.shape == ()}
    values: dict[str, Scalar] = {}
    reads: dict[str, Ref] = {}
    writes: dict[str, Ref] = {}
    code: dict[str, Scalar] = {}
    written: set[str] = set()
    for k, node in enumerate(nest.body):
        assert isinstance(node, Code)
        names: dict[str, Scalar] = {}
        for name, r in node.reads.items():
            if r.container in values and not r.guard:
                names[name] = values[r.container]
            elif r.container in written or any(i[0] in names for i in r.indirect):
                return nest  # reads through memory what an earlier tasklet wrote: keep the order
            else:
                fresh = name if name not in reads or reads[name] == r else f"{name}.{k}"
                if fresh != name:
                    names[name] = Scalar("read", (), r.dtype, fresh)
                renamed = tuple((f"{n}.{k}" if n in names else n, s) for n, s in r.indirect)
                reads[fresh] = replace(r, indirect=renamed)
        memo: dict[Scalar, Scalar] = {}
        for name, r in node.writes.items():
            value = substitute_reads(node.code[name], names, memo)
            if r.container in scalars and not r.combine and not r.guard:
                if value.dtype is not r.dtype:
                    return nest
                values[r.container] = value
                continue
            tuple_like = r.combine is not None and name in code
            if tuple_like or any(n in names for n, _ in r.indirect) or r.container in written:
                return nest
            fresh = name if name not in code else f"{name}.{k}"
            writes[fresh], code[fresh] = r, value
        written |= {r.container for r in node.writes.values()}
    if any(c in scalars for c in (r.container for r in (*reads.values(), *writes.values()))):
        return nest
    origin = "; ".join(dict.fromkeys(n.origin for n in nest.body if n.origin))  # type: ignore[union-attr]
    local = {k: c for k, c in nest.locals.items() if k not in values}
    used = {r.container for r in (*reads.values(), *writes.values())}
    return Nest(nest.params, [Code(reads, writes, code, origin)], {k: c for k, c in local.items() if k in used}, nest.name)


def _merge_params(nest: Nest) -> Nest:
    merged = True
    while merged:
        merged = False
        params = frozenset(nest.params)
        scans = _scans(nest)
        forms = [decompose(e, params) for e in set(nest.expressions()) if isinstance(e, Expr)]
        for p, q in itertools.permutations(nest.params, 2):
            if p in scans or q in scans or depends(p.size, params) or depends(q.size, params):
                continue
            if all(_contiguous(f, p, q) for f in forms):
                both = index(f"{p.name}{q.name}", p.size * q.size)
                at = nest.params.index(p)
                rest = [x for x in nest.params if x is not q]
                rest[at if at < len(rest) and rest[at] is p else rest.index(p)] = both
                nest = Nest(rest, nest.body, nest.locals, nest.name).rewritten_body({p: 0, q: both})
                merged = True
                break
    return nest


def _contiguous(form: Form, p: Symbol, q: Symbol) -> bool:
    coefficients, _, nonlinear = form
    if p in nonlinear or q in nonlinear:
        return False
    a, b = coefficients.get(p, 0), coefficients.get(q, 0) * q.size
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b) or (
        isinstance(a, Expr) and isinstance(b, Expr) and prove_eq(a, b) is True)  # fmt: skip


__all__ = ["Atom", "Code", "Nest", "Ref", "decompose", "depends", "int_size", "lower", "simplify", "stride_of"]
