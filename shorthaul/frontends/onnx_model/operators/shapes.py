"""Operators that only arrange elements, and those that make tensors from sizes."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.table import operator
from shorthaul.frontends.onnx_model.types import held

_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**36


def check_memory(shape: Any, itemsize: int = 4) -> None:
    """Refuse to make a tensor that this machine could not hold, before it is asked for the memory."""
    count = host.product(shape)
    if isinstance(count, int) and (count * itemsize > _MEMORY or any(n < 0 for n in shape)):
        size = f"{count * itemsize / 2**30:.0f} GiB, and this machine has {_MEMORY / 2**30:.0f}"
        raise OnnxError(f"a tensor of shape {tuple(shape)} takes {size}",
                        "The sizes that the model computes are wrong, or it is meant for a larger machine.")  # fmt: skip


@operator("Shape", on_host=host.shape)
def shape(x: Any, *, start: int = 0, end: int | None = None) -> Any:
    return host.shape(x, start=start, end=end)


@operator("Size", on_host=host.size)
def size(x: Any) -> Any:
    return host.size(x)


@operator("Reshape", since=5, host=("shape",), on_host=host.reshape)
@operator("Reshape", since=1, ignores=("consumed_inputs",))
def reshape(data: Tensor, shape: tuple, *, allowzero: int = 0) -> Tensor:
    if not allowzero and any(isinstance(n, int) and n == 0 for n in shape):
        shape = tuple(data.shape[i] if n == 0 else n for i, n in enumerate(shape))
    return data.reshape(shape)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(host.product(x.shape[:axis]), host.product(x.shape[axis:]))


@operator("Squeeze", host=("axes",), on_host=host.squeeze)
def squeeze(data: Tensor, axes: Any = None) -> Tensor:
    return data.squeeze() if axes is None else data.squeeze(host.several(axes)) if axes != () else data


@operator("Unsqueeze", host=("axes",), on_host=host.unsqueeze)
def unsqueeze(data: Tensor, axes: Any) -> Tensor:
    axes = host.several(axes)
    rank = data.dim() + len(axes)
    for a in sorted(a + rank if a < 0 else a for a in axes):
        data = data.unsqueeze(a)
    return data


@operator("Transpose", on_host=lambda data, *, perm: data)
def transpose(data: Tensor, *, perm: Any) -> Tensor:
    return data.permute(tuple(perm) if perm is not None else tuple(range(data.dim()))[::-1])


@operator("Expand", host=("shape",))
def expand(x: Tensor, shape: tuple) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


@operator("Tile", since=6, host=("repeats",))
def tile(x: Tensor, repeats: tuple) -> Tensor:
    check_memory([a * b for a, b in zip(x.shape, repeats, strict=True)], x.dtype.itemsize)
    return x.repeat(tuple(repeats))


@operator("Tile", since=1, host=("tiles", "axis"))
def tile_one_axis(x: Tensor, tiles: Any, axis: Any) -> Tensor:
    repeats = [1] * x.dim()
    repeats[int(axis)] = int(tiles)
    return tile(x, tuple(repeats))


@operator("Concat", since=4, on_host=host.concat)
@operator("Concat", since=1, on_host=host.concat)
def concat(*inputs: Tensor, axis: int | None) -> Tensor:
    return torch.cat(inputs, 1 if axis is None else axis)


def _pieces(n: Any, split: Any, parts: int) -> tuple:
    if split is not None:
        return tuple(split)
    each = -(-n // parts)
    return (each,) * (parts - 1) + (n - each * (parts - 1),)


def _split_on_host(x: Any, split: Any = None, *, axis: int, num_outputs: int | None = None, count: int) -> tuple:
    return host.split(x, _pieces(len(x), split, num_outputs or count))


@operator("Split", host=("split",), on_host=_split_on_host)
def split(x: Tensor, split: Any = None, *, axis: int, num_outputs: int | None = None, count: int) -> tuple:
    return torch.split(x, list(_pieces(x.shape[axis], split, num_outputs or count)), axis)


@operator("Slice", since=10, host=("starts", "ends", "axes", "steps"), on_host=host.slice_)
@operator("Slice", since=1)
def slice_(data: Tensor, starts: tuple, ends: tuple, axes: Any = None, steps: Any = None) -> Tensor:
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    for a, start, end, step in zip(axes, starts, ends, steps, strict=True):
        n = data.shape[a]
        if step > 0:
            index = [slice(None)] * data.dim()
            index[a] = slice(start, end if not isinstance(end, int) or end < 2**62 else None, step)
            data = data[tuple(index)]
        else:
            start = min(max(start + n if start < 0 else start, -1), n - 1)
            end = max(end + n if end < 0 else end, -1) if end >= -n else -1
            data = data.index_select(a, torch.arange(start, min(end, start), step, device=data.device))
    return data


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad_axis(data: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Elements repeated around one axis: by index, for any rank and type."""
    n = data.shape[axis]
    index = torch.arange(-before, n + after, device=data.device)
    if mode == "edge":
        index = index.clamp(0, n - 1)
    elif mode == "wrap":
        index = index % n
    else:
        period = max(2 * (n - 1), 1)
        index = (n - 1) - ((index % period) - (n - 1)).abs()
    return data.index_select(axis, index)


