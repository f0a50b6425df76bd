"""Pooling: by PyTorch's functions where they mean the same, else over windows taken as views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.operators.convolution import padding, sample_planes
from shorthaul.frontends.onnx_model.table import operator

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Windows:
    """Where the windows of a pooling lie: padding, and how far the last window may reach beyond it."""

    def __init__(self, x: Tensor, kernel: Sequence[int], strides: Any, dilations: Any, pads: Any, auto_pad: str, ceil_mode: int) -> None:
        rank = len(kernel)
        self.kernel, self.strides, self.dilations = tuple(kernel), tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        self.around = padding(x.shape[2:], kernel, self.strides, self.dilations, pads, auto_pad)
        self.sizes = []
        for n, k, s, d, (b, e) in zip(x.shape[2:], self.kernel, self.strides, self.dilations, self.around, strict=True):
            room = n + b + e - d * (k - 1) - 1
            count = -(-room // s) + 1 if ceil_mode and auto_pad == "NOTSET" else room // s + 1
            if ceil_mode and auto_pad == "NOTSET" and (count - 1) * s >= n + b:
                count -= 1  # a window that starts in the padding after the data is left out
            self.sizes.append(count)
        # what the last window needs beyond the padding
        self.extra = [(c - 1) * s + d * (k - 1) + 1 - n - b - e for n, c, k, s, d, (b, e)
                      in zip(x.shape[2:], self.sizes, self.kernel, self.strides, self.dilations, self.around, strict=True)]  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether PyTorch's pooling means the same: equal padding of at most half a window, nothing beyond."""
        return all(b == e and 2 * b <= k for (b, e), k in zip(self.around, self.kernel, strict=True)) and all(n <= 0 for n in self.extra)

    def taken(self, x: Tensor, fill: Any, inside: Any = None) -> Tensor:
        """The windows [n, c, *sizes, *kernel] of x with `fill` around it; inside: the value of the padding itself, where it is another
        than that of what lies beyond."""
        if inside is not None:
            x = F.pad(x, [n for pair in reversed(self.around) for n in pair], value=inside)
            x = F.pad(x, [n for e in reversed(self.extra) for n in (0, max(e, 0))], value=fill)
        else:
            both = zip(reversed(self.around), reversed(self.extra), strict=True)
            x = F.pad(x, [n for (b, e), more in both for n in (b, e + max(more, 0))], value=fill)
        for i, (count, k, s, d) in enumerate(zip(self.sizes, self.kernel, self.strides, self.dilations, strict=True)):
            x = x.narrow(2 + i, 0, (count - 1) * s + d * (k - 1) + 1).unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
        return x


def _last(kernel: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(kernel), 0))


@operator("MaxPool")
def max_pool(
    x: Tensor, *, auto_pad: str, kernel_shape: Any, pads: Any, strides: Any, dilations: Any = None, ceil_mode: int = 0,
    storage_order: int = 0, count: int = 1,
) -> tuple[Tensor, Any]:  # fmt: skip
    w = _Windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if count == 1 and w.plain and x.is_floating_point() and len(w.kernel) in _MAX:
        return _MAX[len(w.kernel)](x, w.kernel, w.strides, tuple(b for b, _ in w.around), w.dilations), None
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    windows = w.taken(x, lowest).flatten(-len(w.kernel))
    if count == 1:
        return torch.amax(windows, -1), None
    best = torch.argmax(windows, -1)
    values = torch.gather(windows, -1, best.unsqueeze(-1)).squeeze(-1)
    # the place of the winner in the whole tensor
    sizes, rank = x.shape[2:], len(w.kernel)
    place = torch.zeros((), dtype=torch.int64, device=x.device)
    weights = [host.product(sizes[i + 1 :]) if storage_order == 0 else host.product(sizes[:i]) for i in range(rank)]
    for i in range(rank):
        step = torch.arange(w.sizes[i], device=x.device).reshape([-1 if j == i else 1 for j in range(rank)])
        tap = best // host.product(w.kernel[i + 1 :]) % w.kernel[i]
        place = place + (step * w.strides[i] - w.around[i][0] + tap * w.dilations[i]) * weights[i]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *(1,) * rank)
    return values, place + planes * host.product(sizes)


@operator("AveragePool")
def average_pool(
    x: Tensor, *, auto_pad: str, kernel_shape: Any, pads: Any, strides: Any, dilations: Any = None, ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:  # fmt: skip
    w = _Windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if w.plain and len(w.kernel) in _AVERAGE and all(d == 1 for d in w.dilations):
        return _AVERAGE[len(w.kernel)](x, w.kernel, w.strides, tuple(b for b, _ in w.around), False, bool(count_include_pad))
    total = torch.sum(w.taken(x, 0.0), _last(w.kernel))
    ones = torch.ones_like(x[:1, :1])
    return total / torch.sum(w.taken(ones, 0.0, 1.0 if count_include_pad else 0.0), _last(w.kernel))


def norm(x: Tensor, p: int, axes: tuple, keep: bool = False) -> Tensor:
    """(∑|x|ᵖ)^(1/p); of zeros the gradient is zero."""
    return torch.linalg.vector_norm(x, p, axes, keep)


@operator("LpPool")
def lp_pool(
    x: Tensor, *, auto_pad: str, kernel_shape: Any, p: int, pads: Any, strides: Any, dilations: Any = None, ceil_mode: int = 0
) -> Tensor:
    w = _Windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return norm(w.taken(x, 0.0), p, _last(w.kernel))


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return torch.mean(x, _spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return torch.amax(x, _spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int) -> Tensor:
    return norm(x, p, _spatial(x), True)


@operator("MaxUnpool", host=("output_shape",))
def max_unpool(x: Tensor, indices: Tensor, output_shape: Any = None, *, kernel_shape: Any, pads: Any, strides: Any) -> Tensor:
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    inferred = [(n - 1) * s + k - pads[i] - pads[rank + i]
                for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel_shape, strict=True))]  # fmt: skip
    # the places are counted in the tensor that the pooling saw, whose size is the inferred one
    flat = x.new_zeros(host.product(x.shape[:2]) * host.product(inferred)).scatter(0, indices.reshape(-1), x.reshape(-1))
    y = flat.reshape(*x.shape[:2], *inferred)
    if output_shape is None:
        return y
    return F.pad(y, [n for m, have in zip(reversed(output_shape[2:]), reversed(inferred), strict=True) for n in (0, m - have)])


