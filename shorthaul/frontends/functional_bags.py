"""Bags of embeddings and reductions of segments, whose ATen operators are opaque, written over operators that are maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

_embedding_bag = F.embedding_bag


def embedding_bag(
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> torch.Tensor:
    """Bags as rows of a matrix reduce along a dimension; bags by offsets add their rows where the bag of each is found by a search.

    What writes into the table (`max_norm`), makes sparse gradients, or takes maxima over bags by offsets stays PyTorch's operator.
    """
    rows = input.dim() == 2 and offsets is None
    listed = input.dim() == 1 and offsets is not None and offsets.dim() == 1 and mode != "max"
    weighted = per_sample_weights is not None
    unusual = max_norm is not None or scale_grad_by_freq or sparse or mode not in ("sum", "mean", "max")
    if unusual or not (rows or listed) or (weighted and (mode != "sum" or per_sample_weights.shape != input.shape)):  # type: ignore[union-attr]
        return _embedding_bag(input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
                              include_last_offset, padding_idx)  # fmt: skip
    values = F.embedding(input, weight)
    if per_sample_weights is not None:
        values = values * per_sample_weights.unsqueeze(-1)
    kept = None if padding_idx is None else input != padding_idx % weight.shape[0]
    if rows:
        return _of_rows(values, kept, mode)
    assert offsets is not None
    place = torch.arange(input.shape[0], dtype=offsets.dtype, device=input.device)
    starts = offsets
    if include_last_offset:
        starts, before = offsets[:-1], place < offsets[-1]
        kept = before if kept is None else kept & before
    bag = torch.searchsorted(starts, place, right=True) - 1
    if kept is not None:
        values = values.where(kept.unsqueeze(-1), 0)
    total = values.new_zeros(starts.shape[0], values.shape[1]).index_add(0, bag, values)
    if mode == "sum":
        return total
    ones = torch.ones_like(input, dtype=total.dtype) if kept is None else kept.to(total.dtype)
    return total / total.new_zeros(starts.shape[0]).index_add(0, bag, ones).clamp(min=1).unsqueeze(-1)


def _of_rows(values: torch.Tensor, kept: torch.Tensor | None, mode: str) -> torch.Tensor:
    """values (bags, elements, features), kept (bags, elements)."""
    if mode == "max":
        if kept is None:
            return values.max(1).values
        some = kept.any(1, keepdim=True)
        return values.where(kept.unsqueeze(-1), float("-inf")).max(1).values.where(some, 0)  # of an empty bag zeros
    if kept is None:
        return values.sum(1) if mode == "sum" else values.mean(1)
    total = values.where(kept.unsqueeze(-1), 0).sum(1)
    return total if mode == "sum" else total / kept.sum(1, keepdim=True).clamp(min=1).to(total.dtype)


def segment_reduce(
    data: torch.Tensor,
    reduce: str,
    *,
    lengths: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> torch.Tensor:
    """The segments of `data` along the last dimension of `lengths` or `offsets`, each reduced ("sum", "mean", "max", "min", "prod").

    Each element finds its segment by a search among the segments' ends and is combined there. Elements behind the last segment count
    nowhere (`lengths` that do not add up to the number of elements are PyTorch's error, which needs the values, unless `unsafe`).
    """
    given = lengths if lengths is not None else offsets
    if given is None or indices is not None:
        raise NotImplementedError("segment_reduce needs lengths or offsets")
    dim = given.dim() - 1
    ends = given.cumsum(dim) if lengths is not None else given.narrow(dim, 1, given.shape[dim] - 1)
    count, n = ends.shape[dim], data.shape[dim]
    places = torch.arange(n, dtype=ends.dtype, device=data.device).expand(*data.shape[:dim], n).contiguous()
    segment = torch.searchsorted(ends.contiguous(), places, right=True)
    if offsets is not None:  # what lies before the first segment
        segment = segment.where(places >= offsets.narrow(dim, 0, 1), count)
    rest = data.dim() - 1 - dim
    index = segment.reshape(*segment.shape, *(1,) * rest).expand(data.shape)
    shape = (*data.shape[:dim], count + 1, *data.shape[dim + 1 :])
    mode = {"max": "amax", "min": "amin"}.get(reduce, "sum" if reduce == "mean" else reduce)
    neutral = {"amax": float("-inf"), "amin": float("inf"), "prod": 1.0}.get(mode, 0.0)
    start = neutral if initial is None else float(initial)
    extremum = mode in ("amax", "amin")
    total = data.new_full(shape, start).scatter_reduce(dim, index, data, mode, include_self=not extremum).narrow(dim, 0, count)
    if extremum and initial is not None:  # at a tie the elements get the gradient, not the initial value
        beyond = total < start if mode == "amax" else total > start
        total = torch.where(beyond, start, total)
    if reduce != "mean":
        return total
    begins = ends - lengths if lengths is not None else given.narrow(dim, 0, count)
    length = (ends - begins).reshape(*ends.shape, *(1,) * rest).to(data.dtype)
    mean = total / length.clamp(min=1)
    return mean if initial is not None else mean.where(length > 0, float("nan"))


BAGS: dict[Any, Callable] = {
    F.embedding_bag: embedding_bag,
    torch.segment_reduce: segment_reduce,
    torch.ops.aten.segment_reduce.default: segment_reduce,
}
