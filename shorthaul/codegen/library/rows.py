"""Rows of a table, changed where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .table import Tensors, library


@library("write_rows", writes_out=True)
def write_rows(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """x with the rows of `values` at `rows` (equal places have equal rows); where the result is x itself only these are written."""
    x, y = reads["x"], out.get("y")
    if y is None:
        y = x.clone()
    elif y.data_ptr() != x.data_ptr():
        y.copy_(x)
    return {"y": y.index_copy_(0, reads["rows"], reads["values"])}
