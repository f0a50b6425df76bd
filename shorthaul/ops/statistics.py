"""More reductions: variances, norms, log-sum-exp, products, extrema with their indices, counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, int64
from shorthaul.ir.memlet import Condition, Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, where
from shorthaul.symbolic import Expr, product, prove_eq

from .builder import Expansion, Gradient
from .creation import number_of
from .elementwise import broadcast_at, broadcast_shapes
from .reductions import Reduction, kept_subset, reduced_shape
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim

IntLike = Union[int, Expr]


def copied(c: Expansion, source: Container, y: Container, code: Callable[[Scalar], Scalar]) -> None:
    """y = code(source), element by element, cast to y's dtype."""
    p = c.params(y.shape)
    c.map(p, {"t": at(source, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(code(t), y.dtype)})


# variances ------------------------------------------------------------------------------------------------------------
class Variance(Reduction):
    """sum (x - mean)^2 / max(0, n - correction) over dimensions, merged by Welford's rule; perhaps its root, and the mean."""

    attributes: Mapping[str, Any] = {"dims": (), "keepdim": False, "correction": 1}
    root = False

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        dims = call.arguments.get("dim")
        correction = call.arguments.get("correction")
        attributes = {"dims": tuple(dims or ()), "keepdim": call.arguments.get("keepdim", False)}
        return {"x": call["self"]}, {**attributes, "correction": 1 if correction is None else correction}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        self.require(x.dtype.is_float, f"operand x is {x.dtype}: only floats have a variance here")
        y = TensorType(x.dtype, reduced_shape(x.shape, self.dims_of(len(x.shape), attributes), attributes["keepdim"]))
        return dict.fromkeys(self.results, y)

    def degrees(self, x: Container, attributes: Mapping[str, Any], dtype: DType) -> Scalar:
        """n - correction."""
        count = product(x.shape[d] for d in self.dims_of(len(x.shape), attributes))
        correction = attributes["correction"]
        return (
            const(count - correction, dtype)
            if isinstance(count, int)
            else cast(index_value(count), dtype) - float(correction)
        )

    def maps(self, c: Expansion) -> None:
        x = c.input()
        wide, dims = x.dtype.compute, self.dims_of(len(x.shape), c.node.attributes)
        shape = reduced_shape(x.shape, dims, c.attr("keepdim"))
        count, mean, m2 = c.temp(shape, wide, "count"), c.temp(shape, wide, "mean"), c.temp(shape, wide, "m2")
        p = c.params(x.shape)
        place = kept_subset(p, dims, c.attr("keepdim"))
        c.map(p, {"x": at(x, *p)},
              {"count": at(count, *place, combine="welford"), "mean": at(mean, *place, combine="welford"),
               "m2": at(m2, *place, combine="welford")},
              lambda x: {"count": const(1, wide), "mean": cast(x, wide), "m2": const(0, wide)})  # fmt: skip
        n = apply("max", self.degrees(x, c.node.attributes, wide), 0)
        if c.wants(self.results[0]):
            copied(c, m2, c.output(self.results[0]), lambda t: apply("sqrt", t / n) if self.root else t / n)
        if c.wants("mean"):
            copied(c, mean, c.output("mean"), lambda t: t)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        x, attributes = g.input(), g.node.attributes
        dims = self.dims_of(len(x.shape), attributes)
        back = lambda v: g.reshape(v, reduced_shape(x.shape, dims, True))  # noqa: E731
        parts: list[Container] = []
        gy, gm = g.grad(self.results[0]), g.grad("mean")
        if gy is not None:
            mean = g.op("mean", {"dims": tuple(dims), "keepdim": True, "dtype": x.dtype.compute}, x=x)
            scale = gy
            if self.root:
                y = g.output(self.results[0])
                scale = g.pointwise(lambda v, s: where(apply("eq", s, 0), 0, v / (2 * s)), gy, y, dtype=x.dtype.compute)
            parts.append(
                g.pointwise(
                    lambda v, m, s: s * (v - m) * (2 / self.degrees(x, attributes, v.dtype)), x, mean, back(scale)
                )
            )
        if gm is not None:
            count = product(x.shape[d] for d in dims)
            parts.append(g.pointwise(lambda v: v / cast(number_of(count, v.dtype), v.dtype), back(gm)))
            parts[-1] = g.op("expand", {"shape": x.shape}, x=parts[-1])
        if len(parts) == 2:
            return {"x": g.pointwise(lambda a, b: a + b, *parts)}
        return {"x": parts[0] if parts else None}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4, 5))
        yield Sample({"x": x}, {"dims": (1,)})
        yield Sample({"x": x}, {"dims": (0, -1), "keepdim": True, "correction": 0})
        yield Sample({"x": TensorType(int64, (3,))}, {}, error="only floats")


