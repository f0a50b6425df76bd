"""Which sizes a program's nodes define when they run, and which sizes a node needs before it can run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shorthaul.symbolic import Expr, Symbol, free_symbols

from .containers import Container
from .memlet import Memlet, Span
from .nodes import Branch, LibraryCall, Loop, Map, Node, Operator
from .scalar import walk

if TYPE_CHECKING:
    from .program import Program


def runtime_sizes(program: Program) -> frozenset[Symbol]:
    """The symbols that nodes define; all others are known when the program starts."""
    return frozenset(d.symbol for n in program._defining.values() for d in n.defines)


def used_sizes(program: Program) -> frozenset[Symbol]:
    """All symbols that appear in a program."""
    found = set(runtime_sizes(program))
    for c in program.containers.values():
        found |= container_sizes(c)
    for n in program.nodes:
        found |= node_sizes(n, program.containers) | {s for d in n.defines for c, _ in d.checks for s in _symbols([c.expr])}
    return frozenset(found | {s for t in found for s in _symbols([t.lower, t.upper])})


def container_sizes(c: Container) -> frozenset[Symbol]:
    """The symbols in a container's shape, strides and place."""
    return _symbols((*c.shape, *(c.strides or ()), 0 if c.alias is None else c.alias.offset))


def node_sizes(node: Node, containers: Mapping[str, Container]) -> frozenset[Symbol]:
    """The symbols that must have values before a node runs: not those that it defines itself."""
    found: set[Symbol] = set()
    for name in node.read_containers() | node.written_containers():
        if name in containers:
            found |= container_sizes(containers[name])
    if isinstance(node, Map):
        found |= _map_sizes(node)
    elif isinstance(node, (Operator, LibraryCall)):
        found |= attribute_sizes(node.attributes)
    elif isinstance(node, (Loop, Branch)):
        for body in node.bodies:
            found |= set(body.symbols) - runtime_sizes(body)
        if isinstance(node, Loop):
            found |= _symbols([node.count])
    return frozenset(found - {d.symbol for d in node.defines})


def attribute_sizes(value: Any) -> frozenset[Symbol]:
    """The symbols in an attribute."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif isinstance(value, slice):
        value = [value.start, value.stop, value.step]
    if isinstance(value, (list, tuple, set, frozenset)):
        return frozenset[Symbol]().union(*(attribute_sizes(v) for v in value))
    return _symbols([value])


def _map_sizes(m: Map) -> set[Symbol]:
    params: set[Symbol] = set()
    expressions: list[Any] = []
    for scope, t in m.tasklets():
        params |= set(scope)
        for memlet in (*t.reads.values(), *t.writes.values()):
            expressions += _memlet(memlet)
        expressions += [s.attr for s in walk(*t.code.values()) if s.op == "index"]
    expressions += [e for p in params for e in (p.lower, p.upper)]
    return set(_symbols(expressions)) - params


def _memlet(m: Memlet) -> Iterator[Any]:
    for s in m.subset:
        yield from (s.start, s.size, s.step) if isinstance(s, Span) else (s,)
    yield from (c.expr for c in m.guard)


def _symbols(values: Iterable[Any]) -> frozenset[Symbol]:
    return frozenset(s for e in values if isinstance(e, Expr) for s in free_symbols(e))
