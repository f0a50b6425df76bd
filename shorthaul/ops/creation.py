"""Operators that make tensors: filled ones, ranges, identities, triangles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, float64, int64
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr

from .builder import Expansion, Gradient
from .elementwise import broadcast_at, broadcast_shapes
from .registry import REGISTRY, AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
ZEROS = (
    "zeros.default",
    "zeros_like.default",
    "new_zeros.default",
    "zero.default",
    "empty.memory_format",
    "empty_like.default",
    "new_empty.default",
    "empty_strided.default",
    "new_empty_strided.default",
    "empty_permuted.default",
)
ONES = ("ones.default", "ones_like.default", "new_ones.default")
FILLED = ("full.default", "full_like.default", "new_full.default", "fill.Scalar", "scalar_tensor.default")

VALUES = ("fill_value", "value", "s")


def number_of(value: Any, dtype: Any) -> Scalar:
    """A Python number or a size as scalar code of that dtype."""
    return cast(index_value(value), dtype) if isinstance(value, Expr) else const(value, dtype)


class Creation(OperatorDefinition):
    """Base: no operands; attributes `shape` and `dtype`."""

    operands: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = {"shape": (), "dtype": float32}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(attributes["dtype"], tuple(attributes["shape"]))}

    def result(self, call: AtenCall) -> dict[str, Any]:
        assert call.results[0] is not None
        return {"shape": call.results[0].shape, "dtype": call.results[0].dtype}

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


@register
class Full(Creation):
    """Every element is the number `value`. What PyTorch leaves uninitialized is filled with zeros."""

    name = "full"
    attributes: Mapping[str, Any] = {"value": 0, **Creation.attributes}
    aten = tuple(f"aten.{a}" for a in (*ZEROS, *ONES, *FILLED))

    def of_call(self, call: AtenCall) -> OperatorDefinition:
        """A Python number that changes between calls is a tensor here."""
        return REGISTRY["overwrite"] if any(isinstance(call.arguments.get(k), Container) for k in VALUES) else self

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        name = call.target.removeprefix("aten.")
        if name in FILLED:
            value = next(call[k] for k in VALUES if k in call.arguments)
        else:
            value = 1 if name in ONES else 0
        return {}, {"value": value, **self.result(call)}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        params = c.params(y.shape)
        c.map(params, {}, {"y": at(y, *params)}, {"y": number_of(c.attr("value"), y.dtype)})

    def samples(self) -> Iterable[Sample]:
        yield Sample({}, {"shape": (3, 4), "value": 1.5, "dtype": float32})
        yield Sample({}, {"shape": (), "value": 7, "dtype": int64})


@register
class Overwrite(OperatorDefinition):
    """What a tensor holds after a write over all of it: `x`, broadcast to its shape and cast to its dtype."""

    name = "overwrite"
    attributes: Mapping[str, Any] = {"shape": (), "dtype": float32}
    aten = ("aten.copy.default", "aten.fill.Tensor")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        new = next(call[k] for k in ("src", *VALUES) if k in call.arguments)
        assert call.results[0] is not None
        return {"x": new}, {"shape": call.results[0].shape, "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        shape = tuple(attributes["shape"])
        fits = broadcast_shapes(self.name, [types["x"].shape, shape]) == shape
        self.require(fits, f"a value of shape {list(types['x'].shape)} does not broadcast to {list(shape)}")
        return {"y": TensorType(attributes["dtype"], shape)}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        params = c.params(y.shape)
        c.map(params, {"x": broadcast_at(c.input(), params)}, {"y": at(y, *params)}, lambda x: {"y": cast(x, y.dtype)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.sum_to(gy, g.input().shape)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4,))}, {"shape": (3, 4), "dtype": float64})
        yield Sample({"x": TensorType(float32, ())}, {"shape": (3,), "dtype": float32})
        yield Sample({"x": TensorType(float32, (2,))}, {"shape": (3,), "dtype": float32}, error="do not broadcast")


@register
class Arange(Creation):
    """start, start + step, ... along one dimension."""

    name = "arange"
    attributes: Mapping[str, Any] = {"start": 0, "step": 1, **Creation.attributes}
    aten = ("aten.arange.default", "aten.arange.start", "aten.arange.start_step")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"start": call.arguments.get("start", 0), "step": call.arguments.get("step", 1), **self.result(call)}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        (i,) = c.params(y.shape)
        start, step = c.attr("start"), c.attr("step")
        if isinstance(start, (int, Expr)) and isinstance(step, (int, Expr)):
            value = cast(index_value(i * step + start), y.dtype)
        else:
            compute = y.dtype.compute
            value = cast(cast(index_value(i), compute) * number_of(step, compute) + number_of(start, compute), y.dtype)
        c.map((i,), {}, {"y": at(y, i)}, {"y": value})

    def samples(self) -> Iterable[Sample]:
        yield Sample({}, {"shape": (5,), "start": 2, "step": 3, "dtype": int64})
        yield Sample({}, {"shape": (4,), "start": 0.5, "step": 0.25, "dtype": float32})


@register
class Linspace(Creation):
    """Numbers at equal distances from start to stop, both included; they may be scalars that are operands. attribute base: its powers
    with these exponents."""

    name = "linspace"
    operands: tuple[str, ...] = ("start?", "stop?")
    attributes: Mapping[str, Any] = {"from": 0.0, "to": 0.0, "base": None, **Creation.attributes}
    gradient = None  # type: ignore[assignment]
    aten = tuple(
        f"aten.{n}.{o}" for n in ("linspace", "logspace") for o in ("default", "Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor")
    )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        ends = {k: call[k] for k in ("start", "end")}
        operands = {n: ends[k] if isinstance(ends[k], Container) else None for n, k in (("start", "start"), ("stop", "end"))}
        attributes = {n: 0.0 if isinstance(ends[k], Container) else ends[k] for n, k in (("from", "start"), ("to", "end"))}
        return operands, {**attributes, "base": call.arguments.get("base"), **self.result(call)}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        (i,) = c.params(y.shape)
        wide = y.dtype.compute if y.dtype.is_float else float64
        reads = {k: at(c.input(k)) for k in ("start", "stop") if c.has(k)}

        def value(**ends: Scalar) -> dict[str, Scalar]:
            first, last = (cast(ends[k], wide) if k in ends else number_of(c.attr(a), wide) for k, a in (("start", "from"), ("stop", "to")))
            gaps = y.shape[0] - 1
            if isinstance(gaps, int) and gaps <= 0:
                result = first
            else:  # from the nearer end, so that both are exact
                step = (last - first) / cast(index_value(gaps), wide)
                lower = apply("lt", index_value(i * 2), index_value(gaps + 1))
                result = where(lower, first + step * cast(index_value(i), wide), last - step * cast(index_value(gaps - i), wide))
            base = c.attr("base")
            return {"y": cast(result if base is None else apply("pow", const(base, wide), result), y.dtype)}

        c.map((i,), reads, {"y": at(y, i)}, value)

    def samples(self) -> Iterable[Sample]:
        yield Sample({}, {"shape": (5,), "from": -1.0, "to": 2.0, "dtype": float32})
        yield Sample({"start": TensorType(float32, ()), "stop": TensorType(float32, ())}, {"shape": (6,), "dtype": float32})
        yield Sample({}, {"shape": (4,), "from": 0.0, "to": 3.0, "base": 2.0, "dtype": float32})


@register
class Eye(Creation):
    """Ones on the diagonal."""

    name = "eye"
    aten = ("aten.eye.default", "aten.eye.m")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, self.result(call)

    def maps(self, c: Expansion) -> None:
        y = c.output()
        i, j = c.params(y.shape)
        c.map((i, j), {}, {"y": at(y, i, j)}, {"y": cast(apply("eq", index_value(i - j), 0), y.dtype)})

    def samples(self) -> Iterable[Sample]:
        yield Sample({}, {"shape": (3, 4), "dtype": float32})


class Triangle(OperatorDefinition):
    """Base: x on one side of a diagonal of its last two dimensions, zero on the other."""

    attributes: Mapping[str, Any] = {"diagonal": 0}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(len(types["x"].shape) >= 2, f"needs at least two dimensions, not {list(types['x'].shape)}")
        return {"y": types["x"]}

    def kept(self, row: Any, column: Any, diagonal: IntLike) -> Condition:
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        p = c.params(y.shape)
        c.map(
            p,
            {"x": at(x, *p, guard=[self.kept(p[-2], p[-1], c.attr("diagonal"))], fill=0)},
            {"y": at(y, *p)},
            lambda x: {"y": x},
        )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op(self.name, {"diagonal": g.attr("diagonal")}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 4, 5))}, {"diagonal": 1})
        yield Sample({"x": TensorType(float32, (4, 3))}, {"diagonal": -1})
        yield Sample({"x": TensorType(float32, (4,))}, {}, error="two dimensions")


@register
class Tril(Triangle):
    """The lower triangle: column - row <= diagonal."""

    name = "tril"
    aten = ("aten.tril.default",)

    def kept(self, row: Any, column: Any, diagonal: IntLike) -> Condition:
        return Condition(row + diagonal - column)


@register
class Triu(Triangle):
    """The upper triangle: column - row >= diagonal."""

    name = "triu"
    aten = ("aten.triu.default",)

    def kept(self, row: Any, column: Any, diagonal: IntLike) -> Condition:
        return Condition(column - row - diagonal)