def _variance(name: str, aten: tuple[str, ...], root: bool, with_mean: bool) -> None:
    results = ("y", "mean") if with_mean else ("y",)
    register(
        type(
            name,
            (Variance,),
            {"name": name, "aten": aten, "root": root, "results": results, "__doc__": Variance.__doc__},
        )
    )


_variance("var", ("aten.var.correction",), False, False)
_variance("std", ("aten.std.correction",), True, False)
_variance("var_mean", ("aten.var_mean.correction",), False, True)
_variance("std_mean", ("aten.std_mean.correction",), True, True)


# norms ----------------------------------------------------------------------------------------------------------------
def norm_element(x: Scalar, p: float) -> tuple[Scalar, str]:
    """What an element gives to a p-norm, and how elements combine."""
    if math.isinf(p):
        return apply("abs", x), "max" if p > 0 else "min"
    if p == 0:
        return cast(apply("ne", x, 0), x.dtype), "sum"
    if p == 2:
        return x * x, "sum"
    return apply("abs", x) if p == 1 else apply("pow", apply("abs", x), const(p, x.dtype)), "sum"


def norm_finish(total: Scalar, p: float) -> Scalar:
    if math.isinf(p) or p in (0, 1):
        return total
    return apply("sqrt", total) if p == 2 else apply("pow", total, const(1 / p, total.dtype))


def norm_gradient(
    g: Gradient, x: Container, y: Container, gy: Container, p: float, dims: Sequence[int]
) -> Container | None:
    """The gradient of a p-norm y (with the reduced dimensions as ones) by x: PyTorch's subgradients, zero where the norm is."""
    if p == 0:
        return None
    if p == 1:
        return g.pointwise(lambda v, s: apply("sign", v) * s, x, gy)
    if math.isinf(p):
        hits = g.pointwise(
            lambda v, n: cast(apply("eq", apply("abs", v), n) | apply("ne", v, v), v.dtype), x, y, dtype=x.dtype.compute
        )
        ties = g.op("sum", {"dims": tuple(dims), "keepdim": True}, x=hits)
        return g.pointwise(lambda v, h, t, s: apply("sign", v) * (h / t * s), x, hits, ties, gy)

    def slope(v: Scalar, n: Scalar, s: Scalar) -> Scalar:
        if p == 2:
            return where(apply("eq", n, 0), 0, v / n * s)
        size = apply("abs", v)
        power = apply("sign", v) * apply("pow", size, const(p - 1, v.dtype))
        if p < 1:
            power = where(apply("eq", v, 0), 0, power)
        return where(apply("eq", n, 0), 0, power * (s / apply("pow", n, const(p - 1, v.dtype))))

    return g.pointwise(slope, x, y, gy)


