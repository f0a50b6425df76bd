"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shorthaul.frontends.onnx_model.operators.quantization import quantize
from shorthaul.frontends.onnx_model.table import operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(a: Tensor, b: Tensor, c: Any = None, *, alpha: float, beta: float, transA: int, transB: int, broadcast: int = 0) -> Tensor:
    a, b = a.t() if transA else a, b.t() if transB else b
    if c is not None and alpha == 1.0 and beta == 1.0 and c.dim() == 1:
        return torch.addmm(c, a, b)
    product = torch.matmul(a, b)
    if alpha != 1.0:
        product = _scaled(product, alpha)
    return product if c is None else product + (c if beta == 1.0 else _scaled(c, beta))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor if x.is_floating_point() else (x * factor).to(x.dtype)


@operator("Einsum")
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    equation = equation.replace(" ", "")
    if not torch.compiler.is_compiling() and all(not x.is_floating_point() for x in inputs):
        return torch.einsum(equation, *[x.to(torch.float64) for x in inputs]).to(inputs[0].dtype)
    return torch.einsum(equation, *inputs)


@operator("Det")
def det(x: Tensor) -> Tensor:
    return torch.linalg.det(x)


def centred(x: Tensor, zero_point: Any, axis: int | None = None) -> Tensor:
    """x minus its zero point, as int32; a vector of zero points lies along `axis`."""
    x = x.to(torch.int32)
    if zero_point is None:
        return x
    zero = zero_point.to(torch.int32)
    if axis is not None and zero.dim() == 1:
        zero = zero.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    return x - zero


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of int32 matrices; in float64, which is exact for the sums that 8-bit operands make."""
    return torch.matmul(a.to(torch.float64), b.to(torch.float64))


@operator("MatMulInteger")
def matmul_integer(a: Tensor, b: Tensor, a_zero: Any = None, b_zero: Any = None) -> Tensor:
    return _product(centred(a, a_zero, -2), centred(b, b_zero, -1)).to(torch.int32)


@operator("QLinearMatMul")
def qlinear_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, y_scale: Tensor, y_zero: Tensor, *, types: tuple
) -> Tensor:
    product = _product(centred(a, a_zero, -2), centred(b, b_zero, -1))
    by = a_scale.reshape(a_scale.shape + (1,) * (a_scale.dim() == 1)).to(torch.float64) * b_scale.to(torch.float64)
    return quantize(product * by / y_scale.to(torch.float64), y_zero, types[7])
