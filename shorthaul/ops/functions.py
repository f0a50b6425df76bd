"""More elementwise operators, one line each: bounds, signs, rounding, bits, logarithms of sums, and the special functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int32, int64
from shorthaul.ir.scalar import Scalar, apply, cast, const, where

from .builder import Expansion, Gradient
from .elementwise import Elementwise, binary, elementwise, unary
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

INF = math.inf
SQRT_HALF = math.sqrt(0.5)


def _is_nan(x: Scalar) -> Scalar:
    return apply("ne", x, x)


# bounds, signs, rounding ----------------------------------------------------------------------------------------------
def _clamp_to(x: Scalar, low: Scalar | None, high: Scalar | None) -> Scalar:
    # where() and not max/min: the gradient at a bound is the element's; a NaN in a bound counts, as in PyTorch
    if low is not None:
        x = where((x < low) | _is_nan(low), low, x)
    return x if high is None else where((x > high) | _is_nan(high), high, x)


class ClampTensor(Elementwise):
    """x between two tensors, either of which may be absent."""

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        result = call.results[0]
        assert result is not None
        operands = {"x": call["self"], "low": call.arguments.get("min"), "high": call.arguments.get("max")}
        return operands, {"dtype": result.dtype, "compute": result.dtype.compute}

    def code(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Scalar:
        dtype = attributes["dtype"]
        info = None if dtype.is_float else np.iinfo(dtype.numpy)
        infinite = {"low": -INF, "high": INF} if info is None else {"low": int(info.min), "high": int(info.max)}
        missing = {k: v for k, v in infinite.items() if k not in types}
        return super().code(types, {**attributes, **missing})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        result = super().gradient(g)
        gy = g.grad()
        if gy is None or result.get("low") is None or not g.has("high"):
            return result
        wide = g.attr("dtype").compute

        def below(v: Scalar, *operands: Scalar) -> Scalar:
            x, low, high = (cast(o, wide) for o in operands)
            return where(((x < low) & (low < high)) | _is_nan(low), v, 0)  # bounds that are equal get nothing, as in PyTorch

        low = g.input("low")
        parts = g.pointwise(below, gy, g.input("x"), low, g.input("high"), dtype=low.dtype)
        return {**result, "low": g.sum_to(parts, low.shape)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4))
        yield Sample(
            {"x": x, "low": TensorType(float32, (4,)), "high": TensorType(float32, (3, 1))}, {"dtype": float32}
        )
        yield Sample({"x": x, "high": TensorType(float32, (4,))}, {"dtype": float32})


def _nan_to_num(x: Scalar, *, nan: float = 0.0, posinf: float = INF, neginf: float = -INF) -> Scalar:
    if not x.dtype.is_float:
        return x
    return where(_is_nan(x), nan, where(apply("eq", x, INF), posinf, where(apply("eq", x, -INF), neginf, x)))


LARGEST = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "bfloat16": 3.3895313892515355e38,
    "float16": 65504.0,
}


class NanToNum(Elementwise):
    """NaN and infinities replaced by numbers: zero and the largest finite ones of the dtype where none are given."""

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        largest = LARGEST.get(call["self"].dtype.name, 0.0)
        defaults = {"nan": 0.0, "posinf": largest, "neginf": -largest}
        return operands, {
            **attributes,
            **{k: v if attributes.get(k) is None else attributes[k] for k, v in defaults.items()},
        }


def _round_decimals(x: Scalar, *, decimals: int = 0) -> Scalar:
    if not x.dtype.is_float:
        return x
    ten = 10.0 ** abs(decimals)
    return apply("round", x * ten) / ten if decimals >= 0 else apply("round", x / ten) * ten


def _signbit(x: Scalar) -> Scalar:
    return apply("copysign", const(1, x.dtype), x) < 0 if x.dtype.is_float else x < 0


def _heaviside(x: Scalar, values: Scalar) -> Scalar:
    return where(apply("eq", x, 0), values, cast(x > 0, x.dtype))


def _logaddexp(a: Scalar, b: Scalar, base: float = math.e) -> Scalar:
    grow, log1p = ("exp", 1.0) if base == math.e else ("exp2", 1 / math.log(2))
    total = apply("max", a, b) + apply("log1p", apply(grow, -apply("abs", a - b))) * log1p
    return where(apply("isinf", a) & apply("eq", a, b), a, total)


def _xlogy(x: Scalar, y: Scalar, log: str = "log", bound: float = 0.0) -> Scalar:
    zero = apply("eq", x, 0) & ((y <= bound) | apply("eq", y, INF))
    return where(zero, 0, x * apply(log, y))


def _sinc(x: Scalar) -> Scalar:
    z = x * math.pi
    return where(apply("eq", x, 0), 1, apply("sin", z) / z)


def _spherical_bessel(x: Scalar) -> Scalar:
    return where(apply("eq", x, 0), 1, where(apply("isinf", x), 0, apply("sin", x) / x))


def _entr(x: Scalar) -> Scalar:
    value = where(apply("eq", x, 0), 0, where(x < 0, -INF, -(x * apply("log", x))))
    return where(_is_nan(x), x, value)


def _log_ndtr(x: Scalar) -> Scalar:
    # the left tail through the scaled complementary error function: the logarithm of a number that underflows
    z = x * SQRT_HALF
    left = apply("log", apply("erfcx", where(x < -1, -z, 1)) * 0.5) - z * z
    return where(x < -1, left, apply("log1p", apply("erfc", z) * -0.5))


def _logit(x: Scalar, *, eps: float | None = None) -> Scalar:
    if eps is not None:
        x = where(x < eps, eps, where(x > 1 - eps, 1 - eps, x))
    return apply("log", x / (1 - x))


def _mvlgamma(x: Scalar, *, p: int = 1) -> Scalar:
    total = apply("lgamma", x)
    for j in range(1, p):
        total = total + apply("lgamma", x - j / 2)
    return total + p * (p - 1) / 4 * math.log(math.pi)


def _polygamma(x: Scalar, *, n: int = 0) -> Scalar:
    if n == 0:
        return apply("digamma", x)
    if n == 1:
        return apply("trigamma", x)
    return apply("zeta", const(n + 1, x.dtype), x) * ((-1.0) ** (n + 1) * math.factorial(n))


def _fmax(a: Scalar, b: Scalar) -> Scalar:
    return where((a >= b) | _is_nan(b), a, b)


def _fmin(a: Scalar, b: Scalar) -> Scalar:
    return where((a <= b) | _is_nan(b), a, b)


def _lcm(a: Scalar, b: Scalar) -> Scalar:
    g = apply("gcd", a, b)
    return apply("abs", where(apply("eq", g, 0), 0, a / where(apply("eq", g, 0), 1, g) * b))


def _angle(x: Scalar) -> Scalar:
    return where(_is_nan(x), x, where(x < 0, const(math.pi, x.dtype), 0))


class Polygamma(Elementwise):
    """The n-th derivative of digamma; PyTorch gives n first."""

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        result = call.results[0]
        assert result is not None
        return {"x": call["self"]}, {"n": call["n"], "dtype": result.dtype, "compute": result.dtype.compute}


INTEGER_PAIR = (Sample({"a": TensorType(int64, (3, 4)), "b": TensorType(int64, (4,))}),)
register(ClampTensor("clamp_to", _clamp_to, ("clamp.Tensor",), (), None, ()))
register(NanToNum("nan_to_num", _nan_to_num, ("nan_to_num.default",), (), None, ()))
register(Polygamma("polygamma", _polygamma, ("polygamma.default", "special_polygamma.default"), (), None, tuple(
    Sample({"x": TensorType(float32, (3, 4))}, {"n": n}) for n in range(4))))  # fmt: skip
elementwise("fmax", _fmax, "fmax.default")
elementwise("fmin", _fmin, "fmin.default")
elementwise("frac", lambda x: x - apply("trunc", x), "frac.default")
elementwise("copysign", binary("copysign"), "copysign.Tensor", "copysign.Scalar")
elementwise("signbit", _signbit, "signbit.default", result=bool_)
elementwise("sgn", unary("sign"), "sgn.default")
elementwise("angle", _angle, "angle.default")
elementwise("isposinf", lambda x: apply("eq", x, INF), "isposinf.default", result=bool_)
elementwise("isneginf", lambda x: apply("eq", x, -INF), "isneginf.default", result=bool_)
elementwise("heaviside", _heaviside, "heaviside.default")
elementwise(
    "round_decimals",
    _round_decimals,
    "round.decimals",
    samples=(Sample({"x": TensorType(float32, (3, 4))}, {"decimals": 1}),),
)
elementwise("nextafter", binary("nextafter"), "nextafter.default")
elementwise("deg2rad", lambda x: x * (math.pi / 180), "deg2rad.default")
elementwise("rad2deg", lambda x: x * (180 / math.pi), "rad2deg.default")
# powers and logarithms
elementwise("exp2", unary("exp2"), "exp2.default", "special_exp2.default")
elementwise("ldexp", lambda x, exponent: x * apply("exp2", exponent), "ldexp.Tensor")
elementwise("hypot", binary("hypot"), "hypot.default")
elementwise("logaddexp", lambda a, b: _logaddexp(a, b), "logaddexp.default")
elementwise("logaddexp2", lambda a, b: _logaddexp(a, b, 2.0), "logaddexp2.default")
elementwise("xlogy", lambda a, b: _xlogy(a, b), "xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other")
elementwise("xlog1py", lambda a, b: _xlogy(a, b, "log1p", -1.0), "special_xlog1py.default", "special_xlog1py.other_scalar",
            "special_xlog1py.self_scalar")  # fmt: skip
elementwise("logit", _logit, "logit.default", samples=(
    Sample({"x": TensorType(float32, (3, 4))}, {"eps": 0.3}), Sample({"x": TensorType(float32, (3, 4))}, {"eps": 1e-3})))  # fmt: skip
elementwise("sinc", _sinc, "sinc.default")
elementwise("entr", _entr, "special_entr.default")
elementwise("native_dropout_backward", lambda g, mask, *, scale=1.0: where(mask, g * scale, 0), "native_dropout_backward.default",
            raw=("mask",))  # fmt: skip
# integers
elementwise("bitwise_left_shift", binary("shl"), "bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "__lshift__.Tensor",
            "__lshift__.Scalar", samples=INTEGER_PAIR)  # fmt: skip
elementwise("bitwise_right_shift", binary("shr"), "bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "__rshift__.Tensor",
            "__rshift__.Scalar", samples=INTEGER_PAIR)  # fmt: skip
elementwise("gcd", binary("gcd"), "gcd.default", samples=INTEGER_PAIR)
elementwise("lcm", _lcm, "lcm.default", samples=INTEGER_PAIR)
# special functions
elementwise("mvlgamma", _mvlgamma, "mvlgamma.default", samples=(Sample({"x": TensorType(float32, (3, 4))}, {"p": 3}),))
elementwise("igamma", binary("igamma"), "igamma.default")
elementwise("igammac", binary("igammac"), "igammac.default")
elementwise("zeta", binary("zeta"), "special_zeta.default", "special_zeta.self_scalar", "special_zeta.other_scalar")
elementwise("erfinv", unary("erfinv"), "erfinv.default")
elementwise("erfcx", unary("erfcx"), "special_erfcx.default")
elementwise("ndtri", unary("ndtri"), "special_ndtri.default")
elementwise("log_ndtr", _log_ndtr, "special_log_ndtr.default")
elementwise("spherical_bessel_j0", _spherical_bessel, "special_spherical_bessel_j0.default")
for _name, _aten in (
    ("i0", "i0"), ("i1", "special_i1"), ("i0e", "special_i0e"), ("i1e", "special_i1e"),
    ("k0", "special_modified_bessel_k0"), ("k1", "special_modified_bessel_k1"), ("k0e", "special_scaled_modified_bessel_k0"),
    ("k1e", "special_scaled_modified_bessel_k1"), ("bessel_j0", "special_bessel_j0"), ("bessel_j1", "special_bessel_j1"),
    ("bessel_y0", "special_bessel_y0"), ("bessel_y1", "special_bessel_y1"), ("airy_ai", "special_airy_ai"),
):  # fmt: skip
    same = (f"special_modified_bessel_{_name}.default",) if _name in ("i0", "i1") else ()
    elementwise(_name, unary(_name), f"{_aten}.default", *same)


def _shifted(name: str) -> Callable[[Scalar, Scalar], Scalar]:
    return lambda x, n: apply(name, 2 * x - 1, n)


for _name in (
    "chebyshev_t",
    "chebyshev_u",
    "chebyshev_v",
    "chebyshev_w",
    "hermite_h",
    "hermite_he",
    "laguerre_l",
    "legendre_p",
):
    _base = f"special_{_name.replace('_', '_polynomial_', 1)}"
    elementwise(_name, binary(_name), *(f"{_base}.{o}" for o in ("default", "x_scalar", "n_scalar")))
    if _name.startswith("chebyshev"):
        _base = _base.replace("special_", "special_shifted_")
        elementwise(f"shifted_{_name}", _shifted(_name), *(f"{_base}.{o}" for o in ("default", "x_scalar", "n_scalar")))


@register
class SplitExponent(OperatorDefinition):
    """x = mantissa * 2**exponent with the mantissa in [1/2, 1)."""

    name = "frexp"
    results = ("mantissa", "exponent")
    aten = ("aten.frexp.Tensor",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        self.require(x.dtype.is_float, f"operand x is {x.dtype}: only floats have an exponent")
        return {"mantissa": x, "exponent": TensorType(int32, x.shape)}

    def maps(self, c: Expansion) -> None:
        x = c.input()
        p = c.params(x.shape)

        def parts(x: Scalar) -> dict[str, Scalar]:
            wide = cast(x, x.dtype.compute)
            return {"m": cast(apply("mantissa", wide), x.dtype), "e": cast(apply("exponent", wide), int32)}

        c.map(p, {"x": at(x, *p)}, {"m": at(c.output("mantissa"), *p), "e": at(c.output("exponent"), *p)}, parts)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad("mantissa")
        if gy is None:
            return {}
        return {
            "x": g.pointwise(
                lambda v, e: v * apply("exp2", -cast(e, v.dtype)), gy, g.output("exponent"), dtype=gy.dtype
            )
        }

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 4))})
        yield Sample({"x": TensorType(int64, (3,))}, error="only floats")