@register
class VectorNorm(Reduction):
    """The p-norm over dimensions (any real p, infinities too); attribute p."""

    name = "vector_norm"
    attributes: Mapping[str, Any] = {"p": 2.0, **Reduction.attributes}
    aten = ("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dim_dtype", "aten.norm.Scalar",
            "aten.norm.ScalarOpt_dtype")  # fmt: skip

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        p = call.arguments.get("ord", call.arguments.get("p"))
        return operands, {**attributes, "p": 2.0 if p is None else float(p)}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(types["x"].dtype.is_float, f"operand x is {types['x'].dtype}: only floats have a norm")
        return super().infer(types, attributes)

    def maps(self, c: Expansion) -> None:
        x, y, norm = c.input(), c.output(), c.attr("p")
        wide, dims = y.dtype.compute, self.dims_of(len(x.shape), c.node.attributes)
        _, combine = norm_element(const(0, wide), norm)
        total = c.temp(y.shape, wide)
        p = c.params(x.shape)
        place = kept_subset(p, dims, c.attr("keepdim"))
        c.map(
            p,
            {"x": at(x, *p)},
            {"t": at(total, *place, combine=combine)},
            lambda x: {"t": norm_element(cast(x, wide), norm)[0]},
        )
        copied(c, total, y, lambda t: norm_finish(t, norm))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        dims = tuple(self.dims_of(len(x.shape), g.node.attributes))
        return {"x": norm_gradient(g, x, self._broadcast(g, g.output()), self._broadcast(g, gy), g.attr("p"), dims)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4, 5))
        for p in (2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5, -1.0):
            yield Sample({"x": x}, {"p": p, "dims": (1,)})
        yield Sample({"x": x}, {"dims": (0, -1), "keepdim": True})
        yield Sample({"x": TensorType(int64, (3,))}, {}, error="only floats")


