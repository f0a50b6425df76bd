"""Elementwise operators: arithmetic, comparisons, logic, bits, activations."""

from __future__ import annotations

import functools
import math
import operator as python
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.table import operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh,
    "Cos": torch.cos, "Cosh": torch.cosh, "Sin": torch.sin, "Sinh": torch.sinh, "Tan": torch.tan, "Tanh": torch.tanh,
    "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log, "Reciprocal": torch.reciprocal, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Softsign": F.softsign, "Softplus": F.softplus,
    "HardSwish": F.hardswish, "Mish": F.mish, "IsNaN": torch.isnan, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip

UNARY_ON_HOST: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any]]] = {
    "Abs": (torch.abs, abs), "Neg": (torch.neg, python.neg), "Floor": (torch.floor, math.floor), "Ceil": (torch.ceil, math.ceil),
    "Not": (torch.logical_not, python.not_), "Sqrt": (torch.sqrt, math.sqrt),
}  # fmt: skip


def _enter_unary(name: str, f: Callable[[Tensor], Tensor], on_host: Callable[..., Any] | None = None) -> None:
    def apply(x: Tensor) -> Tensor:
        return f(x)

    apply.__name__ = name.lower()
    operator(name, on_host=on_host, ignores=("consumed_inputs",))(apply)


def _as_float(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda v: f(v) * 1.0


for _name, _f in UNARY.items():
    _enter_unary(_name, _f)
for _name, (_f, _number) in UNARY_ON_HOST.items():
    _enter_unary(_name, _f, host.pointwise(_as_float(_number) if _name in ("Floor", "Ceil") else _number))


@operator("Relu", ignores=("consumed_inputs",))
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("Identity", on_host=host.identity)
def identity(x: Any) -> Any:
    # A graph's result must not be the very tensor that the caller passed in, and sequences are values
    return list(x) if isinstance(x, list) else x


# --- two operands with broadcasting -------------------------------------------------------------------------


def _div(a: Any, b: Any) -> Tensor:
    tensor = a if isinstance(a, Tensor) else b
    return a / b if tensor.is_floating_point() or tensor.is_complex() else torch.div(a, b, rounding_mode="trunc")


def _pow(a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        # the result has the type of the base
        if a.is_floating_point() or not b.is_floating_point():
            return torch.pow(a, b).to(a.dtype)
        return torch.pow(a.to(b.dtype), b).to(a.dtype)
    return torch.pow(a, b)


BINARY: dict[str, tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], Any]]] = {
    "Add": (python.add, python.add), "Sub": (python.sub, python.sub), "Mul": (python.mul, python.mul), "Div": (_div, host.divide),
    "Pow": (_pow, python.pow),
    "Equal": (torch.eq, python.eq), "Less": (python.lt, python.lt), "LessOrEqual": (python.le, python.le),
    "Greater": (python.gt, python.gt), "GreaterOrEqual": (python.ge, python.ge),
    "And": (torch.logical_and, lambda a, b: a and b), "Or": (torch.logical_or, lambda a, b: a or b),
    "Xor": (torch.logical_xor, lambda a, b: a != b),
    "BitwiseAnd": (torch.bitwise_and, python.and_), "BitwiseOr": (torch.bitwise_or, python.or_),
    "BitwiseXor": (torch.bitwise_xor, python.xor),
}  # fmt: skip
_SCALARS = {"Add", "Sub", "Mul", "Div", "Pow", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}


def _enter_binary(name: str, f: Callable[[Any, Any], Tensor], g: Callable[[Any, Any], Any]) -> None:
    def apply(a: Any, b: Any) -> Tensor:
        return f(a, b)

    apply.__name__ = name.lower()
    operator(name, since=7, on_host=host.pointwise(g), scalars=name in _SCALARS)(apply)

    def before_numpy_broadcasting(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
        if broadcast and axis is not None and isinstance(b, Tensor):
            b = b.reshape(b.shape + (1,) * (a.dim() - axis - b.dim()))
        return f(a, b)

    if name not in ("LessOrEqual", "GreaterOrEqual", "BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        operator(name, since=1, ignores=("consumed_inputs",))(before_numpy_broadcasting)


for _name, (_op, _g) in BINARY.items():
    _enter_binary(_name, _op, _g)


@operator("Mod", on_host=host.pointwise(python.mod))
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("BitShift")
def bit_shift(x: Tensor, shift: Tensor, *, direction: str, types: tuple = ()) -> Tensor:
    width = {2: 8, 4: 16, 12: 32, 13: 64, 3: 8, 5: 16, 6: 32, 7: 64}.get(types[0], x.dtype.itemsize * 8)
    signed = types[0] in (3, 5, 6, 7)
    gone = (shift < 0) | (shift >= width)  # a negative shift is as one too far
    by = torch.where(gone, torch.full_like(shift, width - 1), shift)
    if direction == "LEFT":
        result = torch.bitwise_left_shift(x, by)
    elif width == 64 and not signed:  # held as int64: the shift must bring in zeros
        mask = torch.bitwise_not(torch.bitwise_left_shift(torch.full_like(x, -1), 64 - by.clamp(min=1)))
        result = torch.where(by > 0, torch.bitwise_right_shift(x, by) & mask, x)
    else:
        result = torch.bitwise_right_shift(x, by)
    if signed and direction == "RIGHT":
        return result
    return torch.where(gone, torch.zeros_like(x), result)


# --- any number of operands ---------------------------------------------------------------------------------


@operator("Max", on_host=host.pointwise(lambda *v: max(v) if len(v) > 1 else v[0]), ignores=("consumed_inputs",))
def maximum(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, inputs)


@operator("Min", on_host=host.pointwise(lambda *v: min(v) if len(v) > 1 else v[0]), ignores=("consumed_inputs",))
def minimum(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, inputs)


@operator("Sum", ignores=("consumed_inputs",))
def add_all(*inputs: Tensor) -> Tensor:
    return functools.reduce(python.add, inputs)


@operator("Mean", ignores=("consumed_inputs",))
def mean_all(*inputs: Tensor) -> Tensor:
    return functools.reduce(python.add, inputs) / len(inputs)


@operator("Where", on_host=host.pointwise(lambda c, a, b: a if c else b))
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)


# --- clipping and activations -------------------------------------------------------------------------------


@operator("Clip", ignores=("consumed_inputs",))
def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is None and max is None:
        return x
    if isinstance(min, Tensor) and isinstance(max, Tensor):
        return torch.minimum(torch.maximum(x, min), max)  # where min > max, the result is max
    return torch.clamp(x, min, max)


@operator("LeakyRelu", ignores=("consumed_inputs",))
def leaky_relu(x: Tensor, *, alpha: float) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("Elu", ignores=("consumed_inputs",))
def elu(x: Tensor, *, alpha: float) -> Tensor:
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float) -> Tensor:
    return F.celu(x, alpha)


@operator("Selu", ignores=("consumed_inputs",))
def selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    return gamma * F.elu(x, alpha)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("HardSigmoid", ignores=("consumed_inputs",))
def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, 0.0)


@operator("Swish")
def swish(x: Tensor, *, alpha: float) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float, lambd: float) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


@operator("PRelu", ignores=("consumed_inputs",))
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    if x.dim() > slope.dim() and slope.dim() == 1 and x.dim() > 1 and slope.shape[0] == x.shape[1] != x.shape[-1]:
        slope = slope.reshape((-1,) + (1,) * (x.dim() - 2))  # before version 9: one slope a channel
    return torch.where(x >= 0, x, x * slope)
