"""Structural fingerprints of programs and nodes, stable across processes: keys of caches and of the tuning database.

Names of containers and map parameters, connectors of tasklets, node ids and origins do not matter; shapes, dtypes, strides, roles, code,
structure, schedules and the order of nodes do. Containers and parameters are numbered by first appearance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from shorthaul.symbolic import Expr, FloorDiv, Max, Min, Mod, Symbol

from .containers import Container
from .dtypes import DType
from .memlet import Indirect, Memlet, Span
from .nodes import Branch, Defines, LibraryCall, Loop, Map, Node, Operator, Tasklet
from .program import Program
from .scalar import Scalar, reads_of, walk
from .scalar_ops import COMBINERS

IntLike = Union[int, Expr]


def fingerprint(program: Program) -> str:
    """64 hexadecimal digits that are equal for programs of equal structure."""
    return _digest(_Canonical(program.containers, program.constants, program.symbols).program(program))


def node_fingerprint(node: Node, containers: Mapping[str, Container]) -> str:
    """The same for one node with the containers it uses. Sizes keep their names and bounds."""
    return _digest(_Canonical(containers, {}, ()).node(node))


def node_structure(node: Node, containers: Mapping[str, Container]) -> tuple[str, tuple[str, ...]]:
    """What `node_fingerprint` sees, and the names of the outside containers in the order in which it numbers them.

    Two nodes compute the same from the same containers if both are equal but for the names of what they write.
    """
    canonical = _Canonical(containers, {}, ())
    text = canonical.node(node)
    return text, tuple(canonical.numbers)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Canonical:
    """Writes nodes as text without their names."""

    def __init__(
        self, containers: Mapping[str, Container], constants: Mapping[str, np.ndarray], sizes: tuple[Symbol, ...]
    ) -> None:
        self.containers = containers
        self.constants = constants
        self.numbers: dict[str, str] = {}  # container -> its token
        self.count = 0
        self.symbols: dict[Symbol, str] = {}
        self.memo: dict[Expr, str] = {}
        self.header = [self._bind(s) for s in sizes]

    def _bind(self, s: Symbol) -> str:
        declaration = f"({self.expr(s.lower)}:{self.expr(s.upper)}:{s.multiple_of})"
        self.symbols[s] = f"${len(self.symbols)}"
        return declaration

    def program(self, p: Program) -> str:
        s = p.signature
        signature = [[self.container(c) for c in s.inputs]]
        nodes = [self.node(n) for n in p.nodes]
        signature += [[self.container(c) for c in s.outputs]]
        signature += [
            [f"{self.container(a)}>{self.container(b)}" for a, b in side]
            for side in (s.cotangents, s.gradients, s.updates)
        ]
        return "\n".join([p.form.name, *self.header, *nodes, repr(signature)])

    # leaves ------------------------------------------------------------------------------------------------------------
    def expr(self, e: Any) -> str:
        """Terms, factors and arguments in the order of their text, which knows no names of parameters."""
        if e is None or isinstance(e, int):
            return str(e)
        found = self.symbols.get(e) or self.memo.get(e)
        if found is not None:
            return found
        if isinstance(e, Symbol):
            return f"{e.name}({self.expr(e.lower)}:{self.expr(e.upper)}:{e.multiple_of})"
        if isinstance(e, (FloorDiv, Mod)):
            text = f"({self.expr(e.dividend)}{'//' if isinstance(e, FloorDiv) else '%'}{self.expr(e.divisor)})"
        elif isinstance(e, (Min, Max)):
            text = f"{type(e).__name__}({','.join(sorted(self.expr(a) for a in e.args))})"
        else:
            terms = [f"{c}*{'*'.join(sorted(self.expr(a) for a in mono))}" for mono, c in e.terms.items()]
            text = f"({'+'.join([*sorted(terms), str(e.const)])})"
        self.memo[e] = text
        return text

    def container(self, name: str) -> str:
        """The token of a container, with its declaration where it appears first."""
        found = self.numbers.get(name)
        if found is not None:
            return found
        c = self.containers.get(name)
        token = self.numbers[name] = f"@{self.count}"
        self.count += 1
        return f"{token}?" if c is None else token + self.declaration(c)

    def declaration(self, c: Container) -> str:
        shape = ",".join(self.expr(n) for n in c.shape)
        strides = "" if c.is_contiguous else f" strides {','.join(self.expr(n) for n in c.actual_strides)}"
        alias = "" if c.alias is None else f" in {self.container(c.alias.base)}+{self.expr(c.alias.offset)}"
        value = self.constants.get(c.name)
        return f"<{c.dtype}[{shape}]{strides} {c.storage} {c.role}{alias}{'' if value is None else ' ' + self.value(value)}>"

    def value(self, v: Any) -> str:
        """An attribute."""
        if isinstance(v, np.ndarray):
            a = np.ascontiguousarray(v)
            return f"array {a.dtype.str} {a.shape} {hashlib.sha256(a.tobytes()).hexdigest()}"
        if isinstance(v, np.generic):
            return self.value(v.item())
        if isinstance(v, Expr):
            return self.expr(v)
        if isinstance(v, DType):
            return v.name
        if isinstance(v, Scalar):
            return self.code({"": v}, {})
        if isinstance(v, Memlet):
            return self.memlet(v, {})
        if isinstance(v, Mapping):
            return "{" + ",".join(sorted(f"{self.value(k)}:{self.value(x)}" for k, x in v.items())) + "}"
        if isinstance(v, (list, tuple)):
            return "[" + ",".join(self.value(x) for x in v) + "]"
        if isinstance(v, (set, frozenset)):
            return "{" + ",".join(sorted(self.value(x) for x in v)) + "}"
        if isinstance(v, Program):
            return fingerprint(v)
        return f"{type(v).__name__}:{v!r}"

    def memlet(self, m: Memlet, connectors: Mapping[str, str]) -> str:
        def subscript(s: Any) -> str:
            if isinstance(s, Span):
                return f"{self.expr(s.start)}:{self.expr(s.size)}:{self.expr(s.step)}"
            return f"<{connectors.get(s.name, s.name)}>" if isinstance(s, Indirect) else self.expr(s)

        guard = "&".join(f"{self.expr(c.expr)}{c.relation}" for c in m.guard)
        return (f"{self.container(m.container)}[{','.join(subscript(s) for s in m.subset)}]if {guard} else {self.value(m.fill)}"
                f" {m.combine} {self.expr(m.scan)}")  # fmt: skip

    def code(self, code: Mapping[str, Scalar], connectors: Mapping[str, str]) -> str:
        at: dict[Scalar, int] = {}
        rows: list[str] = []
        for s in walk(*code.values()):
            if s.op == "read":
                attr = connectors.get(str(s.attr), str(s.attr))
            else:
                attr = self.expr(s.attr) if s.op == "index" else repr(s.attr)
            at[s] = len(rows)
            rows.append(f"{s.op}({','.join(str(at[a]) for a in s.args)}){s.dtype}{attr}")
        return f"{';'.join(rows)}=>{[at[s] for s in code.values()]}"

    # nodes -------------------------------------------------------------------------------------------------------------
    def node(self, n: Node) -> str:
        if isinstance(n, Map):
            return self.map(n)
        if isinstance(n, Tasklet):
            return self.tasklet(n)
        # connectors of loops and branches are names of containers of the bodies
        bodies = [n.body] if isinstance(n, Loop) else [n.then, n.otherwise] if isinstance(n, Branch) else []
        inner = [_Canonical(b.containers, b.constants, b.symbols) for b in bodies]
        texts = [_digest(i.program(b)) for i, b in zip(inner, bodies, strict=True)]

        def connector(name: str) -> str:
            return "/".join(i.numbers.get(name, name) for i in inner) if inner else name

        reads = ",".join(f"{connector(k)}={self.memlet(m, {})}" for k, m in n.reads.items())
        writes = ",".join(f"{connector(k)}={self.memlet(m, {})}" for k, m in n.writes.items())
        if isinstance(n, Operator):
            own = f"{n.op} {self.value(n.attributes)} {n.expansion}"
        elif isinstance(n, LibraryCall):
            own = f"{n.function} {self.value(n.attributes)}"
        elif isinstance(n, Loop):
            rows = (*n.scanned, "", *n.stacked, "", *n.summed)
            named = [(connector(a), connector(b)) for a, b in n.carried], [connector(k) for k in rows]
            own = f"{texts} {self.expr(n.count)} {named} {[connector(k) for k in (n.condition, n.index) if k]} {n.reverse} {n.tile}"
        elif isinstance(n, Branch):
            own = str(texts)
        else:
            raise TypeError(f"node {n} has no fingerprint")
        defines = "".join(f" defines {self.expr(d.symbol)}={connector(d.connector)}:{d.dim}:{self._checks(d)}" for d in n.defines)
        return f"{n.kind} {n.phase} {own} ({reads})->({writes}){defines}"

    def _checks(self, d: Defines) -> list[tuple[str, str]]:
        return [(self.expr(c.expr), c.relation) for c, _ in d.checks]

    def map(self, n: Map) -> str:
        outer = dict(self.symbols), dict(self.numbers), self.containers, self.memo
        self.memo = {}
        params = ",".join(self._bind(p) for p in n.params)
        declared = ""
        if n.locals:
            self.containers = {**self.containers, **n.locals}
            for name in n.locals:
                self.numbers.pop(name, None)
            declared = ",".join(self.container(name) for name in n.locals)
        body = "".join(f"\n {self.node(b)}" for b in n.body)
        self.symbols, numbers, self.containers, self.memo = outer
        # numbers of outside containers that appeared first inside stay; those of locals end here
        kept = {k: v for k, v in self.numbers.items() if k not in n.locals}
        self.numbers = kept | {k: v for k, v in numbers.items() if k in n.locals}
        return f"map {n.phase} {n.schedule.kind}{self.value(n.schedule.options)} {params} {{{declared}}}{body}"

    def tasklet(self, t: Tasklet) -> str:
        used = reads_of(*t.code.values())
        order = [*used, *(k for k in t.reads if k not in used)]
        connectors = {k: f"r{i}" for i, k in enumerate(order)}
        reads = ",".join(self.memlet(t.reads[k], connectors) for k in order if k in t.reads)
        # a component's name says which part of its combiner a write is
        parts = {k: k if m.combine and len(COMBINERS[m.combine].components) > 1 else "" for k, m in t.writes.items()}
        writes = ",".join(f"{parts[k]}={self.memlet(m, connectors)}" for k, m in t.writes.items())
        return f"tasklet {t.phase} ({reads})->({writes}) {self.code(t.code, connectors)}"
