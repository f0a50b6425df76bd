"""MapFusion: substitute a producer map into its consumer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, prove_le

from ..base import Data, MapNode, Match, Path, Transformation, hint_value, require
from .compose import code_cost, substitute_producer

IntLike = Union[int, Expr]


class MapFusion(Transformation):
    """Substitute a producer map into its consumer, through the consumer's memlet.

    before:  map i: t[i] = f(a[i]);  map i, j: y[i, j] = g(t[i+j])      after:  map i, j: y[i, j] = g(f(a[i+j]))

    several: what happens where something else still needs `mid` (another reader, the caller):
      "refuse": nothing; "recompute": the consumer evaluates the producer's code itself, where that reads no more than `mid` is large, and
      the producer stays for the others; "keep": the fused map writes `mid` too, if it visits each of its elements once.
    max_recompute: the cost (in adds an element) up to which a producer may be evaluated again.
    """

    level = 2
    pattern = Path(MapNode("first"), Data("mid"), MapNode("second"))

    def __init__(self, several: str = "keep", max_recompute: int = 64, max_repeat: int = 3) -> None:
        self.several = several
        self.max_recompute = max_recompute
        self.max_repeat = max_repeat

    def plan(self, m: Match) -> tuple[Map, bool]:
        """The fused map, and whether the producer stays. Raises Refusal."""
        p, a, b, mid = m.program, m.first, m.second, m.mid
        require(a.phase == b.phase, "the producer runs in another phase")
        require(a.tasklet is not None, "the producer is a nested kernel; see ReductionFusion")
        require(b.tasklet is not None, "the consumer is a nested kernel; see ReductionFusion")
        require(not a.schedule.get("pack"), "the producer packs data into the layout that the consumer needs")
        require(len(p.writers(mid)) == 1, "the intermediate is written by several nodes")
        writes = p.writes_of(a)
        keep = frozenset(c for c in writes if c in p.results or any(r is not b for r in p.readers(c)))
        if not keep and len(writes & p.reads_of(b)) == len(writes):
            fused = substitute_producer(a, b, mid, keep=frozenset())
            if prove_le(b.domain, a.domain) is not True:
                self._require_cheap(m, "the consumer reads each element several times")
            return fused, False
        require(self.several != "refuse", "something else needs the intermediate")
        if self.several == "keep":
            return substitute_producer(a, b, mid, keep=keep | (writes - p.reads_of(b))), False
        require(a.is_elementwise and len(writes) == 1, "the producer has other results, which recomputing would repeat")
        require(prove_le(b.domain, a.domain) is True, "the consumer reads each element several times")
        cost = code_cost(a.tasklet.code.values())
        require(cost <= self.max_recompute, f"recomputing costs {cost} operations an element")
        extra = sum(hint_value(p, p.containers[c].bytes) for c in p.reads_of(a) - p.reads_of(b))
        size = hint_value(p, p.containers[mid].bytes)
        require(extra <= size, f"recomputing reads {extra} bytes more to save {size}")
        return substitute_producer(a, b, mid, keep=frozenset()), True

    def _require_cheap(self, m: Match, reason: str) -> None:
        """A producer that is evaluated several times an element must be next to free, and must not read more than the intermediate."""
        cost = code_cost(m.first.tasklet.code.values())
        require(cost <= self.max_repeat, f"{reason}, and recomputing costs {cost} operations an element")
        p = m.program
        read = sum(hint_value(p, p.containers[c].bytes) for c in p.reads_of(m.first))
        require(read <= hint_value(p, p.containers[m.mid].bytes) * 1.01, f"{reason}, and recomputing reads more than it saves")

    def check(self, m: Match) -> None:
        m.items["plan"] = self.plan(m)

    def saves(self, m: Match) -> IntLike:
        """The consumer's read of `mid`, its write if it disappears, less what a producer that stays is read again."""
        p = m.program
        c = p.containers[m.mid]
        fused, stays = m.plan
        if stays:
            return c.bytes - sum(p.containers[r].bytes for r in p.reads_of(m.first) if r not in p.reads_of(m.second))
        shared = p.reads_of(m.first) & p.reads_of(m.second)
        gone = 0 if m.mid in fused.written_containers() else c.bytes
        return c.bytes + gone + sum(p.containers[r].bytes for r in shared)

    def apply(self, m: Match, edit: Edit) -> None:
        fused, stays = m.plan
        if stays:
            edit.replace(m.second, fused)
        else:
            written = m.program.writes_of(m.first)
            edit.fuse([m.first, m.second], fused)
            edit.drop_unused(written - fused.written_containers())


def fusable_pairs(program: Program, node: Node) -> Iterator[tuple[Map, str, Map]]:
    """Producer, container, consumer around a node, in both directions."""
    if not isinstance(node, Map):
        return
    for c in sorted(program.writes_of(node)):
        for r in program.readers(c):
            if isinstance(r, Map) and r.phase == node.phase:
                yield node, c, r
    for c in sorted(program.reads_of(node)):
        for w in program.writers(c):
            if isinstance(w, Map) and w.phase == node.phase:
                yield w, c, node
