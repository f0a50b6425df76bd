"""MapInterchange: a loop of a kernel runs further out or further in."""

from __future__ import annotations

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map

from ..base import MapNode, Match, Path, Transformation, require
from .loops import MOST, over, parameter, require_free


class MapInterchange(Transformation):
    """Move a loop of a kernel to another position; from then on the target runs the kernel's loops in the order written.

    before:  map i, j, k: y[i, j] (sum) = a[i, k]*b[k, j]        after:  map k, i, j: y[i, j] (sum) = a[i, k]*b[k, j]   (move=2, to=0)

    It saves no bytes: what a kernel moves is counted for the best order of its loops; which order uses caches and lanes well is found by
    measuring. Left to itself the C++ target orders loops by strides. Here the innermost loop becomes the vector lanes, where that costs no
    more than scalar code; threads still share out loops that are not reduced. Sums are added up in the new order, so results may differ by
    rounding. move, to: positions of loops, 0 is the outermost.
    """

    level = 1
    pattern = Path(MapNode("node"))
    allowed = {"move": range(MOST), "to": range(MOST)}

    def __init__(self, move: int = 1, to: int = 0) -> None:
        self.move = move
        self.to = to

    def check(self, m: Match) -> None:
        node: Map = m.node
        moved = parameter(node, self.move)
        parameter(node, self.to)
        require(self.move != self.to, f"{moved} is at position {self.to} already")
        require_free(node, node.params)
        require(not any(a.memlet.combine == "recurrence" for a in node.accesses()), "its reduction depends on the order")

    def apply(self, m: Match, edit: Edit) -> None:
        node: Map = m.node
        params = list(node.params)
        params.insert(self.to, params.pop(self.move))
        edit.replace(node, over(node, params, {}, as_written=True))