@operator("Pad", since=11, host=("pads", "axes"))
@operator("Pad", since=2)
def pad(data: Tensor, pads: tuple, constant_value: Any = None, axes: Any = None, *, mode: str, value: float | None = None) -> Tensor:
    axes = tuple(range(data.dim())) if axes is None else tuple(a + data.dim() if a < 0 else a for a in axes)
    before, after = pads[: len(axes)], pads[len(axes) :]
    around = {a: (b, e) for a, b, e in zip(axes, before, after, strict=True)}
    if _PAD_MODES.get(mode) is None:
        raise OnnxError(f"Pad has no mode {mode!r}")
    check_memory([n + sum(around.get(i, (0, 0))) for i, n in enumerate(data.shape)], data.dtype.itemsize)
    if mode != "constant":
        for a, (b, e) in around.items():  # what is cut off goes first
            data = data.narrow(a, -min(b, 0), data.shape[a] + min(b, 0) + min(e, 0)) if min(b, e) < 0 else data
            if max(b, e) > 0:
                data = pad_axis(data, a, max(b, 0), max(e, 0), mode)
        return data
    flat = [n for i in reversed(range(data.dim())) for n in around.get(i, (0, 0))]
    if isinstance(constant_value, Tensor):
        inside = F.pad(torch.ones_like(data, dtype=torch.bool), flat)
        return torch.where(inside, F.pad(data, flat), constant_value.reshape(()))
    fill = constant_value if constant_value is not None else value
    if data.dtype is torch.bool:
        return F.pad(data, flat, value=bool(fill))
    return F.pad(data, flat, value=0.0 if fill is None else fill)


@operator("Pad", since=1)
def pad_1(data: Tensor, *, paddings: tuple, mode: str, value: float) -> Tensor:
    return pad(data, paddings, mode=mode, value=value)


@operator("CenterCropPad", host=("shape",))
def center_crop_pad(x: Tensor, shape: tuple, *, axes: Any = None) -> Tensor:
    for a, n in zip(range(x.dim()) if axes is None else axes, shape, strict=True):
        have = x.shape[a]
        if have > n:
            x = x.narrow(a, (have - n) // 2, n)
        elif have < n:
            around = [0, 0] * x.dim()
            k = 2 * (x.dim() - 1 - (a + x.dim() if a < 0 else a))
            around[k : k + 2] = [(n - have) // 2, n - have - (n - have) // 2]
            x = F.pad(x, around)
    return x


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, b)
    x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b)
    x = x.permute(0, 1, 3, 5, 2, 4) if mode == "CRD" else x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b * b, h // b, w // b)


@operator("Trilu", host=("k",))
def trilu(x: Tensor, k: Any = None, *, upper: int) -> Tensor:
    k = 0 if k is None else host.one(k)
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return trilu(x.to(torch.int64), k, upper=upper).to(x.dtype)
    return torch.triu(x, k) if upper else torch.tril(x, k)


# --- tensors from sizes ---------------------------------------------------------------------------------------


def _filled_on_host(shape: Any, *, value: Any, device: Any = None) -> Any:
    """A short vector of integers: what models build the target of an Expand from."""
    if len(shape) != 1 or type(shape[0]) is not int or shape[0] > host.LONGEST or value is None or value[1] is not torch.int64:
        return NotImplemented
    return (value[0],) * shape[0]


@operator("ConstantOfShape", host=("shape",), on_host=_filled_on_host)
def constant_of_shape(shape: tuple, *, value: Any, device: Any) -> Tensor:
    """value: a number and its type, None for 0.0."""
    number, dtype = (0.0, torch.float32) if value is None else value
    check_memory(shape, dtype.itemsize)
    if dtype.itemsize == 1 and dtype.is_floating_point:
        return torch.full(tuple(shape), number, device=device).to(dtype)
    return torch.full(tuple(shape), number, dtype=dtype, device=device)


@operator("Range", host=("start", "limit", "delta"), on_host=host.range_)
def range_(start: Any, limit: Any, delta: Any, *, device: Any, types: tuple, stash_type: int = 1) -> Tensor:
    start, limit, delta = map(host.one, (start, limit, delta))
    dtype = held(types[0] or (1 if isinstance(start, float) else 7), "Range")
    count = -((start - limit) // delta) if not isinstance(start, float) else int(max(-((start - limit) // delta), 0))
    if isinstance(count, int):
        check_memory((max(count, 0),), dtype.itemsize)
    if dtype.is_floating_point:
        # as the function body in ONNX: start + i·delta, computed in the wider type where there is one
        wide = torch.float32 if dtype.itemsize < 4 else dtype
        return (torch.arange(count, device=device).to(wide) * delta + start).to(dtype)
    return torch.arange(start, limit, delta, dtype=dtype, device=device)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None, k: int) -> Tensor:
    n, m = x.shape
    kind = x.dtype if dtype is None else held(dtype, "EyeLike")
    rows, columns = torch.arange(n, device=x.device), torch.arange(m, device=x.device)
    return (columns[None, :] - rows[:, None] == k).to(kind)


@operator("TensorScatter")
def tensor_scatter(past: Tensor, update: Tensor, write_indices: Any = None, *, axis: int, mode: str) -> Tensor:
    axis = axis + past.dim() if axis < 0 else axis
    n, length = past.shape[axis], update.shape[axis]
    starts = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device) if write_indices is None else write_indices
    at = starts[:, None] + torch.arange(length, device=past.device)  # batch, length
    at = at % n if mode == "circular" else at
    sizes = [1] * past.dim()
    sizes[0], sizes[axis] = at.shape
    return past.scatter(axis, at.reshape(sizes).expand(update.shape), update)