@register
class Distance(OperatorDefinition):
    """The p-norm of a - b over all elements; a and b broadcast."""

    name = "dist"
    operands = ("a", "b")
    attributes: Mapping[str, Any] = {"p": 2.0}
    aten = ("aten.dist.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"a": call["self"], "b": call["other"]}, {"p": float(call["p"])}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        a, b = types["a"], types["b"]
        broadcast_shapes(self.name, [a.shape, b.shape])
        self.require(
            a.dtype is b.dtype and a.dtype.is_float,
            f"operands are {a.dtype} and {b.dtype}; both must be of one float dtype",
        )
        return {"y": TensorType(a.dtype, ())}

    def maps(self, c: Expansion) -> None:
        a, b, y, norm = c.input("a"), c.input("b"), c.output(), c.attr("p")
        wide = y.dtype.compute
        total = c.temp((), wide)
        p = c.params(broadcast_shapes(self.name, [a.shape, b.shape]))
        _, combine = norm_element(const(0, wide), norm)
        c.map(p, {"a": broadcast_at(a, p), "b": broadcast_at(b, p)}, {"t": at(total, combine=combine)},
              lambda a, b: {"t": norm_element(cast(a, wide) - cast(b, wide), norm)[0]})  # fmt: skip
        copied(c, total, y, lambda t: norm_finish(t, norm))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, a, b = g.grad(), g.input("a"), g.input("b")
        if gy is None:
            return {}
        difference = g.pointwise(lambda a, b: a - b, a, b)
        found = norm_gradient(g, difference, g.output(), gy, g.attr("p"), range(len(difference.shape)))
        if found is None:
            return {}
        return {"a": g.sum_to(found, a.shape), "b": g.sum_to(g.pointwise(lambda v: -v, found), b.shape)}

    def samples(self) -> Iterable[Sample]:
        for p in (2.0, 1.0, 3.0, math.inf):
            yield Sample({"a": TensorType(float32, (3, 4)), "b": TensorType(float32, (4,))}, {"p": p})
        yield Sample({"a": TensorType(float32, (3,)), "b": TensorType(int64, (3,))}, {}, error="float dtype")


@register
class PairDistances(OperatorDefinition):
    """The p-norms of the differences between every row of a and every row of b; leading dimensions broadcast."""

    name = "cdist"
    operands = ("a", "b")
    attributes: Mapping[str, Any] = {"p": 2.0}
    aten = ("aten._cdist_forward.default", "aten._euclidean_dist.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"a": call["x1"], "b": call["x2"]}, {"p": float(call.arguments.get("p", 2.0))}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        a, b = types["a"], types["b"]
        self.require(
            min(len(a.shape), len(b.shape)) >= 2, f"operands of shape {list(a.shape)} and {list(b.shape)} have no rows"
        )
        self.require(
            prove_eq(a.shape[-1], b.shape[-1]) is not False, f"rows of {a.shape[-1]} and {b.shape[-1]} elements"
        )
        self.require(
            a.dtype is b.dtype and a.dtype.is_float,
            f"operands are {a.dtype} and {b.dtype}; both must be of one float dtype",
        )
        lead = broadcast_shapes(self.name, [a.shape[:-2], b.shape[:-2]])
        return {"y": TensorType(a.dtype, (*lead, a.shape[-2], b.shape[-2]))}

    def maps(self, c: Expansion) -> None:
        a, b, y, norm = c.input("a"), c.input("b"), c.output(), c.attr("p")
        wide = y.dtype.compute
        total = c.temp(y.shape, wide)
        *lead, i, j, k = c.params((*y.shape, a.shape[-1]))

        def row(x: Container, r: Any) -> Memlet:
            own = lead[len(lead) - (len(x.shape) - 2) :]
            return at(x, *(0 if n == 1 else q for n, q in zip(x.shape, own, strict=False)), r, k)

        _, combine = norm_element(const(0, wide), norm)
        c.map((*lead, i, j, k), {"a": row(a, i), "b": row(b, j)}, {"t": at(total, *lead, i, j, combine=combine)},
              lambda a, b: {"t": norm_element(cast(a, wide) - cast(b, wide), norm)[0]})  # fmt: skip
        copied(c, total, y, lambda t: norm_finish(t, norm))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, a, b, y = g.grad(), g.input("a"), g.input("b"), g.output()
        if gy is None:
            return {}
        rows_a = g.reshape(a, (*a.shape[:-1], 1, a.shape[-1]))
        rows_b = g.reshape(b, (*b.shape[:-2], 1, *b.shape[-2:]))
        difference = g.pointwise(lambda u, v: u - v, rows_a, rows_b)
        column = lambda x: g.reshape(x, (*x.shape, 1))  # noqa: E731
        found = norm_gradient(g, difference, column(y), column(gy), g.attr("p"), (len(difference.shape) - 1,))
        if found is None:
            return {}
        return {"a": g.reshape(g.sum_to(found, rows_a.shape), a.shape),
                "b": g.reshape(g.sum_to(g.pointwise(lambda v: -v, found), rows_b.shape), b.shape)}  # fmt: skip

    def samples(self) -> Iterable[Sample]:
        for p in (2.0, 1.0, 3.0, math.inf):
            yield Sample({"a": TensorType(float32, (2, 3, 4)), "b": TensorType(float32, (1, 5, 4))}, {"p": p})
        yield Sample({"a": TensorType(float32, (3, 4)), "b": TensorType(float32, (3, 5))}, error="rows of 4 and 5")


@register
class Renorm(OperatorDefinition):
    """Slices of x along `dim` whose p-norm exceeds `maxnorm` scaled down to it."""

    name = "renorm"
    attributes: Mapping[str, Any] = {"p": 2.0, "dim": 0, "maxnorm": 1.0}
    aten = ("aten.renorm.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        wrap_dim(self.name, attributes["dim"], len(types["x"].shape))
        return {"y": types["x"]}

    def maps(self, c: Expansion) -> None:
        x, y, norm, limit = c.input(), c.output(), float(c.attr("p")), float(c.attr("maxnorm"))
        wide, d = y.dtype.compute, wrap_dim(self.name, c.attr("dim"), len(x.shape))
        total = c.temp((x.shape[d],), wide)
        p = c.params(x.shape)
        _, combine = norm_element(const(0, wide), norm)
        c.map(
            p,
            {"x": at(x, *p)},
            {"t": at(total, p[d], combine=combine)},
            lambda x: {"t": norm_element(cast(x, wide), norm)[0]},
        )
        p = c.params(x.shape)

        def scaled(x: Scalar, t: Scalar) -> dict[str, Scalar]:
            n = norm_finish(t, norm)
            return {"y": cast(cast(x, wide) * where(n > limit, limit / (n + 1e-7), 1), y.dtype)}

        c.map(p, {"x": at(x, *p), "t": at(total, p[d])}, {"y": at(y, *p)}, scaled)

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 4, 2))}, {"dim": 1, "maxnorm": 1.5})
        yield Sample({"x": TensorType(float32, (3, 4))}, {"p": 3.0, "dim": -1, "maxnorm": 0.5})


