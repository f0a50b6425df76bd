"""Attention and rotary embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.table import operator
from shorthaul.frontends.onnx_model.types import held


def _heads(x: Tensor, heads: int | None) -> Tensor:
    """[batch, length, heads·size] as [batch, heads, length, size]; rank 4 stays."""
    if x.dim() == 4:
        return x
    if heads is None:
        raise OnnxError("Attention with operands of rank 3 needs q_num_heads and kv_num_heads")
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _bias(q: Tensor, length: Any, past: Any, attn_mask: Any, is_causal: int, valid: Any, left: int, right: int) -> Any:
    """What is added to the scores, or None: the mask, causality, windows, and keys beyond what is valid."""
    bias = None
    n, device = q.shape[-2], q.device
    keys = torch.arange(length, device=device)
    queries = torch.arange(n, device=device)[:, None] + past
    if valid is not None:  # queries are the last of the valid keys
        queries = torch.arange(n, device=device)[:, None] + (valid.reshape(-1, 1, 1, 1) - n)
    allowed = None

    def both(a: Any, b: Tensor) -> Tensor:
        return b if a is None else a & b

    if is_causal:
        allowed = both(allowed, keys <= queries)
    if left >= 0:
        allowed = both(allowed, keys >= queries - left)
    if right >= 0:
        allowed = both(allowed, keys <= queries + right)
    if valid is not None:
        allowed = both(allowed, keys < valid.reshape(-1, 1, 1, 1))
    if attn_mask is not None:
        short = length - attn_mask.shape[-1]
        if attn_mask.dtype is torch.bool:
            allowed = both(allowed, F.pad(attn_mask, (0, short)) if not isinstance(short, int) or short else attn_mask)
        else:
            bias = F.pad(attn_mask, (0, short), value=float("-inf")) if not isinstance(short, int) or short else attn_mask
    if allowed is not None:
        hidden = torch.where(allowed, 0.0, float("-inf")).to(q.dtype)
        bias = hidden if bias is None else bias + hidden
    return bias


@operator("Attention")
def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, past_key: Any = None, past_value: Any = None, valid: Any = None, *,
    is_causal: int, kv_num_heads: int | None, q_num_heads: int | None, qk_matmul_output_mode: int, scale: float | None, softcap: float,
    softmax_precision: int | None, left_window_size: int = -1, right_window_size: int = -1, count: int = 1,
) -> tuple:  # fmt: skip
    """softmax(q·kᵀ·scale + bias)·v with grouped heads; results also the keys and values with the past, and the scores."""
    rank = q.dim()
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None:
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    present = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    size = scale if scale is not None else 1 / math.sqrt(q.shape[-1])
    # half precision on a CPU: by parts, each rounded as ONNX defines it
    half = q.dtype is torch.float16 and q.device.type == "cpu"
    plain = not half and softcap == 0.0 and count < 4 and softmax_precision is None and q.is_floating_point() and q.shape[-1] == v.shape[-1]
    windows = left_window_size, right_window_size
    if plain and attn_mask is None and valid is None and windows == (-1, -1) and (not is_causal or not past):
        y, scores = F.scaled_dot_product_attention(q, k, v, is_causal=bool(is_causal), scale=size), None
    else:
        bias = _bias(q, k.shape[2], past, attn_mask, is_causal, valid, *windows)
        y, scores = _by_parts(q, k, v, bias, size, softcap, softmax_precision, qk_matmul_output_mode)
    if rank == 3:
        y = y.transpose(1, 2).flatten(2)
    return y, *present, scores


def _by_parts(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, scale: float, softcap: float, precision: int | None, mode: int
) -> tuple[Tensor, Tensor]:
    root = math.sqrt(scale)
    scores = torch.matmul(q * root, (k * root).transpose(-1, -2))
    kept = scores
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
        kept = scores if mode == 1 else kept
    if bias is not None:
        scores = scores + bias
    kept = scores if mode == 2 else kept
    wide = scores if precision is None else scores.to(held(precision, "Attention"))
    if bias is None:
        weights = torch.softmax(wide, -1)
    else:  # a query without any key gives zeros; it is taken out before the softmax too, whose gradient would be NaN
        empty = torch.isneginf(wide).all(-1, keepdim=True)
        weights = torch.softmax(torch.where(empty, torch.zeros_like(wide), wide), -1)
        weights = torch.where(empty, torch.zeros_like(weights), weights)
    weights = weights.to(q.dtype)
    return torch.matmul(weights, v), weights if mode == 3 else kept


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Tensor, cos_cache: Tensor, sin_cache: Tensor, position_ids: Any = None, *, interleaved: int, num_heads: int | None,
    rotary_embedding_dim: int,
) -> Tensor:  # fmt: skip
    """x [batch, heads, length, size], or [batch, length, heads·size] with num_heads."""
    rank = x.dim()
    if rank == 3 and not num_heads:
        raise OnnxError("RotaryEmbedding of an operand of rank 3 needs num_heads")
    x_ = x.transpose(1, 2) if rank == 4 else x.reshape(x.shape[0], x.shape[1], num_heads or 1, -1)  # batch, length, heads, size
    n = rotary_embedding_dim or x_.shape[-1]
    turned, rest = x_[..., :n], x_[..., n:]
    cos, sin = (c if position_ids is None else c[position_ids] for c in (cos_cache, sin_cache))
    cos, sin = (c[..., : n // 2].unsqueeze(2) for c in (cos, sin))
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        turned = torch.stack((real, imaginary), -1).flatten(-2)
    else:
        turned = torch.cat((real, imaginary), -1)
    y = torch.cat((turned, rest), -1) if rest.shape[-1] else turned
    return y.transpose(1, 2) if rank == 4 else y.reshape(x.shape)
