"""InPlace: an elementwise map writes over an operand that nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import container_sizes, runtime_sizes
from shorthaul.symbolic import Expr, Symbol

from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class InPlace(Transformation):
    """Put the result of an elementwise map where its operand was.

    before:  map i: y[i] = f(x[i], a[i])   (x dies here)         after:  map i: y[i] = f(x[i], a[i])   with y in the memory of x

    Safe because the map reads the element that it overwrites at the same point and at no other, once, and nothing reads the operand later.
    Bytes moved stay the same; the peak of memory falls, and the written lines are in the cache. Buffers that only follow one another in
    time share memory in the arena plan without being aliases.
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and program.node_is_current(node):
                for x in sorted(program.reads_of(node)):
                    for y in sorted(program.writes_of(node)):
                        yield Match(program, {"node": node, "operand": x, "mid": y})

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        require(node.is_elementwise and len(node.tasklet.writes) == 1, "it is more than one elementwise result")
        x, y = p.containers[m.operand], p.containers[m.mid]
        require(y.alias is None, "its result shares memory already")
        require(m.mid not in p.results and len(p.writers(m.mid)) == 1, "the caller gets its result as a tensor of its own")
        require(
            x.dtype is y.dtype and x.shape == y.shape and x.actual_strides == y.actual_strides,
            "the operand has another type or layout",
        )
        base = _base(p, x)
        require(not base.is_external, "the operand's memory is the caller's")
        require(not p.aliases(m.mid), "its result shares memory already")
        require(runtime_sizes(p).isdisjoint(container_sizes(y)), "its size is known at run time only")
        family = p.aliases(base.name) | {base.name}
        require(family.isdisjoint(p.results), "the caller gets the operand")
        require(
            all(w.phase == node.phase for c in family for w in p.writers(c)),
            "another run of the backward phase needs the operand (retain_graph)",
        )
        at = p.position(node)
        for c in sorted(family):
            last = max((p.position(r) for r in (*p.readers(c), *p.writers(c))), default=-1)
            require(last <= at, f"{c} is needed later")
        (write,) = node.tasklet.writes.values()
        require(not write.guard and set(write.subset) >= {q for q in node.params if q.size != 1}, "it does not visit every element once")
        require(all(isinstance(s, (Symbol, int)) for s in write.subset), "it does not visit every element once")
        for read in node.tasklet.reads.values():
            if read.container in family:
                require(
                    read.container == m.operand and read.subset == write.subset and not read.guard,
                    "it reads other elements of the operand than it overwrites",
                )

    def saves(self, m: Match) -> IntLike:
        """No traffic: memory."""
        return 0

    def apply(self, m: Match, edit: Edit) -> None:
        edit.set_container(m.program.containers[m.mid].with_(alias=Alias(m.operand, 0)))


def _base(p: Program, c: Container) -> Container:
    while c.alias is not None:
        c = p.containers[c.alias.base]
    return c

