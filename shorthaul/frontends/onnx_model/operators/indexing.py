"""Operators that read or write by index, and those whose result's size is data."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.table import operator
from shorthaul.frontends.onnx_model.types import held


def wrapped(indices: Tensor, n: Any) -> Tensor:
    """Negative indices count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + n, indices)


@operator("Gather", on_host=host.gather)
def gather(data: Any, indices: Tensor, *, axis: int) -> Tensor:
    axis = axis + data.dim() if axis < 0 else axis
    at = wrapped(indices, data.shape[axis])
    if axis == 0 and data.dim() == 2 and data.is_floating_point():
        return F.embedding(at, data)
    found = data.index_select(axis, at.reshape(-1))
    return found.reshape(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(data: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    return torch.gather(data, axis, wrapped(indices, data.shape[axis]))


def _grid(sizes: Any, device: Any) -> list[Tensor]:
    """Open index grids over the leading batch dimensions."""
    return [torch.arange(n, device=device).reshape([-1 if j == i else 1 for j in range(len(sizes))]) for i, n in enumerate(sizes)]


@operator("GatherND")
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    b, depth = batch_dims, indices.shape[-1]
    middle = indices.dim() - 1 - b
    at = [wrapped(indices[..., i], data.shape[b + i]) for i in range(depth)]
    batch = [g.reshape(g.shape + (1,) * middle) for g in _grid(data.shape[:b], data.device)]
    return data[tuple(batch + at)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", since=11)
@operator("Scatter", since=9)
def scatter_elements(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int, reduction: str = "none") -> Tensor:
    at = wrapped(indices, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, at, updates)
    return data.scatter_reduce(axis, at, updates, _REDUCE[reduction], include_self=True)


@operator("ScatterND")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    at = tuple(wrapped(indices[..., i], data.shape[i]) for i in range(depth))
    if reduction in ("none", "add"):
        return data.index_put(at, updates, accumulate=reduction == "add")
    flat = torch.zeros_like(at[0])
    for i, index in enumerate(at):
        flat = flat * data.shape[i] + index
    rest = host.product(data.shape[depth:])
    rows = flat.reshape(-1, 1).expand(-1, rest)
    wide = data.reshape(-1, rest).scatter_reduce(0, rows, updates.reshape(-1, rest), _REDUCE[reduction], include_self=True)
    return wide.reshape(data.shape)


@operator("OneHot", host=("depth",))
def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int) -> Tensor:
    n = int(depth[0] if isinstance(depth, tuple) else depth)
    at = indices.to(torch.int64)
    at = torch.where(at < 0, at + n, at)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    classes = torch.arange(n, device=indices.device).reshape((-1,) + (1,) * (indices.dim() - axis))
    return torch.where(at.unsqueeze(axis) == classes, values[1], values[0])


@operator("TopK", host=("k",))
def top_k(x: Tensor, k: Any, *, axis: int, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    n = k[0] if isinstance(k, tuple) else k
    # of equal elements the first wins, so the sort is stable
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, n), indices.narrow(axis, 0, n)


@operator("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int, time_axis: int) -> Tensor:
    time = torch.arange(x.shape[time_axis], device=x.device)
    at = torch.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)  # batch, time
    at = at if batch_axis < time_axis else at.t()
    sizes = [1] * x.dim()
    sizes[batch_axis], sizes[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    return torch.gather(x, time_axis, at.reshape(sizes).expand(x.shape))


# --- results whose size is data -----------------------------------------------------------------------------


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x if x.dim() else x.reshape(1)).t()[: x.dim()]


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None) -> Tensor:
    chosen = torch.nonzero(condition)[:, 0]
    return x.reshape(-1).index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


@operator("Unique")
def unique(x: Tensor, *, axis: int | None, sorted: int, count: int) -> tuple[Tensor, ...]:
    dim = 0 if axis is None else axis
    x = x.reshape(-1) if axis is None else x
    _, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=dim)
    positions = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, positions, "amin")
    if not sorted:
        order = torch.argsort(first)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=x.device))
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return x.index_select(dim, first), first, inverse, counts


