"""Nodes of a program: Operator, Map, Tasklet, LibraryCall, Loop, Branch.

A node has named `reads` and `writes`, which are memlets; the dataflow edges follow from them and are stored nowhere else.
Nodes are never changed in place once they are in a program: an `Edit` replaces a node by another (`with_` makes the copy), so that
undo only has to put the old object back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Union

from shorthaul.symbolic import Expr, Symbol, evaluate, product

from .containers import Container
from .memlet import Condition, Memlet
from .scalar import Scalar

if TYPE_CHECKING:
    from .program import Program

IntLike = Union[int, Expr]
_ids = itertools.count(1)
NO_MEMLETS: Mapping[str, Memlet] = MappingProxyType({})


def reserve_ids(last: int) -> None:
    """Give no id up to `last` to a new node: those are taken by nodes that were read from a file."""
    global _ids
    _ids = itertools.count(max(next(_ids), last + 1))


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: module path (`blocks.0.conv`), source line of the user's code, ATen or ONNX operator."""

    module: str = ""
    source: str = ""
    operator: str = ""

    def __str__(self) -> str:
        where = self.module or "<model>"
        return f"{where} ({self.operator})" + (f" at {self.source}" if self.source else "")


NOWHERE = Origin()


@dataclass(frozen=True)
class Defines:
    """A size that is known when a node has run (the number of nonzero elements, of tokens that an expert gets, of iterations).

    symbol: a symbol of the program, used by nothing that runs earlier; its bounds are checked when it is known. connector: the result of
    the node that has the size as its dimension `dim`, or, where `dim` is None, holds it as its one integer.
    checks: what else must hold then, with the text of the error where it does not.
    """

    symbol: Symbol
    connector: str
    dim: int | None = None
    checks: tuple[tuple[Condition, str], ...] = ()

    def violated(self, sizes: Mapping[Symbol, int]) -> str:
        """What is wrong with the size among those that are known, in words; empty where nothing is."""
        s, n = self.symbol, sizes[self.symbol]
        low, high = (None if e is None else evaluate(e, sizes) for e in (s.lower, s.upper))
        if (low is not None and n < low) or (high is not None and n > high) or n % s.multiple_of:
            multiple = f", a multiple of {s.multiple_of}" if s.multiple_of > 1 else ""
            return f"the size {s} = {n} is not between {'-∞' if low is None else low} and {'∞' if high is None else high}{multiple}"
        return next((text for c, text in self.checks if not c.holds(sizes)), "")


class Node:
    """Common part of all nodes.

    reads, writes: memlets by connector name. origins: where it comes from, several after fusion. phase: "forward", "backward" or "update".
    defines: sizes that are known once it has run (operators, library calls and loops).
    id: unique in the process and kept by `with_`, so a handle survives replacement by a changed copy.
    """

    kind = "node"
    defines: tuple[Defines, ...] = ()
    _fields: tuple[str, ...] = ("reads", "writes", "origins", "phase", "defines")

    def __init__(self, reads: Mapping[str, Memlet] = NO_MEMLETS, writes: Mapping[str, Memlet] = NO_MEMLETS,
                 origins: tuple[Origin, ...] = (), phase: str = "forward", defines: tuple[Defines, ...] = (),
                 id: int | None = None) -> None:  # fmt: skip
        self.reads = dict(reads)
        self.writes = dict(writes)
        self.origins = origins
        self.phase = phase
        self.defines = tuple(defines)
        self.id = next(_ids) if id is None else id

    @property
    def origin(self) -> Origin:
        return self.origins[0] if self.origins else NOWHERE

    def with_(self, **changes: Any) -> Any:
        """A changed copy that keeps the id."""
        fields = {name: getattr(self, name) for name in self._fields}
        return type(self)(**{**fields, "id": self.id, **changes})

    def copy(self, **changes: Any) -> Any:
        """A changed copy with an id of its own."""
        return self.with_(**{"id": None, **changes})

    def read_containers(self) -> frozenset[str]:
        """Names of the containers outside the node that it reads."""
        return frozenset(m.container for m in self.reads.values())

    def written_containers(self) -> frozenset[str]:
        return frozenset(m.container for m in self.writes.values())

    @property
    def label(self) -> str:
        return self.kind

    def __repr__(self) -> str:
        return f"<{self.label} #{self.id}>"


