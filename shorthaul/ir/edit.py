"""Transactional changes of a program, and the log that undo, recipes, explanations and the studio read.

Every change is one of a few primitives, each of which records its inverse. An `Edit` groups the primitives of one rewrite: it is
applied as a whole, or, when an exception leaves the `with` block, not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shorthaul.symbolic import Symbol

from .containers import Container
from .nodes import Map, Node, Schedule
from .sizes import node_sizes

if TYPE_CHECKING:
    from .program import Form, Program, Signature

Inverse = Callable[["Program"], None]


class EditError(RuntimeError):
    """A change that would break the program, such as a fusion that closes a cycle."""


@dataclass
class Rewrite:
    """One entry of the log: which transformation did what to which nodes, and how to take it back.

    removed, created: node ids. notes: what the transformation wants to be remembered (location, bytes saved, reasons).
    """

    name: str
    parameters: dict[str, Any]
    notes: dict[str, Any]
    removed: frozenset[int] = frozenset()
    created: frozenset[int] = frozenset()
    inverses: list[Inverse] = field(default_factory=list, repr=False)

    def revert(self, program: Program) -> None:
        for inverse in reversed(self.inverses):
            inverse(program)


class Edit:
    """A change in progress; get one from `program.edit(name)` and use it as a context manager."""

    def __init__(self, program: Program, name: str, parameters: dict[str, Any], notes: dict[str, Any]) -> None:
        self.program = program
        self.rewrite = Rewrite(name, parameters, notes)
        self._removed: set[int] = set()
        self._created: set[int] = set()
        self._open = False

    def __enter__(self) -> Edit:
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._open = False
        if kind is not None:
            self.rewrite.revert(self.program)
            return
        if self.rewrite.inverses:
            both = self._removed & self._created
            self.rewrite.removed = frozenset(self._removed - both)
            self.rewrite.created = frozenset(self._created - both)
            self.program.log.append(self.rewrite)
            self.program.version += 1

    # nodes ------------------------------------------------------------------------------------------------------------
    def add(self, *nodes: Node, before: Node | None = None, after: Node | None = None) -> None:
        """Insert nodes in order: before or after a node of the program, else at the end."""
        listing = self.program.nodes
        at = len(listing) if before is None and after is None else self.program.position(before or after) + (before is None)  # type: ignore[arg-type]
        self._splice(at, 0, list(nodes))

    def remove(self, node: Node) -> None:
        """Take a node out."""
        self._splice(self.program.position(node), 1, [])

    def replace(self, node: Node, *new: Node) -> None:
        """Put nodes in the place of one."""
        self._splice(self.program.position(node), 1, list(new))

    def fuse(self, nodes: Sequence[Node], *new: Node) -> None:
        """Put `new` in the place of several nodes, reordering what lies between them where that is needed.

        Nodes between the first and the last that depend on one of `nodes` move behind `new`; containers that share memory count as one.
        Raises EditError if one of `nodes` depends on another one through a third node: fusing them would close a cycle.
        """
        lo, hi, before, behind = fusing_order(self.program, nodes)
        self._splice(lo, hi + 1 - lo, [*before, *new, *behind])

    def schedule(self) -> None:
        """Every new map at the top that has no schedule yet runs in parallel: a kernel."""
        for n in self.program.current(self._created):
            if isinstance(n, Map) and n.schedule.kind == "auto":
                self.replace(n, n.with_(schedule=Schedule("parallel", n.schedule.options)))

    def _splice(self, at: int, count: int, new: list[Node]) -> None:
        p = self.program
        assert self._open, "an edit only works inside its with block"
        old = p.nodes[at : at + count]
        _swap(p, at, old, new)
        kept = {id(n) for n in old} & {id(n) for n in new}
        self._removed |= {n.id for n in old if id(n) not in kept}
        self._created |= {n.id for n in new if id(n) not in kept}
        self.rewrite.inverses.append(lambda q: _swap(q, at, new, old))

    # containers and the rest ------------------------------------------------------------------------------------------
    def add_container(self, container: Container) -> Container:
        """Declare a container; its name must be new."""
        if container.name in self.program.containers:
            raise EditError(f"container {container.name} exists already")
        self._set_entry(self.program.containers, "containers", container.name, container)
        return container

    def set_container(self, container: Container) -> Container:
        """Replace the container of that name (role, layout, storage)."""
        if container.name not in self.program.containers:
            raise EditError(f"container {container.name} does not exist")
        self._set_entry(self.program.containers, "containers", container.name, container)
        return container

    def remove_container(self, name: str) -> None:
        """Forget a container; nothing may use it any more."""
        users = self.program.readers(name) + self.program.writers(name)
        if users:
            raise EditError(f"container {name} is still used by {users[0]}")
        self._set_entry(self.program.containers, "containers", name, None)

    def set_constant(self, name: str, value: Any) -> None:
        """Set the value of a constant container."""
        self._set_entry(self.program.constants, "constants", name, value)

    def add_symbol(self, symbol: Symbol) -> Symbol:
        """Declare a size; its name must be new."""
        if any(s.name == symbol.name for s in self.program.symbols):
            raise EditError(f"size {symbol} exists already")
        self._set_attribute("symbols", (*self.program.symbols, symbol))
        return symbol

    def set_signature(self, signature: Signature) -> None:
        self._set_attribute("signature", signature)

    def set_attribute(self, name: str, value: Any) -> None:
        """Set an entry of the program's attributes; None takes it out."""
        self._set_entry(self.program.attributes, "attributes", name, value)

    def set_form(self, form: Form) -> None:
        self._set_attribute("form", form)

    def drop_unused(self, names: Iterable[str]) -> None:
        """Forget those of the containers that nothing uses and the signature does not name."""
        p = self.program
        keep = p.signature.names
        if p._has_aliases:
            keep = keep | {c.alias.base for c in p.containers.values() if c.alias is not None}
        for name in names:
            if name in p.containers and name not in keep and not p._readers.get(name) and not p._writers.get(name):
                self._set_entry(p.containers, "containers", name, None)
                if name in p.constants:
                    self._set_entry(p.constants, "constants", name, None)

    def _set_entry(self, table: dict[str, Any], attribute: str, key: str, value: Any) -> None:
        if isinstance(value, Container) and value.alias is not None:
            self.program._has_aliases = True
        old = table.get(key)
        _put(self.program, attribute, key, value)
        self.rewrite.inverses.append(lambda q: _put(q, attribute, key, old))

    def _set_attribute(self, name: str, value: Any) -> None:
        old = getattr(self.program, name)
        setattr(self.program, name, value)
        self.rewrite.inverses.append(lambda q: setattr(q, name, old))


