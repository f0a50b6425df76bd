"""Sorting and searching in PyTorch: what `ops.ordering` lowers long rows to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .table import Tensors, library


def _pair(name: str, function: Callable[[torch.Tensor, Mapping[str, Any]], Any]) -> None:
    """A function from x to (values, indices)."""

    def call(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
        values, indices = function(reads["x"], attributes)
        return {"values": values, "indices": indices}

    library(name)(call)


def _sort(x: torch.Tensor, a: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    below = a.get("below")
    # a radix sort passes over half the digits
    narrow = x.is_cuda and x.dtype is torch.int64 and isinstance(below, int) and below <= 1 << 31
    values, indices = torch.sort(x.int() if narrow else x, stable=True, dim=a["dim"], descending=a["descending"])
    return values.long() if narrow else values, indices


_pair("sort", _sort)
_pair("topk", lambda x, a: torch.topk(x, a["k"], a["dim"], a["largest"], True))
_pair("kthvalue", lambda x, a: torch.kthvalue(x, a["k"], a["dim"], a["keepdim"]))
_pair("median_dim", lambda x, a: torch.median(x, a["dim"], a["keepdim"]))
_pair("nanmedian_dim", lambda x, a: torch.nanmedian(x, a["dim"], a["keepdim"]))
_pair("mode", lambda x, a: torch.mode(x, a["dim"], a["keepdim"]))


@library("argsort")
def argsort(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    return {
        "indices": torch.argsort(reads["x"], stable=True, dim=attributes["dim"], descending=attributes["descending"])
    }


@library("median")
def median(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    return {"y": torch.median(reads["x"])}


@library("nanmedian")
def nanmedian(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    return {"y": torch.nanmedian(reads["x"])}


@library("searchsorted")
def searchsorted(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    options = {"right": attributes["right"], "out_int32": attributes["narrow"], "sorter": reads.get("sorter")}
    found = torch.searchsorted(reads["x"], reads["values"], **options)
    return {"y": found}
