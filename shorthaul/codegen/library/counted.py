"""Results whose sizes depend on data, and the sizes that are data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .table import Tensors, library


@library("nonzero")
def nonzero(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The positions of the elements that are not zero, one row each."""
    return {"y": torch.nonzero(reads["x"])}


@library("repeated_positions")
def repeated_positions(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """i, x[i] times, for every i."""
    return {"y": torch.repeat_interleave(reads["x"]).to(torch.int64)}


@library("item")
def item(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The one integer of a tensor, which the program uses as a size."""
    return {"y": reads["x"].reshape(()).to(torch.int64, copy=True)}
