"""What transformations claim to save: bytes of footprints, derived from the memlets that a rewrite adds, drops or merges.

Everything is counted as the movement analysis counts it: a kernel moves each container's footprint once. Re-reads that a cache cannot hold
are left out of claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Union

from shorthaul.analysis.footprint import footprint_of, footprints
from shorthaul.analysis.movement import distinct, node_movement
from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Condition, Memlet
from shorthaul.ir.nodes import Access, Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, Symbol

IntLike = Union[int, Expr]


def moved(p: Program, node: Map, container: str, side: str) -> IntLike:
    """Bytes of a container that a map reads or writes."""
    found = footprints(node, p.containers).get((container, side))
    return 0 if found is None else found.elements * p.containers[container].dtype.itemsize


def all_moved(p: Program, node: Node) -> IntLike:
    """All bytes that a node reads and writes."""
    total: IntLike = 0
    for m in node_movement(node, p):
        total = total + m.footprint
    return total


def map_bytes(node: Map, containers: Mapping[str, Container]) -> IntLike:
    """All bytes that a map reads and writes, with containers that the program need not have yet."""
    found = footprints(node, containers)
    total: IntLike = 0
    for (name, side), f in found.items():
        if side == "write" or (name, "write") not in found:
            c = containers[name]
            total = total + (f.elements if c.strides is None else distinct(c, f.elements)) * c.dtype.itemsize
    return total


def together(p: Program, container: str, accesses: Iterable[Access]) -> IntLike:
    """Bytes of a container that these accesses move together."""
    c: Container = p.containers[container]
    return footprint_of(accesses, c).elements * c.dtype.itemsize


def reads_of_map(node: Map) -> dict[str, list[Access]]:
    """Reads of outside containers, by container."""
    found: dict[str, list[Access]] = {}
    for a in node.accesses():
        if not a.is_write and not a.is_local:
            found.setdefault(a.memlet.container, []).append(a)
    return found


def substituted(t: Tasklet, names: Iterable[str], values: Mapping[Symbol, IntLike], guard: tuple[Condition, ...],
                params: tuple[Symbol, ...], indices: Mapping[str, Memlet]) -> Iterator[Access]:  # fmt: skip
    """The named reads of a tasklet as they are made from elsewhere: parameters replaced, under a further guard, over `params`. indices:
    reads there that the replaced parameters may refer to."""
    moved_here = t.with_(reads={**indices, **{k: m.substitute(values) for k, m in t.reads.items()}})
    for k in names:
        m = moved_here.reads[k]
        yield Access(moved_here, k, m.with_(guard=(*m.guard, *guard)) if guard else m, params, False, False)


def renamed_accesses(accesses: Iterable[Access], values: Mapping[Symbol, IntLike]) -> Iterator[Access]:
    """The same accesses with parameters renamed."""
    for a in accesses:
        params = tuple(q for p in a.params if isinstance(q := values.get(p, p), Symbol))
        t = a.tasklet
        if a.memlet.is_indirect:
            t = t.with_(reads={k: m.substitute(values) for k, m in t.reads.items()})
        yield Access(t, a.connector, a.memlet.substitute(values), params, a.is_write, a.is_local)


def shared(p: Program, first: Mapping[str, list[Access]], second: Mapping[str, list[Access]]) -> IntLike:
    """What one kernel reads less than two that make these reads: the elements that both need."""
    total: IntLike = 0
    for name in sorted(first.keys() & second.keys()):
        a, b = first[name], second[name]
        total = total + together(p, name, a) + together(p, name, b) - together(p, name, [*a, *b])
    return total
