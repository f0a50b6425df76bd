"""Sums by index in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .table import LibraryError, Tensors, library


@library("ordered_sum", writes_out=True)
def ordered_sum(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """y of `shape`: zeros, with every row of `values` added at its `target`, equal targets in the order of the rows.

    A target is the row-major number of an element of y's dimensions `dims`; the others, in their order, are the dimensions of a row. A
    negative one stands for an index that was out of range (`where`: in which operator): an IndexError, on a GPU an assertion of the device.
    """
    y = out["y"] if "y" in out else reads["values"].new_empty(attributes["shape"])
    dims = attributes["dims"]
    rows = y.permute([*dims, *(d for d in range(y.dim()) if d not in dims)])
    places, row = rows.shape[: len(dims)], rows.shape[len(dims) :]
    target, values = reads["target"].reshape(-1), reads["values"].reshape(-1, *row)
    _check(target, attributes["where"])
    sums = rows if rows.is_contiguous() else torch.empty(rows.shape, dtype=y.dtype, device=y.device)
    # PyTorch sorts the targets of such a sum on a GPU, and adds up equal ones in their order; "unsafe": checked above, without waiting
    torch.ops.aten._index_put_impl_(sums.zero_().view(math.prod(places), *row), [target], values, accumulate=True, unsafe=True)
    if sums is not rows:
        rows.copy_(sums)
    return {"y": y}


def _check(target: torch.Tensor, where: str) -> None:
    if target.numel():
        inside = target.amin() >= 0
        message = f"an index is out of range at {where}"
        if target.is_cuda:
            torch._assert_async(inside, message)
        elif not inside:
            raise LibraryError(message)
