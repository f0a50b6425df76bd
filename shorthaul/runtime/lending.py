"""Results that are lent: memory that a CUDA graph writes at every replay, and that the caller uses between replays without a copy.

Who has a tensor of it (`.grad`, an output) shares its storage, so that the storage's count of users says when it is free again. A training
loop that sets gradients to None before the next backward phase never meets a replay; where one is still in use, what it holds is kept
aside during the replay, and put back (see `GraphedExecutable`). A tensor that another stream still reads has to be held until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Lent:
    """Tensors with memory of their own, by name, which are lent out."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)
        self._storages = {n: t.untyped_storage() for n, t in self.tensors.items()}
        self._own = {n: _users(s) for n, s in self._storages.items()}

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def out(self, name: str) -> torch.Tensor:
        """A tensor of the memory of that name, for the caller, who may change it in place: it is no view."""
        t = self.tensors[name]
        return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), t.shape, t.stride())

    def in_use(self) -> list[str]:
        """The names whose memory somebody still has."""
        return [n for n, s in self._storages.items() if _users(s) > self._own[n]]


def _users(storage: torch.UntypedStorage) -> int:
    return torch._C._storage_Use_Count(storage._cdata)


class Watch:
    """Says whether tensors that were given away are still in use, without keeping them."""

    def __init__(self) -> None:
        self._given: list[StorageWeakRef] = []

    def give(self, tensors: Iterable[torch.Tensor]) -> None:
        self._given += [StorageWeakRef(t.untyped_storage()) for t in tensors]

    def in_use(self) -> bool:
        return any(not g.expired() for g in self._given)

    def forget(self) -> None:
        self._given = []
