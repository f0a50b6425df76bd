"""RowSiblingFusion: a kernel over rows takes in an independent map that reads the same rows."""

from __future__ import annotations

from collections.abc import Iterator

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol

from .. import traffic
from ..base import Match, require, require_no_cycle
from .compose import same_size
from .nest import fuse_rows
from .reduction_fusion import IntLike, ReductionFusion
from .sibling_fusion import siblings


class RowSiblingFusion(ReductionFusion):
    """Put a map that reads the rows of a nested kernel, and depends on it in nothing else, into that kernel.

    before:  map i: (map j: s (sum) = x[i, j] * w[j];  map j: y[i, j] = x[i, j] - s);  map i, j: b[j] (sum) = x[i, j]
    after:   map i: (map j: s (sum) = x[i, j] * w[j]; b[j] (sum) = x[i, j];  map j: y[i, j] = x[i, j] - s)

    The bias gradient of a norm behind whose gradient a softmax's follows is such a map. row_bytes: as in ReductionFusion.
    """

    level = 2

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if program.node_is_current(node):
                yield from self.matches_from(program, node)

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """Pairs of the node, where it is nested, and what reads the same container."""
        for m in siblings(program, node, nested=True):
            if m.first.tasklet is None and (m.second.tasklet is not None or m.first.id < m.second.id):
                yield m

    def check(self, m: Match) -> None:
        p, a, b = m.program, m.first, m.second
        require(p.writes_of(a).isdisjoint(p.reads_of(b)) and p.writes_of(b).isdisjoint(p.reads_of(a)), "one reads what the other writes")
        require(p.writes_of(a).isdisjoint(p.writes_of(b)), "both write the same container")
        pairs = self._shared_rows(a, b, m.mid)
        self._require_small_sums(p, b, [pb for _, pb in pairs], "second")
        self._require_rows_in_cache(p, a, [pa for pa, _ in pairs])
        self._require_rows_in_cache(p, b, [pb for _, pb in pairs])
        require_no_cycle(p, [a, b])
        m.derived["pairs"] = pairs
        m.derived["fused"], _ = fuse_rows(a, b, pairs, {}, frozenset())

    @staticmethod
    def _shared_rows(a: Map, b: Map, mid: str) -> list[tuple[Symbol, Symbol]]:
        """The parameters of the nested `a` and those of `b` that address the same rows of `mid`."""
        reads_a = [x.memlet for x in a.accesses() if x.memlet.container == mid and not x.is_local]
        reads_b = [x.memlet for x in b.accesses() if x.memlet.container == mid and not x.is_local]
        pairs: dict[Symbol, Symbol] = {}
        for d in range(len(reads_a[0].subset)):
            here, there = {x.subset[d] for x in reads_a}, {x.subset[d] for x in reads_b}
            if len(here) == len(there) == 1:
                sa, sb = here.pop(), there.pop()
                if isinstance(sa, Symbol) and isinstance(sb, Symbol) and sa in a.params and sb in b.params and same_size(sa.size, sb.size):
                    require(pairs.setdefault(sa, sb) is sb, "the shared container is read along a diagonal")
        require(all(q in pairs or q.size == 1 for q in a.params), "the second does not follow the rows of the first")
        if b.tasklet is None:
            require(all(q in pairs.values() or q.size == 1 for q in b.params), "the first does not follow the rows of the second")
        require(len(set(pairs.values())) == len(pairs), "the shared container is read along a diagonal")
        require(all(q in pairs for q in a.params), "the first has rows that the shared container does not have")
        return list(pairs.items())

    def saves(self, m: Match) -> IntLike:
        """One read of the elements that both read."""
        rows = {pb: pa for pa, pb in m.pairs}
        second = {c: list(traffic.renamed_accesses(found, rows)) for c, found in traffic.reads_of_map(m.second).items()}
        return traffic.shared(m.program, traffic.reads_of_map(m.first), second)

    def apply(self, m: Match, edit: Edit) -> None:
        edit.fuse([m.first, m.second], m.fused)
