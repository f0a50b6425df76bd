"""Composites that stay whole: torch-level calls redirected before PyTorch decomposes them."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from shorthaul.frontends.functional import Unsupported
from shorthaul.frontends.functional_bags import BAGS
from shorthaul.frontends.functional_modules import MODULE_COMPOSITES
from shorthaul.frontends.functional_record import ours
from shorthaul.frontends.functional_recurrent import RECURRENT

aten = torch.ops.aten


def _autocast_lower(*tensors: Any) -> tuple:
    """Autocast's rule for its lower-precision list: floating tensors except float64, on the region's device."""
    device = next(t for t in tensors if isinstance(t, torch.Tensor)).device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # PyTorch has no autocast for tensors without memory
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point or value.dtype is torch.float64:
            return value
        return value.to(dtype) if value.device.type == device else value

    return tuple(cast(value) for value in tensors)


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    input, weight, bias = _autocast_lower(input, weight, bias)
    return ours.linear.default(input, weight, bias)


def matmul(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return ours.matmul.default(*_autocast_lower(input, other))


def rmatmul(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return matmul(other, input)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    query, key, value, attn_mask = _autocast_lower(query, key, value, attn_mask)
    return ours.scaled_dot_product_attention.default(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if p == 0 or not train:  # eager returns the argument itself
        return input
    return ours.dropout.default(input, p, train)


def dropout_(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if p == 0 or not train:
        return input
    return write(input, ours.dropout.default(input, p, train))


def write(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`target.copy_(value)` for a fresh value of the same shape, dtype and strides, without a copy."""
    if value.dtype != target.dtype or value.shape != target.shape or value.stride() != target.stride():
        return target.copy_(value)
    torch._sync(value)
    torch._functionalize_replace(target, torch._from_functional_tensor(value))
    torch._functionalize_commit_update(target)
    torch._sync(target)
    return target


def batch_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """Batch norm with the running statistics as results (PyTorch's kernel writes them without saying so)."""
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError("batch_norm needs running_mean and running_var in evaluation mode")
        op = aten._native_batch_norm_legit_no_training.default
        return op(input, weight, bias, running_mean, running_var, momentum, eps)[0]
    if running_mean is None or running_var is None:
        return aten._native_batch_norm_legit.no_stats(input, weight, bias, True, momentum, eps)[0]
    op = aten._native_batch_norm_legit_functional.default
    out, _, _, mean, var = op(input, weight, bias, running_mean, running_var, True, momentum, eps)
    write(running_mean, mean)
    write(running_var, var)
    return out


def native_batch_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch norm with the statistics that its gradient needs (in evaluation mode PyTorch gives empty ones)."""
    if not training:
        op = aten._native_batch_norm_legit_no_training.default
        out, saved_mean, saved_rstd = op(input, weight, bias, running_mean, running_var, momentum, eps)
        return out, *(out.new_zeros(t.shape, dtype=t.dtype) for t in (saved_mean, saved_rstd))
    if running_mean is None or running_var is None:
        return aten._native_batch_norm_legit.no_stats(input, weight, bias, True, momentum, eps)
    op = aten._native_batch_norm_legit_functional.default
    out, saved_mean, saved_rstd, mean, var = op(input, weight, bias, running_mean, running_var, True, momentum, eps)
    write(running_mean, mean)
    write(running_var, var)
    return out, saved_mean, saved_rstd


def instance_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """Instance norm as group norm of one channel per group; statistics per instance averaged over the batch."""
    if not use_input_stats:
        return batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)
    if running_mean is None or running_var is None:
        return torch.group_norm(input, input.shape[1], weight, bias, eps)
    batch, channels = input.shape[:2]
    folded = input.reshape(1, batch * channels, *input.shape[2:])
    repeat = lambda value: value.repeat(batch) if value is not None else None  # noqa: E731
    op = aten._native_batch_norm_legit_functional.default
    statistics = repeat(running_mean), repeat(running_var)
    out, _, _, mean, var = op(folded, repeat(weight), repeat(bias), *statistics, True, momentum, eps)
    running_mean.copy_(mean.view(batch, channels).mean(0))
    running_var.copy_(var.view(batch, channels).mean(0))
    return out.view(input.shape)


def one_hot(input: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """PyTorch's own composite looks at the values; with the number of classes given it need not."""
    if num_classes == -1:
        raise Unsupported("one_hot without num_classes depends on data", remedy="Pass num_classes.")
    classes = torch.arange(num_classes, device=input.device)
    return (input.unsqueeze(-1) == classes).to(torch.int64)


def functional_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return (dropout_ if inplace else dropout)(input, p, training)


def functional_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> torch.Tensor:
    if training and input.numel() == input.shape[1]:
        raise ValueError(f"batch norm in training needs more than 1 value per channel, got input size {input.shape}")
    return batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


def functional_instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> torch.Tensor:
    if use_input_stats and input.numel() == input.shape[0] * input.shape[1]:
        raise ValueError(f"instance norm in training needs more than 1 value per channel, got {input.shape}")
    return instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps)


REDIRECTED: dict[Any, Callable] = {
    torch._C._nn.linear: linear,
    aten.linear.default: linear,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.Tensor.__rmatmul__: rmatmul,
    aten.matmul.default: matmul,
    torch._C._nn.scaled_dot_product_attention: scaled_dot_product_attention,
    aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    torch.dropout: dropout,
    torch._VF.dropout: dropout,
    aten.dropout.default: dropout,
    torch.dropout_: dropout_,
    torch._VF.dropout_: dropout_,
    aten.dropout_.default: dropout_,
    torch.batch_norm: batch_norm,
    aten.batch_norm.default: batch_norm,
    torch.native_batch_norm: native_batch_norm,
    aten.native_batch_norm.default: native_batch_norm,
    torch._native_batch_norm_legit: native_batch_norm,
    aten._native_batch_norm_legit.default: native_batch_norm,
    F.dropout: functional_dropout,
    F.batch_norm: functional_batch_norm,
    F.instance_norm: functional_instance_norm,
    F.one_hot: one_hot,
    operator.matmul: matmul,
    torch.instance_norm: instance_norm,
    aten.instance_norm.default: instance_norm,
    **BAGS,
    **MODULE_COMPOSITES,
    **RECURRENT,
}


def _python_functions() -> dict[Any, Callable]:
    """`torch.nn.functional` once more, its own calls of composites redirected.

    Dynamo leaves some Python functions of that module whole (multi_head_attention_forward); what they call must
    stay whole too. They are the same code objects over a name space in which the composites are ours.
    """
    space = dict(vars(F))
    space.update({name: REDIRECTED[value] for name, value in vars(F).items() if _hashable(value) in REDIRECTED})
    copies: dict[Any, Callable] = {}
    for name, function in vars(F).items():
        if isinstance(function, types.FunctionType) and function.__globals__ is vars(F) and function not in REDIRECTED:
            copy = types.FunctionType(function.__code__, space, name, function.__defaults__, function.__closure__)
            copy.__kwdefaults__ = function.__kwdefaults__
            space[name] = copies[function] = copy
    return copies


def _hashable(value: Any) -> Any:
    return value if callable(value) else None


REDIRECTED.update(_python_functions())