@operator("NonMaxSuppression")
def non_max_suppression(
    boxes: Tensor, scores: Tensor, most: Any = None, overlap: Any = None, least: Any = None, *, center_point_box: int
) -> Tensor:
    """Indices [n, 3] of (batch, class, box), best score first within a class; of boxes [batch, n, 4], scores [batch, classes, n]."""
    boxes, scores = boxes.detach(), scores.detach()  # a choice, without a gradient
    overlap, least = (v.detach() if isinstance(v, Tensor) else v for v in (overlap, least))
    limit = 0 if most is None else int(most)
    iou_limit, score_limit = 0.0 if overlap is None else float(overlap), None if least is None else float(least)
    if center_point_box:
        x, y, w, h = boxes.unbind(-1)
        corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1)
    else:
        corners = torch.cat((torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])), -1)
    found: list[tuple[int, int, int]] = []
    for b in range(boxes.shape[0]):
        box = corners[b]
        sides = (torch.minimum(box[:, None, 2:], box[None, :, 2:]) - torch.maximum(box[:, None, :2], box[None, :, :2])).clamp(min=0)
        shared = sides[..., 0] * sides[..., 1]
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        union = area[:, None] + area[None, :] - shared
        iou = torch.where(union > 0, shared / union, torch.zeros_like(shared))
        for c in range(scores.shape[1]):
            score = scores[b, c]
            order = torch.argsort(score, descending=True, stable=True).tolist()
            kept: list[int] = []
            for i in order:
                if len(kept) >= limit or (score_limit is not None and float(score[i]) <= score_limit):
                    break
                if all(float(iou[i, j]) <= iou_limit for j in kept):
                    kept.append(i)
            found += [(b, c, i) for i in kept]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


# --- sequences and optionals: Python lists and None -----------------------------------------------------------


@operator("SequenceConstruct")
def sequence_construct(*inputs: Any) -> list:
    return list(inputs)


@operator("SequenceEmpty", ignores=("dtype",))
def sequence_empty() -> list:
    return []


@operator("SequenceAt", host=("position",))
def sequence_at(sequence: list, position: Any) -> Any:
    return sequence[_position(position, len(sequence), "SequenceAt")]


def _position(position: Any, n: int, what: str) -> int:
    p = position[0] if isinstance(position, tuple) else position
    if not -n <= p < max(n, 1):
        raise OnnxError(f"{what}: position {p} of a sequence of {n}")
    return p


@operator("SequenceInsert", host=("position",))
def sequence_insert(sequence: list, value: Any, position: Any = None) -> list:
    p = len(sequence) if position is None else position[0] if isinstance(position, tuple) else position
    p = p + len(sequence) if p < 0 else p
    return [*sequence[:p], value, *sequence[p:]]


@operator("SequenceErase", host=("position",))
def sequence_erase(sequence: list, position: Any = None) -> list:
    p = _position(-1 if position is None else position, len(sequence), "SequenceErase")
    p = p + len(sequence) if p < 0 else p
    return [*sequence[:p], *sequence[p + 1 :]]


@operator("SequenceLength")
def sequence_length(sequence: list) -> Any:
    return len(sequence)


@operator("SplitToSequence", host=("split",))
def split_to_sequence(x: Tensor, split: Any = None, *, axis: int, keepdims: int) -> list:
    n = x.shape[axis]
    if split is None:
        pieces = x.split(1, axis)
        return list(pieces) if keepdims else [p.squeeze(axis) for p in pieces]
    if not isinstance(split, tuple):
        return list(x.split(split, axis))
    if sum(split) != n:
        raise OnnxError(f"SplitToSequence: pieces {split} of an axis of {n}")
    return list(x.split(list(split), axis))


@operator("ConcatFromSequence")
def concat_from_sequence(sequence: list, *, axis: int, new_axis: int) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@operator("Optional", ignores=("type",))
def optional(value: Any = None) -> Any:
    return value


@operator("OptionalHasElement")
def optional_has_element(value: Any = None) -> Any:
    return value is not None


@operator("OptionalGetElement")
def optional_get_element(value: Any) -> Any:
    if value is None:
        raise OnnxError("OptionalGetElement: the optional is empty")
    return value


@operator("Multinomial")
def multinomial(x: Tensor, *, dtype: int, sample_size: int, seed: float | None) -> Tensor:
    from shorthaul.frontends.onnx_model.operators.random import generator

    return torch.multinomial(torch.softmax(x, -1), sample_size, True, generator=generator(seed, x.device)).to(held(dtype, "Multinomial"))
