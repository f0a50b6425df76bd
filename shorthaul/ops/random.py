"""Random operators. A number depends on the seed, the offset, the operator's stream and the element's logical index
(Philox), so that the backward
phase draws the mask of dropout again instead of storing it.

Operands seed and offset are int64 scalars that the runtime sets at each forward; attribute `stream` tells the operators of a program apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, float64, int64
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr

from .builder import Expansion, Gradient
from .elementwise import broadcast_at
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
RANDOM_ATTRIBUTES: Mapping[str, Any] = {"stream": 0}


def linear_index(params: Sequence[IntLike], shape: Sequence[IntLike]) -> IntLike:
    """The position of an element in row-major order."""
    result: IntLike = 0
    for p, n in zip(params, shape, strict=True):
        result = result * n + p
    return result


def uniform(seed: Scalar, offset: Scalar, stream: int, position: IntLike, part: int = 0) -> Scalar:
    """A number in [0, 1) as float32. Streams lie 2**32 offsets apart, `part` (0 or 1) is a second number of the same element."""
    distance = (stream << 32) + (part << 31)
    return apply("philox", seed, offset if distance == 0 else offset + distance, index_value(position))


def random_reads(c: Expansion) -> dict[str, Memlet]:
    return {"seed": at(c.input("seed")), "offset": at(c.input("offset"))}


class RandomOperator(OperatorDefinition):
    """Base: operand x gives shape and dtype (no x: attributes do)."""

    operands: tuple[str, ...] = ("x", "seed", "offset")
    attributes: Mapping[str, Any] = RANDOM_ATTRIBUTES
    is_random = True

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_random(types)
        return {"y": types["x"]}

    def check_random(self, types: Mapping[str, TensorType]) -> None:
        for k in ("seed", "offset"):
            t = types.get(k)
            self.require(
                t is not None and t.dtype is int64 and t.shape == (), f"operand {k} must be an int64 scalar, not {t}"
            )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


SCALARS: Mapping[str, TensorType] = {"seed": TensorType(int64, ()), "offset": TensorType(int64, ())}


@register
class Dropout(RandomOperator):
    """x / (1 - p) where an element is kept (with probability 1 - p), else 0. It is linear in x, so its gradient is
    dropout of the gradient.
    """

    name = "dropout"
    attributes: Mapping[str, Any] = {"p": 0.5, **RANDOM_ATTRIBUTES}
    aten: tuple[str, ...] = ("aten.dropout.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["input"]}, {"p": float(call["p"]) if call["train"] in (True, None) else 0.0}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_random(types)
        self.require(0 <= attributes["p"] <= 1, f"probability p = {attributes['p']} is not between 0 and 1")
        self.require(types["x"].dtype.is_float, f"operand x is {types['x'].dtype}: only floats are dropped out")
        return {"y": types["x"]}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        p, stream = c.attr("p"), c.attr("stream")
        params = c.params(y.shape)
        writes = {"y": at(y, *params)}
        if c.wants("mask"):
            writes["mask"] = at(c.output("mask"), *params)
        position = linear_index(params, y.shape)

        def value(x: Scalar, seed: Scalar, offset: Scalar) -> dict[str, Scalar]:
            keep = uniform(seed, offset, stream, position) >= p
            scaled = cast(cast(x, x.dtype.compute) * (1 / (1 - p) if p < 1 else 0.0), y.dtype)
            return {"y": where(keep, scaled, 0), "mask": keep}

        c.map(
            params,
            {"x": at(x, *params), **random_reads(c)},
            writes,
            lambda **v: {k: e for k, e in value(**v).items() if k in writes},
        )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        attributes = {k: g.attr(k) for k in ("p", "stream")}
        return {"x": gy and g.op("dropout", attributes, x=gy, seed=g.input("seed"), offset=g.input("offset"))}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (6, 7))
        yield Sample({"x": x, **SCALARS}, {"p": 0.3, "stream": 2})
        yield Sample({"x": x, **SCALARS}, {"p": 1.0})
        yield Sample({"x": x, **SCALARS}, {"p": 1.5}, error="between 0 and 1")
        yield Sample(
            {"x": x, "seed": TensorType(float32, ()), "offset": TensorType(int64, ())}, {}, error="int64 scalar"
        )


@register
class NativeDropout(Dropout):
    """Dropout that also gives the mask."""

    name = "native_dropout"
    results = ("y", "mask")
    optional_results = ("mask",)
    aten = ("aten.native_dropout.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {**super().infer(types, attributes), "mask": TensorType(bool_, types["x"].shape)}


@register
class Bernoulli(RandomOperator):
    """One with probability p, else zero, of x's shape and dtype (x's values do not matter)."""

    name = "bernoulli"
    attributes: Mapping[str, Any] = {"p": 0.5, **RANDOM_ATTRIBUTES}
    aten = ("aten.bernoulli.p",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {"p": float(call["p"])}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(0 <= attributes["p"] <= 1, f"probability p = {attributes['p']} is not between 0 and 1")
        return super().infer(types, attributes)

    def maps(self, c: Expansion) -> None:
        y = c.output()
        params = c.params(y.shape)
        c.map(
            params,
            random_reads(c),
            {"y": at(y, *params)},
            lambda seed, offset: {
                "y": cast(uniform(seed, offset, c.attr("stream"), linear_index(params, y.shape)) < c.attr("p"), y.dtype)
            },
        )

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (5, 1, 1)), **SCALARS}, {"p": 0.8, "stream": 1})
        yield Sample({"x": TensorType(float32, (5,)), **SCALARS}, {"p": -0.1}, error="between 0 and 1")


@register
class BernoulliOf(RandomOperator):
    """One with the probability that x gives, else zero. attributes shape, dtype: of the result, to which x broadcasts (default: x's)."""

    name = "bernoulli_of"
    attributes: Mapping[str, Any] = {"shape": None, "dtype": None, **RANDOM_ATTRIBUTES}
    aten = ("aten.bernoulli.default", "aten.bernoulli.Tensor")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        return {"x": call.arguments.get("p", call["self"])}, {"shape": call.results[0].shape, "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_random(types)
        shape = attributes["shape"]
        return {"y": TensorType(attributes["dtype"] or types["x"].dtype, types["x"].shape if shape is None else tuple(shape))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        params = c.params(y.shape)
        stream, position = c.attr("stream"), linear_index(params, y.shape)
        c.map(
            params,
            {"x": broadcast_at(x, params), **random_reads(c)},
            {"y": at(y, *params)},
            lambda x, seed, offset: {"y": cast(uniform(seed, offset, stream, position) < cast(x, float32), y.dtype)},
        )

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (5, 4)), **SCALARS}, {"stream": 1})
        yield Sample({"x": TensorType(float32, (4,)), **SCALARS}, {"shape": (5, 4), "dtype": float32})