def _put(program: Program, attribute: str, key: str, value: Any) -> None:
    table = getattr(program, attribute)
    if any(isinstance(c, Container) and c.alias is not None for c in (table.get(key), value)):
        program._lying = None
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _swap(program: Program, at: int, old: list[Node], new: list[Node]) -> None:
    staying = {id(n) for n in new} & {id(n) for n in old}
    for n in old:
        if id(n) not in staying:
            program._unregister(n)
    program.nodes[at : at + len(old)] = new
    program._place(at, len(old), new)
    for n in new:
        if id(n) not in staying:
            program._register(n)


def fusing_order(p: Program, nodes: Sequence[Node]) -> tuple[int, int, list[Node], list[Node]]:
    """(first position, last position, nodes between them that go before, those that go behind) for fusing several nodes into one.

    Raises EditError if one of them depends on another one through a third node.
    """
    gone = {n.id for n in nodes}
    positions = [p.position(n) for n in nodes]
    lo, hi = min(positions), max(positions)
    tainted: set[Any] = set()
    before: list[Node] = []
    behind: list[Node] = []
    has_runtime_sizes = any(n.defines for n in p.nodes[lo : hi + 1])
    for n in p.nodes[lo : hi + 1]:
        needs: frozenset[Any]
        gives: frozenset[Any]
        needs, gives = p._uses[n.id]
        if p._has_aliases:
            needs, gives = p.roots(needs), p.roots(gives)
        if has_runtime_sizes:  # a size that a node defines is a value like any other
            needs, gives = needs | node_sizes(n, p.containers), gives | {d.symbol for d in n.defines}
        depends = not tainted.isdisjoint(needs)
        if n.id in gone:
            if depends and any(not (p.roots(p._uses[d.id][1]) | {s.symbol for s in d.defines}).isdisjoint(needs) for d in behind):
                raise EditError(f"{n} depends on another of the fused nodes through a node between them")
            tainted |= gives
        elif depends:
            behind.append(n)
            tainted |= gives
        else:
            before.append(n)
    return lo, hi, before, behind
