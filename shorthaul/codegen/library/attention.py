"""Fused attention of PyTorch on the CPU and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .table import Tensors, library

aten = torch.ops.aten


def _mask(reads: Tensors, like: torch.Tensor) -> torch.Tensor | None:
    """The mask as the kernel takes it: additive, of the operands' dtype."""
    mask = reads.get("mask")
    if mask is None:
        return None
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, float("-inf"))
    return mask


@library("flash_attention")
def flash_attention(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """Attention of (batch, heads, length, size) tensors without dropout: the result and the log-sum-exp of each row."""
    q, k, v = reads["q"], reads["k"], reads["v"]
    y, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(
        q, k, v, 0.0, attributes["causal"], attn_mask=_mask(reads, q), scale=attributes["scale"]
    )
    return {"y": y, "lse": lse}


@library("flash_attention_backward")
def flash_attention_backward(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradients of `flash_attention` by queries, keys and values."""
    q, k, v = reads["q"], reads["k"], reads["v"]
    gq, gk, gv = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        reads["g"],
        q,
        k,
        v,
        reads["y"],
        reads["lse"],
        0.0,
        attributes["causal"],
        attn_mask=_mask(reads, q),
        scale=attributes["scale"],
    )
    return {"gq": gq, "gk": gk, "gv": gv}
