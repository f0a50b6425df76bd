"""ScheduleChoice: the parameters by which a kernel's loops are planned."""

from __future__ import annotations

from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map

from ..base import MapNode, Match, Path, Transformation, require

POWERS = (2, 4, 8, 16, 32, 64)


class ScheduleChoice(Transformation):
    """Fix parameters of the plan by which a target runs a kernel.

    before:  map i in 0:2048 parallel: ...        after:  map i in 0:2048 parallel(row_tile=16): ...

    The same elements move, so it saves no bytes: how well caches are used and work is shared out is found by measuring. Of the
    C++ target: row_tile, rows that run inside the lanes of column sums and the like; inner_reduction, the longest reduction that runs
    inside the lanes whole; chunk, points of one piece of elementwise work; pieces, pieces of work to aim at. reduction: "persistent"
    keeps each reduction in one thread, "split" shares it out and adds up the parts afterwards (no strategy is atomic: its results would
    depend on which thread comes first). lanes: "none" leaves vector instructions out. stack: bytes of a row up to which it lives on the
    stack and not in a buffer of the thread. 0 or "" leaves a parameter to the target, which is the default.
    """

    level = 1
    pattern = Path(MapNode("node"))
    at_places = True
    allowed = {"row_tile": (0, *POWERS), "inner_reduction": range(4097), "chunk": range(1 << 24), "pieces": range(4097),
               "reduction": ("", "persistent", "split"), "lanes": ("", "none"), "stack": range((1 << 18) + 1)}  # fmt: skip
    tunable = {"row_tile": (4, 16, 32), "inner_reduction": (16, 512), "chunk": (4096, 65536), "pieces": (16, 256)}

    def __init__(self, row_tile: int = 0, inner_reduction: int = 0, chunk: int = 0, pieces: int = 0, reduction: str = "",
                 lanes: str = "", stack: int = 0) -> None:  # fmt: skip
        self.row_tile = row_tile
        self.inner_reduction = inner_reduction
        self.chunk = chunk
        self.pieces = pieces
        self.reduction = reduction
        self.lanes = lanes
        self.stack = stack

    def check(self, m: Match) -> None:
        require(m.node.schedule.kind != "auto", "the program is not scheduled yet")
        require(any(self.parameters.values()), "no parameter is given")
        require(m.node.schedule.with_options(**self._given()) != m.node.schedule, "it runs by these parameters already")

    def _given(self) -> dict[str, Union[int, str]]:
        return {k: v for k, v in self.parameters.items() if v}

    def apply(self, m: Match, edit: Edit) -> None:
        node: Map = m.node
        edit.replace(node, node.with_(schedule=node.schedule.with_options(**self._given())))
