"""Where in one arena each buffer of a phase lives: buffers that are never needed at the same time share memory.

Three plans. "soon" goes by time and gives a free block away at once, so that the working set stays small and in the cache; gaps may stay
between blocks of different sizes. "tight" also places the largest buffers first, each in the smallest gap among those that live at the
same time, which mostly needs no more than the buffers that live at once, and takes what is smaller. "step" places the values of both phases
and those saved between them so, in one arena: what the backward phase needs goes where saved values were that it has used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shorthaul.ir.launches import launched_together
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import container_sizes, runtime_sizes

from .liveness import hints, lifetimes, value

ALIGNMENT = 64
PLANS = ("soon", "tight", "step")
Block = tuple[str, int, int, int]  # name, bytes, first and last position


def aligned(size: int) -> int:
    """The size rounded up to whole cache lines."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


def plan_arena(blocks: Iterable[Block], plan: str = "soon") -> tuple[dict[str, int], int]:
    """Offsets in bytes for blocks, and the size of the arena. Blocks whose lifetimes overlap never share memory."""
    listed = list(blocks)
    found = _soon(listed)
    if plan != "soon":
        found = min(found, _tight(listed), key=lambda f: f[1])
    return found


def arena_bytes(program: Program, plan: str, sizes: Mapping[Any, int] | None = None) -> dict[str, int]:
    """Bytes of the arena of each phase of a scheduled program, and of what is saved between them, at sizes (default: its size hints).

    With the plan "step" all of it is "saved". Counted are all values that are not handed out; a library call that allocates its result
    itself needs no room in the arena for it. What has a size that the program finds out as it runs is not planned.
    """
    known = hints(program, sizes)
    results, late = program.results, runtime_sizes(program)
    found: dict[str, list[Block]] = {}
    starts, ends = _launches(program)
    for name, life in lifetimes(program).items():
        if name not in results and late.isdisjoint(container_sizes(life.container)):
            block = name, value(life.container.bytes, known), starts[life.first], ends[life.last]
            found.setdefault("saved" if life.is_saved else program.nodes[life.first].phase, []).append(block)
    if plan == "step" and "saved" in found:
        return {"saved": plan_arena([b for blocks in found.values() for b in blocks], plan)[1]}
    saved = found.pop("saved", [])
    planned = {phase: plan_arena(blocks, plan)[1] for phase, blocks in found.items()}
    return planned | ({"saved": sum(aligned(b[1]) for b in saved)} if saved else {})


def _launches(program: Program) -> tuple[list[int], list[int]]:
    """For every node the first and the last position of what is launched together with it (`ir.launches`)."""
    nodes = program.nodes
    starts, ends = list(range(len(nodes))), list(range(len(nodes)))
    for i in range(1, len(nodes)):
        if launched_together(nodes[i - 1], nodes[i]):
            starts[i] = starts[i - 1]
    for i in reversed(range(len(nodes) - 1)):
        if starts[i + 1] != i + 1:
            ends[i] = ends[i + 1]
    return starts, ends


def _soon(blocks: list[Block]) -> tuple[dict[str, int], int]:
    """Best fit in order of time, freeing what has ended; a free block is reused as soon as possible."""
    order = sorted(blocks, key=lambda b: (b[2], -b[1], b[0]))
    free: list[tuple[int, int]] = []  # (offset, size), sorted by offset, never adjacent
    live: list[tuple[int, int, int]] = []  # (last position, offset, size)
    offsets: dict[str, int] = {}
    top = 0
    for name, size, first, last in order:
        size = aligned(size)
        for block in [b for b in live if b[0] < first]:
            live.remove(block)
            _release(free, block[1], block[2])
        fitting = [f for f in free if f[1] >= size]
        if fitting:
            at, room = min(fitting, key=lambda f: (f[1], f[0]))
            free.remove((at, room))
            if room > size:
                _release(free, at + size, room - size)
        elif free and free[-1][0] + free[-1][1] == top:
            at, room = free.pop()  # the last free block grows into new memory
            top = at + size
        else:
            at, top = top, top + size
        offsets[name] = at
        live.append((last, at, size))
    return offsets, top


def _tight(blocks: list[Block]) -> tuple[dict[str, int], int]:
    """The largest first, each in the smallest gap between blocks that live at the same time."""
    offsets: dict[str, int] = {}
    # of what is placed, in the order of offsets: offset, end, first and last position
    placed = np.empty((4, len(blocks)), dtype=np.int64)
    top = 0
    for count, (name, size, first, last) in enumerate(sorted(blocks, key=lambda b: (-b[1], b[2], b[0]))):
        size = aligned(size)
        here = placed[:, :count]
        begin, end = here[:2, (here[2] <= last) & (here[3] >= first)]
        at = 0
        if begin.size:
            reached = np.maximum.accumulate(end)
            low = np.concatenate(([0], reached[:-1]))  # where the gap below each of them begins
            gap = begin - low
            fits = np.where(gap >= size, gap, np.iinfo(np.int64).max)
            best = int(fits.argmin())
            at = int(low[best]) if gap[best] >= size else int(reached[-1])
        place = int(np.searchsorted(here[0], at, side="right"))
        placed[:, place + 1 : count + 1] = placed[:, place:count].copy()
        placed[:, place] = at, at + size, first, last
        offsets[name] = at
        top = max(top, at + size)
    return offsets, top


def _release(free: list[tuple[int, int]], at: int, size: int) -> None:
    for block in [f for f in free if f[0] + f[1] == at or at + size == f[0]]:
        free.remove(block)
        at, size = min(at, block[0]), size + block[1]
    free.append((at, size))
    free.sort()
