"""MapCollapse: two loops of a kernel become one."""

from __future__ import annotations

from typing import Union

from shorthaul.ir.builder import fresh_params
from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Span
from shorthaul.ir.nodes import Access, Map
from shorthaul.symbolic import Expr, affine, floordiv, free_symbols, mod, prove_eq

from ..base import MapNode, Match, Path, Transformation, require
from .loops import MOST, over, parameter, require_free

IntLike = Union[int, Expr]


class MapCollapse(Transformation):
    """Make one loop of two neighbouring ones over which every access walks on without a gap.

    before:  map i in 0:8, j in 0:5: y[i, j] = f(x[i, j])        after:  map k in 0:40: y[k // 5, k % 5] = f(x[k // 5, k % 5])

    The same elements move, so it saves no bytes; the one loop is longer, which fills lanes and pieces of work better (the C++ target does
    the same by itself where it orders the loops). The divisions cancel in the address. loop: position of the outer one of the two.
    """

    level = 1
    pattern = Path(MapNode("node"))
    allowed = {"loop": range(MOST)}

    def __init__(self, loop: int = 0) -> None:
        self.loop = loop

    def check(self, m: Match) -> None:
        node: Map = m.node
        p, q = parameter(node, self.loop), parameter(node, self.loop + 1)
        require_free(node, node.params)
        require(p.lower == 0 and q.lower == 0, "a loop does not start at 0")
        local = {c.name: c for inner in _maps(node) for c in inner.locals.values()}
        for a in node.accesses():
            name = a.memlet.container
            self._require_walks_on(a, local[name] if a.is_local else m.program.containers[name], p, q)

    def _require_walks_on(self, a: Access, c: Container, p: Expr, q: Expr) -> None:
        memlet = a.memlet
        guarded = any(isinstance(g.expr, Expr) and free_symbols(g.expr) & {p, q} for g in memlet.guard)
        require(not guarded, f"a condition depends on {p} or {q}")
        address: IntLike = 0
        for s, k in zip(memlet.subset, c.actual_strides, strict=True):
            require(not isinstance(s, Span), "it accesses more than one element at a time")
            if not isinstance(s, (Indirect, Span)):
                address = address + s * k
        form = affine(address, (p, q))  # type: ignore[arg-type]
        require(form is not None, f"{c.name} is not walked through in equal steps")
        assert form is not None
        outer, inner = (form[0].get(x, 0) for x in (p, q))  # type: ignore[call-overload]
        walks = prove_eq(outer, inner * q.size)  # type: ignore[attr-defined]
        require(walks, f"{c.name} is not walked through without a gap by {p} and {q}")

    def apply(self, m: Match, edit: Edit) -> None:
        node: Map = m.node
        p, q = node.params[self.loop : self.loop + 2]
        (both,) = fresh_params([p.size * q.size])
        params = [both if x is p else x for x in node.params if x is not q]
        edit.replace(node, over(node, params, {p: floordiv(both, q.size), q: mod(both, q.size)}, as_written=False))


def _maps(m: Map) -> list[Map]:
    return [m, *(inner for n in m.body if isinstance(n, Map) for inner in _maps(n))]
