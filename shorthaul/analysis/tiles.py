"""What a loop over parts of a batch moves: what passes between the nodes of its body stays in the cache, if it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Union

from shorthaul.ir.blocks import grid, visits
from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Loop, Node
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, maximum, minimum, summation

from .liveness import value

IntLike = Union[int, Expr]


def working_set(uses: Iterable[tuple[int, Iterable[str]]], slices: Mapping[str, int], whole: int) -> int:
    """Bytes that an iteration needs in the cache: `whole` throughout (weights and sums), and of the slices, by container, those in use
    at once. uses: position and containers of each node."""
    span: dict[str, list[int]] = {}
    last = 0
    for at, names in uses:
        last = max(last, at)
        for name in names:
            if name in slices:
                span.setdefault(name, [at, at])[1] = at
    change = [0] * (last + 2)
    for name, (first, end) in span.items():
        change[first] += slices[name]
        change[end + 1] -= slices[name]
    live, most = 0, 0
    for step in change:
        live += step
        most = max(most, live)
    return whole + most


def loop_working_set(node: Loop, sizes: Mapping[str, int]) -> int:
    """Bytes that an iteration of a tiled loop needs in the cache."""
    body = node.body
    constant = {*node.summed, *(k for k in node.reads if k not in node.scanned)}
    size = {name: value(c.bytes, sizes) for name, c in body.containers.items() if c.alias is None}
    uses = [(i, {base_of(body, c) for c in body.reads_of(n) | body.writes_of(n)}) for i, n in enumerate(body.nodes)]
    return working_set(uses, {k: n for k, n in size.items() if k not in constant}, sum(n for k, n in size.items() if k in constant))


def base_of(program: Program, name: str) -> str:
    """The container in whose memory this one lies."""
    while (c := program.containers.get(name)) is not None and c.alias is not None:
        name = c.alias.base
    return name


def outer_bytes(node: Loop, containers: Mapping[str, Container], inside: Iterable[tuple[Node, str, str, IntLike]],
                fits: bool) -> dict[tuple[str, str], IntLike]:  # fmt: skip
    """Bytes by connector (of what the loop reads and writes) or container of the body, and side, from what the body's nodes move.

    containers: of the program that the loop is in. inside: node, container, side and bytes of one iteration. Where the working set fits
    the cache, each container is read once an iteration, one whose block stays the same not again, weights once altogether, and what the
    body writes itself is not read from memory; sums stay there too. The number of the iteration is in no memory.
    """
    body = node.body
    trips = node.trips
    assert node.tile is not None
    shapes: dict[str, tuple[int, ...]] = {
        k: containers[m.container].shape  # type: ignore[misc]
        for k, m in (*node.reads.items(), *node.writes.items())
        if k in node.scanned or k in node.stacked
    }
    blocks = grid(node.tile, shapes.values())
    inputs, written = set(body.signature.inputs), set(body.signature.outputs)
    views: dict[tuple[str, str], dict[str, IntLike]] = {}
    for _, container, side, number in inside:
        mine = views.setdefault((base_of(body, container), side), {})
        known = mine.get(container, 0)
        mine[container] = maximum(known, number) if fits else known + number
    totals: dict[tuple[str, str], IntLike] = {}
    for key, mine in views.items():
        # views of one container may be of different parts (packed queries, keys and values), or of the same
        most = maximum(*mine.values()) if len(mine) > 1 else next(iter(mine.values()))
        every = summation(mine.values())
        totals[key] = every if not fits or len(mine) == 1 else maximum(most, minimum(every, body.containers[key[0]].bytes))
    result: dict[tuple[str, str], IntLike] = {}
    for (name, side), number in totals.items():
        if name == node.index:
            continue
        if name in inputs:
            times = trips if not fits else visits(shapes[name], node.tile, blocks) if name in shapes else 1
            result[name, side] = times * number
        elif name in written and side == "write":
            summed = name in node.summed
            result[name, side] = number if summed and fits else trips * number
            if summed and not fits:  # each part is added to the sum: both are read, and the sum written
                result[name, side] = result[name, side] + (trips - 1) * number
                result[name, "read"] = 2 * (trips - 1) * number
        elif not fits:
            result[name, side] = result.get((name, side), 0) + trips * number
    return result
