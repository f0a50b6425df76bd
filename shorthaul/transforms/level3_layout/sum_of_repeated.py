"""SumOfRepeated: a reduction over equal values is one of them, times their number for a sum."""

from __future__ import annotations

from collections.abc import Iterator

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, cast, index_value, symbols_of
from shorthaul.symbolic import Expr, Symbol, free_symbols, prove_eq, prove_le

from ..base import Match, Transformation, require

IDEMPOTENT = ("max", "max0", "min", "any", "all")


class SumOfRepeated(Transformation):
    """Leave out the loop of a reduction in which nothing changes.

    before:  map i, j in 0:32: y[i] (sum) = f(x[i])        after:  map i: y[i] = 32*f(x[i])

    The gradient of a sum is a repetition; where it is summed again, as for a bias, fusion makes such a loop. Maxima and minima of equal
    values are the value. The same elements move, so it saves no bytes, but arithmetic, and a map that combines nothing can be fused
    further. A sum of n equal values differs from n times the value by the rounding of the sum alone.
    """

    level = 3

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.tasklet is not None and any(w.combine for w in node.tasklet.writes.values()):
                if program.node_is_current(node):
                    yield Match(program, {"node": node})

    def check(self, m: Match) -> None:
        node: Map = m.node
        t = node.tasklet
        assert t is not None
        used = symbols_of(*t.code.values()).union(*(x.symbols for x in (*t.reads.values(), *t.writes.values())))
        used |= {s for q in node.params for e in (q.lower, q.upper) if isinstance(e, Expr) for s in free_symbols(e)}
        idle = [q for q in node.params if q not in used]
        require(bool(idle), "every loop changes what is read or written")
        for w in t.writes.values():
            require(w.combine == "sum" or w.combine in IDEMPOTENT, f"{w.combine or 'a plain write'} of equal values is not one of them")
        require(all(prove_le(1, q.size) for q in idle), "a loop may be empty")
        m.derived["idle"] = idle

    def apply(self, m: Match, edit: Edit) -> None:
        node: Map = m.node
        t = node.tasklet
        assert t is not None
        params = tuple(q for q in node.params if q not in m.idle)
        code: dict[str, Scalar] = {}
        writes: dict[str, Memlet] = {}
        for k, w in t.writes.items():
            value = t.code[k]
            if w.combine == "sum":
                for q in m.idle:
                    value = value * cast(index_value(q.size), value.dtype)
            code[k] = value
            writes[k] = w.with_(combine=None) if _covers(w, m.program.containers[w.container], params) else w
        body: Tasklet = t.with_(code=code, writes=writes)
        edit.replace(node, node.with_(params=params, body=(body,)))


def _covers(w: Memlet, c: Container, params: tuple[Symbol, ...]) -> bool:
    """Whether a write reaches every element of its container, each once: then it combines nothing."""
    seen: list[Symbol] = []
    for s, n in zip(w.subset, c.shape, strict=True):
        if isinstance(s, Symbol) and s in params and s not in seen and s.lower == 0 and prove_eq(s.size, n) is True:
            seen.append(s)
        elif not (isinstance(s, int) and s == 0 and prove_eq(n, 1) is True):
            return False
    return not w.guard and len(seen) == len(params)
