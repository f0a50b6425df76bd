"""Fused attention of PyTorch, on the CPU and on GPUs, and its gradient."""

from __future__ import annotations

import itertools
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


def _by_cudnn(q: torch.Tensor, attributes: Mapping[str, Any]) -> bool:
    """Whether cuDNN's kernel is the one: from Hopper on it is the fast one, but it adds up gradients in any order. Else it is the flash
    attention that PyTorch brings, which heeds `torch.use_deterministic_algorithms` (with `warn_only` it warns, as in eager mode)."""
    return not attributes.get("deterministic") and torch.cuda.get_device_capability(q.device) >= (9, 0)


def _laid_out_like(q: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The tensor with its dimensions in the order of the query's strides, as the kernel's forward pass lays out its result: cuDNN's plans
    of the backward pass are kept by the layouts of query, key and value alone."""
    strides = q.stride()
    order = sorted(range(q.dim()), key=lambda d: -strides[d])
    if all(t.stride(a) >= t.stride(b) for a, b in itertools.pairwise(order)):
        return t
    return t.permute(order).contiguous().permute([order.index(d) for d in range(q.dim())])


@library("gpu_flash_attention")
def gpu_flash_attention(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """Attention of (batch, heads, length, size) tensors of 16 bits with dropout: the result, the log-sum-exp of each row, and the state of
    PyTorch's generator from which dropout was drawn (two int64)."""
    q, k, v = reads["q"], reads["k"], reads["v"]
    p, causal, scale = attributes["p"], attributes["causal"], attributes["scale"]
    if _by_cudnn(q, attributes):
        y, lse, _, _, _, _, seed, offset, _ = aten._scaled_dot_product_cudnn_attention.default(
            q, k, v, None, True, p, causal, False, scale=scale
        )
        found = {"y": y, "lse": lse.reshape(y.shape[:-1])}
        return {**found, "rng": torch.stack([seed.reshape(()), offset.reshape(())])} if p else found
    y, lse, _, _, _, _, state, _, _ = aten._scaled_dot_product_flash_attention.default(q, k, v, p, causal, False, scale=scale)
    return {"y": y, "lse": lse, "rng": state.view(torch.int64)} if p else {"y": y, "lse": lse}


@library("gpu_flash_attention_backward")
def gpu_flash_attention_backward(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradients of `gpu_flash_attention` by queries, keys and values."""
    g, q, k, v, y, lse = (reads[n] for n in ("g", "q", "k", "v", "y", "lse"))
    p, causal, scale = attributes["p"], attributes["causal"], attributes["scale"]
    rng = reads["rng"] if p else torch.zeros(2, dtype=torch.int64, device=q.device)
    lengths = (None, None, q.shape[2], k.shape[2])
    g, y = _laid_out_like(q, g), _laid_out_like(q, y)
    if _by_cudnn(q, attributes):
        gq, gk, gv = aten._scaled_dot_product_cudnn_attention_backward.default(
            g, q, k, v, y, lse.unsqueeze(-1), rng[0], rng[1], None, *lengths, p, causal, scale=scale
        )
    else:
        state = rng.view(torch.uint64)
        gq, gk, gv = aten._scaled_dot_product_flash_attention_backward.default(
            g, q, k, v, y, lse, *lengths, p, causal, state, state, scale=scale
        )
    return {"gq": gq, "gk": gk, "gv": gv}
