"""ReductionFusion: a reduction over rows and its neighbours become one kernel over the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Access, Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Expr, Symbol, product

from .. import traffic
from ..base import Match, Refusal, Transformation, hint_value, require, require_no_cycle
from .compose import same_size
from .demand import demanded
from .map_fusion import fusable_pairs, pairs_around
from .nest import fuse_rows

IntLike = Union[int, Expr]


class ReductionFusion(Transformation):
    """Put a reduction over rows, its producers and its consumers under one loop over the rows; what passes between them stays local.

    before:  map i, j: m[i] (max) = x[i, j];  map i, j: y[i, j] = exp(x[i, j] - m[i])
    after:   map i: (map j: m (max) = x[i, j];  map j: y[i, j] = exp(x[i, j] - m))

    The second pass over a row finds it in the cache. Softmax, layer norm and their gradients become one kernel each.
    row_bytes: the largest row (all containers together) that the cache is trusted to hold. interleaved: how many elements of a container a
    row may have whose neighbours in memory belong to other rows (a window of pooling; a GPU's block runs over the rows then).
    """

    level = 2
    allowed = {"row_bytes": range(1, 1 << 40), "interleaved": range(1 << 20)}
    tunable = {"row_bytes": (1 << 14, 1 << 16, 1 << 20)}

    def __init__(self, row_bytes: int = 256 * 1024, interleaved: int = 1) -> None:
        self.row_bytes = row_bytes
        self.interleaved = interleaved

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if program.node_is_current(node):
                for a, c, b in fusable_pairs(program, node):
                    if a is node:
                        yield Match(program, {"first": a, "mid": c, "second": b})

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """Pairs of which the node is one."""
        yield from pairs_around(program, node)

    def check(self, m: Match) -> None:
        p, a, b = m.program, m.first, m.second
        require(a.phase == b.phase, "they run in different phases")
        require(not any(p.aliases(c) for c in p.writes_of(a)), "other containers lie in its result")
        mids = with_components(a, p.writes_of(a) & p.reads_of(b))
        require(all(len(p.writers(c)) == 1 for c in mids), "the intermediate is written by several nodes")
        pairs = self._rows(p, a, b, m.mid)
        require(any(pa.size != 1 for pa, _ in pairs), "there are no rows: the reduction gives a single value")
        keep = frozenset(c for c in mids if c in p.results or any(r is not b for r in p.readers(c)))
        self._require_small_sums(p, a, [pa for pa, _ in pairs], "producer")
        self._require_small_sums(p, b, [pb for _, pb in pairs], "consumer")
        self._require_rows_in_cache(p, a, [pa for pa, _ in pairs])
        self._require_rows_in_cache(p, b, [pb for _, pb in pairs])
        require_no_cycle(p, [a, b])
        m.derived["pairs"] = pairs
        m.derived["fused"], m.derived["joined"] = fuse_rows(a, b, pairs, {c: p.containers[c] for c in mids}, keep)

    def _rows(self, p: Program, a: Map, b: Map, mid: str) -> list[tuple[Symbol, Symbol]]:
        """Parameters of `a` and `b` that run over the same rows."""
        write = next(x.memlet for x in a.accesses() if x.is_write and x.memlet.container == mid and not x.is_local)
        read = next(x.memlet for x in b.accesses() if not x.is_write and x.memlet.container == mid)
        reduces = write.combine is not None or a.tasklet is None or b.tasklet is None
        require(reduces, "neither reduces; see MapFusion")
        candidates = []
        for sa, sb in zip(write.subset, read.subset, strict=True):
            require(not isinstance(sb, Indirect), "the consumer addresses the intermediate by data")
            if isinstance(sa, Symbol) and isinstance(sb, Symbol) and sa in a.params and sb in b.params and same_size(sa.size, sb.size):
                candidates.append((sa, sb))
        if a.tasklet is None:
            candidates = [c for c in candidates if c[0] in a.params]
            require(
                {pa for pa, _ in candidates} >= {q for q in a.params if q.size != 1},
                "the consumer does not follow the producer's rows",
            )
        elif b.tasklet is None:
            require(
                {pb for _, pb in candidates} >= {q for q in b.params if q.size != 1},
                "the producer does not follow the consumer's rows",
            )
        else:
            reduced = [q for q in a.params if q not in write.symbols]
            candidates = [c for c in candidates if c[0] not in reduced]
            written = {q for q in a.params if q in write.symbols and q.size != 1}
            require({pa for pa, _ in candidates} >= written, "the consumer reads other rows")
        if a.tasklet is None:
            wanted = set(a.params)
        elif b.tasklet is None:
            wanted = {pa for pa, pb in candidates if pb in b.params}
        else:
            wanted = {pa for pa, _ in candidates}
        return [c for c in candidates if c[0] in wanted]

    def _require_small_sums(self, p: Program, m: Map, outer: list[Symbol], which: str) -> None:
        """What a nest combines over its rows has a partial copy in every thread: it must be small, and combine single values."""
        rows = {q for q in outer if q.size != 1}
        for x in m.accesses():
            if x.is_write and x.memlet.combine and not x.is_local and not rows <= x.memlet.symbols:
                require(not (x.memlet.symbols & rows), f"the {which} combines values over part of the rows")
                size = hint_value(p, p.containers[x.memlet.container].bytes)
                require(
                    size <= self.row_bytes // 4,
                    f"the {which} combines {size} bytes over the rows, too many for a copy in every thread",
                )

    def _require_rows_in_cache(self, p: Program, m: Map, outer: list[Symbol]) -> None:
        rows = hint_value(p, product(q.size for q in outer))
        total = 0
        by_container: dict[str, list[Access]] = {}
        for x in m.accesses():
            if not x.is_local:
                by_container.setdefault(x.memlet.container, []).append(x)
        for name, accesses in by_container.items():
            c = p.containers[name]
            if any(not x.memlet.symbols.isdisjoint(outer) for x in accesses):
                total += hint_value(p, c.bytes) // max(1, rows)
            if hint_value(p, c.size) > 4096:
                self._require_row_contiguous(p, c, accesses, outer)
        require(total <= self.row_bytes, f"a row takes {total} bytes, more than the {self.row_bytes} that stay in the cache")

    def _require_row_contiguous(self, p: Program, c: Container, accesses: list[Access], outer: list[Symbol]) -> None:
        for x in accesses:
            inner = (q.size for q in x.memlet.symbols & set(x.params) - set(outer))
            if hint_value(p, product(inner)) <= self.interleaved:
                continue
            for s, stride, n in zip(x.memlet.subset, c.actual_strides, c.shape, strict=True):
                if stride == 1 and n != 1 and isinstance(s, Symbol) and s in outer:
                    raise Refusal(f"rows are interleaved in {c.name}: neighbours in memory belong to different rows")

    def saves(self, m: Match) -> IntLike:
        """What both read, and the writes that disappear, less what the statements still need: elements that both read are read once, and
        where an intermediate is evaluated by its reader, elements of its operands that no reader needs are not read at all."""
        p, a, b = m.program, m.first, m.second
        total: IntLike = 0
        for node in (a, b):
            for c in sorted(p.reads_of(node)):
                total = total + traffic.moved(p, node, c, "read")
        for c in p.writes_of(a) - m.fused.written_containers():
            total = total + traffic.moved(p, a, c, "write")
        for c, found in demanded(m.joined.statements, m.joined.rows, m.joined.locals, m.fused.locals).items():
            total = total - traffic.together(p, c, found)
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        written = m.program.writes_of(m.first)
        edit.fuse([m.first, m.second], m.fused)
        edit.drop_unused(written - m.fused.written_containers())


def with_components(a: Map, mids: frozenset[str]) -> list[str]:
    """The containers with the other components of their tuple combiners, which go to the same place."""
    found = set(mids)
    for x in a.accesses():
        if (
            x.is_write
            and not x.is_local
            and x.memlet.container in mids
            and x.memlet.combine
            and len(COMBINERS[x.memlet.combine].components) > 1
        ):
            found |= {m.container for m in x.tasklet.writes.values() if m.combine == x.memlet.combine}
    return sorted(found)
