"""The fusion stage: transformations of level 2 applied greedily from a worklist, most bytes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Program

from .base import Match, Refused, Result, Transformation, hint_value
from .level2_fusion.image_fusion import ImageFusion
from .level2_fusion.linear_reduction_fusion import LinearReductionFusion
from .level2_fusion.map_fusion import MapFusion
from .level2_fusion.reduction_fusion import ReductionFusion
from .level2_fusion.row_sibling_fusion import RowSiblingFusion
from .level2_fusion.sibling_fusion import SiblingFusion


def default_fusions(target: str = "cpp") -> list[Transformation]:
    """The fusions of a target in the order in which they run.

    First what costs nothing: producers with one reader. Then rows, where a value with several readers becomes local. What still has several
    readers is recomputed where that moves fewer bytes, else kept beside its first reader. On a GPU ("triton") a row has to fit the
    registers of a block, and no cache of one core holds an image.
    """
    if target == "triton":
        rows, windows = ReductionFusion(row_bytes=64 * 1024), ReductionFusion(row_bytes=64 * 1024, interleaved=9)
        return [MapFusion("refuse"), rows, SiblingFusion(reductions_only=True), MapFusion("recompute"), LinearReductionFusion(),
                MapFusion("keep"), MapFusion("recompute"), SiblingFusion(), windows, RowSiblingFusion()]  # fmt: skip
    return [MapFusion("refuse"), ReductionFusion(), SiblingFusion(reductions_only=True), MapFusion("recompute"), LinearReductionFusion(),
            ImageFusion(), MapFusion("keep"), MapFusion("recompute"), SiblingFusion(), ReductionFusion(), RowSiblingFusion()]  # fmt: skip


def fuse(program: Program, transformations: Sequence[Transformation] | None = None) -> Result:
    """Apply the transformations one after the other, each until it applies nowhere.

    A transformation visits the nodes in program order and is tried on the pairs around each; what a rewrite creates is visited again.
    Refusals that still stand at the end are returned, largest first, one per pair of nodes.
    """
    chosen = list(transformations) if transformations is not None else default_fusions()
    applied = 0
    refusals: dict[tuple[int, int, str], Refused] = {}
    for t in chosen:
        queue: deque[Node] = deque(n for n in program.nodes if isinstance(n, Map))
        queued = {n.id for n in queue}
        while queue:
            node = queue.popleft()
            queued.discard(node.id)
            if not program.node_is_current(node):
                continue
            for m in _matches(program, t, node):
                first, second = m.first, m.second
                notes: list[Refused] = []
                if t.try_apply(m, notes):
                    applied += 1
                    created = program.current(program.log[-1].created)
                    around = [*created, *(p for n in created for p in program.producers(n))]
                    for n in around:
                        if isinstance(n, Map) and n.id not in queued:
                            queue.append(n)
                            queued.add(n.id)
                    break
                for r in notes:
                    refusals[(first.id, second.id, t.name)] = r
    current = {n.id for n in program.nodes}
    standing = [r for (a, b, _), r in refusals.items() if a in current and b in current]
    return Result(applied, sorted(standing, key=lambda r: -r.bytes))


def _matches(program: Program, t: Transformation, node: Node) -> Iterator[Match]:
    found = list(t.matches_from(program, node))
    found.sort(key=lambda m: -hint_value(program, program.containers[m.mid].bytes))
    yield from found
