"""Convolutions of any rank that PyTorch has, with ONNX's padding; deformable and causal ones; columns to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.operators.contraction import centred
from shorthaul.frontends.onnx_model.operators.quantization import quantize
from shorthaul.frontends.onnx_model.table import operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_padding(n: Any, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[Any, Any]:
    """Padding before and after that gives ceil(n / stride) results."""
    reach = dilation * (kernel - 1) + 1
    total = (-(-n // stride) - 1) * stride + reach - n
    total = total if not isinstance(total, int) or total > 0 else 0
    return (total - total // 2, total // 2) if lower else (total // 2, total - total // 2)


def padding(
    sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Any, auto_pad: str
) -> list[tuple[Any, Any]]:
    """Padding before and after each spatial axis."""
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return [same_padding(n, k, s, d, auto_pad == "SAME_LOWER") for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)]
    if auto_pad == "VALID" or pads is None:
        return [(0, 0)] * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def symmetric(x: Tensor, around: Sequence[tuple[Any, Any]], fill: float = 0.0) -> tuple[Tensor, list[Any]]:
    """Padding that is equal on both sides is left to the operator; other padding is put around x."""
    if all(b == e for b, e in around):
        return x, [b for b, _ in around]
    return F.pad(x, [n for pair in reversed(around) for n in pair], value=fill), [0] * len(around)


def _function(table: dict, x: Tensor, name: str) -> Any:
    found = table.get(x.dim() - 2)
    if found is None:
        raise OnnxError(f"{name} over {x.dim() - 2} spatial dimensions; PyTorch has 1 to 3")
    return found


@operator("Conv")
def conv(
    x: Tensor, w: Tensor, b: Any = None, *, auto_pad: str, dilations: Any, group: int, kernel_shape: Any, pads: Any, strides: Any
) -> Tensor:
    rank = x.dim() - 2
    kernel, stride, dilation = list(w.shape[2:]), strides or [1] * rank, dilations or [1] * rank
    function = _function(_CONV, x, "Conv")
    x, around = symmetric(x, padding(x.shape[2:], kernel, stride, dilation, pads, auto_pad))
    return function(x, w, b, tuple(stride), tuple(around), tuple(dilation), group)


@operator("ConvTranspose", ignores=("kernel_shape",))
def conv_transpose(
    x: Tensor, w: Tensor, b: Any = None, *, auto_pad: str, dilations: Any, group: int, output_padding: Any, output_shape: Any,
    pads: Any, strides: Any,
) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    kernel, stride, dilation, extra = list(w.shape[2:]), strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape[-rank:] if output_shape is not None else [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        around = []
        for n, e, m in zip(full, extra, wanted, strict=True):
            total = n + e - m
            small, large = total // 2, total - total // 2
            around.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    else:
        around = padding(x.shape[2:], kernel, stride, dilation, pads, auto_pad)
    function = _function(_CONV_TRANSPOSE, x, "ConvTranspose")
    if all(b_ == e_ and b_ >= 0 for b_, e_ in around) and all(e < s or e < d for e, s, d in zip(extra, stride, dilation, strict=True)):
        return function(x, w, b, tuple(stride), tuple(b_ for b_, _ in around), tuple(extra), group, tuple(dilation))
    y = function(x, w, b, tuple(stride), 0, 0, group, tuple(dilation))
    # rows past the last that an operand reaches hold the bias alone
    crop = [n for (before, after), e in zip(reversed(around), reversed(list(extra)), strict=True) for n in (-before, e - after)]
    if b is None or all(n <= 0 for n in crop):
        return F.pad(y, crop)
    shift = b.reshape((1, -1) + (1,) * rank)
    return F.pad(y - shift, crop) + shift


@operator("ConvInteger")
def conv_integer(
    x: Tensor, w: Tensor, x_zero: Any = None, w_zero: Any = None, *, auto_pad: str, dilations: Any, group: int, kernel_shape: Any,
    pads: Any, strides: Any,
) -> Tensor:  # fmt: skip
    # in float64, exact for the sums that 8-bit operands make
    y = conv(centred(x, x_zero).to(torch.float64), centred(w, w_zero, 0).to(torch.float64), auto_pad=auto_pad, dilations=dilations,
             group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)  # fmt: skip
    return y.to(torch.int32)


@operator("QLinearConv")
def qlinear_conv(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor, y_scale: Tensor, y_zero: Tensor,
    b: Any = None, *, auto_pad: str, dilations: Any, group: int, kernel_shape: Any, pads: Any, strides: Any, types: tuple,
) -> Tensor:  # fmt: skip
    y = conv(centred(x, x_zero).to(torch.float64), centred(w, w_zero, 0).to(torch.float64), None if b is None else b.to(torch.float64),
             auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)  # fmt: skip
    by = x_scale.to(torch.float64) * w_scale.to(torch.float64).reshape((-1,) + (1,) * (x.dim() - 2 if w_scale.dim() else 0))
    return quantize(y * by / y_scale.to(torch.float64), y_zero, types[7])


@operator("Col2Im", host=("image_shape", "block_shape"))
def col2im(x: Tensor, image_shape: tuple, block_shape: tuple, *, dilations: Any, pads: Any, strides: Any) -> Tensor:
    """The transpose of taking windows: every column is added where it came from; x [n, c·∏block, windows]."""
    rank = len(block_shape)
    dilation, stride = dilations or (1,) * rank, strides or (1,) * rank
    around = padding(image_shape, block_shape, stride, dilation, pads, "NOTSET")
    padded = [n + b + e for n, (b, e) in zip(image_shape, around, strict=True)]
    counts = [(m - d * (k - 1) - 1) // s + 1 for m, k, s, d in zip(padded, block_shape, stride, dilation, strict=True)]
    at = torch.zeros((), dtype=torch.int64, device=x.device)
    for i, (k, s, d, count, m) in enumerate(zip(block_shape, stride, dilation, counts, padded, strict=True)):
        taps = torch.arange(k, device=x.device).reshape([-1 if j == i else 1 for j in range(2 * rank)]) * d
        steps = torch.arange(count, device=x.device).reshape([-1 if j == rank + i else 1 for j in range(2 * rank)]) * s
        at = at * m + taps + steps
    columns = x.reshape(x.shape[0], x.shape[1] // host.product(block_shape), -1)
    image = x.new_zeros(*columns.shape[:2], host.product(padded))
    image = image.index_add(2, at.reshape(-1), columns).reshape(*columns.shape[:2], *padded)
    for i, (n, (b, _)) in enumerate(zip(image_shape, around, strict=True)):
        image = image.narrow(2 + i, b, n)
    return image


def sample_planes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of planes x [..., h, w], zero beyond their rims, at real positions [..., p]; leading dimensions of all three
    broadcast."""
    h, w = x.shape[-2:]
    flat = x.reshape((*x.shape[:-2], h * w))
    top, left = torch.floor(rows), torch.floor(columns)
    total: Any = 0.0
    for dr in (0, 1):
        for dc in (0, 1):
            r, c = top + dr, left + dc
            weight = (1 - (rows - r).abs()) * (1 - (columns - c).abs())
            inside = (r >= 0) & (r <= h - 1) & (c >= 0) & (c <= w - 1)
            at = r.clamp(0, h - 1).to(torch.int64) * w + c.clamp(0, w - 1).to(torch.int64)
            lead = torch.broadcast_shapes(flat.shape[:-1], at.shape[:-1])
            values = torch.gather(flat.expand(lead + flat.shape[-1:]), -1, at.expand(lead + at.shape[-1:]))
            total = total + torch.where(inside, weight, 0.0) * values
    return total


