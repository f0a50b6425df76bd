"""Convolutions and their gradients, each gradient by itself so that none is computed for nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shorthaul.ir.containers import Container

from .onednn import multiply
from .table import Tensors, library

LARGE = 1 << 20  # elements of weights whose gradient over few positions is a product with columns
LONG = 1 << 27  # products for each tap from which on the gradient of weights over rows is taken tap by tap
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


def _on_gpu(device: torch.device, attributes: Mapping[str, Any], containers: Mapping[str, Container]) -> bool:
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


def _by_columns(g: torch.Tensor, x: torch.Tensor, shape: Sequence[int], attributes: Mapping[str, Any]) -> torch.Tensor:
    """The gradient of large weights over few positions, as a product with the images' columns. A library's convolution parallelizes over
    positions. Measured on 2 cores of a Zen 4, 512 channels, 3×3, 4 images of 7×7: 337 GF/s, 80 by convolutions in either layout."""
    stride, padding, dilation = _arguments(attributes, len(shape) - 2)[:3]
    window = torch.nn.functional.pad(x.movedim(1, -1), [0, 0, *(p for n in reversed(padding) for p in (n, n))])
    for d, (k, s, gap) in enumerate(zip(shape[2:], stride, dilation, strict=True), start=1):
        window = window.unfold(d, (k - 1) * gap + 1, s)[..., ::gap]
    wanted = attributes.get("strides", {}).get("y")
    last = wanted is not None and wanted[1] == 1
    if last:
        window = window.movedim(len(shape) - 1, -1)
    columns = window.reshape(-1, math.prod(shape[1:]))
    rows = g.movedim(1, -1).reshape(-1, shape[0]).t()
    found = multiply(rows, columns, None, None)
    y = torch.mm(rows, columns) if found is None else found
    return y.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1) if last else y.view(*shape)


def _by_taps(g: torch.Tensor, x: torch.Tensor, shape: Sequence[int], attributes: Mapping[str, Any]) -> torch.Tensor:
    """The gradient of weights over long rows in channels-last, one tap after the other, each as that of a 1×1 convolution. Measured on 2
    cores of a Zen 4, 128 and 256 channels, 2 taps, 16384 positions: 420 GF/s; 118 by one convolution, 310 in the other layout."""
    (padding,), (dilation,) = (_arguments(attributes, 1)[i] for i in (1, 2))
    y = x.new_zeros(shape)
    of_tap = {**attributes, "padding": (0,), "dilation": (1,)}
    for tap in range(shape[2]):
        behind = tap * dilation - padding
        low, high = max(0, -behind), min(g.shape[2], x.shape[2] - behind)
        if low < high:
            weight = x.new_empty((*shape[:2], 1))
            of_g, of_x = g[:, :, low:high], x[:, :, low + behind : high + behind]
            y[:, :, tap] = _gradient(of_g, of_x, weight, of_tap, [False, True, False]).squeeze(2)
    return y


@library("aten::conv_grad_weight")
def conv_grad_weight(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The gradient by the weight. attribute strides: those that the caller wants results to have, by name; others are copied."""
    g, x = reads["g"], reads["x"]
    first, second = (x, g) if attributes["transposed"] else (g, x)
    shape = [first.shape[1], second.shape[1] // attributes["groups"], *attributes["size"]]
    whole = not attributes["transposed"] and attributes["groups"] == 1 and math.prod(attributes["size"]) > 1
    if whole and g.device.type == "cpu" and g.dtype.itemsize >= 4:  # narrower types were not measured
        if _heavy(shape, x) and math.prod(shape) >= LARGE:
            return {"y": _by_columns(g, x, shape, attributes)}
        is_row = x.dim() == 3 and x.stride(1) == 1 and tuple(attributes["stride"]) == (1,)
        if is_row and x.shape[0] * x.shape[2] * shape[0] * shape[1] >= LONG:
            return {"y": _by_taps(g, x, shape, attributes)}
    if _heavy(shape, x):
        g, x = g.contiguous(), x.contiguous()
    w = _shaped_like(shape, x)
    return {"y": _gradient(g, x, w, attributes, [False, True, False])}
