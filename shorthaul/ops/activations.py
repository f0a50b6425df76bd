"""Activation functions: elementwise ones in a line each, the gated linear unit, and the randomized leaky one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.scalar import Scalar, apply, cast, where
from shorthaul.symbolic import floordiv, mod, prove_eq

from .builder import Expansion, Gradient
from .elementwise import elementwise
from .random import RANDOM_ATTRIBUTES, SCALARS, RandomOperator, linear_index, random_reads, uniform
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim


def _gelu(x: Scalar, *, approximate: str = "none") -> Scalar:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1 + apply("tanh", inner))
    return 0.5 * x * (1 + apply("erf", x * math.sqrt(0.5)))


def _softplus(x: Scalar, *, beta: float = 1.0, threshold: float = 20.0) -> Scalar:
    return where(x * beta > threshold, x, apply("log1p", apply("exp", x * beta)) / beta)


def _mish(x: Scalar) -> Scalar:
    # tanh(softplus(x)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1) with e = exp(x): one exponential instead of three functions. It is 1 to the
    # last bit from x = 20 on, where the exponential need not grow any more. On each side of zero it is written such that neither it nor
    # its derivative is the small difference of large numbers
    e = apply("exp", where(x > 20, 20, x))
    n = e * (e + 2)
    r = 1 / (n + 2)
    return x * where(x > 0, 1 - 2 * r, n * r)


def _clipped(low: float, high: float) -> Callable[[Scalar], Scalar]:
    return lambda x: where(x <= low, low, where(x >= high, high, x))


def _softshrink(x: Scalar, *, lambd: float = 0.5) -> Scalar:
    # x * 0 and not 0 in the middle: NaN stays NaN
    return where(x > lambd, x - lambd, where(x < -lambd, x + lambd, x * 0))


elementwise("relu", lambda x: where(x <= 0, 0, x), "relu.default")
elementwise("relu6", _clipped(0.0, 6.0), "relu6.default")
elementwise(
    "hardtanh",
    lambda x, *, min_val=-1.0, max_val=1.0: where(x <= min_val, min_val, where(x >= max_val, max_val, x)),
    "hardtanh.default",
)
elementwise("silu", lambda x: x * apply("sigmoid", x), "silu.default")
elementwise("gelu", _gelu, "gelu.default")
elementwise("mish", _mish, "mish.default")
elementwise("softplus", _softplus, "softplus.default")
elementwise(
    "elu",
    lambda x, *, alpha=1.0, scale=1.0, input_scale=1.0: where(
        x > 0, x * scale, apply("expm1", x * input_scale) * (alpha * scale)
    ),
    "elu.default",
)
elementwise("celu", lambda x, *, alpha=1.0: where(x > 0, x, apply("expm1", x * (1 / alpha)) * alpha), "celu.default")
elementwise("leaky_relu", lambda x, *, negative_slope=0.01: where(x > 0, x, x * negative_slope), "leaky_relu.default")
elementwise("prelu", lambda x, weight: where(x > 0, x, x * weight), "_prelu_kernel.default")
elementwise("hardsigmoid", lambda x: where(x <= -3, 0, where(x >= 3, 1, x / 6 + 0.5)), "hardsigmoid.default")
elementwise("hardswish", lambda x: where(x <= -3, 0, where(x >= 3, x, x * (x / 6 + 0.5))), "hardswish.default")
elementwise(
    "log_sigmoid",
    lambda x: apply("min", x, 0) - apply("log1p", apply("exp", -apply("abs", x))),
    "log_sigmoid.default",
    "log_sigmoid_forward.default",
)
elementwise("hardshrink", lambda x, *, lambd=0.5: where((x < -lambd) | (x > lambd), x, x * 0), "hardshrink.default")
elementwise("softshrink", _softshrink, "softshrink.default")
elementwise("threshold", lambda x, *, threshold=0.0, value=0.0: where(x <= threshold, value, x), "threshold.default")


@register
class GatedLinearUnit(OperatorDefinition):
    """The first half of x along `dim` times the sigmoid of the second."""

    name = "glu"
    attributes: Mapping[str, Any] = {"dim": -1}
    aten = ("aten.glu.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {"dim": wrap_dim(self.name, call["dim"], len(call["self"].shape))}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        dim = wrap_dim(self.name, attributes["dim"], len(x.shape))
        self.require(x.dtype.is_float, f"operand is {x.dtype}, not floating")
        self.require(
            prove_eq(mod(x.shape[dim], 2), 0) is not False, f"dimension {dim} of {list(x.shape)} does not halve"
        )
        return {"y": TensorType(x.dtype, (*x.shape[:dim], floordiv(x.shape[dim], 2), *x.shape[dim + 1 :]))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        dim = wrap_dim(self.name, c.attr("dim"), len(x.shape))
        compute = y.dtype.compute
        p = c.params(y.shape)
        second = [q + y.shape[dim] if d == dim else q for d, q in enumerate(p)]
        c.map(p, {"a": at(x, *p), "b": at(x, *second)}, {"y": at(y, *p)},
              lambda a, b: {"y": cast(cast(a, compute) * apply("sigmoid", cast(b, compute)), y.dtype)})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        dim = wrap_dim(self.name, g.attr("dim"), len(x.shape))
        n = gy.shape[dim]
        a = g.op("slice", {"dim": dim, "start": 0, "stop": n, "step": 1}, x=x)
        b = g.op("slice", {"dim": dim, "start": n, "stop": 2 * n, "step": 1}, x=x)

        def gate(v: Scalar, a: Scalar, b: Scalar) -> Scalar:
            s = apply("sigmoid", b)
            return v * a * s * (1 - s)

        return {"x": g.op("cat", {"dim": dim}, x0=g.pointwise(lambda v, b: v * apply("sigmoid", b), gy, b, dtype=x.dtype),
                          x1=g.pointwise(gate, gy, a, b, dtype=x.dtype))}  # fmt: skip

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 6, 2))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1}, error="does not halve")
        yield Sample({"x": TensorType(float32, (3, 4))}, {"dim": 2}, error="out of range")


@register
class RandomizedLeakyRelu(RandomOperator):
    """x where it is positive, else x times a slope: in training a random one between `lower` and `upper` for each element, else
    their mean.
    """

    name = "rrelu"
    attributes: Mapping[str, Any] = {"lower": 1 / 8, "upper": 1 / 3, "training": True, **RANDOM_ATTRIBUTES}
    aten = ("aten.rrelu_with_noise_functional.default",)
    gradient = None  # type: ignore[assignment]

    def uses_random(self, attributes: Mapping[str, Any]) -> bool:
        return bool(attributes["training"])

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {k: call[k] for k in ("lower", "upper", "training")}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(attributes["lower"] <= attributes["upper"],
                     f"lower bound {attributes['lower']} is greater than the upper one {attributes['upper']}")  # fmt: skip
        return super().infer(types, attributes) if attributes["training"] else {"y": types["x"]}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        low, high, stream = c.attr("lower"), c.attr("upper"), c.attr("stream")
        compute = y.dtype.compute
        p = c.params(y.shape)

        def value(x: Scalar, seed: Scalar | None = None, offset: Scalar | None = None) -> dict[str, Scalar]:
            v = cast(x, compute)
            if seed is None or offset is None:
                slope: Any = (low + high) / 2
            else:
                slope = cast(uniform(seed, offset, stream, linear_index(p, y.shape)), compute) * (high - low) + low
            return {"y": cast(where(v <= 0, v * slope, v), y.dtype)}

        c.map(p, {"x": at(x, *p), **(random_reads(c) if c.attr("training") else {})}, {"y": at(y, *p)}, value)

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (4, 5))
        yield Sample({"x": x, **SCALARS}, {"stream": 1})
        yield Sample({"x": x}, {"training": False, "lower": 0.1})
        yield Sample({"x": x, **SCALARS}, {"lower": 0.5}, error="greater than")
