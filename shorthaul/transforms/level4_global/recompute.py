"""Recompute: evaluate cheap forward values again in the backward phase instead of saving them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.analysis.liveness import liveness
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.symbolic import Expr, prove_le

from .. import traffic
from ..base import Match, Transformation, hint_value, require
from ..level2_fusion.compose import code_cost, used_reads
from ..level2_fusion.image_fusion import ImageFusion

IntLike = Union[int, Expr]
SMALL = 16  # operands of less than this part of a value are not weighed


class Recompute(Transformation):
    """Move a saved value's computation into the backward phase, where fusion takes it into its readers.

    before:  forward: h[i] = f(x[i]) (saved);  backward: g[i] = k(h[i], ...)
    after:   backward: h'[i] = f(x[i]);  g[i] = k(h'[i], ...)          with x saved already or the caller's

    Decided by bytes, of memory and of traffic. Memory: what must be saved for the computation is less than the value; never more is saved
    than before. Traffic: what the kernels of the backward phase read for computing the value is no more than reading it in each, and
    writing it once where only the backward phase needs it in memory. Every reader must be a map that can take the value in. An operand
    counts as what is least: the bytes of its own, or of what it is recomputed from. A chain is taken in by every kernel that reads its
    end, so each link is weighed with that number: a residual stream is not followed further back than it pays.

    This is the decision of Checkmate (Jain et al., MLSys 2020) and of min-cut rematerialization for fused graphs, taken value by value in
    the order from the last to the first instead of by a solver; Chen et al. (2016) first traded computation for memory in training.

    max_cost: operations an element that recomputing may take, in adds. max_chain: operations an element that a value may take together
    with the operands that are recomputed for it and the recomputations that read it (None: any number). budget: bytes that the backward
    phase may find saved; as long as there are more, a value is recomputed even where that moves more bytes (None: traffic decides).
    """

    level = 4
    allowed = {"max_cost": range(1 << 20)}
    tunable = {"max_cost": (0, 16, 256)}

    def __init__(self, max_cost: int = 64, max_chain: int | None = None, budget: int | None = None) -> None:
        self.max_cost = max_cost
        self.max_chain = max_chain
        self.budget = budget
        self._spent: dict[int, int] = {}  # for each recomputation what it costs with those that read it
        self._kernels: dict[int, int] = {}  # and how many kernels take it in

    def matches(self, program: Program) -> Iterator[Match]:
        for node in reversed(list(program.nodes)):
            if isinstance(node, Map) and node.phase == "forward" and program.node_is_current(node):
                for c in sorted(program.writes_of(node)):
                    if any(r.phase == "backward" for r in program.readers(c)):
                        yield Match(program, {"producer": node, "mid": c})

    def _readers(self, m: Match) -> list[Node]:
        return [r for r in m.program.readers(m.mid) if r.phase == "backward"]

    def check(self, m: Match) -> None:
        p, a = m.program, m.producer
        require(a.is_elementwise, "the value comes from a reduction")
        c = p.containers[m.mid]
        require(not c.is_external, "it is an input")
        require(len(p.writers(m.mid)) == 1, "several nodes write it")
        for r in self._readers(m):
            require(isinstance(r, Map), f"{r.label} reads the value from memory")
            assert isinstance(r, Map)
            if r.tasklet is None or prove_le(r.domain, a.domain) is not True:
                # a window reads each element several times: it can take the value in only as an image that stays in the cache
                ImageFusion().require_images(p, a, r, m.mid)
        cost = self._cost(a, m.mid)
        require(cost <= self.max_cost, f"recomputing costs {cost} operations an element")
        changing = p.reads_of(a) & {c for c, _ in p.signature.updates}
        require(not changing, f"{', '.join(sorted(changing))} has another value in the backward phase")
        if self.max_chain is not None:
            spent = max((self._spent.get(r.id, 0) for r in self._readers(m)), default=0)
            require(spent + cost <= self.max_chain, f"a chain of recomputed values costs {spent + cost} operations an element")
        extra = self._operands(p, a, {m.mid}, cost)
        require(extra < hint_value(p, c.bytes), f"it would save {extra} bytes of operands instead of {hint_value(p, c.bytes)} bytes")
        if self.budget is None or self._saved(p) <= self.budget:
            stored, again = self._traffic(m)
            require(again <= stored, f"recomputing moves {again} bytes, storing {stored}")

    def _saved(self, p: Program) -> int:
        return sum(hint_value(p, p.containers[name].bytes) for name, _ in liveness(p).saved)

    def _traffic(self, m: Match) -> tuple[int, int]:
        """Bytes moved for the value if it is stored, and if the kernels that need it compute it."""
        p = m.program
        stored = self._written_for_backward(p, m.mid)
        again = 0
        for r in self._readers(m):
            kernels = self._kernels.get(r.id, 1)
            stored += kernels * hint_value(p, p.containers[m.mid].bytes)
            again += kernels * self._read_for(p, m.producer, m.mid, set(p.reads_of(r)), hint_value(p, p.containers[m.mid].bytes) // SMALL)
        return stored, again

    def _written_for_backward(self, p: Program, name: str) -> int:
        """Bytes of a write that the forward phase could do without: all its readers there are maps, which can take the value in."""
        needed = name in p.results or any(r.phase == "forward" and not isinstance(r, Map) for r in p.readers(name))
        return 0 if needed else hint_value(p, p.containers[name].bytes)

    def _read_for(self, p: Program, a: Map, mid: str, seen: set[str], small: int, limit: int | None = None) -> int:
        """Bytes that a kernel reads more for computing what the map writes, each container once (seen: those that it reads already). What
        has at most `small` bytes, statistics of rows or channels, stays in a cache and counts nothing. From `limit` bytes on the exact
        number is not needed, and not looked for: where chains meet again and again, each would be followed once for every way to it."""
        total = 0
        for c in sorted(self._alone_reads(a, mid) - seen):
            seen.add(c)
            alone = hint_value(p, p.containers[c].bytes)
            if alone <= small:
                continue
            if not self._available(p, c):
                alone += self._written_for_backward(p, c)
                inner = self._recomputable(p, c, a)
                if inner is not None:
                    within = set(seen)
                    cost = self._read_for(p, inner, c, within, small, alone)
                    if cost < alone:
                        seen |= within
                        alone = cost
            total += alone
            if limit is not None and total >= limit:
                break
        return total

    def _recomputable(self, p: Program, c: str, a: Map) -> Map | None:
        """The map that computes an operand of `a`, where it can be computed again beside `a`."""
        writers = p.writers(c)
        producer = writers[0] if len(writers) == 1 else None
        if not isinstance(producer, Map) or producer.phase != "forward" or not producer.is_elementwise:
            return None
        cheap = self._cost(producer, c) <= self.max_cost
        return producer if cheap and prove_le(producer.domain, a.domain) is True else None

    def _alone_reads(self, a: Map, mid: str) -> set[str]:
        """Containers that the map reads for one of its results."""
        t = a.tasklet
        assert t is not None
        used = used_reads(t, (v for k, v in t.code.items() if t.writes[k].container == mid))
        return {t.reads[k].container for k in used}

    def _operands(self, p: Program, a: Map, seen: set[str], spent: int) -> int:
        """Bytes that would have to be saved for recomputing what the map computes; its operands are recomputed too where they can be."""
        total = 0
        for c in sorted(p.reads_of(a) - seen):
            seen.add(c)
            if self._available(p, c):
                continue
            producer = self._recomputable(p, c, a)
            if producer is not None:
                alone = hint_value(p, p.containers[c].bytes)
                cost = self._cost(producer, c)
                cheap = self.max_chain is None or spent + cost <= self.max_chain
                total += min(alone, self._operands(p, producer, seen, spent + cost)) if cheap else alone
            else:
                total += hint_value(p, p.containers[c].bytes)
        return total

    def _cost(self, a: Map, mid: str) -> int:
        assert a.tasklet is not None
        return code_cost(v for k, v in a.tasklet.code.items() if a.tasklet.writes[k].container == mid)

    def _available(self, p: Program, name: str) -> bool:
        """Whether the backward phase reads the container anyway, or it is there without being saved."""
        return p.containers[name].is_external or any(r.phase == "backward" for r in p.readers(name))

    def saves(self, m: Match) -> IntLike:
        """Less than nothing: the computation reads its operands and writes its result once more. What is gained, the write and the reads
        of both values, is claimed by the fusions that follow, forward and backward."""
        p = m.program
        total = -traffic.moved(p, m.producer, m.mid, "write")
        for c, found in traffic.reads_of_map(self._alone(m)).items():
            total = total - traffic.together(p, c, found)
        return total

    def _alone(self, m: Match) -> Map:
        """The producer with the one result."""
        t = m.producer.tasklet
        code = {k: v for k, v in t.code.items() if t.writes[k].container == m.mid}
        used = used_reads(t, code.values())
        return m.producer.with_(
            body=(
                t.with_(
                    code=code,
                    writes={k: t.writes[k] for k in code},
                    reads={k: x for k, x in t.reads.items() if k in used},
                ),
            )
        )

    def apply(self, m: Match, edit: Edit) -> None:
        p = m.program
        twin = p.fresh(f"{m.mid}_again")
        edit.add_container(p.containers[m.mid].with_(name=twin, role="transient"))
        copy = rename(self._alone(m), {m.mid: twin}, phase="backward")
        readers = self._readers(m)
        first = min(readers, key=p.position)
        edit.add(copy, before=first)
        self._kernels[copy.id] = sum(self._kernels.get(r.id, 1) for r in readers)
        self._spent[copy.id] = self._cost(m.producer, m.mid) + max(self._spent.get(r.id, 0) for r in readers)
        for r in readers:
            edit.replace(r, rename(r, {m.mid: twin}, fresh=False))

