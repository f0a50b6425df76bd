"""Convolutions and their gradients, each gradient by itself so that none is computed for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .table import Tensors, library

_ARGUMENTS = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


def _arguments(attributes: Mapping[str, Any], rank: int) -> list[Any]:
    def spread(v: Any) -> Any:
        return (
            list(v) * rank if isinstance(v, (tuple, list)) and len(v) == 1 else list(v) if isinstance(v, tuple) else v
        )

    return [spread(attributes[k]) for k in _ARGUMENTS]


def _shaped_like(shape: Sequence[int], layout: torch.Tensor) -> torch.Tensor:
    """A tensor of that shape without values, in the memory format of another one: the gradient functions only look at it."""
    t = torch.empty_strided(shape, _strides(shape, layout), dtype=layout.dtype, device=layout.device)
    return t


def _strides(shape: Sequence[int], layout: torch.Tensor) -> list[int]:
    """Dense strides with the dimensions in the order of `layout`'s strides."""
    order = sorted(range(len(shape)), key=lambda d: (-layout.stride()[d], d))
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= shape[d]
    return strides


@library("aten::convolution")
def convolution(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The convolution, plain or transposed, with its bias."""
    x, w = reads["x"], reads["weight"]
    return {"y": torch.ops.aten.convolution.default(x, w, reads.get("bias"), *_arguments(attributes, w.dim() - 2))}


@library("aten::conv_grad_input")
def conv_grad_input(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradient by the operand."""
    g, w = reads["g"], reads["weight"]
    channels = w.shape[0] if attributes["transposed"] else w.shape[1] * attributes["groups"]
    x = _shaped_like([g.shape[0], channels, *attributes["size"]], g)
    grad = torch.ops.aten.convolution_backward.default(
        g, x, w, None, *_arguments(attributes, w.dim() - 2), [True, False, False]
    )[0]
    return {"y": grad}


@library("aten::conv_grad_weight")
def conv_grad_weight(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradient by the weight."""
    g, x = reads["g"], reads["x"]
    first, second = (x, g) if attributes["transposed"] else (g, x)
    w = _shaped_like([first.shape[1], second.shape[1] // attributes["groups"], *attributes["size"]], x)
    grad = torch.ops.aten.convolution_backward.default(
        g, x, w, None, *_arguments(attributes, w.dim() - 2), [False, True, False]
    )[1]
    return {"y": grad}
