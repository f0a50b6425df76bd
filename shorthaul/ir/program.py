"""A Program: containers, nodes in dataflow order, and the signature by which the outside calls it.

One class carries the three forms of a network on its way down:

- `OPERATORS`: nodes are Operators (and LibraryCalls of what the registry does not know, Loops, Branches);
- `MAPS`: operators are expanded into Maps and LibraryCalls;
- `SCHEDULED`: every top-level map is a kernel with a schedule, views are aliases, memory is planned.

A training program holds forward and backward in one graph: a node's `phase` says when it runs. The forward phase computes the
outputs and the updates of buffers; the backward phase starts from one cotangent per differentiable output and computes the gradients.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Union

import numpy as np

from shorthaul.symbolic import Expr, Symbol

from .containers import Container
from .edit import Edit, EditError, Rewrite
from .location import kind_of_place
from .nodes import Node

IntLike = Union[int, Expr]


class Form(enum.IntEnum):
    """How far a program has come down."""

    OPERATORS = 0
    MAPS = 1
    SCHEDULED = 2


@dataclass(frozen=True)
class Signature:
    """How the outside calls a program; all entries are container names.

    inputs: what the caller passes, in order (parameters, buffers and inputs). outputs: what the forward phase returns, in order (an
    output may be an input). cotangents: (output, container of its incoming gradient). gradients: (input, container of its gradient).
    updates: (input, container of the value that is written back to it after the forward phase).
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    cotangents: tuple[tuple[str, str], ...] = ()
    gradients: tuple[tuple[str, str], ...] = ()
    updates: tuple[tuple[str, str], ...] = ()

    def with_(self, **changes: Any) -> Signature:
        return replace(self, **changes)

    @cached_property
    def results(self) -> frozenset[str]:
        """Containers that must exist after the program ran."""
        return frozenset(self.outputs) | {g for _, g in self.gradients} | {u for _, u in self.updates}

    @cached_property
    def names(self) -> frozenset[str]:
        """All containers that the outside knows."""
        return self.results | set(self.inputs) | {c for _, c in self.cotangents}