# sums, products, counts -----------------------------------------------------------------------------------------------
@register
class LogSumExp(Reduction):
    """log(sum(exp(x))) over dimensions, shifted by the maximum."""

    name = "logsumexp"
    aten = ("aten.logsumexp.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        found = super().infer(types, attributes)
        self.require(found["y"].dtype.is_float, f"the result is {found['y'].dtype}: logarithms are floats")
        return found

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        wide, dims, keepdim = y.dtype.compute, self.dims_of(len(x.shape), c.node.attributes), c.attr("keepdim")
        top, total = c.temp(y.shape, wide, "top"), c.temp(y.shape, wide, "total")
        p = c.params(x.shape)
        c.map(
            p,
            {"x": at(x, *p)},
            {"t": at(top, *kept_subset(p, dims, keepdim), combine="max")},
            lambda x: {"t": cast(x, wide)},
        )
        shift = lambda t: where(apply("isinf", t), 0, t)  # noqa: E731  # of infinite maxima nothing is subtracted
        p = c.params(x.shape)
        place = kept_subset(p, dims, keepdim)
        c.map(p, {"x": at(x, *p), "t": at(top, *place)}, {"s": at(total, *place, combine="sum")},
              lambda x, t: {"s": apply("exp", cast(x, wide) - shift(t))})  # fmt: skip
        p = c.params(y.shape)
        c.map(p, {"s": at(total, *p), "t": at(top, *p)}, {"y": at(y, *p)},
              lambda s, t: {"y": cast(apply("log", s) + shift(t), y.dtype)})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        back = (self._broadcast(g, gy), self._broadcast(g, g.output()))
        return {"x": g.pointwise(lambda v, s, y: s * apply("exp", v - y), x, *back)}


@register
class Product(Reduction):
    """Product over dimensions."""

    name = "prod"
    combine = "prod"
    aten = ("aten.prod.default", "aten.prod.dim_int")
    gradient = None

    def result_dtype(self, x: DType, attributes: Mapping[str, Any]) -> DType:
        return attributes.get("dtype") or (x if x.is_float else int64)


@register
class NanSum(Reduction):
    """Sum over dimensions; NaN counts as zero."""

    name = "nansum"
    aten = ("aten.nansum.default",)
    gradient = None

    def result_dtype(self, x: DType, attributes: Mapping[str, Any]) -> DType:
        return attributes.get("dtype") or (x if x.is_float else int64)

    def lift(self, x: Scalar, accumulate: DType) -> Scalar:
        return where(apply("ne", x, x), const(0, accumulate), cast(x, accumulate))


@register
class CountNonzero(Reduction):
    """The number of elements that are not zero."""

    name = "count_nonzero"
    aten = ("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")

    def result_dtype(self, x: DType, attributes: Mapping[str, Any]) -> DType:
        return int64

    def lift(self, x: Scalar, accumulate: DType) -> Scalar:
        return cast(apply("ne", x, const(0, x.dtype)), accumulate)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


@register
class Trace(OperatorDefinition):
    """The sum of a matrix's diagonal."""

    name = "trace"
    aten = ("aten.trace.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        self.require(len(x.shape) == 2, f"operand of shape {list(x.shape)} is no matrix")
        return {"y": TensorType(x.dtype if x.dtype.is_float else int64, ())}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        n, m = x.shape
        diagonal = c.temp((n,), y.dtype.compute)
        (i,) = c.params((n,))
        c.map((i,), {"x": at(x, i, i, guard=[Condition(m - 1 - i)], fill=0)}, {"d": at(diagonal, i)},
              lambda x: {"d": cast(x, diagonal.dtype)})  # fmt: skip
        total = c.temp((), y.dtype.compute)
        (i,) = c.params((n,))
        c.map((i,), {"d": at(diagonal, i)}, {"t": at(total, combine="sum")}, lambda d: {"t": d})
        copied(c, total, y, lambda t: t)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, (n, m) = g.grad(), g.input().shape
        if gy is None:
            return {}
        return {"x": g.op("mul", a=g.op("eye", {"shape": (n, m), "dtype": gy.dtype}), b=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 4))})
        yield Sample({"x": TensorType(float32, (4, 2))})
        yield Sample({"x": TensorType(float32, (4,))}, error="no matrix")


