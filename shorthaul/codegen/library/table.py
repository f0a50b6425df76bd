"""The table of library functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
LibraryFunction = Callable[[Tensors, Mapping[str, Any], Tensors], dict[str, torch.Tensor]]


class LibraryError(RuntimeError):
    """A library call cannot run as it is; the message names the function and what does not fit."""


LIBRARY: dict[str, LibraryFunction] = {}
_WRITES_OUT: set[str] = set()


def library(name: str, *, writes_out: bool = False) -> Callable[[LibraryFunction], LibraryFunction]:
    """Register the function of that name. `writes_out`: it fills the tensors of `out` instead of allocating."""

    def add(function: LibraryFunction) -> LibraryFunction:
        if name in LIBRARY:
            raise ValueError(f"library function {name} is registered already")
        LIBRARY[name] = function
        if writes_out:
            _WRITES_OUT.add(name)
        return function

    return add


def writes_out(name: str) -> bool:
    """Whether the function fills planned memory (otherwise it allocates its results)."""
    return name in _WRITES_OUT