class Operator(Node):
    """An operator of the registry, not yet expanded. `attributes` are its static parameters; `expansion` the chosen one, if any."""

    kind = "operator"
    _fields = ("op", "attributes", "expansion", *Node._fields)

    def __init__(self, op: str, attributes: Mapping[str, Any] | None = None, expansion: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.op = op
        self.attributes = dict(attributes or {})
        self.expansion = expansion

    @property
    def label(self) -> str:
        return self.op


class LibraryCall(Node):
    """A call of library code: `function` names it for codegen/library ("aten::convolution", ...). Reads and writes whole containers."""

    kind = "library call"
    _fields = ("function", "attributes", *Node._fields)

    def __init__(self, function: str, attributes: Mapping[str, Any] | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.function = function
        self.attributes = dict(attributes or {})

    @property
    def label(self) -> str:
        return self.function


class Tasklet(Node):
    """Scalar code: each write connector has its expression over the reads. Memlets are single elements.

    A write whose memlet combines accumulates. The components of a tuple combiner are writes named after the combiner's components.
    """

    kind = "tasklet"
    _fields = ("code", *Node._fields)

    def __init__(self, code: Mapping[str, Scalar], **common: Any) -> None:
        super().__init__(**common)
        self.code = dict(code)

    @property
    def label(self) -> str:
        return "; ".join(f"{k} = {v}" for k, v in self.code.items())


@dataclass(frozen=True)
class Schedule:
    """How a map runs. kind: "auto", "parallel" (grid, OpenMP), "sequential", "vector". options: target-specific parameters."""

    kind: str = "auto"
    options: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)

    def with_options(self, **options: Any) -> Schedule:
        return Schedule(self.kind, tuple(sorted({**dict(self.options), **options}.items())))


AUTO = Schedule()


class Map(Node):
    """A parallel loop nest over `params` (each a Symbol whose bounds are its range) that owns its body.

    body: tasklets and maps in dataflow order. locals: containers that live for one iteration of the map.
    reads and writes are propagated: one memlet per outside container, the bounding subset over the parameters.
    """

    kind = "map"
    _fields = ("params", "body", "locals", "schedule", "name", "origins", "phase")

    def __init__(self, params: tuple[Symbol, ...], body: tuple[Node, ...], locals: Mapping[str, Container] | None = None,
                 schedule: Schedule = AUTO, name: str = "", origins: tuple[Origin, ...] = (), phase: str = "forward",
                 id: int | None = None) -> None:  # fmt: skip
        self.params = tuple(params)
        self.body = tuple(body)
        self.locals = dict(locals or {})
        self.schedule = schedule
        self.name = name
        self.origins = origins
        self.phase = phase
        self.id = next(_ids) if id is None else id
        self._propagated: tuple[dict[str, Memlet], dict[str, Memlet]] | None = None
        self._accesses: tuple[Access, ...] | None = None
        # the only node of the body, if it is a tasklet: the map is flat
        self.tasklet: Tasklet | None = self.body[0] if len(self.body) == 1 and isinstance(self.body[0], Tasklet) else None

    @property
    def reads(self) -> dict[str, Memlet]:  # type: ignore[override]
        return self._outer()[0]

    @property
    def writes(self) -> dict[str, Memlet]:  # type: ignore[override]
        return self._outer()[1]

    def _outer(self) -> tuple[dict[str, Memlet], dict[str, Memlet]]:
        if self._propagated is None:
            from .propagate import propagate

            self._propagated = propagate(self)
        return self._propagated

    def read_containers(self) -> frozenset[str]:
        return frozenset(a.memlet.container for a in self.accesses() if not a.is_write and not a.is_local)

    def written_containers(self) -> frozenset[str]:
        return frozenset(a.memlet.container for a in self.accesses() if a.is_write and not a.is_local)

    @property
    def domain(self) -> IntLike:
        """Number of iterations."""
        return product(p.size for p in self.params)

    @property
    def is_elementwise(self) -> bool:
        """Flat, and no write combines."""
        t = self.tasklet
        return t is not None and not any(m.combine for m in t.writes.values())

    def accesses(self) -> tuple[Access, ...]:
        """Every memlet of every tasklet below, with the parameters in scope."""
        if self._accesses is None:
            self._accesses = tuple(_accesses(self, (), frozenset()))
        return self._accesses

    def tasklets(self) -> Iterator[tuple[tuple[Symbol, ...], Tasklet]]:
        """All tasklets below with the parameters in scope, outermost first."""
        yield from _tasklets(self, ())

    @property
    def label(self) -> str:
        return self.name or "map"


@dataclass(frozen=True)
class Access:
    """One memlet of a tasklet inside a map: `params` in scope from the outside in;
    `is_local` when the container is a local of some enclosing map.
    """

    tasklet: Tasklet
    connector: str
    memlet: Memlet
    params: tuple[Symbol, ...]
    is_write: bool
    is_local: bool


def _tasklets(m: Map, outer: tuple[Symbol, ...]) -> Iterator[tuple[tuple[Symbol, ...], Tasklet]]:
    scope = outer + m.params
    for node in m.body:
        if isinstance(node, Map):
            yield from _tasklets(node, scope)
        elif isinstance(node, Tasklet):
            yield scope, node


def _accesses(m: Map, outer: tuple[Symbol, ...], local: frozenset[str]) -> Iterator[Access]:
    scope = outer + m.params
    local = local | m.locals.keys()
    for node in m.body:
        if isinstance(node, Map):
            yield from _accesses(node, scope, local)
        elif isinstance(node, Tasklet):
            for name, memlet in node.reads.items():
                yield Access(node, name, memlet, scope, False, memlet.container in local)
            for name, memlet in node.writes.items():
                yield Access(node, name, memlet, scope, True, memlet.container in local)


class Loop(Node):
    """Sequential repetition: `body` runs `count` times, or as long as the carried `condition` holds.

    The body is a function from its signature's inputs to its outputs; the connectors of reads and writes are their names.
    carried: (input, output) pairs that go round; reads start them, writes receive the last values (the first ones after no iteration).
    scanned: inputs that are iteration i's slice x[i] of what is read. stacked: outputs that fill iteration i's slice of what is written.
    index: an input (int64, no dimensions) that is the number of the iteration. condition: a carried input (bool, no dimensions); the loop
    ends before an iteration in which it does not hold. count: the most iterations, None for any number.
    reverse: iteration 0 has the last slice and the highest index. All other reads are the same in every iteration.
    Where a condition may end the loop, the leading size of what is stacked is a symbol that the node `defines`.
    tile: iteration i scans and stacks the i-th block of so many rows of the leading dimensions (see `ir.blocks`) instead of one slice
    without its dimension; the body runs over a part of a batch. summed: outputs whose values of all iterations are added up.
    """

    kind = "loop"
    _fields = ("body", "count", "carried", "scanned", "stacked", "condition", "index", "reverse", "tile", "summed", *Node._fields)

    def __init__(self, body: Program, count: IntLike | None, carried: tuple[tuple[str, str], ...], scanned: tuple[str, ...] = (),
                 stacked: tuple[str, ...] = (), condition: str | None = None, index: str | None = None, reverse: bool = False,
                 tile: tuple[int, ...] | None = None, summed: tuple[str, ...] = (), **common: Any) -> None:  # fmt: skip
        super().__init__(**common)
        self.tile = None if tile is None else tuple(tile)
        self.summed = tuple(summed)
        self.body = body
        self.count = count
        self.carried = tuple(carried)
        self.scanned = tuple(scanned)
        self.stacked = tuple(stacked)
        self.condition = condition
        self.index = index
        self.reverse = reverse

    @property
    def bodies(self) -> tuple[Program, ...]:
        return (self.body,)

    @property
    def trips(self) -> IntLike:
        """How often the body runs, as a size: what it defines itself, else its count; once where nothing says more."""
        counted = (d.symbol for d in self.defines if d.dim == 0)
        return next(counted, 1 if self.count is None else self.count)

    def with_bodies(self, bodies: tuple[Program, ...]) -> Loop:
        """A copy with another body, keeping the id."""
        return self.with_(body=bodies[0])


class Branch(Node):
    """`then` if the scalar read as "condition" holds, else `otherwise`. Both take the other reads by name and give the writes by name."""

    kind = "branch"
    _fields = ("then", "otherwise", *Node._fields)

    def __init__(self, then: Program, otherwise: Program, **common: Any) -> None:
        super().__init__(**common)
        self.then = then
        self.otherwise = otherwise

    @property
    def bodies(self) -> tuple[Program, ...]:
        return self.then, self.otherwise

    def with_bodies(self, bodies: tuple[Program, ...]) -> Branch:
        """A copy with other bodies, keeping the id."""
        return self.with_(then=bodies[0], otherwise=bodies[1])
