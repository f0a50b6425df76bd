"""UpdateInPlace: the new value of a parameter, buffer or optimizer state is written where the old one was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.analysis.movement import IN_PLACE, node_movement
from shorthaul.ir.containers import Alias
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall, Map, Tasklet
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, Symbol

from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class UpdateInPlace(Transformation):
    """Put the value that is written back to an input into the input's own memory.

    before:  map i: new[i] = w[i] - lr * g[i];  w <- new (a copy)
    after:   map i: new[i] = w[i] - lr * g[i]   with new in the memory of w

    Safe because the kernel reads the element that it overwrites in the same tasklet and nowhere else, visits it once, and nothing
    reads the old value later. A call that writes rows of a table (see `SparseUpdate`) copies no others then. Only for programs of a whole
    step, whose caller hands over tensors that they may write.
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        if not program.attributes.get("whole_step"):
            return
        for old, new in program.signature.updates:
            for node in program.writers(new):
                yield Match(program, {"node": node, "operand": old, "mid": new})

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        x, y = p.containers[m.operand], p.containers[m.mid]
        rows = isinstance(node, LibraryCall) and node.function in IN_PLACE and node.reads[IN_PLACE[node.function][0]].container == m.operand
        require(rows or isinstance(node, Map), "a library call writes it")
        require(y.alias is None and not p.aliases(m.mid), "its value shares memory already")
        require(len(p.writers(m.mid)) == 1, "several nodes write it")
        require(m.mid not in p.signature.outputs, "the caller gets the value as a tensor of its own")
        require(not p.readers(m.mid), "the value is read again")
        require([u for _, u in p.signature.updates].count(m.mid) == 1, "it is the new value of several tensors")
        require(
            x.dtype is y.dtype and x.shape == y.shape and x.actual_strides == y.actual_strides, "the old value has another type or layout"
        )
        family = p.aliases(m.operand) | {m.operand}
        require(family.isdisjoint(p.signature.outputs), "the caller gets the old value")
        require(not any(c in family for c, u in p.signature.updates if u != m.mid), "it has several new values")
        at = p.position(node)
        for c in sorted(family):
            last = max((p.position(r) for r in p.readers(c)), default=-1)
            require(last <= at, f"{c} is read later")
        if rows:
            others = {x.container for k, x in node.reads.items() if k != IN_PLACE[node.function][0]}
            require(family.isdisjoint(others), "it reads other elements of the old value than it overwrites")
            return
        writes = [a for a in node.accesses() if a.is_write and a.memlet.container == m.mid]
        require(len(writes) == 1, "several tasklets write it")
        tasklet, write = writes[0].tasklet, writes[0].memlet
        around = next(params for params, t in node.tasklets() if t is tasklet)
        require(not write.guard and not write.combine and write.scan is None, "it is not simply stored")
        require(all(isinstance(s, (Symbol, int)) for s in write.subset), "it does not visit every element once")
        require(set(write.subset) >= {q for q in around if q.size != 1}, "it does not visit every element once")
        for a in node.accesses():
            if not a.is_write and a.memlet.container in family:
                pairs = zip(a.memlet.subset, write.subset, x.shape, strict=False)
                same = a.memlet.container == m.operand and all(s == t or n == 1 for s, t, n in pairs) and not a.memlet.guard
                require(a.tasklet is tasklet and same, "it reads other elements of the old value than it overwrites")

    def saves(self, m: Match) -> IntLike:
        """The copy from the result to the input: a read and a write. Of a call that changes rows also its copy of all others."""
        copied: IntLike = 2 * m.program.containers[m.mid].bytes
        if isinstance(m.node, LibraryCall):
            x, _, values, _ = (m.node.reads[k].container if k in m.node.reads else m.mid for k in IN_PLACE[m.node.function])
            less: IntLike = 0
            for moved in node_movement(m.node, m.program):
                less = less + (moved.footprint if moved.container in (x, m.mid) else 0)
            copied = copied + less - m.program.containers[values].bytes
        return copied

    def apply(self, m: Match, edit: Edit) -> None:
        edit.set_container(m.program.containers[m.mid].with_(alias=Alias(m.operand, 0)))


def merge_phases(program: Program) -> None:
    """A whole step is one phase: memory is planned over all of it, and the update follows where gradients are made."""
    with program.edit("MergePhases") as edit:
        for node in list(program.nodes):
            if node.phase != "forward":
                edit.replace(node, _forward(node))


def _forward(node):  # type: ignore[no-untyped-def]
    if isinstance(node, Map):
        return node.with_(phase="forward", body=tuple(_forward(n) if isinstance(n, (Map, Tasklet)) else n for n in node.body))
    return node.with_(phase="forward")