@operator("DeformConv")
def deform_conv(
    x: Tensor, w: Tensor, offset: Tensor, b: Any = None, mask: Any = None, *, dilations: Any, group: int, kernel_shape: Any,
    offset_group: int, pads: Any, strides: Any,
) -> Tensor:  # fmt: skip
    if x.dim() != 4:
        raise OnnxError(f"DeformConv over {x.dim() - 2} spatial dimensions; 2 are supported")
    n, c, _, _ = x.shape
    kh, kw = w.shape[2:]
    oh, ow = offset.shape[2:]
    (sh, sw), (dh, dw), (top, left) = strides or (1, 1), dilations or (1, 1), (pads or (0, 0, 0, 0))[:2]
    shifts = offset.reshape(n, offset_group, 1, kh * kw, 2, oh, ow)
    tap = torch.arange(kh * kw, device=x.device).reshape(-1, 1, 1)
    rows = torch.arange(oh, device=x.device).reshape(1, -1, 1) * sh - top + tap // kw * dh
    columns = torch.arange(ow, device=x.device).reshape(1, 1, -1) * sw - left + tap % kw * dw
    at_rows, at_columns = ((p + shifts[..., i, :, :]).flatten(-3) for i, p in enumerate((rows, columns)))
    taken = sample_planes(x.reshape(n, offset_group, c // offset_group, *x.shape[2:]), at_rows, at_columns)
    taken = taken.reshape(n, offset_group, c // offset_group, kh * kw, oh * ow)
    if mask is not None:
        taken = taken * mask.reshape(n, offset_group, 1, kh * kw, oh * ow)
    windows = taken.reshape(n, group, c // group * kh * kw, oh * ow)
    y = torch.matmul(w.reshape(group, w.shape[0] // group, -1), windows).reshape(n, w.shape[0], oh, ow)
    return y if b is None else y + b.reshape(1, -1, 1, 1)
