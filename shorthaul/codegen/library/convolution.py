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


def _heavy(weight: Sequence[int], x: torch.Tensor) -> bool:
    """Whether the weights are so much larger than the images that converting those to the weights' layout costs less than the other way.

    A k×k weight is kept (out, in, k...): in channels-last a library reorders it at every call. Measured on 2 cores (512 channels, 3×3, 7×7
    images): 9.6 ms against 13.6 forward; equal where weights and images are equally large.
    """
    if x.device.type != "cpu":
        return False
    kernel = 1
    for n in weight[2:]:
        kernel *= n
    size = kernel
    for n in weight[:2]:
        size *= n
    return kernel > 1 and size > 4 * x.numel()


def _convolve(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, attributes: Mapping[str, Any]) -> torch.Tensor:
    arguments = _arguments(attributes, w.dim() - 2)
    if _is_row(x, w):
        return torch.ops.aten.convolution.default(x.unsqueeze(2), w.unsqueeze(2), bias, *_as_images(arguments)).squeeze(2)
    return torch.ops.aten.convolution.default(x, w, bias, *arguments)


def _gradient(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor, attributes: Mapping[str, Any], wanted: list[bool]) -> torch.Tensor:
    """The gradient by the operand or by the weight."""
    arguments = _arguments(attributes, w.dim() - 2)
    at = wanted.index(True)
    if _is_row(g, w):
        g, x, w = (t.unsqueeze(2) for t in (g, x, w))
        return torch.ops.aten.convolution_backward.default(g, x, w, None, *_as_images(arguments), wanted)[at].squeeze(2)
    return torch.ops.aten.convolution_backward.default(g, x, w, None, *arguments, wanted)[at]


def _is_row(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether to run a convolution of rows as one of images of height one: libraries then take channels-last as it is, which PyTorch would
    copy in three dimensions."""
    return w.dim() == 3


def _as_images(arguments: list[Any]) -> list[Any]:
    stride, padding, dilation, transposed, output_padding, groups = arguments
    return [[1, *stride], [0, *padding], [1, *dilation], transposed, [0, *output_padding], groups]


def _on_gpu(device: torch.device, attributes: Mapping[str, Any]) -> bool:
    """PyTorch lets cuDNN's forward convolution write into memory that is there."""
    return device.type == "cuda" and not attributes["transposed"]


def _convolve_into(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, attributes: Mapping[str, Any]) -> bool:
    """The convolution with its result in `y`, as PyTorch does it where it chooses cuDNN; False where it chooses something else."""
    arguments = _arguments(attributes, w.dim() - 2)
    if _is_row(x, w):
        y, x, w, arguments = y.unsqueeze(2), x.unsqueeze(2), w.unsqueeze(2), _as_images(arguments)
    stride, padding, dilation, transposed, output_padding, groups = arguments
    backend = torch._C._select_conv_backend(x, w, bias, stride, padding, dilation, transposed, output_padding, groups, None)
    if backend != torch._C._ConvBackend.Cudnn:  # type: ignore[attr-defined]
        return False
    cudnn = torch.backends.cudnn
    fixed = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    tf32 = cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    torch.ops.aten.cudnn_convolution.out(x, w, padding, stride, dilation, groups, cudnn.benchmark, fixed, tf32, out=y)
    if bias is not None:
        y.add_(bias.reshape(1, -1, *[1] * (y.dim() - 2)))
    return True


@library("aten::convolution", writes_out=_on_gpu)
def convolution(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The convolution, plain or transposed, with its bias."""
    x, w, bias = reads["x"], reads["weight"], reads.get("bias")
    if _heavy(w.shape, x):
        x = x.contiguous()
    y = out.get("y")
    if y is not None and y.is_cuda and not attributes["transposed"] and _convolve_into(y, x, w, bias, attributes):
        return {"y": y}
    return {"y": _convolve(x, w, bias, attributes)}


@library("aten::conv_grad_input")
def conv_grad_input(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradient by the operand."""
    g, w = reads["g"], reads["weight"]
    if _heavy(w.shape, g):
        g = g.contiguous()
    channels = w.shape[0] if attributes["transposed"] else w.shape[1] * attributes["groups"]
    x = _shaped_like([g.shape[0], channels, *attributes["size"]], g)
    return {"y": _gradient(g, x, w, attributes, [True, False, False])}


@library("aten::conv_grad_weight")
def conv_grad_weight(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradient by the weight."""
    g, x = reads["g"], reads["x"]
    first, second = (x, g) if attributes["transposed"] else (g, x)
    shape = [first.shape[1], second.shape[1] // attributes["groups"], *attributes["size"]]
    if _heavy(shape, x):
        g, x = g.contiguous(), x.contiguous()
    w = _shaped_like(shape, x)
    return {"y": _gradient(g, x, w, attributes, [False, True, False])}