@dataclass(eq=False)
class Program:
    """See the module's page. `symbols` are the free sizes; `constants` the values of constant containers; `log` the rewrites so far."""

    name: str = "program"
    form: Form = Form.OPERATORS
    containers: dict[str, Container] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    signature: Signature = field(default_factory=Signature)
    symbols: tuple[Symbol, ...] = ()
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    log: list[Rewrite] = field(default_factory=list)
    version: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._readers: dict[str, dict[int, Node]] = {}
        self._writers: dict[str, dict[int, Node]] = {}
        self._uses: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
        self._names: dict[str, int] = {}
        self._current: dict[int, Node] = {}
        self._alike: dict[str, dict[int, Node]] = {}
        self._defining: dict[int, Node] = {}  # nodes that define sizes
        self._has_aliases = any(c.alias is not None for c in self.containers.values())  # may stay True when they are gone
        self._lying: dict[str, set[str]] | None = None  # the containers that lie directly in each; None: to be looked up anew
        self._keys: list[float] = []  # one a node, ascending: positions are found by bisection
        self._key: dict[int, float] = {}
        for node in self.nodes:
            self._register(node)
        self._place(0, 0, self.nodes)

    # queries ----------------------------------------------------------------------------------------------------------
    @property
    def deterministic(self) -> bool:
        """Whether its results are the same to the last bit at every run: it was captured under `torch.use_deterministic_algorithms`."""
        return bool(self.attributes.get("deterministic"))

    def readers(self, container: str) -> list[Node]:
        """Top-level nodes that read the container, by id (an order that undo restores)."""
        return _by_id(self._readers.get(container))

    def writers(self, container: str) -> list[Node]:
        """Top-level nodes that write the container, by id."""
        return _by_id(self._writers.get(container))

    def reads_of(self, node: Node) -> frozenset[str]:
        """Containers that a node of this program reads (cached)."""
        return self._uses[node.id][0]

    def writes_of(self, node: Node) -> frozenset[str]:
        return self._uses[node.id][1]

    def producers(self, node: Node) -> Iterator[Node]:
        """Nodes that write what the node reads."""
        for c in sorted(self.reads_of(node)):
            yield from self.writers(c)

    def consumers(self, node: Node) -> Iterator[Node]:
        """Nodes that read what the node writes."""
        for c in sorted(self.writes_of(node)):
            yield from self.readers(c)

    def node(self, id: int) -> Node:
        """The node with that id; raises KeyError when a rewrite removed it (see `resolve`)."""
        found = self._current.get(id)
        if found is not None:
            return found
        raise KeyError(f"program {self.name} has no node #{id}; it was rewritten: ask resolve({id})")

    def resolve(self, id: int) -> list[Node]:
        """The nodes that a handle stands for today: the node itself or what rewrites made of it."""
        ids = {id}
        for rewrite in self.log:
            if ids & rewrite.removed:
                ids = (ids - rewrite.removed) | rewrite.created
        return [n for n in self.nodes if n.id in ids]

    def current(self, ids: Iterable[int]) -> list[Node]:
        """Those of the nodes with these ids that are in the program, in the order of the ids."""
        return [self._current[i] for i in sorted(ids) if i in self._current]

    def node_is_current(self, node: Node) -> bool:
        """Whether this very object is in the program now."""
        return self._current.get(node.id) is node

    def position(self, node: Node) -> int:
        """Where a node of this program is in `nodes`. Raises EditError for a node that is not in it (any more)."""
        if not self.node_is_current(node):
            raise EditError(f"{node} is not in program {self.name}")
        return bisect_left(self._keys, self._key[node.id])

    def aliases(self, name: str) -> frozenset[str]:
        """Containers that lie in the memory of this one, directly or in one another."""
        if not self._has_aliases:
            return frozenset()
        if (lying := self._lying) is None:
            lying = {}
            for n, c in self.containers.items():
                if c.alias is not None:
                    lying.setdefault(c.alias.base, set()).add(n)
            self._lying = lying
        found: set[str] = set()
        todo = [name]
        while todo:
            base = todo.pop()
            direct = lying.get(base, set()) - found
            found |= direct
            todo += direct
        return frozenset(found)

    def roots(self, names: frozenset[str]) -> frozenset[str]:
        """The containers in whose memory these lie."""
        return frozenset(map(self._root, names)) if self._has_aliases else names

    def _root(self, name: str) -> str:
        while (c := self.containers.get(name)) is not None and c.alias is not None:
            name = c.alias.base
        return name

    def fresh(self, hint: str) -> str:
        """A container name that is not taken."""
        base = hint or "t"
        if base not in self.containers and base not in self._names:
            self._names[base] = 0
            return base
        while True:
            self._names[base] = self._names.get(base, 0) + 1
            name = f"{base}_{self._names[base]}"
            if name not in self.containers:
                return name

    def alike(self, kind: str) -> list[Node]:
        """Top-level nodes whose references (see `location`) begin with `kind`, in program order."""
        return sorted(self._alike.get(kind, {}).values(), key=lambda n: self._key[n.id])

    @property
    def results(self) -> frozenset[str]:
        return self.signature.results

    # changes ----------------------------------------------------------------------------------------------------------
    def edit(self, name: str, parameters: Mapping[str, Any] | None = None, **notes: Any) -> Edit:
        """Start a transactional change: `with program.edit("MapFusion") as edit: ...`. An exception rolls it back."""
        return Edit(self, name, dict(parameters or {}), notes)

    def undo(self, steps: int = 1) -> None:
        """Take back the last rewrites. Raises IndexError when there are fewer, EditError for one that was read from a file."""
        if steps > len(self.log):
            raise IndexError(f"cannot undo {steps} rewrites: the log holds {len(self.log)}")
        for rewrite in self.log[len(self.log) - steps :]:
            if not rewrite.inverses:
                raise EditError(f"cannot undo {rewrite.name}: it was read from a file, which keeps no way back")
        for _ in range(steps):
            self.log.pop().revert(self)
            self.version += 1

    def clone(self) -> Program:
        """An independent copy (nodes are immutable and shared; ids stay)."""
        return Program(self.name, self.form, dict(self.containers), list(self.nodes), self.signature, self.symbols,
                       dict(self.constants), list(self.log), self.version, dict(self.attributes))  # fmt: skip

    # used by Edit only -----------------------------------------------------------------------------------------------
    def _place(self, at: int, count: int, new: Sequence[Node]) -> None:
        """Give keys to the nodes that take the place of `count` nodes."""
        low = self._keys[at - 1] if at else 0.0
        high = self._keys[at + count] if at + count < len(self._keys) else low + len(new) + 1.0
        step = (high - low) / (len(new) + 1)
        keys = [low + step * (i + 1) for i in range(len(new))]
        self._keys[at : at + count] = keys
        self._key.update(zip((n.id for n in new), keys, strict=True))
        if step < 1e-6 * max(1.0, abs(high)):  # too narrow to divide further
            self._keys = [float(i + 1) for i in range(len(self.nodes))]
            self._key = {n.id: key for n, key in zip(self.nodes, self._keys, strict=True)}

    def _register(self, node: Node) -> None:
        reads, writes = node.read_containers(), node.written_containers()
        self._uses[node.id] = (reads, writes)
        self._current[node.id] = node
        if node.defines:
            self._defining[node.id] = node
        self._alike.setdefault(kind_of_place(node), {})[node.id] = node
        for c in reads:
            self._readers.setdefault(c, {})[node.id] = node
        for c in writes:
            self._writers.setdefault(c, {})[node.id] = node

    def _unregister(self, node: Node) -> None:
        reads, writes = self._uses.pop(node.id)
        del self._current[node.id]
        self._defining.pop(node.id, None)
        del self._alike[kind_of_place(node)][node.id]
        for c in reads:
            del self._readers[c][node.id]
        for c in writes:
            del self._writers[c][node.id]

    def __str__(self) -> str:
        from .printer import print_program

        return print_program(self)


def _by_id(nodes: Mapping[int, Node] | None) -> list[Node]:
    if not nodes:
        return []
    return [nodes[i] for i in sorted(nodes)] if len(nodes) > 1 else list(nodes.values())


def with_bodies(program: Program) -> Iterator[Program]:
    """The program and the bodies of its loops and branches, outer before inner."""
    from .nodes import Branch, Loop

    yield program
    for node in program.nodes:
        if isinstance(node, (Loop, Branch)):
            for body in node.bodies:
                yield from with_bodies(body)


def program_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes in order with the bodies of maps, outer before inner."""
    from .nodes import Map

    for node in nodes:
        yield node
        if isinstance(node, Map):
            yield from program_nodes(node.body)
