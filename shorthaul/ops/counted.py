"""Operators whose results have sizes that depend on data.

Such a size is a symbol that the node defines (`ir.nodes.Defines`). The front end declares it from what PyTorch's tracing says, with the
bound that `most` gives, and hands it to the definition as a size of `call.results`; the definition keeps it as an attribute, `infer` gives
it back, and every expansion lets one of its nodes define it (`Expansion.library` passes the definition on). To register another such
operator, set `defines_sizes = True` and write `most`. Their kernels are library calls: a map's iterations do not depend on data.
`nonzero_static`, whose number of rows is given, is made of maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int64
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import product, prove_le

from .builder import Expansion, Gradient
from .registry import AtenCall, ExpansionRule, IntLike, OperatorDefinition, OperatorError, Sample, TensorType, register
from .views import reshaped


class Counted(OperatorDefinition):
    """Base: one result, the leading size of which is the attribute `count`."""

    defines_sizes = True
    attributes: Mapping[str, Any] = {"count": 0}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        assert call.results[0] is not None
        return operands, {**attributes, "count": call.results[0].shape[0]}

    def maps(self, c: Expansion) -> None:
        raise OperatorError(f"{self.name} has no maps: how many elements it gives depends on data; it is a library call")

    def more_expansions(self) -> dict[str, ExpansionRule]:
        return {"library": ExpansionRule(self.call)}

    def call(self, c: Expansion) -> None:
        """Lower to the library call of the operator's name."""
        c.library(self.name, {})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


@register
class Nonzero(Counted):
    """The positions of the elements that are not zero, in order: one row of indices each. What indexing by a mask is made of."""

    name = "nonzero"
    aten = ("aten.nonzero.default",)

    def most(self, call: AtenCall) -> IntLike:
        return product(call["self"].shape)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(int64, (attributes["count"], len(types["x"].shape)))}


@register
class RepeatedPositions(Counted):
    """i, x[i] times, for every i: what `repeat_interleave` by a tensor of repeats indexes with."""

    name = "repeated_positions"
    aten = ("aten.repeat_interleave.Tensor",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(len(types["x"].shape) == 1, f"repeats of shape {list(types['x'].shape)} are not a list")
        return {"y": TensorType(int64, (attributes["count"],))}


@register
class NonzeroStatic(OperatorDefinition):
    """The positions of the first `count` elements that are not zero, one row of indices each; rows beyond them hold `fill`."""

    name = "nonzero_static"
    attributes: Mapping[str, Any] = {"count": 0, "fill": -1}
    aten = ("aten.nonzero_static.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {"count": call["size"], "fill": call["fill_value"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(prove_le(0, attributes["count"]) is not False, f"count {attributes['count']} is negative")
        return {"y": TensorType(int64, (attributes["count"], len(types["x"].shape)))}

    def maps(self, c: Expansion) -> None:
        x, y, count = c.input(), c.output(), c.attr("count")
        if not x.shape:  # a scalar's position has no coordinates
            p = c.params(y.shape)
            c.map(p, {}, {"y": at(y, *p)}, {"y": const(0, int64)})
            return
        total = product(x.shape)
        number, place = c.temp((total,), int64, "number"), c.temp((total,), int64, "place")
        source = c.temp((count + 1,), int64, "source")  # the element of each row, -1 for none; the last takes what has no row

        def truth(i: Any) -> dict[str, Any]:
            return {"x": at(x, *reshaped((i,), (total,), x.shape))}

        def marked(x: Scalar) -> Scalar:
            return apply("ne", x, 0)

        (i,) = c.params((total,))
        c.map((i,), truth(i), {"n": at(number, i, combine="sum", scan=i)}, lambda x: {"n": cast(marked(x), int64)})
        (i,) = c.params((total,))
        row = lambda x, n: where(marked(x), apply("min", n - 1, index_value(count)), index_value(count))  # noqa: E731
        c.map((i,), {**truth(i), "n": at(number, i)}, {"p": at(place, i)}, lambda x, n: {"p": row(x, n)})
        (i,) = c.params((total,))
        c.map((i,), {"p": at(place, i)}, {"s": at(source, Indirect("p"), combine="max")}, {"s": index_value(i)})
        for d in range(len(x.shape)):
            (r,) = c.params((count,))
            below, n = product(x.shape[d + 1 :]), x.shape[d]

            def coordinate(s: Scalar, below: IntLike = below, n: IntLike = n) -> dict[str, Scalar]:
                found = apply("mod", apply("floordiv", s, index_value(below)), index_value(n))
                return {"y": where(s < 0, const(c.attr("fill"), int64), found)}

            c.map((r,), {"s": at(source, r)}, {"y": at(y, r, d)}, coordinate)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(bool_, (3, 4))}, {"count": 5})
        yield Sample({"x": TensorType(float32, (3,))}, {"count": 7, "fill": -3})
        yield Sample({"x": TensorType(bool_, (3,))}, {"count": -1}, error="negative")
