"""Products of float32 matrices on a CPU by oneDNN, where MKL uses half of the processor (`analysis.processor.narrow_mkl`)."""

from __future__ import annotations

import torch

from shorthaul.analysis.processor import narrow_mkl

# Measured on 2 cores; that one is faster than the other depends on their quotients. In operations or bytes a second.
MKL, ONEDNN = 205e9, 450e9
TRANSPOSE, REORDER, COPY = 14e9, 45e9, 50e9
LEAST = 1 << 22  # operations of a product from which on it matters


def multiply(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor | None) -> torch.Tensor | None:
    """left @ right + bias of matrices, in the target if there is one; None where MKL is as fast, or oneDNN is not there."""
    if left.dtype is not torch.float32 or left.device.type != "cpu" or not narrow_mkl() or not _pays(left, right, target is not None):
        return None
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch._C._get_mkldnn_enabled()  # type: ignore[attr-defined]
    if not (there and torch.backends.mkl.is_available()):
        return None
    y = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return y if target is None else target.copy_(y)


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
