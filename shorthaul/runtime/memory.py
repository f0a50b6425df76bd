"""Memory planning: where in one arena each container lives, from its lifetime."""

from __future__ import annotations

from collections.abc import Iterable

ALIGNMENT = 64


def aligned(size: int) -> int:
    """The size rounded up to whole cache lines."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


def plan_arena(blocks: Iterable[tuple[str, int, int, int]]) -> tuple[dict[str, int], int]:
    """Offsets in bytes for blocks (name, bytes, first step, last step), and the size of the arena.

    Blocks whose lifetimes overlap never share memory. Best fit in order of time, freeing what has ended; a free block is reused as
    soon as possible, so that the working set stays in the cache.
    """
    order = sorted(blocks, key=lambda b: (b[2], -b[1], b[0]))
    free: list[tuple[int, int]] = []  # (offset, size), sorted by offset, never adjacent
    live: list[tuple[int, int, int]] = []  # (last step, offset, size)
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


def _release(free: list[tuple[int, int]], at: int, size: int) -> None:
    for block in [f for f in free if f[0] + f[1] == at or at + size == f[0]]:
        free.remove(block)
        at, size = min(at, block[0]), size + block[1]
    free.append((at, size))
    free.sort()
