"""Interpolation: one axis after the other, each as a matrix of weights that depends on sizes alone; grid sampling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.table import operator


def _positions(n: Any, m: Any, scale: float, mode: str, roi: tuple[float, float], device: Any) -> Tensor:
    """For each of m results its place among n elements, in float64."""
    at = torch.arange(m, dtype=torch.float64, device=device)
    if mode == "half_pixel":
        return (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if m > 1 else at * 0.0
    if mode == "half_pixel_symmetric":
        adjusted = m / (n * scale)
        centre = n / 2
        return centre * (1 - adjusted) + (at + 0.5) / scale - 0.5
    if mode == "align_corners":
        last = scale * n - 1  # by the scale, which need not give a whole number
        return at * (n - 1) / last if last > 0 else at * 0.0
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        return start * (n - 1) + at * (end - start) * (n - 1) / (m - 1) if m > 1 else at * 0.0 + 0.5 * (start + end) * (n - 1)
    raise OnnxError(f"Resize has no coordinate transformation {mode!r}")


def _nearest(x: Tensor, mode: str) -> Tensor:
    if mode == "round_prefer_floor":
        return torch.ceil(x - 0.5)
    if mode == "round_prefer_ceil":
        return torch.floor(x + 0.5)
    return torch.floor(x) if mode == "floor" else torch.ceil(x)


def _kernel(distance: Tensor, mode: str, a: float) -> Tensor:
    d = distance.abs()
    if mode == "linear":
        return (1 - d).clamp(min=0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def weights(n: Any, m: Any, x: Tensor, scale: float, mode: str, a: float, exclude_outside: bool, antialias: bool) -> Tensor:
    """The matrix [m, n] that interpolates at the places x [m]."""
    stretch = max(1.0, 1.0 / scale) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) * stretch
    taps = 2 * int(-(-reach // 1))
    first = torch.floor(x) - taps // 2 + 1
    at = first[:, None] + torch.arange(taps, dtype=x.dtype, device=x.device)  # m, taps
    w = _kernel((at - x[:, None]) / stretch, mode, a)
    if exclude_outside or antialias:
        w = torch.where((at >= 0) & (at <= n - 1), w, torch.zeros_like(w)) if exclude_outside else w
        w = w / w.sum(1, keepdim=True)
    columns = at.clamp(0, n - 1).to(torch.int64)
    return torch.zeros(m, n, dtype=x.dtype, device=x.device).scatter_add(1, columns, w)


def _along(x: Tensor, axis: int, w: Tensor) -> Tensor:
    """The product of a matrix with one axis of x."""
    return torch.movedim(torch.matmul(torch.movedim(x, axis, -1), w.t().to(x.dtype)), -1, axis)


def resize(
    x: Tensor, sizes: list, scales: list, *, mode: str, coordinates: str, roi: Any = None, nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0, antialias: int = 0,
) -> Tensor:  # fmt: skip
    """x resampled to `sizes`; `scales` are those that ONNX computes places with."""
    floating = x if x.is_floating_point() and x.dtype.itemsize >= 4 else x.to(torch.float32)
    outside = None
    y = x if mode == "nearest" else floating
    for axis, (n, m, s) in enumerate(zip(x.shape, sizes, scales, strict=True)):
        crop = coordinates == "tf_crop_and_resize"
        if n == m and s == 1.0 and not (crop and (roi[axis], roi[axis + x.dim()]) != (0.0, 1.0)):
            continue
        place = _positions(n, m, s, coordinates, (roi[axis], roi[axis + x.dim()]) if crop else (0.0, 1.0), x.device)
        if crop:
            beyond = ((place < 0) | (place > n - 1)).reshape([-1 if i == axis else 1 for i in range(x.dim())])
            outside = beyond if outside is None else outside | beyond
        if mode == "nearest":
            y = y.index_select(axis, _nearest(place, nearest_mode).clamp(0, n - 1).to(torch.int64))
        else:
            y = _along(y, axis, weights(n, m, place, s, mode, cubic_coeff_a, bool(exclude_outside), bool(antialias)))
    if outside is not None:
        y = torch.where(outside, torch.full_like(y, extrapolation_value), y)
    if y.dtype is not x.dtype:
        y = y.to(x.dtype) if x.is_floating_point() else torch.round(y).to(x.dtype)
    return y


def _plain_bilinear(x: Tensor, axes: tuple, coordinates: str, mode: str, antialias: int) -> bool:
    """Whether PyTorch's interpolation means the same: linear, over all but the first two axes."""
    return (mode == "linear" and not antialias and x.dim() in (3, 4, 5) and axes == tuple(range(2, x.dim()))
            and coordinates == "half_pixel" and x.dtype in (torch.float32, torch.float64))  # fmt: skip


