"""Operators that PyTorch's own graphs hold: the derivatives of softmax and log-softmax, and masked indexing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.dtypes import bool_, float32, int64
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where

from .builder import Expansion
from .elementwise import broadcast_at, broadcast_shapes
from .embedding import IndexOperator
from .reductions import kept_subset
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim


class SoftmaxDerivative(OperatorDefinition):
    """Base: from the gradient of the result and the result, both of one shape, along `dim`."""

    operands = ("g", "y")
    results = ("dx",)
    attributes: Mapping[str, Any] = {"dim": -1, "dtype": None}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        return {"g": call["grad_output"], "y": call["output"]}, {"dim": call["dim"], "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        wrap_dim(self.name, attributes["dim"], len(types["y"].shape))
        return {"dx": TensorType(attributes["dtype"] or types["y"].dtype, types["y"].shape)}

    def term(self, g: Scalar, y: Scalar) -> Scalar:
        """What an element gives to the sum of its row."""
        raise NotImplementedError

    def value(self, g: Scalar, y: Scalar, total: Scalar) -> Scalar:
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        g, y, dx = c.input("g"), c.input("y"), c.output("dx")
        wide, dims = y.dtype.compute, frozenset({wrap_dim(self.name, c.attr("dim"), len(y.shape))})
        total = c.temp([1 if d in dims else n for d, n in enumerate(y.shape)], wide, "total")
        p = c.params(y.shape)
        c.map(p, {"g": at(g, *p), "y": at(y, *p)}, {"t": at(total, *kept_subset(p, dims, True), combine="sum")},
              lambda g, y: {"t": self.term(cast(g, wide), cast(y, wide))})  # fmt: skip
        p = c.params(y.shape)
        c.map(p, {"g": at(g, *p), "y": at(y, *p), "t": at(total, *kept_subset(p, dims, True))}, {"dx": at(dx, *p)},
              lambda g, y, t: {"dx": cast(self.value(cast(g, wide), cast(y, wide), t), dx.dtype)})  # fmt: skip

    def samples(self) -> Iterable[Sample]:
        t = TensorType(float32, (4, 7))
        yield Sample({"g": t, "y": t}, {"dim": 1})
        yield Sample({"g": t, "y": t}, {"dim": 2}, error="out of range")


@register
class SoftmaxGradient(SoftmaxDerivative):
    """y (g - sum(g y))."""

    name = "softmax_gradient"
    aten = ("aten._softmax_backward_data.default",)

    def term(self, g: Scalar, y: Scalar) -> Scalar:
        return g * y

    def value(self, g: Scalar, y: Scalar, total: Scalar) -> Scalar:
        return y * (g - total)


@register
class LogSoftmaxGradient(SoftmaxDerivative):
    """g - exp(y) sum(g)."""

    name = "log_softmax_gradient"
    aten = ("aten._log_softmax_backward_data.default",)

    def term(self, g: Scalar, y: Scalar) -> Scalar:
        return g

    def value(self, g: Scalar, y: Scalar, total: Scalar) -> Scalar:
        return g - apply("exp", y) * total


class MaskedIndexing(IndexOperator):
    """Base: indices i0, i1, ... into the leading dimensions of x and a mask broadcast to one shape; where the mask is false an index may
    lie outside."""

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        indices = list(call["indices"])
        self.require(None not in indices, "a dimension without an index is not supported")
        rest = {k: call[a] for k, a in (("src", "values"), ("fill", "fill")) if a in call.arguments}
        operands = {"x": call["self"], "mask": call["mask"], **{f"i{k}": i for k, i in enumerate(indices)}}
        if "src" in rest:
            operands["src"] = rest.pop("src")
        return operands, {k: float(v) for k, v in rest.items()}

    def point_shape(self, types: Mapping[str, Any]) -> tuple[Any, ...]:
        return broadcast_shapes(self.name, [t.shape for k, t in types.items() if k not in ("x", "src")])

    def check(self, types: Mapping[str, TensorType]) -> None:
        self.require(types["mask"].dtype is bool_, f"the mask is {types['mask'].dtype}, not bool")
        indices = [k for k in types if k[0] == "i"]
        for k in indices:
            self.check_index(k, types[k])
        self.require(len(indices) == len(types["x"].shape), f"{len(indices)} indices for x of {list(types['x'].shape)}")

    def clamped(self, c: Expansion) -> dict[str, Any]:
        """The indices, those that lie outside moved to the border."""
        x = c.input()
        found = {}
        for d, k in enumerate(sorted((k for k in c.node.reads if k[0] == "i"), key=lambda k: int(k[1:]))):
            index = c.input(k)
            found[k] = c.temp(index.shape, int64, "index")
            p = c.params(index.shape)
            last = index_value(x.shape[d] - 1)
            c.map(p, {"i": at(index, *p)}, {"w": at(found[k], *p)},
                  lambda i, last=last: {"w": apply("min", apply("max", cast(i, int64), 0), last)})  # fmt: skip
        return found


@register
class MaskedIndex(MaskedIndexing):
    """x at the indices where the mask is true, else `fill`."""

    name = "masked_index"
    operands = ("x", "mask", "i*")
    attributes: Mapping[str, Any] = {"fill": 0.0}
    aten = ("aten._unsafe_masked_index.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check(types)
        return {"y": TensorType(types["x"].dtype, self.point_shape(types))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        indices = self.clamped(c)
        p = c.params(y.shape)
        reads = {"m": broadcast_at(c.input("mask"), p), **{k: broadcast_at(i, p) for k, i in indices.items()}}
        fill = const(c.attr("fill"), y.dtype)
        c.map(p, {**reads, "x": at(x, *(Indirect(k) for k in indices))}, {"y": at(y, *p)}, lambda m, x, **i: {"y": where(m, x, fill)})

    def samples(self) -> Iterable[Sample]:
        mask = TensorType(bool_, (3,))
        yield Sample({"x": TensorType(float32, (4, 5)), "mask": mask, "i0": TensorType(int64, (2, 3)), "i1": TensorType(int64, (3,))})
        yield Sample({"x": TensorType(float32, (4, 5)), "mask": mask, "i0": TensorType(int64, (3,))}, error="1 indices")


@register
class MaskedIndexAdd(MaskedIndexing):
    """x plus src at the indices where the mask is true."""

    name = "masked_index_add"
    operands = ("x", "mask", "src", "i*")
    aten = ("aten._unsafe_masked_index_put_accumulate.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check(types)
        self.require(types["src"].dtype is types["x"].dtype, f"operand x is {types['x'].dtype}, src {types['src'].dtype}")
        return {"y": types["x"]}

    def maps(self, c: Expansion) -> None:
        x, src, y = c.input(), c.input("src"), c.output()
        indices = self.clamped(c)
        containers = {k: c.input(k) for k in c.node.reads}
        total = c.temp(y.shape, y.dtype.compute, "total")
        p = c.params(self.point_shape(containers))
        reads = {"m": broadcast_at(c.input("mask"), p), "s": broadcast_at(src, p), **{k: broadcast_at(i, p) for k, i in indices.items()}}
        c.map(p, reads, {"t": at(total, *(Indirect(k) for k in indices), combine="sum")},
              lambda m, s, **i: {"t": where(m, cast(s, total.dtype), 0)})  # fmt: skip
        p = c.params(y.shape)
        c.map(p, {"x": at(x, *p), "t": at(total, *p)}, {"y": at(y, *p)}, lambda x, t: {"y": cast(cast(x, t.dtype) + t, y.dtype)})

    def samples(self) -> Iterable[Sample]:
        operands = {"x": TensorType(float32, (4, 5)), "mask": TensorType(bool_, (6,)), "src": TensorType(float32, (6,))}
        yield Sample({**operands, "i0": TensorType(int64, (6,)), "i1": TensorType(int64, (6,))})
        yield Sample({**operands, "i0": TensorType(int64, (6,))}, error="1 indices")
