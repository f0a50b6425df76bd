"""MapFusion: substitute a producer map into its consumer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall, Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import reads_of, substitute_indices
from shorthaul.symbolic import Expr, prove_le

from .. import traffic
from ..base import Data, MapNode, Match, Path, Transformation, hint_value, require, require_no_cycle
from .compose import (
    code_cost,
    is_injection,
    never,
    of_consumer,
    reading,
    substitute_producer,
    used_reads,
    written_params,
)

IntLike = Union[int, Expr]


class MapFusion(Transformation):
    """Substitute a producer map into its consumer, through the consumer's memlet.

    before:  map i: t[i] = f(a[i]);  map i, j: y[i, j] = g(t[i+j])      after:  map i, j: y[i, j] = g(f(a[i+j]))

    several: what happens where something else still needs `mid` (another reader, the caller):
      "refuse": nothing; "recompute": the consumer evaluates the producer's code itself, where that reads no more than `mid` is large, and
      the producer stays for the others; "keep": the fused map writes `mid` too, if it visits each of its elements once.
    max_recompute: the cost (in adds an element) up to which a producer may be evaluated again. max_held: how many times the bytes of `mid`
    may wait in memory for the fused map while library calls run, where more waits than before (a sum of results of many layers).
    """

    level = 2
    allowed = {"several": ("refuse", "recompute", "keep"), "max_recompute": range(1 << 20), "max_repeat": range(1 << 20),
               "max_held": range(1, 1 << 20)}  # fmt: skip
    tunable = {"max_recompute": (0, 16, 256), "max_repeat": (1, 9), "max_held": (4, 1 << 16)}
    pattern = Path(MapNode("first"), Data("mid"), MapNode("second"))

    def __init__(self, several: str = "keep", max_recompute: int = 64, max_repeat: int = 3, max_held: int = 4) -> None:
        self.several = several
        self.max_recompute = max_recompute
        self.max_repeat = max_repeat
        self.max_held = max_held

    def plan(self, m: Match) -> tuple[Map, bool]:
        """The fused map, and whether the producer stays. Raises Refusal."""
        p, a, b, mid = m.program, m.first, m.second, m.mid
        require(a.phase == b.phase, "the producer runs in another phase")
        require(not any(p.aliases(c) for c in p.writes_of(a)), "other containers lie in its result")
        require(a.tasklet is not None, "the producer is a nested kernel; see ReductionFusion")
        require(b.tasklet is not None, "the consumer is a nested kernel; see ReductionFusion")
        require(not a.schedule.get("pack"), "the producer packs data into the layout that the consumer needs")
        require(len(p.writers(mid)) == 1, "the intermediate is written by several nodes")
        writes = p.writes_of(a)
        keep = frozenset(c for c in writes if c in p.results or any(r is not b for r in p.readers(c)))
        if not keep and len(writes & p.reads_of(b)) == len(writes):
            fused = substitute_producer(a, b, mid, keep=frozenset(), gathers=True)
            if prove_le(b.domain, a.domain) is not True and not self._reads_once(m):
                self._require_cheap(m, "the consumer reads each element several times")
            return fused, False
        require(self.several != "refuse", "something else needs the intermediate")
        if self.several == "keep":
            return substitute_producer(a, b, mid, keep=keep | (writes - p.reads_of(b))), False
        self._require_recomputing_pays(m, writes & p.reads_of(b))
        return substitute_producer(a, b, mid, keep=frozenset(), gathers=True), True

    def _reads_once(self, m: Match) -> bool:
        """Whether the consumer reads no element of `mid` twice (it may be larger than `mid`: padding)."""
        dims = written_params(m.first, m.mid)
        reads = {(x.subset, x.guard): x for x in m.second.tasklet.reads.values() if x.container == m.mid}
        return len(reads) == 1 and all(is_injection(reading(m.first, dims, x, True).substitution, m.second.params) for x in reads.values())

    def _require_recomputing_pays(self, m: Match, mids: frozenset[str]) -> None:
        """Recomputing must be affordable, and read no more than the intermediates that the consumer reads now."""
        p, a, b = m.program, m.first, m.second
        require(prove_le(b.domain, a.domain) is True, "the consumer reads each element several times")
        t = a.tasklet
        codes = [t.code[k] for k, w in t.writes.items() if w.container in mids]
        cost = code_cost(codes)
        require(cost <= self.max_recompute, f"recomputing costs {cost} operations an element")
        needed = {t.reads[k].container for k in reads_of(*codes)} - p.reads_of(b)
        extra = sum(hint_value(p, p.containers[c].bytes) for c in needed)
        size = sum(hint_value(p, p.containers[c].bytes) for c in mids)
        # a value that nobody else reads is not written any more either; small operands (per channel) count for little
        size += sum(hint_value(p, p.containers[c].bytes) for c in mids if c not in p.results and len(p.readers(c)) == 1) + size // 100
        require(extra <= size, f"recomputing reads {extra} bytes more to save {size}")

    def _require_cheap(self, m: Match, reason: str) -> None:
        """A producer that is evaluated several times an element must be next to free, and must not read more than the intermediate."""
        cost = code_cost(m.first.tasklet.code.values())
        require(cost <= self.max_repeat, f"{reason}, and recomputing costs {cost} operations an element")
        p = m.program
        read = sum(hint_value(p, p.containers[c].bytes) for c in p.reads_of(m.first))
        require(read <= hint_value(p, p.containers[m.mid].bytes) * 1.01, f"{reason}, and recomputing reads more than it saves")

    def _require_little_waits(self, m: Match) -> None:
        """What only the fused map needs lives until it runs: not much more than now may wait so while library calls run."""
        p, b = m.program, m.second
        most = self.max_held * hint_value(p, p.containers[m.mid].bytes) * 1.01  # small operands (per channel) count for little
        after = {c for c in (p.reads_of(m.first) | p.reads_of(b)) - {m.mid} if not p.containers[c].is_external}
        if sum(hint_value(p, p.containers[c].bytes) for c in after) <= most:
            return
        end = p.position(b)
        call = next((i for i in range(end - 1, -1, -1) if isinstance(p.nodes[i], LibraryCall)), -1)

        def waiting(containers: Iterable[str]) -> int:
            return sum(hint_value(p, p.containers[c].bytes) for c in containers
                       if all(p.position(w) < call for w in p.writers(c)) and all(p.position(r) <= end for r in p.readers(c)))  # fmt: skip

        held = waiting(after)
        require(held <= most or held <= waiting(p.reads_of(b) & (after | {m.mid})),
                f"{held} bytes would wait in memory for it while library calls run")  # fmt: skip

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """Pairs of which the node is one."""
        yield from pairs_around(program, node)

    def check(self, m: Match) -> None:
        m.derived["plan"] = self.plan(m)
        if not m.plan[1]:
            require_no_cycle(m.program, [m.first, m.second])
        self._require_little_waits(m)

    def saves(self, m: Match) -> IntLike:
        """The consumer's read of `mid`, its write if that disappears, what the producer read for other elements than the consumer needs or
        the consumer reads too; less what a producer that stays is read again."""
        p, a, b = m.program, m.first, m.second
        fused, stays = m.plan
        t, written = a.tasklet, p.writes_of(a)
        taken = {x.container: k for k, x in t.writes.items() if x.container in p.reads_of(b)}
        total: IntLike = 0
        for c in taken:
            total = total + traffic.moved(p, b, c, "read")
        kept = fused.written_containers()
        if not stays:
            for c in written - kept:
                total = total + traffic.moved(p, a, c, "write")
        # what is read now: the producer's reads through the consumer's memlets, and the consumer's other reads
        before_b = traffic.reads_of_map(b)
        indices = {of_consumer(k): x for k, x in b.tasklet.reads.items()}
        now = {c: list(found) for c, found in before_b.items() if c not in taken}
        for memlet in b.tasklet.reads.values():
            if memlet.container in taken:
                r = reading(a, written_params(a, memlet.container), memlet, True)
                if any(never(c) for c in r.guard):
                    continue
                code = [t.code[taken[memlet.container]]] + [t.code[k] for k, x in t.writes.items() if not stays and x.container in kept]
                code = [substitute_indices(x, r.numbers) for x in code]  # a condition may become false and drop a read
                for access in traffic.substituted(t, used_reads(t, code), r.substitution, r.guard, b.params, indices):
                    now.setdefault(access.memlet.container, []).append(access)
        for c, found in now.items():
            total = total - traffic.together(p, c, found) + traffic.moved(p, b, c, "read")
        if not stays:
            for c in p.reads_of(a):
                total = total + traffic.moved(p, a, c, "read")
        return total

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


def pairs_around(program: Program, node: Node) -> Iterator[Match]:
    """The same as matches."""
    for a, c, b in fusable_pairs(program, node):
        yield Match(program, {"first": a, "mid": c, "second": b})
