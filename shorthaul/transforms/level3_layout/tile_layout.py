"""TileLayout: results of a loop over blocks of rows in the layout of the copy behind it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Union

from shorthaul.ir.blocks import set_layout
from shorthaul.ir.containers import Container, strides_in_order
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Span
from shorthaul.ir.nodes import Loop, Map
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr

from ..base import Match, Refusal, Transformation, require
from ..level4_global.alias_views import view_of

IntLike = Union[int, Expr]


class TileLayout(Transformation):
    """Lay out what a loop over blocks of rows writes such that the copy behind it becomes a view.

    before:  y: [B, H, T, D] row-major = loop over b, h: ...          after:  y: [B, H, T, D] with strides (T*H*D, D, H*D, 1) = loop ...
             map b, t, c: z[b, t, c] = y[b, c//D, t, c%D]                     z is y

    An iteration of the loop writes a block whose rows it may as well put elsewhere: the heads of attention side by side, as the
    projection that follows reads them. The outermost and the innermost dimension stay what they are, so that blocks are apart and rows
    dense. `AliasViews` then removes the copy, and claims what it saves.
    """

    level = 3

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Loop) and node.tile is not None and program.node_is_current(node):
                for result in node.stacked:
                    if result in node.writes:
                        yield Match(program, {"loop": node, "mid": node.writes[result].container})

    def check(self, m: Match) -> None:
        p = m.program
        c = p.containers[m.mid]
        require(not c.is_external and m.mid not in p.results, "the caller gets it, in the layout that he expects")
        require(c.alias is None and not p.aliases(m.mid), "it shares memory with others")
        require(all(isinstance(n, int) for n in c.shape), "its size is known at run time only")
        copies = [r for r in p.readers(m.mid) if isinstance(r, Map) and _is_copy(r)]
        require(bool(copies), "nothing copies it")
        copy = copies[0]
        require(not _is_view(p, copy, c), "the copy is a view already")
        inner = range(1, len(c.shape) - 1)
        for order in itertools.permutations(inner):
            strides = strides_in_order(c.shape, (0, *order, len(c.shape) - 1))
            if _is_view(p, copy, c.with_(strides=strides)):
                m.derived["strides"] = strides
                return
        require(False, "no layout makes the copy a view")

    def apply(self, m: Match, edit: Edit) -> None:
        c = m.program.containers[m.mid].with_(strides=m.strides)
        set_layout(edit, c)


def _is_copy(n: Map) -> bool:
    t = n.tasklet
    if t is None or len(t.code) != 1 or len(t.reads) != 1 or n.schedule.get("pack"):
        return False
    (code,), (read,), (write,) = t.code.values(), t.reads.values(), t.writes.values()
    plain = (
        not read.guard
        and not write.guard
        and not any(isinstance(s, (Span, Indirect)) for s in (*read.subset, *write.subset))
    )
    return code.op == "read" and plain


def _is_view(p: Program, copy: Map, source: Container) -> bool:
    try:
        view_of(copy, source, p.containers[next(iter(p.writes_of(copy)))])
    except Refusal:
        return False
    return True
