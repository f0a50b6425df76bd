"""Memory: the arenas in which what programs compute lives, and which all programs of the process share (see `analysis.arena`)."""

from __future__ import annotations

import threading

import torch


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