class Distribution(RandomOperator):
    """Base: independent numbers of attributes `shape` and `dtype`."""

    operands = ("seed", "offset")
    attributes: Mapping[str, Any] = {"shape": (), "dtype": float32, **RANDOM_ATTRIBUTES}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        given = {k: call.arguments[k] for k in self.attributes if k in call.arguments and k not in ("dtype", "shape")}
        return {}, {**given, "shape": call.results[0].shape, "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_random(types)
        return {"y": TensorType(attributes["dtype"], tuple(attributes["shape"]))}

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        """The number, from `draw(part)`."""
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        y = c.output()
        params = c.params(y.shape)
        position = linear_index(params, y.shape)
        # double precision has the same 24 random bits, and its own logarithms and roots
        compute = float64 if y.dtype is float64 else float32

        def value(seed: Scalar, offset: Scalar) -> dict[str, Scalar]:
            def draw(part: int) -> Scalar:
                return cast(uniform(seed, offset, c.attr("stream"), position, part), compute)

            return {"y": cast(self.number(draw, c.node.attributes), y.dtype)}

        c.map(params, random_reads(c), {"y": at(y, *params)}, value)

    def samples(self) -> Iterable[Sample]:
        yield Sample(SCALARS, {"shape": (40, 50), "dtype": float32, "stream": 3})


@register
class Uniform(Distribution):
    """Uniform numbers in [low, high)."""

    name = "uniform"
    attributes: Mapping[str, Any] = {"low": 0.0, "high": 1.0, **Distribution.attributes}
    aten = ("aten.rand.default", "aten.rand_like.default", "aten.uniform.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        if "from" in call.arguments:
            attributes.update(low=float(call["from"]), high=float(call["to"]))
        return operands, attributes

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        low, high = attributes["low"], attributes["high"]
        return draw(0) if (low, high) == (0.0, 1.0) else draw(0) * (high - low) + low


def standard_normal(draw: Any) -> Scalar:
    """A normal number of mean 0 and standard deviation 1 (Box-Muller)."""
    return apply("sqrt", apply("log1p", -draw(0)) * -2.0) * apply("cos", draw(1) * (2 * math.pi))


def positive(draw: Any) -> Scalar:
    """A uniform number between 0 and 1, both excluded."""
    u = draw(0)
    return where(apply("eq", u, 0), 2.0**-25, u)


@register
class Normal(Distribution):
    """Normal numbers of a mean and standard deviation (Box-Muller)."""

    name = "normal"
    attributes: Mapping[str, Any] = {"mean": 0.0, "std": 1.0, **Distribution.attributes}
    aten = ("aten.randn.default", "aten.randn_like.default", "aten.normal_functional.default", "aten.normal.float_float")

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        standard = standard_normal(draw)
        mean, std = float(attributes["mean"]), float(attributes["std"])
        return standard if (mean, std) == (0.0, 1.0) else standard * std + mean


@register
class NormalOf(RandomOperator):
    """Normal numbers whose means or standard deviations are tensors (the other one a number)."""

    name = "normal_of"
    operands = ("m?", "s?", "seed", "offset")
    attributes: Mapping[str, Any] = {"mean": 0.0, "std": 1.0, "shape": (), "dtype": float32, **RANDOM_ATTRIBUTES}
    aten = ("aten.normal.Tensor_Tensor", "aten.normal.Tensor_float", "aten.normal.float_Tensor")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        given = {k: call[k] for k in ("mean", "std")}
        numbers = {k: v for k, v in given.items() if not isinstance(v, Container)}
        operands = {k[0]: v for k, v in given.items() if isinstance(v, Container)}
        return operands, {**numbers, "shape": call.results[0].shape, "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_random(types)
        return {"y": TensorType(attributes["dtype"], tuple(attributes["shape"]))}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        params = c.params(y.shape)
        stream, position = c.attr("stream"), linear_index(params, y.shape)
        reads = {k: broadcast_at(c.input(k), params) for k in ("m", "s") if c.has(k)}

        def value(seed: Scalar, offset: Scalar, **of: Scalar) -> dict[str, Scalar]:
            wide = y.dtype.compute
            mean, std = (cast(of[k], wide) if k in of else const(c.attr(n), wide) for k, n in (("m", "mean"), ("s", "std")))
            standard = standard_normal(lambda part: cast(uniform(seed, offset, stream, position, part), wide))
            return {"y": cast(mean + std * standard, y.dtype)}

        c.map(params, {**reads, **random_reads(c)}, {"y": at(y, *params)}, value)

    def samples(self) -> Iterable[Sample]:
        m, s = TensorType(float32, (3, 4)), TensorType(float32, (4,))
        yield Sample({"m": m, "s": s, **SCALARS}, {"shape": (3, 4)})
        yield Sample({"s": s, **SCALARS}, {"mean": 2.0, "shape": (4,)})


@register
class Exponential(Distribution):
    """Exponential numbers of rate `rate`, greater than zero."""

    name = "exponential"
    attributes: Mapping[str, Any] = {"rate": 1.0, **Distribution.attributes}
    aten = ("aten.exponential.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        return operands, {**attributes, "rate": float(call["lambd"])}

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        return -apply("log", positive(draw)) / attributes["rate"]


@register
class Cauchy(Distribution):
    """Cauchy numbers around a median."""

    name = "cauchy"
    attributes: Mapping[str, Any] = {"median": 0.0, "sigma": 1.0, **Distribution.attributes}
    aten = ("aten.cauchy.default",)

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        return apply("tan", (positive(draw) - 0.5) * math.pi) * float(attributes["sigma"]) + float(attributes["median"])


@register
class LogNormal(Distribution):
    """Numbers whose logarithms are normal."""

    name = "log_normal"
    attributes: Mapping[str, Any] = {"mean": 1.0, "std": 2.0, **Distribution.attributes}
    aten = ("aten.log_normal.default",)

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        return apply("exp", standard_normal(draw) * float(attributes["std"]) + float(attributes["mean"]))


@register
class Geometric(Distribution):
    """The number of trials until the first success, whose probability is p."""

    name = "geometric"
    attributes: Mapping[str, Any] = {"p": 0.5, **Distribution.attributes}
    aten = ("aten.geometric.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(0 < attributes["p"] < 1, f"probability p = {attributes['p']} is not between 0 and 1")
        return super().infer(types, attributes)

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        return apply("max", apply("ceil", apply("log", positive(draw)) / math.log1p(-attributes["p"])), 1)

    def samples(self) -> Iterable[Sample]:
        yield Sample(SCALARS, {"p": 0.3, "shape": (4, 5)})
        yield Sample(SCALARS, {"p": 1.5, "shape": (4,)}, error="between 0 and 1")


@register
class RandomIntegers(Distribution):
    """Integers from low up to, not including, high."""

    name = "randint"
    attributes: Mapping[str, Any] = {"low": 0, "high": 1, **Distribution.attributes, "dtype": int64}
    aten = ("aten.randint.default", "aten.randint.low", "aten.randint_like.default", "aten.randint_like.low_dtype")

    def number(self, draw: Any, attributes: Mapping[str, Any]) -> Scalar:
        low, high = attributes["low"], attributes["high"]
        span = index_value(high - low)
        # 24 bits a number: two of them keep the shares of large ranges even to 2**-48
        fine = apply("floor", draw(0) * 2.0**24)
        coarse = apply("floor", draw(1) * 2.0**24)
        word = apply("add", apply("shl", cast(coarse, int64), const(24, int64)), cast(fine, int64))
        return apply("add", apply("mod", word, span), index_value(low))

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        low, high = attributes["low"], attributes["high"]
        self.require(
            not (isinstance(low, int) and isinstance(high, int)) or low < high,
            f"the range from {low} to {high} is empty",
        )
        return super().infer(types, attributes)

    def samples(self) -> Iterable[Sample]:
        yield Sample(SCALARS, {"low": -3, "high": 5, "shape": (40, 50)})
        yield Sample(SCALARS, {"low": 5, "high": 5, "shape": (4,)}, error="empty")
