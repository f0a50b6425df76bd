"""The table of library functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from shorthaul.ir.containers import Container

Tensors = Mapping[str, torch.Tensor]
LibraryFunction = Callable[[Tensors, Mapping[str, Any], Tensors], dict[str, torch.Tensor]]


class LibraryError(RuntimeError):
    """A library call cannot run as it is; the message names the function and what does not fit."""


LIBRARY: dict[str, LibraryFunction] = {}
WritesOut = Callable[[torch.device, Mapping[str, Any], Mapping[str, Container]], bool]
_WRITES_OUT: dict[str, WritesOut] = {}


def library(name: str, *, writes_out: bool | WritesOut = False) -> Callable[[LibraryFunction], LibraryFunction]:
    """Register the function of that name. `writes_out`: it fills the tensors of `out` instead of allocating; may depend on the
    device, the call's attributes and its containers. Where it does so mostly, it may decide otherwise in a call: that is copied."""

    def add(function: LibraryFunction) -> LibraryFunction:
        if name in LIBRARY:
            raise ValueError(f"library function {name} is registered already")
        LIBRARY[name] = function
        if writes_out:
            _WRITES_OUT[name] = writes_out if callable(writes_out) else _always
        return function

    return add


def _always(device: torch.device, attributes: Mapping[str, Any], containers: Mapping[str, Container]) -> bool:
    return True


def writes_out(name: str, device: torch.device, attributes: Mapping[str, Any], containers: Mapping[str, Container]) -> bool:
    """Whether the function fills planned memory (otherwise it allocates its results). containers: by connector."""
    decide = _WRITES_OUT.get(name)
    return decide is not None and decide(device, attributes, containers)
