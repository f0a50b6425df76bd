"""Reductions over dimensions: sum, mean, max, min, prod, any, all, arg-max, and the sum that undoes broadcasting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, bool_, float32, int64
from shorthaul.ir.memlet import Subscript
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value
from shorthaul.symbolic import Expr, product

from .builder import Expansion, Gradient
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim

IntLike = Union[int, Expr]


def kept_subset(params: Sequence[Any], dims: frozenset[int], keepdim: bool) -> list[Subscript]:
    """Subscripts of a reduction's result for the operand's parameters."""
    return [0 if d in dims else p for d, p in enumerate(params) if keepdim or d not in dims]


def reduced_shape(shape: Sequence[IntLike], dims: frozenset[int], keepdim: bool) -> tuple[IntLike, ...]:
    return tuple(1 if d in dims else n for d, n in enumerate(shape) if keepdim or d not in dims)


class Reduction(OperatorDefinition):
    """Base: `combine` over `dims` (all when empty). 16-bit floats accumulate in float32."""

    combine = "sum"
    attributes: Mapping[str, Any] = {"dims": (), "keepdim": False, "dtype": None}

    def result_dtype(self, x: DType, attributes: Mapping[str, Any]) -> DType:
        return attributes.get("dtype") or x

    def dims_of(self, rank: int, attributes: Mapping[str, Any]) -> frozenset[int]:
        dims = frozenset(wrap_dim(self.name, d, rank) for d in attributes["dims"])
        return (dims if rank else frozenset()) or frozenset(range(rank))  # a scalar may be reduced along its "dimension" 0

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        dim = call.arguments.get("dim")
        dims = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
        assert call.results[0] is not None
        return {"x": call["self"]}, {"dims": dims, "keepdim": call.arguments.get("keepdim", False), "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        dims = self.dims_of(len(x.shape), attributes)
        return {"y": TensorType(self.result_dtype(x.dtype, attributes), reduced_shape(x.shape, dims, attributes["keepdim"]))}

    def lift(self, x: Scalar, accumulate: DType) -> Scalar:
        return cast(x, accumulate)

    def finish(self, total: Scalar, count: IntLike) -> Scalar:
        return total

    @property
    def finishes(self) -> bool:
        return type(self).finish is not Reduction.finish

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        dims = self.dims_of(len(x.shape), c.node.attributes)
        keepdim = c.attr("keepdim")
        accumulate = y.dtype.compute
        direct = accumulate is y.dtype and not self.finishes
        total = y if direct else c.temp(y.shape, accumulate)
        params = c.params(x.shape)
        combine = None if product(x.shape[d] for d in dims) == 1 else self.combine  # of one element: a copy, which fuses
        c.map(params, {"x": at(x, *params)}, {"y": at(total, *kept_subset(params, dims, keepdim), combine=combine)},
              lambda x: {"y": self.lift(x, accumulate)})  # fmt: skip
        if not direct:
            count = product(x.shape[d] for d in dims)
            outer = c.params(y.shape)
            c.map(outer, {"t": at(total, *outer)}, {"y": at(y, *outer)}, lambda t: {"y": cast(self.finish(t, count), y.dtype)})

    def _broadcast(self, g: Gradient, gy: Container) -> Container:
        """The incoming gradient with the reduced dimensions back, as size one."""
        x = g.input()
        dims = self.dims_of(len(x.shape), g.node.attributes)
        return g.reshape(gy, reduced_shape(x.shape, dims, True))

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4, 5))
        yield Sample({"x": x}, {"dims": (1,), "keepdim": False})
        yield Sample({"x": x}, {"dims": (0, -1), "keepdim": True})
        yield Sample({"x": x}, {"dims": (), "keepdim": False})
        yield Sample({"x": x}, {"dims": (3,)}, error="out of range")


@register
class Sum(Reduction):
    """Sum over dimensions."""

    name = "sum"
    aten = ("aten.sum.dim_IntList", "aten.sum.default")

    def result_dtype(self, x: DType, attributes: Mapping[str, Any]) -> DType:
        return attributes.get("dtype") or (x if x.is_float else int64)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("expand", {"shape": g.input().shape}, x=self._broadcast(g, gy))}


@register
class Mean(Reduction):
    """Mean over dimensions."""

    name = "mean"
    aten = ("aten.mean.dim", "aten.mean.default")

    def finish(self, total: Scalar, count: IntLike) -> Scalar:
        return total / (const(count, total.dtype) if isinstance(count, int) else cast(index_value(count), total.dtype))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        count = product(x.shape[d] for d in self.dims_of(len(x.shape), g.node.attributes))
        scaled = g.pointwise(lambda v: self.finish(v, count), self._broadcast(g, gy))
        return {"x": g.op("expand", {"shape": x.shape}, x=scaled)}


class Extremum(Reduction):
    """Maximum or minimum over dimensions; ties share the gradient equally, as PyTorch's amax."""

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        y, gk = self._broadcast(g, g.output()), self._broadcast(g, gy)
        # a NaN among the elements is the result, and gets the gradient
        hits = g.pointwise(lambda a, b: cast(apply("eq", a, b) | apply("ne", a, a), a.dtype), x, y, dtype=x.dtype.compute)
        dims = tuple(self.dims_of(len(x.shape), g.node.attributes))
        ties = g.op("sum", {"dims": dims, "keepdim": True}, x=hits)
        return {"x": g.pointwise(lambda h, n, v: h * (v / n), hits, ties, gk, dtype=x.dtype)}


