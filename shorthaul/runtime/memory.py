"""Memory: where in one arena each container lives, from its lifetime; and the arenas, which all programs of the process share."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch

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


class Arena:
    """A block of memory: `tensor` (bytes), its address `base`, and tensors made of it, by plan."""

    __slots__ = ("base", "size", "tensor", "views")

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        self.tensor = torch.empty(max(size, 1), dtype=torch.uint8, device=device)
        self.size = size
        self.base = self.tensor.data_ptr()
        self.views: dict[int, dict[str, torch.Tensor]] = {}


class ArenaPool:
    """Arenas that are free. A program takes one for a phase, or from its forward to its backward phase, and gives it back.

    Memory of a GPU is not kept: PyTorch's allocator hands blocks out again, and knows streams and graph captures.
    """

    def __init__(self, keep: int = 8) -> None:
        self._free: list[Arena] = []
        self._keep = keep
        self._lock = threading.Lock()

    def acquire(self, size: int, device: torch.device | None = None) -> Arena:
        """A free arena of that size that is not much too large, or a new one."""
        if device is not None and device.type != "cpu":
            return Arena(size, device)
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):  # the last used first: it is in the caches
                if size <= self._free[i].size <= 2 * size + (1 << 20):
                    return self._free.pop(i)
        return Arena(size)

    def release(self, arena: Arena) -> None:
        """Give an arena back; the oldest one goes when there are too many."""
        if arena.tensor.device.type != "cpu":
            return
        with self._lock:
            self._free.append(arena)
            if len(self._free) > self._keep:
                self._free.pop(0)


ARENAS = ArenaPool()
