"""DeadCode: remove what nobody reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import reads_of
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Expr

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class DeadCode(Transformation):
    """Remove nodes none of whose writes is read or returned, and writes of maps that nobody needs.

    before:  map i: t[i] = f(a[i]), u[i] = g(a[i])   (u unread)      after:  map i: t[i] = f(a[i])
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        """Every node, the last first: what a removed node read may be dead then."""
        for node in reversed(list(program.nodes)):
            if program.node_is_current(node):
                yield Match(program, {"node": node})

    def check(self, m: Match) -> None:
        m.derived["rest"] = without_dead_writes(m.program, m.node)
        require(m.rest is not m.node, "everything that it writes is needed")

    def saves(self, m: Match) -> IntLike:
        """What the node moved, less what its remaining accesses move."""
        p = m.program
        total = traffic.all_moved(p, m.node)
        if m.rest is not None:
            written = m.rest.written_containers()
            for c, found in traffic.reads_of_map(m.rest).items():
                total = total - (0 if c in written else traffic.together(p, c, found))
            for c in written:
                total = total - traffic.moved(p, m.node, c, "write")
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        names = m.program.reads_of(m.node) | m.program.writes_of(m.node)
        edit.replace(m.node, *([] if m.rest is None else [m.rest]))
        edit.drop_unused(names)


def eliminate_dead_code(program: Program) -> int:
    """Apply DeadCode everywhere as one rewrite, and forget containers that nothing uses. Returns how many nodes changed."""
    changed = 0
    with program.edit("DeadCode") as edit:
        for node in reversed(list(program.nodes)):
            rest = without_dead_writes(program, node)
            if rest is not node:
                edit.replace(node, *([] if rest is None else [rest]))
                changed += 1
        edit.drop_unused(list(program.containers))
    return changed


def needed_writes(program: Program, node: Node) -> set[str]:
    """Containers that the node writes and something else reads (also under another name) or the caller gets."""

    def needed(c: str) -> bool:
        return c in program.results or any(r is not node for r in program.readers(c)) or any(needed(a) for a in program.aliases(c))

    return {c for c in program.writes_of(node) if needed(c)}


def without_dead_writes(program: Program, node: Node) -> Node | None:
    """The node without the writes that nobody needs: itself where all are needed, None where none is."""
    needed = needed_writes(program, node)
    if node.defines:
        return node  # others use the sizes, whoever reads the results
    if not needed:
        return None
    if isinstance(node, Map) and needed != program.writes_of(node):
        return _trim(node, needed)
    return node


def _trim(node: Map, needed: Collection[str]) -> Map | None:
    """The map without the writes that nobody needs; None when nothing is left."""
    inner_reads = {x.memlet.container for x in node.accesses() if not x.is_write}
    live = set(needed) | inner_reads
    body: list[Node] = []
    for n in node.body:
        new = _trim_tasklet(n, live) if isinstance(n, Tasklet) else _trim(n, live) if isinstance(n, Map) else n
        if new is not None:
            body.append(new)
    if not body:
        return None
    if len(body) == len(node.body) and all(a is b for a, b in zip(body, node.body, strict=True)):
        return node
    used = {x for n in body for x in (*n.read_containers(), *n.written_containers())}
    trimmed = node.with_(body=tuple(body), locals={k: c for k, c in node.locals.items() if k in used})
    return _trim(trimmed, needed)  # what only dead code read is dead now


def _trim_tasklet(t: Tasklet, live: Collection[str]) -> Tasklet | None:
    groups = {m.combine for m in t.writes.values() if m.container in live and m.combine and len(COMBINERS[m.combine].components) > 1}
    keep = [k for k, m in t.writes.items() if m.container in live or m.combine in groups]
    if len(keep) == len(t.writes):
        return t
    if not keep:
        return None
    code = {k: t.code[k] for k in keep}
    used = set(reads_of(*code.values()))
    used |= {s.name for k in keep for s in t.writes[k].subset if isinstance(s, Indirect)}
    used |= {s.name for k in list(used) for s in t.reads[k].subset if isinstance(s, Indirect)}
    return t.with_(code=code, writes={k: t.writes[k] for k in keep}, reads={k: m for k, m in t.reads.items() if k in used})