# extrema --------------------------------------------------------------------------------------------------------------
@register
class ExtremaOf(Reduction):
    """Minimum and maximum along a dimension (of all elements when dims is empty)."""

    name = "aminmax"
    results = ("low", "high")
    aten = ("aten.aminmax.default",)
    gradient = None

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        y = super().infer(types, {**attributes, "dtype": types["x"].dtype})["y"]
        return {"low": y, "high": y}

    def maps(self, c: Expansion) -> None:
        x = c.input()
        dims = self.dims_of(len(x.shape), c.node.attributes)
        p = c.params(x.shape)
        place = kept_subset(p, dims, c.attr("keepdim"))
        names = [k for k in ("low", "high") if c.wants(k)]
        writes = {k: at(c.output(k), *place, combine="min" if k == "low" else "max") for k in names}
        c.map(p, {"x": at(x, *p)}, writes, dict.fromkeys(names, read("x", x.dtype)))


class ExtremumOf(OperatorDefinition):
    """Base: the extremum along one dimension and the index of its first place."""

    combine = ""
    results = ("values", "indices")
    attributes: Mapping[str, Any] = {"dim": 0, "keepdim": False}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {
            "dim": wrap_dim(self.name, call["dim"], len(call["self"].shape)),
            "keepdim": call["keepdim"],
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        dims = frozenset({wrap_dim(self.name, attributes["dim"], len(x.shape))})
        shape = reduced_shape(x.shape, dims, attributes["keepdim"])
        return {"values": TensorType(x.dtype, shape), "indices": TensorType(int64, shape)}

    def maps(self, c: Expansion) -> None:
        x, values, indices = c.input(), c.output("values"), c.output("indices")
        d = c.attr("dim") % max(1, len(x.shape))
        p = c.params(x.shape)
        place = kept_subset(p, frozenset({d}), c.attr("keepdim"))
        c.map(p, {"x": at(x, *p)},
              {"value": at(values, *place, combine=self.combine), "index": at(indices, *place, combine=self.combine)},
              lambda x: {"value": x, "index": index_value(p[d] if p else 0)})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {"x": spread_at(g, g.grad("values"), g.output("indices"), g.attr("dim"), g.attr("keepdim"))}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 0, "keepdim": True})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 2}, error="out of range")


def spread_at(g: Gradient, gy: Container | None, indices: Container, dim: int, keepdim: bool) -> Container | None:
    """The gradient of one element along `dim`: gy at its index, zero elsewhere."""
    x = g.input()
    if gy is None or not x.shape:
        return gy
    d = dim % len(x.shape)
    shape = tuple(1 if e == d else n for e, n in enumerate(x.shape))
    own = g.op("arange", {"shape": (x.shape[d],), "dtype": int64})
    place = g.reshape(own, tuple(n if e == d else 1 for e, n in enumerate(x.shape)))
    return g.pointwise(
        lambda v, i, j: where(apply("eq", i, j), v, 0), g.reshape(gy, shape), g.reshape(indices, shape), place
    )


@register
class MaximumOf(ExtremumOf):
    """The maximum along a dimension and its index."""

    name = "max_dim"
    combine = "argmax"
    aten = ("aten.max.dim",)


@register
class MinimumOf(ExtremumOf):
    """The minimum along a dimension and its index."""

    name = "min_dim"
    combine = "argmin"
    aten = ("aten.min.dim",)