# --- regions of interest --------------------------------------------------------------------------------------


@operator("RoiAlign")
def roi_align(
    x: Tensor, rois: Tensor, batch_indices: Tensor, *, coordinate_transformation_mode: str = "output_half_pixel", mode: str,
    output_height: int, output_width: int, sampling_ratio: int, spatial_scale: float,
) -> Tensor:  # fmt: skip
    half = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    boxes = rois * spatial_scale - half
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    if not half:
        width, height = width.clamp(min=1.0), height.clamp(min=1.0)
    if sampling_ratio > 0:
        return _aligned(x, batch_indices, x1, y1, width, height, output_height, output_width, sampling_ratio, sampling_ratio, mode)
    # as many samples as a bin has pixels: another number for every region
    found = []
    for i in range(rois.shape[0]):
        gy = max(int(torch.ceil(height[i] / output_height)), 1)
        gx = max(int(torch.ceil(width[i] / output_width)), 1)
        batch, left, top, w, h = (v[i : i + 1] for v in (batch_indices, x1, y1, width, height))
        found.append(_aligned(x, batch, left, top, w, h, output_height, output_width, gy, gx, mode))
    return torch.cat(found) if found else x.new_zeros(0, x.shape[1], output_height, output_width)


def _aligned(x: Tensor, batch: Tensor, x1: Tensor, y1: Tensor, width: Tensor, height: Tensor, oh: int, ow: int, gy: int, gx: int,
             mode: str) -> Tensor:  # fmt: skip
    h, w = x.shape[2:]

    def positions(start: Tensor, extent: Tensor, bins: int, samples: int) -> Tensor:
        steps = (torch.arange(bins * samples, device=x.device).to(x.dtype) + 0.5) / samples
        return start[:, None] + steps * (extent / bins)[:, None]

    rows, columns = positions(y1, height, oh, gy), positions(x1, width, ow, gx)
    inside = ((rows >= -1) & (rows <= h))[:, :, None] & ((columns >= -1) & (columns <= w))[:, None, :]
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    grid_r = rows[:, :, None].expand(inside.shape).flatten(1)
    grid_c = columns[:, None, :].expand(inside.shape).flatten(1)
    planes = x.index_select(0, batch.to(torch.int64))
    n, c = planes.shape[:2]
    if mode == "max":  # the largest of the four weighted corners, not of the interpolated values
        values = _corner_maximum(planes, grid_r, grid_c)
    else:
        values = sample_planes(planes, grid_r[:, None], grid_c[:, None])
    values = torch.where(inside.flatten(1)[:, None], values, 0.0).reshape(n, c, oh, gy, ow, gx)
    return values.amax((3, 5)) if mode == "max" else values.mean((3, 5))


def _corner_maximum(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    h, w = planes.shape[2:]
    flat = planes.flatten(2)
    found = None
    for dr in (0, 1):
        for dc in (0, 1):
            r, c = torch.floor(rows) + dr, torch.floor(columns) + dc
            weight = (1 - (rows - r).abs()) * (1 - (columns - c).abs())
            at = r.clamp(0, h - 1).to(torch.int64) * w + c.clamp(0, w - 1).to(torch.int64)
            value = torch.gather(flat, -1, at[:, None].expand(-1, flat.shape[1], -1)) * weight[:, None]
            found = value if found is None else torch.maximum(found, value)
    assert found is not None
    return found


@operator("MaxRoiPool")
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: Any, spatial_scale: float) -> Tensor:
    oh, ow = pooled_shape
    found = []
    for batch, *corners in rois.tolist():
        x1, y1, x2, y2 = (round(v * spatial_scale) for v in corners)
        h, w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        plane = x[int(batch)]
        rows = []
        for i in range(oh):
            top, bottom = (min(max(v + y1, 0), x.shape[2]) for v in (i * h // oh, -(-(i + 1) * h // oh)))
            for j in range(ow):
                left, right = (min(max(v + x1, 0), x.shape[3]) for v in (j * w // ow, -(-(j + 1) * w // ow)))
                bin_ = plane[:, top:bottom, left:right].flatten(1)
                rows.append(bin_.amax(1) if bin_.shape[1] else x.new_zeros(x.shape[1]))
        found.append(torch.stack(rows, 1).reshape(-1, oh, ow))
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1], oh, ow)
