"""What a library's matrix product reads more than once on a GPU, because its tiles come in waves.

As many tiles of the result run at once as there are multiprocessors, in an arrangement that is about square. Together they read the rows
and the columns that they need; the cache gives each byte to all of them. The next wave goes on along the columns. Its rows are in the cache
still, if they take no more than half of it; the columns of the whole operand are read anew for every further band of rows, unless they
stay in the cache as a whole. The tiles of the first band begin together and go along in step; later ones begin when a multiprocessor is
free. Where what a band works on does not fit half of the cache, one half of those that share rows finds them gone, and reads them again.
Checked against an H100's counters of DRAM traffic (`benchmarks/dram.py`), which the half was chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program

from .liveness import value
from .products import plan
from .roofline import Machine

TILE = 128, 256  # rows and columns of the result that one multiprocessor computes


def product_rereads(node: LibraryCall, program: Program, machine: Machine, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes read again by container, for a call of "contract" on a machine with multiprocessors; containers without are left out."""
    if node.function != "contract" or not machine.processors:
        return {}
    a, b, y = (program.containers[m.container] for m in (node.reads["a"], node.reads["b"], node.writes["y"]))
    try:
        whole = [value(c.bytes, sizes) for c in (a, b, y)]
        shape_a, shape_y = ([value(n, sizes) for n in c.shape] for c in (a, y))
    except KeyError:
        return {}
    if sum(whole) <= machine.cache:
        return {}
    p = plan(node.attributes["equation"])
    first, second = (b, a) if p.swap else (a, b)
    of_y = [shape_y[d] for d in range(len(shape_y)) if d not in p.ones_y]
    grouped = [of_y[d] for d in p.order_y]
    batch, rows, columns = (math.prod(g) for g in (grouped[: p.batch], grouped[p.batch : p.batch + p.rows], grouped[p.batch + p.rows :]))
    terms = math.prod(shape_a) // max(1, batch * (columns if p.swap else rows))
    tiles = -(-rows // TILE[0]), -(-columns // TILE[1])
    wide = max(1, min(tiles[1], round(math.sqrt(machine.processors * TILE[0] / TILE[1]))))
    high = max(1, min(tiles[0], machine.processors // wide))
    bands, steps = -(-tiles[0] // high), -(-tiles[1] // wide)
    itemsize = first.dtype.itemsize
    again: dict[str, int] = {}
    band = high * TILE[0] * terms * itemsize
    if band > machine.cache // 2:
        drifting = value(first.bytes, sizes) * (bands - 1) // (2 * bands) if wide > 1 else 0
        if drifting or steps > 1:
            again[first.name] = (steps - 1) * value(first.bytes, sizes) + drifting
    if bands > 1 and columns * terms * itemsize > machine.cache // 2:
        again[second.name] = again.get(second.name, 0) + (bands - 1) * value(second.bytes, sizes)
    return again
