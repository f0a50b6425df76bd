"""Normalizations and dropout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.frontends.onnx_model.operators.pooling import norm
from shorthaul.frontends.onnx_model.operators.random import seeded_uniform
from shorthaul.frontends.onnx_model.table import operator


def _channels(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape((1, -1) + (1,) * (x.dim() - 2))


@operator("BatchNormalization", since=14)
def batch_norm(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float, momentum: float, training_mode: int, count: int = 1
) -> tuple:
    if not training_mode:
        return F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon), None, None
    # the running statistics are results, by the biased variance; nothing is written in place
    y = F.batch_norm(x, None, None, scale, b, True, 0.0, epsilon)
    if count == 1:
        return y, None, None
    axes = tuple(i for i in range(x.dim()) if i != 1)
    batch_var, batch_mean = torch.var_mean(x.detach().to(mean.dtype), axes, correction=0)
    return y, mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum)


@operator("BatchNormalization", since=9)
def batch_norm_9(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float, momentum: float, count: int = 1
) -> tuple:
    y = batch_norm(x, scale, b, mean, var, epsilon=epsilon, momentum=momentum, training_mode=int(count > 1), count=min(count, 3))
    return (*y, None, None)


@operator("BatchNormalization", since=1, ignores=("consumed_inputs",))
def batch_norm_1(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float, momentum: float, is_test: int = 0, spatial: int = 1,
    count: int = 1,
) -> tuple:  # fmt: skip
    if not spatial:  # statistics of every element of a sample
        if count == 1 or is_test:
            return ((x - mean) * torch.rsqrt(var + epsilon) * scale + b, None, None, None, None)
        batch_var, batch_mean = torch.var_mean(x, 0, correction=0)
        y = (x - batch_mean) * torch.rsqrt(batch_var + epsilon) * scale + b
        return (y, mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum), None, None)
    return batch_norm_9(x, scale, b, mean, var, epsilon=epsilon, momentum=momentum, count=1 if is_test else count)


@operator("InstanceNormalization", ignores=("consumed_inputs",))
def instance_norm(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float) -> Tensor:
    return F.instance_norm(x, None, None, scale, b, True, 0.0, epsilon)


def _stash(x: Tensor, stash_type: int) -> Tensor:
    """x in the type that statistics are computed in."""
    return x.to(torch.float32) if stash_type == 1 and x.dtype in (torch.float16, torch.bfloat16) else x


@operator("LayerNormalization")
def layer_norm(x: Tensor, scale: Tensor, b: Any = None, *, axis: int, epsilon: float, stash_type: int, count: int = 1) -> tuple:
    sizes = x.shape[axis:]
    if count == 1 and scale.shape == sizes and (b is None or b.shape == sizes):
        return F.layer_norm(x, sizes, scale, b, epsilon), None, None
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = _stash(x, stash_type)
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    rstd = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    y = (centred * rstd).to(x.dtype) * scale
    return y if b is None else y + b, mean, rstd


@operator("RMSNormalization")
def rms_norm(x: Tensor, scale: Tensor, *, axis: int, epsilon: float, stash_type: int) -> Tensor:
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = _stash(x, stash_type)
    return (wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@operator("GroupNormalization", since=21)
def group_norm(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float, num_groups: int, stash_type: int = 1) -> Tensor:
    return F.group_norm(x, num_groups, scale, b, epsilon)


@operator("GroupNormalization", since=18)
def group_norm_18(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float, num_groups: int) -> Tensor:
    """Scale and bias of each group, not of each channel."""
    each = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(each), b.repeat_interleave(each), epsilon)


@operator("LRN")
def lrn(x: Tensor, *, alpha: float, beta: float, bias: float, size: int) -> Tensor:
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad((x * x).unsqueeze(1), (0, 0) * (x.dim() - 2) + (before, after)).unfold(2, size, 1).sum(-1).squeeze(1)
    return x / torch.pow(bias + alpha / size * squares, beta)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int, p: int) -> Tensor:
    size = norm(x, p, (axis,), True)
    return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Any) -> Tensor:
    var, mean = torch.var_mean(x, tuple(axes), correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(var) + 1e-9)


def _dropped(x: Tensor, ratio: float, seed: Any) -> tuple[Tensor, Tensor]:
    if ratio == 0.0:
        return x, torch.ones_like(x, dtype=torch.bool)
    if seed is None:
        y, mask = torch.native_dropout(x, ratio, True)
        return y, mask
    mask = seeded_uniform(seed, x.shape, x.device) >= ratio
    return torch.where(mask, x / (1 - ratio) if ratio < 1 else torch.zeros_like(x), torch.zeros_like(x)), mask


@operator("Dropout", since=12, host=("ratio", "training_mode"))
def dropout(x: Tensor, ratio: Any = None, training_mode: Any = None, *, seed: int | None) -> tuple[Tensor, Tensor]:
    if not _number(training_mode, False):
        return x, torch.ones_like(x, dtype=torch.bool)
    return _dropped(x, float(_number(ratio, 0.5)), seed)


def _number(v: Any, default: Any) -> Any:
    return default if v is None else v[0] if isinstance(v, tuple) else v


@operator("Dropout", since=1, ignores=("consumed_inputs",))
def dropout_1(x: Tensor, *, ratio: float, is_test: int = 1) -> tuple[Tensor, Tensor]:
    """Versions before 12 are for inference, but for those with `is_test`."""
    if is_test:
        return x, torch.ones_like(x, dtype=torch.bool)
    return _dropped(x, ratio, None)