@operator("Resize", since=11, host=("roi", "scales", "sizes"))
def resize_11(
    x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, *, antialias: int = 0, axes: Any = None,
    coordinate_transformation_mode: str, cubic_coeff_a: float, exclude_outside: int, extrapolation_value: float,
    keep_aspect_ratio_policy: str = "stretch", mode: str, nearest_mode: str,
) -> Tensor:  # fmt: skip
    chosen = tuple(range(x.dim())) if axes is None else tuple(a % x.dim() for a in axes)
    new, factors = list(x.shape), [1.0] * x.dim()
    if sizes:
        ratios = [m / x.shape[a] for a, m in zip(chosen, sizes, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            one = min(ratios) if keep_aspect_ratio_policy == "not_larger" else max(ratios)
            ratios = [one] * len(ratios)
            sizes = [int(one * x.shape[a] + 0.5) for a in chosen]
        for a, m, s in zip(chosen, sizes, ratios, strict=True):
            new[a], factors[a] = m, s
    else:
        for a, s in zip(chosen, scales, strict=True):
            new[a], factors[a] = int(x.shape[a] * s), s
    whole_roi = None
    if coordinate_transformation_mode == "tf_crop_and_resize":
        whole_roi = [0.0] * x.dim() + [1.0] * x.dim()
        for i, a in enumerate(chosen):
            whole_roi[a], whole_roi[a + x.dim()] = roi[i], roi[i + len(chosen)]
    changed = tuple(a for a in range(x.dim()) if new[a] is not x.shape[a] and new[a] != x.shape[a])
    whole = all(new[a] == x.shape[a] * factors[a] for a in changed)
    if whole and _plain_bilinear(x, changed, coordinate_transformation_mode, mode, antialias):
        return F.interpolate(x, size=new[2:], mode=("linear", "bilinear", "trilinear")[x.dim() - 3], align_corners=False)
    return resize(x, new, factors, mode=mode, coordinates=coordinate_transformation_mode, roi=whole_roi, nearest_mode=nearest_mode,
                  cubic_coeff_a=cubic_coeff_a, exclude_outside=exclude_outside, extrapolation_value=extrapolation_value,
                  antialias=antialias)  # fmt: skip


@operator("Upsample", since=7, host=("scales",))
@operator("Resize", since=10, host=("scales",))
def resize_10(x: Tensor, scales: tuple, *, mode: str) -> Tensor:
    sizes = [int(n * s) for n, s in zip(x.shape, scales, strict=True)]
    return resize(x, sizes, list(scales), mode="linear" if mode == "bilinear" else mode, coordinates="asymmetric", nearest_mode="floor")


@operator("Upsample", since=1)
def upsample_1(x: Tensor, *, height_scale: float, width_scale: float, mode: str) -> Tensor:
    return resize_10(x, (1.0, 1.0, height_scale, width_scale), mode=mode)


_GRID_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}


@operator("GridSample")
def grid_sample(x: Tensor, grid: Tensor, *, align_corners: int, mode: str, padding_mode: str) -> Tensor:
    return F.grid_sample(x, grid.to(x.dtype), _GRID_MODES[mode], padding_mode, bool(align_corners))


@operator("AffineGrid", host=("size",))
def affine_grid(theta: Tensor, size: tuple, *, align_corners: int) -> Tensor:
    return F.affine_grid(theta, list(size), bool(align_corners))
