"""Products of float32 matrices on a CPU by oneDNN, where MKL uses half of the processor (`analysis.processor.narrow_mkl`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from shorthaul.analysis.processor import narrow_mkl
from shorthaul.analysis.products import plan
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32

# Measured on 2 cores; that one is faster than the other depends on their quotients. In operations or bytes a second.
MKL, ONEDNN = 205e9, 450e9
TRANSPOSE, REORDER, COPY = 14e9, 45e9, 50e9
LEAST = 1 << 22  # operations of a product from which on it matters
LONG = 4096  # terms of a sum from which on a product of transposed rows is a convolution's gradient
LARGE = 32 << 20  # bytes of a result from which on the C library gives its memory back at once, and new pages cost more than a copy


def fills(device: torch.device, attributes: Mapping[str, Any], containers: Mapping[str, Container]) -> bool:
    """Whether a contraction writes into planned memory: not where its result comes from oneDNN, whose it may stay."""
    if device.type != "cpu" or not containers or not narrow_mkl():
        return True
    a, b, y = (containers[k] for k in "aby")
    if y.dtype is not float32 or not all(isinstance(n, int) for c in (a, b, y) for n in c.shape) or plan(attributes["equation"]).batch:
        return True
    size_a, size_b, size_y = (math.prod(n for n in c.shape if isinstance(n, int)) for c in (a, b, y))
    work = 2 * math.sqrt(size_a * size_b * size_y)  # of rows × terms, terms × columns and rows × columns
    return work < LEAST or 4 * size_y >= LARGE


def multiply(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor | None) -> torch.Tensor | None:
    """left @ right + bias of matrices, in the target if there is one; None where MKL is as fast, or oneDNN is not there."""
    if left.dtype is not torch.float32 or left.device.type != "cpu" or not narrow_mkl():
        return None
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch._C._get_mkldnn_enabled()  # type: ignore[attr-defined]
    if not (there and torch.backends.mkl.is_available()):
        return None
    if target is not None and bias is None and target.stride(0) == 1 and target.stride(1) != 1:  # its transpose lies as oneDNN writes
        found = multiply(right.t(), left.t(), None, target.t())
        return None if found is None else target
    if bias is None and _is_long(left, right):
        y = _by_convolution(left, right)
    elif _pays(left, right, target is not None):
        y = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    else:
        return None
    return y if target is None else target.copy_(y)


def _is_long(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether it is a gradient of weights over many rows of images, as they lie."""
    (rows, terms), columns = left.shape, right.shape[1]
    return terms >= LONG and 2 * rows * terms * columns >= LEAST and left.stride() == (1, rows) and right.stride() == (columns, 1)


def _by_convolution(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right as the gradient of a 1×1 convolution's weights, which transposes nothing: 300 to 440 GF/s."""
    (rows, terms), columns = left.shape, right.shape[1]
    g, x = left.t().view(1, 1, terms, rows).movedim(-1, 1), right.view(1, 1, terms, columns).movedim(-1, 1)
    weight, ones, zeros = right.new_empty(rows, columns, 1, 1), [1, 1], [0, 0]
    found = torch.ops.aten.convolution_backward.default(g, x, weight, None, ones, zeros, ones, False, zeros, 1, [False, True, False])
    return found[1].flatten(1)


def _pays(left: torch.Tensor, right: torch.Tensor, copied: bool) -> bool:
    """By what oneDNN packs anew and what is copied: it allocates its result."""
    (rows, terms), columns = left.shape, right.shape[1]
    work = 2 * rows * terms * columns
    if work < LEAST or 1 not in left.stride() or 1 not in right.stride():
        return False
    seconds = work / ONEDNN
    if left.stride(1) != 1:
        seconds += 8 * left.numel() / TRANSPOSE
    if right.stride(0) != 1:
        seconds += 8 * right.numel() / REORDER
    if copied:
        seconds += 8 * rows * columns / COPY
    return seconds < work / MKL
