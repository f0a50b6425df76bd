"""BatchTiling: nodes that work on one sample after the other run together over parts of the batch that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

from shorthaul.analysis.movement import node_movement
from shorthaul.analysis.roofline import machine
from shorthaul.analysis.tiles import working_set
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Node
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr

from ..base import Match, Transformation, require, require_no_cycle
from .batch_rows import (
    SLICED,
    SUMMED,
    bytes_of,
    containers_of,
    loop_of,
    roles_of,
    roles_together,
    saved,
    sharing,
    slice_bytes,
)

IntLike = Union[int, Expr]
PATIENCE = 12  # nodes behind a region that may wait for it before it is closed


@dataclass
class Region:
    """Nodes that may run over parts of a batch, in program order. rows: sizes of the leading dimensions that are run over. roles: how each
    uses its containers. waiting: what nodes write that must run after."""

    rows: tuple[int, ...]
    nodes: list[Node] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)  # containers that nodes behind the region write


class BatchTiling(Transformation):
    """Run a chain of kernels and library calls over a few samples of the batch at a time; what passes between them stays in the cache.

    before:  map n, c, h, w: a[n, c, h, w] = relu(s[c]*x[n, c, h, w]);  y = convolution(a, weight)
    after:   loop over n in steps of k:  map n', c, h, w: a'[n', c, h, w] = ...;  y[n:n+k] = convolution(a', weight)

    It joins what fusion cannot, library calls and their neighbours: expansions of inverted residuals, hidden layers of perceptrons, scores
    of attention. Sums over the batch, such as gradients of weights, are added up from part to part. What depends on the number of a row,
    such as the position at which dropout draws, is computed from the number of the iteration. cache: bytes that an iteration may
    need (weights, sums, and the slices in use at once), of the described machine if 0. least: bytes that an intermediate must have to be
    worth the loop's own time, half of the cache if 0; a smaller one may stay in the cache without it. dims: leading dimensions that are
    run over. With two, an iteration works on a part of one sample, where whole samples do not fit: some positions of a sequence, or some
    heads of attention. large: only chains with a node of which not even one whole sample fits. As library calls and maps, with dropout or
    any mask, attention then never has the scores of all heads in memory, forward or backward:

        before:  s = q k^T;  map b, h, i, j: w = dropout(softmax(s));  y = w v          s, w: [batch, heads, length, length] in memory
        after:   loop over b, h in steps of k:  s' = q' k'^T;  map: w' = ...;  y[b, h:h+k] = w' v'
    """

    level = 4
    allowed = {"cache": range(1 << 40), "least": range(1 << 40), "dims": (1, 2)}
    tunable = {"cache": (1, 1 << 19, 1 << 21, 1 << 23)}  # 1: nothing fits, it is off

    def __init__(self, cache: int = 0, least: int = 0, dims: int = 1, large: bool = False) -> None:
        self.cache = cache
        self.least = least
        self.dims = dims
        self.large = large

    @property
    def _budget(self) -> int:
        return self.cache or machine().cache

    @property
    def _least(self) -> int:
        return self.least or self._budget // 2

    # places ---------------------------------------------------------------------------------------------------------------
    def matches(self, program: Program) -> Iterator[Match]:
        """Chains that pay, the first first; none overlaps another."""
        for phase in ("forward", "backward"):
            nodes = [n for n in program.nodes if n.phase == phase]
            at = 0
            while at < len(nodes):
                region, at = self._grow(program, nodes, at)
                if region is not None:
                    yield Match(program, {f"node{i}": n for i, n in enumerate(region.nodes)})

    def _grow(self, p: Program, nodes: Sequence[Node], start: int) -> tuple[Region | None, int]:
        """A region that begins at the first node that can begin one, and where to look for the next."""
        for at in range(start, len(nodes)):
            rows = self._rows(p, nodes[at])
            if rows is None:
                continue
            region = Region(rows)
            self._join(p, region, [nodes[at]])
            behind = 0
            apart: dict[str, Node] = {}  # what nodes that could join, but share nothing with the region yet, write
            for n in nodes[at + 1 :]:
                reads, writes = p.roots(p.reads_of(n)), p.roots(p.writes_of(n))
                if roles_of(p, n, rows) is not None and reads.isdisjoint(region.waiting):
                    found = self._joining(p, region, n, apart)
                    if found:
                        self._join(p, region, found)
                    elif reads.isdisjoint(region.written):
                        apart |= dict.fromkeys(writes, n)
                    if found or reads.isdisjoint(region.written):
                        continue
                if not reads.isdisjoint(region.written | region.waiting):
                    region.waiting |= writes
                    behind += 1
                    if behind > PATIENCE:
                        break
            if len(region.nodes) > 1 and not self._whole_samples_do(p, region):
                taken = {n.id for n in region.nodes}
                following = next((i for i in range(at, len(nodes)) if nodes[i].id not in taken), len(nodes))
                return region, max(following, at + 1)
        return None, len(nodes)

    def _whole_samples_do(self, p: Program, region: Region) -> bool:
        """Whether the nodes of a region over several dimensions could as well run over the first alone, together or (`large`) each."""
        first = region.rows[:1]
        if len(region.rows) == 1 or first[0] == 1:
            return False

        def fits(nodes: Sequence[Node]) -> bool:
            roles = roles_together(p, nodes, first)
            return roles is not None and self.tile(p, nodes, roles, first) is not None

        return all(fits([n]) for n in region.nodes) if self.large else fits(region.nodes)

    def _rows(self, p: Program, n: Node) -> tuple[int, ...] | None:
        """The rows of a node that can begin a region: it writes something large that has them, which a region may hold."""
        for c in sorted(p.writes_of(n)):
            container = p.containers[c]
            size, rows = container.bytes, tuple(r for r in container.shape[: self.dims] if isinstance(r, int))
            large = isinstance(size, int) and size >= self._least
            if large and len(rows) == self.dims and rows[-1] > 1 and roles_of(p, n, rows) is not None:
                return rows
        return None

    def _join(self, p: Program, region: Region, nodes: Sequence[Node]) -> None:
        region.nodes = sorted([*region.nodes, *nodes], key=p.position)
        for n in nodes:
            region.roles |= roles_of(p, n, region.rows) or {}
            region.written |= p.roots(p.writes_of(n))

    def _joining(self, p: Program, region: Region, n: Node, apart: Mapping[str, Node]) -> list[Node]:
        """What joins the region with the node: the node itself, those apart that make what it reads if they pay, too, or nothing."""
        makers = {apart[c].id: apart[c] for c in sorted(p.reads_of(n)) if c in apart and c not in region.written}
        with_makers = [*makers.values(), n]
        alone = self._saving(p, region, [n])
        if makers:
            together = self._saving(p, region, with_makers)
            if together is not None and (alone is None or together > alone):
                return with_makers
        return [n] if alone is not None else []

    def _saving(self, p: Program, region: Region, new: Sequence[Node]) -> int | None:
        """Bytes that the region with the new nodes saves, if it saves more than without them and joins something that is worth a loop."""
        roles: dict[str, str] = {}
        for n in new:
            own = roles_of(p, n, region.rows) or {}
            reads = p.reads_of(n)
            if any(region.roles.get(c, roles.get(c)) == SUMMED for c in reads):
                return None
            if any(region.roles.get(c, roles.get(c, r)) != r for c, r in own.items()):
                return None
            roles |= own
        last = roles_of(p, new[-1], region.rows) or {}
        common = [c for c, r in last.items() if r == SLICED and region.roles.get(c) == SLICED]
        if not any(bytes_of(p, c) >= self._least // 2 for c in common):
            return None
        nodes = sorted([*region.nodes, *new], key=p.position)
        if sharing(p, nodes) or self.tile(p, nodes, {**region.roles, **roles}, region.rows) is None:
            return None
        found = saved(p, nodes, {**region.roles, **roles}, region.rows)
        return found if found > saved(p, region.nodes, region.roles, region.rows) else None

    def tile(self, p: Program, nodes: Sequence[Node], roles: Mapping[str, str], rows: Sequence[int]) -> tuple[int, ...] | None:
        """The most rows whose slices fit the cache beside weights and sums, not all of them at once; None where not one does."""
        room = self._budget - sum(bytes_of(p, c) for c, r in roles.items() if r != SLICED)
        uses = [(i, p.reads_of(n) | p.writes_of(n)) for i, n in enumerate(nodes)]
        most = rows[-1] - (1 if all(n == 1 for n in rows[:-1]) else 0)
        for last in range(most, 0, -1):
            tile = (*(1 for _ in rows[:-1]), last)
            if rows[-1] % last == 0:
                slices = {c: slice_bytes(p.containers[c], tile) for c, r in roles.items() if r == SLICED}
                if working_set(uses, slices, 0) <= room:
                    return tile
        return None

    # the rewrite ------------------------------------------------------------------------------------------------------------
    def check(self, m: Match) -> None:
        p, nodes = m.program, m.nodes
        require(len(nodes) > 1, "there is one node only")
        require(len({n.phase for n in nodes}) == 1, "they run in different phases")
        require(not sharing(p, nodes), "containers share memory")
        found = {tuple(c.shape[: self.dims]) for c in containers_of(p, nodes) if len(c.shape) >= self.dims}
        rows: tuple[int, ...]
        for rows in sorted((r for r in found if all(isinstance(n, int) for n in r)), reverse=True):  # type: ignore[assignment]
            roles = roles_together(p, nodes, rows)
            if roles is not None:
                break
        else:
            require(False, "they do not work on one row of a batch after the other")
        assert roles is not None
        tile = self.tile(p, nodes, roles, rows)
        require(tile is not None, f"one sample and the weights do not fit the {self._budget} bytes of the cache")
        require(saved(p, nodes, roles, rows) > 0, "they share nothing that would stay in the cache")
        require_no_cycle(p, nodes)
        assert tile is not None
        loop = loop_of(p, nodes, roles, rows, tile)  # in which copies are views: what it moves is known when it is there
        m.derived.update(loop=loop, saved=_moved(p, nodes) - _moved(p, [loop]))
        require(m.saved > 0, "they share nothing that would stay in the cache")

    def saves(self, m: Match) -> IntLike:
        """What the nodes hand each other and nobody else needs is neither written nor read; what several read is read once."""
        return m.saved

    def apply(self, m: Match, edit: Edit) -> None:
        written = {c for n in m.nodes for c in m.program.writes_of(n)}
        edit.fuse(m.nodes, m.loop)
        edit.drop_unused(written)


def _moved(p: Program, nodes: Sequence[Node]) -> int:
    total = 0
    for n in nodes:
        for x in node_movement(n, p):
            assert isinstance(x.bytes, int)
            total += x.bytes
    return total
