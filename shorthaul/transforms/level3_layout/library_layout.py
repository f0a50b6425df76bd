"""LibraryLayout: results of library calls in the layout that the library gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.blocks import set_layout
from shorthaul.ir.containers import strides_in_order
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr

from ..base import Match, Transformation, hint_value, require

IntLike = Union[int, Expr]


class LibraryLayout(Transformation):
    """Lay out a library call's results as the library does.

    before:  q: [B, H, T, D] with strides (T*H*D, D, H*D, 1)      after:  y: [B, H, T, D] with strides (T*H*D, D, H*D, 1)
             y: [B, H, T, D] row-major = attention(q, k, v)                = attention(q, k, v)

    Fused attention lays its results out as the query, whose heads are mostly a view of a matrix product. Declared row-major, each result
    would be copied on arrival, and the permutation that follows it would copy it back; so it becomes a view (`AliasViews`). Which
    result has which layout stands in the call's attribute `layouts`: pairs of a result and an operand, or the result's dimensions from
    the outermost in memory to the innermost.
    """

    level = 3

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, LibraryCall) and program.node_is_current(node):
                for result, _ in node.attributes.get("layouts", ()):
                    if result in node.writes:
                        yield Match(program, {"call": node, "mid": node.writes[result].container}, {"result": result})

    def check(self, m: Match) -> None:
        p, call = m.program, m.call
        c = p.containers[m.mid]
        result = next(k for k, w in call.writes.items() if w.container == m.mid)
        like = dict(call.attributes["layouts"])[result]
        require(not c.is_external and m.mid not in p.results, "the caller gets it, in the layout that he expects")
        if isinstance(like, str):
            require(like in call.reads, f"the call has no operand {like}")
            strides = p.containers[call.reads[like].container].actual_strides
            require(len(strides) == len(c.shape), f"its rank differs from that of {like}")
            order = tuple(sorted(range(len(strides)), key=lambda d: (-hint_value(p, strides[d]), d)))
        else:
            order = tuple(like)
        m.derived["strides"] = strides_in_order(c.shape, order)
        require(m.strides != c.actual_strides, "it has that layout already")
        require(c.alias is None and not p.aliases(m.mid), "it shares memory with others")

    def apply(self, m: Match, edit: Edit) -> None:
        c = m.program.containers[m.mid]
        set_layout(edit, c.with_(strides=m.strides))
