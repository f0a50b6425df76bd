"""Cumulative operators: sum, product, extrema with indices, log-sum-exp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, int64
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, where

from .builder import Expansion, Gradient
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim


class Scan(OperatorDefinition):
    """Base: attribute `dim` is the dimension whose prefixes are kept."""

    attributes: Mapping[str, Any] = {"dim": 0}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        attributes = {"dim": wrap_dim(self.name, call["dim"], len(call["self"].shape))}
        return {"x": call["self"]}, {
            **attributes,
            **({"dtype": call.results[0].dtype} if "dtype" in self.attributes else {}),
        }

    def axis(self, c: Expansion, x: Container) -> int:
        return wrap_dim(self.name, c.attr("dim"), len(x.shape))

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (4, 2, 3))}, {"dim": 0})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 2}, error="out of range")


class Cumulative(Scan):
    """Base: the elements of each prefix combined."""

    combine = ""
    attributes: Mapping[str, Any] = {"dim": 0, "dtype": None}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        wrap_dim(self.name, attributes["dim"], len(x.shape))
        return {"y": TensorType(attributes.get("dtype") or (x.dtype if x.dtype.is_float else int64), x.shape)}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        p = c.params(x.shape)
        write = at(y, *p, combine=self.combine, scan=p[self.axis(c, x)]) if p else at(y)
        c.map(p, {"x": at(x, *p)}, {"y": write}, lambda x: {"y": cast(x, y.dtype)})


@register
class CumulativeSum(Cumulative):
    """Prefix sums along a dimension."""

    name = "cumsum"
    combine = "sum"
    aten = ("aten.cumsum.default",)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, dim = g.grad(), g.attr("dim")
        if gy is None or not g.input().shape:
            return {"x": gy}
        flipped = g.op("flip", {"dims": (dim,)}, x=gy)
        return {"x": g.op("flip", {"dims": (dim,)}, x=g.op("cumsum", {"dim": dim}, x=flipped))}


@register
class CumulativeProduct(Cumulative):
    """Prefix products along a dimension."""

    name = "cumprod"
    combine = "prod"
    aten = ("aten.cumprod.default",)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None or not x.shape:
            return {"x": gy}
        wide = g.cast(x, gy.dtype)
        return {"x": g.op("cumprod_backward", {"dim": g.attr("dim")}, x=wide, y=g.output(), g=gy)}


@register
class CumulativeProductBackward(Scan):
    """dx[i] = y[i-1] R[i] with R[i] = g[i] + x[i+1] R[i+1]: exact where elements are zero, too."""

    name = "cumprod_backward"
    operands = ("x", "y", "g")
    results = ("dx",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        wrap_dim(self.name, attributes["dim"], len(types["x"].shape))
        return {"dx": types["x"]}

    def maps(self, c: Expansion) -> None:
        x, y, g, dx = c.input("x"), c.input("y"), c.input("g"), c.output("dx")
        d, wide = self.axis(c, x), x.dtype.compute
        last = x.shape[d] - 1
        if isinstance(last, int) and last == 0:  # rows of one element
            p = c.params(x.shape)
            c.map(p, {"g": at(g, *p)}, {"dx": at(dx, *p)}, lambda g: {"dx": g})
            return
        factor, value = c.temp(x.shape, wide, "factor"), c.temp(x.shape, wide, "suffix")
        p = c.params(x.shape)
        turned = [last - q if e == d else q for e, q in enumerate(p)]
        behind = [q + 1 if e == d else q for e, q in enumerate(turned)]
        c.map(p, {"g": at(g, *turned), "x": at(x, *behind, guard=[Condition(last - behind[d])], fill=1)},
              {"factor": at(factor, *p, combine="recurrence", scan=p[d]), "value": at(value, *p, combine="recurrence", scan=p[d])},
              lambda g, x: {"factor": cast(x, wide), "value": cast(g, wide)})  # fmt: skip
        p = c.params(x.shape)
        turned = [last - q if e == d else q for e, q in enumerate(p)]
        before = [q - 1 if e == d else q for e, q in enumerate(p)]
        c.map(p, {"y": at(y, *before, guard=[Condition(before[d])], fill=1), "r": at(value, *turned)}, {"dx": at(dx, *p)},
              lambda y, r: {"dx": cast(cast(y, wide) * r, dx.dtype)})  # fmt: skip

    def samples(self) -> Iterable[Sample]:
        t = TensorType(float32, (3, 5))
        yield Sample({"x": t, "y": t, "g": t}, {"dim": 1})


class CumulativeExtremum(Scan):
    """Base: the extremum of each prefix and the index of its last place."""

    combine = ""
    results = ("values", "indices")

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        wrap_dim(self.name, attributes["dim"], len(x.shape))
        return {"values": x, "indices": TensorType(int64, x.shape)}

    def maps(self, c: Expansion) -> None:
        x, values, indices = c.input(), c.output("values"), c.output("indices")
        p = c.params(x.shape)
        d = p[self.axis(c, x)] if p else None
        combine = self.combine if p else None
        c.map(p, {"x": at(x, *p)},
              {"value": at(values, *p, combine=combine, scan=d), "index": at(indices, *p, combine=combine, scan=d)},
              lambda x: {"value": x, "index": index_value(0 if d is None else d)})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad("values"), g.input()
        if gy is None or not x.shape:
            return {"x": gy}
        return {
            "x": g.op(
                "scatter_sum",
                {"dim": g.attr("dim") % len(x.shape), "shape": x.shape},
                index=g.output("indices"),
                src=gy,
            )
        }


@register
class CumulativeMaximum(CumulativeExtremum):
    """Prefix maxima and their indices."""

    name = "cummax"
    combine = "argmax_last"
    aten = ("aten.cummax.default",)


@register
class CumulativeMinimum(CumulativeExtremum):
    """Prefix minima and their indices."""

    name = "cummin"
    combine = "argmin_last"
    aten = ("aten.cummin.default",)


class LogScan(Scan):
    """Base: scans of (maximum, sum of exponentials relative to it)."""

    def scan(
        self, c: Expansion, reads: Mapping[str, Any], p: Any, d: int, shape: Any, top: Scalar, weight: Scalar
    ) -> tuple[Any, Any]:
        wide = top.dtype
        high, total = c.temp(shape, wide, "top"), c.temp(shape, wide, "total")
        writes = {k: at(t, *p, combine="online_softmax", scan=p[d]) for k, t in (("max", high), ("sum", total))}
        c.map(p, reads, writes, {"max": top, "sum": weight})
        return high, total


@register
class LogCumulativeSumExp(LogScan):
    """log of the prefix sums of exp(x)."""

    name = "logcumsumexp"
    aten = ("aten.logcumsumexp.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        wrap_dim(self.name, attributes["dim"], len(x.shape))
        self.require(x.dtype.is_float, f"operand x is {x.dtype}: logarithms are floats")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        p = c.params(x.shape)
        if not p:
            c.map(p, {"x": at(x)}, {"y": at(y)}, lambda x: {"y": x})
            return
        wide = x.dtype.compute
        top, total = self.scan(
            c, {"x": at(x, *p)}, p, self.axis(c, x), x.shape, cast(read("x", x.dtype), wide), const(1, wide)
        )
        p = c.params(x.shape)
        c.map(p, {"t": at(top, *p), "s": at(total, *p)}, {"y": at(y, *p)},
              lambda t, s: {"y": cast(where(apply("isinf", t), t, t + apply("log", s)), y.dtype)})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None or not g.input().shape:
            return {"x": gy}
        x, y = g.input(), g.output()
        if y.dtype.compute is not y.dtype:  # of 16 bits: the exponential of a difference needs the result before it was rounded
            y = g.op("logcumsumexp", {"dim": g.attr("dim")}, x=g.cast(x, x.dtype.compute))
        return {"x": g.op("logcumsumexp_backward", {"dim": g.attr("dim")}, x=x, y=y, g=gy)}


@register
class LogCumulativeSumExpBackward(LogScan):
    """dx[i] = sum over j >= i of g[j] exp(x[i] - y[j]), by a scan from the end that keeps the sum relative to its largest exponent."""

    name = "logcumsumexp_backward"
    operands = ("x", "y", "g")
    results = ("dx",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        wrap_dim(self.name, attributes["dim"], len(types["x"].shape))
        return {"dx": types["x"]}

    def maps(self, c: Expansion) -> None:
        x, y, g, dx = c.input("x"), c.input("y"), c.input("g"), c.output("dx")
        d, wide = self.axis(c, x), x.dtype.compute
        last = x.shape[d] - 1
        p = c.params(x.shape)
        turned = [last - q if e == d else q for e, q in enumerate(p)]
        reads = {"y": at(y, *turned), "g": at(g, *turned)}
        top, total = self.scan(c, reads, p, d, x.shape, -cast(read("y", y.dtype), wide), cast(read("g", g.dtype), wide))
        p = c.params(x.shape)
        turned = [last - q if e == d else q for e, q in enumerate(p)]
        c.map(p, {"x": at(x, *p), "t": at(top, *turned), "s": at(total, *turned)}, {"dx": at(dx, *p)},
              lambda x, t, s: {"dx": cast(apply("exp", cast(x, wide) + t) * s, dx.dtype)})  # fmt: skip

    def samples(self) -> Iterable[Sample]:
        t = TensorType(float32, (3, 5))
        yield Sample({"x": t, "y": t, "g": t}, {"dim": 1})