@register
class Amax(Extremum):
    """Maximum over dimensions."""

    name = "amax"
    combine = "max"
    aten = ("aten.amax.default", "aten.max.default")


@register
class Amin(Extremum):
    """Minimum over dimensions."""

    name = "amin"
    combine = "min"
    aten = ("aten.amin.default", "aten.min.default")


@register
class Any_(Reduction):
    """Whether any element is true."""

    name = "any"
    combine = "any"
    aten = ("aten.any.dim", "aten.any.default", "aten.any.dims")

    def result_dtype(self, x: DType, attributes: Mapping[str, Any]) -> DType:
        return bool_

    gradient = None


@register
class All_(Any_):
    """Whether all elements are true."""

    name = "all"
    combine = "all"
    aten = ("aten.all.dim", "aten.all.default", "aten.all.dims")


@register
class Argmax(OperatorDefinition):
    """Index of the first maximum along a dimension (over all elements when dim is None)."""

    name = "argmax"
    combine = "argmax"
    attributes: Mapping[str, Any] = {"dim": None, "keepdim": False}
    aten: tuple[str, ...] = ("aten.argmax.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        return {"y": TensorType(int64, reduced_shape(x.shape, self._dims(x, attributes), attributes["keepdim"]))}

    def _dims(self, x: Any, attributes: Mapping[str, Any]) -> frozenset[int]:
        rank = len(x.shape)
        if attributes["dim"] is None:
            return frozenset(range(rank))
        dim = wrap_dim(self.name, attributes["dim"], rank)
        return frozenset({dim} if rank else ())  # a scalar has a "dimension" 0

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        dims = self._dims(x, c.node.attributes)
        value = c.temp(y.shape, x.dtype)
        params = c.params(x.shape)
        where: IntLike = 0
        for d in sorted(dims):
            where = where * x.shape[d] + params[d]
        subset = kept_subset(params, dims, c.attr("keepdim"))
        c.map(params, {"x": at(x, *params)},
              {"value": at(value, *subset, combine=self.combine), "index": at(y, *subset, combine=self.combine)},
              lambda x: {"value": x, "index": index_value(where)})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": None})
        yield Sample({"x": TensorType(float32, ())}, {"dim": -1, "keepdim": True})


@register
class Argmin(Argmax):
    """Index of the first minimum along a dimension."""

    name = "argmin"
    combine = "argmin"
    aten = ("aten.argmin.default",)


@register
class SumTo(OperatorDefinition):
    """Sum over the dimensions along which `shape` was broadcast to the operand's shape."""

    name = "sum_to"
    attributes: Mapping[str, Any] = {"shape": ()}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(types["x"].dtype, tuple(attributes["shape"]))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        params = c.params(x.shape)
        extra = len(x.shape) - len(y.shape)
        subset = [0 if n == 1 else params[extra + d] for d, n in enumerate(y.shape)]
        accumulate = y.dtype.compute
        total = y if accumulate is y.dtype else c.temp(y.shape, accumulate)
        c.map(params, {"x": at(x, *params)}, {"y": at(total, *subset, combine="sum")}, lambda x: {"y": cast(x, accumulate)})
        if total is not y:
            outer = c.params(y.shape)
            c.map(outer, {"t": at(total, *outer)}, {"y": at(y, *outer)}, lambda t: {"y": cast(t, y.dtype)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("expand", {"shape": g.input().shape}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 4, 5))}, {"shape": (4, 1)})
        yield Sample({"x": TensorType(float32, (3, 4))}, {"shape": (1, 4)})
