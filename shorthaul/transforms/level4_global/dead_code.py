"""DeadCode: remove what nobody reads."""

from __future__ import annotations

from collections.abc import Collection

from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import reads_of
from shorthaul.ir.scalar_ops import COMBINERS


def eliminate_dead_code(program: Program) -> int:
    """Remove nodes none of whose writes is read or returned, and writes of flat maps that nobody needs. Returns how many nodes changed.

    before:  map i: t[i] = f(a[i]), u[i] = g(a[i])   (u unread)      after:  map i: t[i] = f(a[i])
    """
    changed = 0
    with program.edit("DeadCode") as edit:
        for node in reversed(list(program.nodes)):
            written = program.writes_of(node)
            needed = {c for c in written if c in program.results or any(r is not node for r in program.readers(c))}
            if not needed:
                edit.remove(node)
                changed += 1
            elif isinstance(node, Map) and needed != written:
                trimmed = _trim(node, needed)
                if trimmed is not None and trimmed is not node:
                    edit.replace(node, trimmed)
                    changed += 1
        edit.drop_unused(list(program.containers))
    return changed


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
    return node.with_(body=tuple(body), locals={k: c for k, c in node.locals.items() if k in used})


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
