"""Memory: the arenas in which what programs compute lives, and which all programs of the process share (see `analysis.arena`)."""

from __future__ import annotations

import threading
from typing import Any

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

    Arenas of a GPU are not kept here: PyTorch's allocator hands blocks out again, and knows streams and graph captures. They come from
    a pool of their own, for else a small tensor that stays would lie in an arena's block, and the next arena would need another one.
    """

    def __init__(self, keep: int = 8) -> None:
        self._free: list[Arena] = []
        self._keep = keep
        self._lock = threading.Lock()
        self._pools: dict[torch.device, Any] = {}

    def acquire(self, size: int, device: torch.device | None = None) -> Arena:
        """A free arena of that size that is not much too large, or a new one."""
        if device is not None and device.type != "cpu":
            return self._of_gpu(size, device)
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):  # the last used first: it is in the caches
                if size <= self._free[i].size <= 2 * size + (1 << 20):
                    return self._free.pop(i)
        return Arena(size)

    def _of_gpu(self, size: int, device: torch.device) -> Arena:
        if torch.cuda.is_current_stream_capturing():  # a graph has its own pool
            return Arena(size, device)
        with self._lock:
            pool = self._pools.get(device)
            if pool is None:
                pool = self._pools[device] = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool, device):
            return Arena(size, device)

    def release(self, arena: Arena) -> None:
        """Give an arena back; the oldest one goes when there are too many."""
        if arena.tensor.device.type != "cpu":
            return
        with self._lock:
            self._free.append(arena)
            if len(self._free) > self._keep:
                self._free.pop(0)

    def trim(self, device: torch.device) -> None:
        """Give the memory of a GPU's arenas that are free back to the GPU."""
        with self._lock:
            self._pools.pop(device, None)
        torch.cuda.empty_cache()


ARENAS = ArenaPool()
