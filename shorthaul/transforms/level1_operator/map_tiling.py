"""MapTiling: a loop of a kernel runs in tiles."""

from __future__ import annotations

from shorthaul.ir.builder import fresh_params
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map
from shorthaul.symbolic import floordiv, prove_divisible, prove_le

from ..base import MapNode, Match, Path, Transformation, require
from .loops import MOST, over, parameter, require_free


class MapTiling(Transformation):
    """Split a loop of a kernel into one over tiles, in its place, and one inside a tile, innermost.

    before:  map i, j: y[i, j] = x[j, i]        after:  map t, j, i: y[16*t + i, j] = x[j, 16*t + i]   (loop=0, size=16)

    Twice, and with `MapInterchange`, it makes blocks of two loops, so that what is read along the one and written along the other stays in
    the cache. It saves no bytes: what a kernel moves is counted for loops that block as well as the cache allows. Loops run in the order
    written from then on. loop: its position, 0 is the outermost. size: iterations of a tile; they must divide the loop's.
    """

    level = 1
    pattern = Path(MapNode("node"))
    allowed = {"loop": range(MOST), "size": range(2, 1 << 20)}

    def __init__(self, loop: int = 0, size: int = 16) -> None:
        self.loop = loop
        self.size = size

    def check(self, m: Match) -> None:
        node: Map = m.node
        p = parameter(node, self.loop)
        require_free(node, node.params)
        require(prove_divisible(p.size, self.size), f"the {p.size} iterations of {p} are not known to be a multiple of {self.size}")
        require(prove_le(2 * self.size, p.size), f"one tile of {self.size} would hold all of {p}")

    def apply(self, m: Match, edit: Edit) -> None:
        node: Map = m.node
        p = node.params[self.loop]
        assert p.lower is not None
        tile, inside = fresh_params([floordiv(p.size, self.size), self.size])
        params = [tile if q is p else q for q in node.params] + [inside]
        edit.replace(node, over(node, params, {p: tile * self.size + inside + p.lower}, as_written=True))
