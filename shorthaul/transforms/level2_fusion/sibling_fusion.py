"""SiblingFusion: one pass for two maps that read the same data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, Symbol

from .. import traffic
from ..base import Match, Transformation, hint_value, require, require_no_cycle
from .compose import match_params, merge_same_domain, same_size

IntLike = Union[int, Expr]


class SiblingFusion(Transformation):
    """Merge two independent maps over the same points that read the same container.

    before:  map n, c: y[n, c] = f(x[n, c]);  map n, c: s[c] (sum) = x[n, c]
    after:  map n, c: y[n, c] = f(x[n, c]); s[c] (sum) = x[n, c]

    reductions_only: leave elementwise maps apart, so that they can still be recomputed in their readers.
    """

    level = 2

    def __init__(self, reductions_only: bool = False) -> None:
        self.reductions_only = reductions_only

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and program.node_is_current(node):
                yield from self.matches_from(program, node)

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """Siblings of one node."""
        yield from siblings(program, node)

    def check(self, m: Match) -> None:
        p, a, b = m.program, m.first, m.second
        if self.reductions_only:
            require(not a.is_elementwise and not b.is_elementwise, "only reductions are merged at this stage")
        require(p.writes_of(a).isdisjoint(p.reads_of(b)) and p.writes_of(b).isdisjoint(p.reads_of(a)), "one reads what the other writes")
        renaming = same_points(p, a, b, m.mid)
        m.derived["renaming"] = renaming
        m.derived["fused"] = merge_same_domain(a, b, renaming)
        require_no_cycle(p, [a, b])

    def saves(self, m: Match) -> IntLike:
        """One read of the elements that both read."""
        first = {c: list(traffic.renamed_accesses(found, m.renaming)) for c, found in traffic.reads_of_map(m.first).items()}
        return traffic.shared(m.program, first, traffic.reads_of_map(m.second))

    def apply(self, m: Match, edit: Edit) -> None:
        edit.fuse([m.first, m.second], m.fused)


def siblings(program: Program, node: Node, *, nested: bool = False) -> Iterator[Match]:
    """Pairs of the node and a map of its phase that reads one of the containers it reads, each once; nested kernels only if asked for."""
    if not isinstance(node, Map) or (node.tasklet is None and not nested):
        return
    seen = {node.id}
    for c in sorted(program.reads_of(node), key=lambda c: (-hint_value(program, program.containers[c].bytes), c)):
        for other in program.readers(c):
            if isinstance(other, Map) and (nested or other.tasklet is not None) and other.phase == node.phase and other.id not in seen:
                seen.add(other.id)
                yield Match(program, {"first": node, "second": other, "mid": c})


def same_points(p: Program, a: Map, b: Map, mid: str) -> dict[Symbol, IntLike]:
    """How the parameters of the flat map `a` are named in `b`, found through their reads of `mid`. Raises Refusal unless both run over
    the same points."""
    assert a.tasklet is not None and b.tasklet is not None
    big = [(x, y) for x in a.tasklet.reads.values() for y in b.tasklet.reads.values()
           if x.container == y.container == mid and p.containers[mid].shape and not x.guard and not y.guard]  # fmt: skip
    require(bool(big), "the shared container is read under conditions")
    require(len(big) == 1, "the shared container is read at several places")
    require(not any(isinstance(s, Indirect) for x in big[0] for s in x.subset), "the shared container is addressed by data")
    renaming: dict[Symbol, IntLike] | None = match_params(big, a.params, b.params)  # type: ignore[assignment]
    require(renaming is not None, "the shared container is read in different orders")
    assert renaming is not None
    for p_a in a.params:
        if p_a not in renaming and p_a.size == 1:
            assert p_a.lower is not None
            renaming[p_a] = p_a.lower
    require(all(q in renaming for q in a.params), "the first runs over points that the shared container does not have")
    require(
        all(q in renaming.values() or q.size == 1 for q in b.params),
        "the second runs over points that the shared container does not have",
    )
    require(all(not isinstance(q, Symbol) or same_size(k.size, q.size) for k, q in renaming.items()), "they run over different ranges")
    return renaming
