"""Casts, and quantization to integers and narrow floats.

Types that PyTorch does not hold as such (`types.HELD`) are rounded here: 2- and 4-bit integers wrap, float4e2m1 rounds to its eight
magnitudes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.table import operator
from shorthaul.frontends.onnx_model.types import held, type_name

# bits and sign of integers held in a wider type
_NARROW = {21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}
# the range of integers that a quantized value is clamped to
_RANGE = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(2**31), 2**31 - 1),
          21: (0, 15), 22: (-8, 7), 25: (0, 3), 26: (-2, 1)}  # fmt: skip
_FLOAT8 = {17: 448.0, 18: 240.0, 19: 57344.0, 20: 57344.0}  # largest finite values
_FLOAT4, _FLOAT8E8M0 = 23, 24


def _to_float4(x: Tensor) -> Tensor:
    """To the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6, ties to even; larger ones saturate. There is no NaN: it becomes a zero of
    the other sign, as in ml_dtypes."""
    x = x.to(torch.float32)
    x = torch.where(torch.isnan(x), torch.copysign(torch.zeros_like(x), -torch.copysign(torch.ones_like(x), x)), x)
    size = x.abs().clamp(max=6.0)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    rounded = (torch.round(size / step) * step).clamp(max=6.0)
    return torch.copysign(rounded, x)


def _to_float8(x: Tensor, to: int, saturate: int) -> Tensor:
    largest, dtype = _FLOAT8[to], held(to, "Cast")
    wide = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    if saturate:
        clamped = wide.clamp(-largest, largest)
        return torch.where(torch.isnan(wide), wide, clamped).to(dtype)
    # what rounds beyond the largest value becomes infinite where the type has infinities, else NaN
    half = largest * (1 + 2.0 ** (-4 if to in (17, 18) else -3) / (1.75 if to == 17 else 1.875 if to == 18 else 1.75))
    over = float("inf") if to == 19 else float("nan")
    gone = torch.copysign(torch.full_like(wide, over), wide)
    return torch.where(wide.abs() >= half, gone, wide.clamp(-largest, largest)).to(dtype)


def _to_float8e8m0(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """Powers of two from 2⁻¹²⁷ to 2¹²⁷, held by exponent; the sign is lost."""
    wide = x.to(torch.float32).abs()
    mantissa, exponent = torch.frexp(wide)  # mantissa in [0.5, 1)
    if round_mode == "up":
        e = torch.where(mantissa > 0.5, exponent, exponent - 1)
    elif round_mode == "down":
        e = exponent - 1
    else:
        e = torch.where(mantissa >= 0.75, exponent, exponent - 1)
    low = wide < 2.0**-126  # subnormal in float32
    if round_mode == "up":
        e = torch.where(low, torch.where(wide > 2.0**-127, -126, -127), e)
    else:
        e = torch.where(low, torch.where((round_mode != "down") & (wide >= 1.5 * 2.0**-127), -126, -127), e)
    nan = ~torch.isfinite(wide) if not saturate else torch.isnan(wide)
    nan = nan | (e > 127) if not saturate else nan
    e = torch.where(torch.isinf(wide), 127, e).clamp(-127, 127) + 127
    return torch.where(nan, 255, e).to(torch.uint8).view(torch.float8_e8m0fnu)


def convert(x: Tensor, source: int | None, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """x, of ONNX type `source`, as the type `to`."""
    if to in _FLOAT8:
        return _to_float8(x, to, saturate)
    if to == _FLOAT4:
        return _to_float4(x)
    if to == _FLOAT8E8M0:
        return _to_float8e8m0(x, saturate, round_mode)
    if to in _NARROW:
        bits, signed = _NARROW[to]
        whole = x.to(torch.int32) & (2**bits - 1)
        if signed:
            whole = torch.where(whole >= 2 ** (bits - 1), whole - 2**bits, whole)
        return whole.to(held(to, "Cast"))
    dtype = held(to, "Cast")
    if x.dtype.itemsize == 1 and x.is_floating_point() and dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x = x.to(torch.float32)
    if x.is_floating_point() and dtype in (torch.uint8, torch.uint16, torch.uint32):
        return x.to(torch.int64).to(dtype)  # through the wider type: the same in eager and compiled code
    return x.to(dtype)


@operator("Cast", since=19, on_host=host.cast)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up", types: tuple) -> Tensor:
    return convert(x, types[0], to, saturate, round_mode)


@operator("Cast", since=1)
def cast_1(x: Tensor, *, to: str, types: tuple) -> Tensor:
    from onnx import TensorProto

    return convert(x, types[0], TensorProto.DataType.Value(to))


@operator("Cast", since=6, on_host=host.cast)
def cast_6(x: Tensor, *, to: int, types: tuple) -> Tensor:
    return convert(x, types[0], to)


@operator("CastLike")
def cast_like(x: Tensor, like: Any, *, saturate: int = 1, round_mode: str = "up", types: tuple) -> Tensor:
    if types[1] is None:
        return x.to(like.dtype)
    return convert(x, types[0], types[1], saturate, round_mode)


@operator("BitCast")
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    dtype = held(to, "BitCast")
    if dtype.itemsize != x.dtype.itemsize:
        raise OnnxError(f"BitCast from {x.dtype} to {type_name(to)}, which has another width")
    return x.view(dtype)


# --- quantization -----------------------------------------------------------------------------------------------


def _spread(v: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point, broadcast over x: one for all, one for each index of an axis, or one for each block of it."""
    if v.dim() == 0 or (v.numel() == 1 and v.dim() <= 1):
        return v.reshape(())
    axis = axis % x.dim()
    if block_size:
        return v.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return v.reshape([-1 if i == axis else 1 for i in range(x.dim())]) if v.dim() == 1 else v


def quantize(scaled: Tensor, zero_point: Any, to: int, saturate: int = 1) -> Tensor:
    """round(scaled) + zero point, ties to even, clamped to the range of the type."""
    if to not in _RANGE:
        zero = 0.0 if zero_point is None else zero_point.to(torch.float32)
        return convert(scaled + zero, None, to, saturate)
    low, high = _RANGE[to]
    zero = 0 if zero_point is None else zero_point.to(torch.int32).to(scaled.dtype)
    return (torch.round(scaled) + zero).clamp(low, high).to(torch.int64).to(held(to, "QuantizeLinear"))


@operator("QuantizeLinear")
def quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Any = None, *, axis: int = 1, saturate: int = 1, block_size: int = 0, output_dtype: int = 0,
    precision: int = 0, types: tuple,
) -> Tensor:  # fmt: skip
    to = types[2] if zero_point is not None else output_dtype or 2
    wide = held(precision, "QuantizeLinear") if precision else torch.float32
    scaled = x.to(wide) / _spread(scale, x, axis, block_size).to(wide)
    zero = None if zero_point is None else _spread(zero_point.to(torch.float32), x, axis, block_size)
    return quantize(scaled, zero, to, saturate)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Tensor, scale: Tensor, zero_point: Any = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    wide = torch.float32 if scale.dtype in (torch.float16, torch.bfloat16) or scale.dtype.itemsize == 1 else scale.dtype
    value = x.to(wide)
    if zero_point is not None:
        value = value - _spread(zero_point.to(wide), x, axis, block_size)
    value = value * _spread(scale, x, axis, block_size).to(wide)
    return value.to(held(output_dtype, "DequantizeLinear") if output_dtype else scale.dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255.0
    zero = torch.round((0.0 - low) / scale).clamp(0, 255)
    y = (torch.round(x / scale) + zero).clamp(0, 255)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)
