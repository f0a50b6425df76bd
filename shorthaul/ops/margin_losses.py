"""Losses that compare the scores of classes by a margin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int64
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, prove_eq

from .builder import Expansion
from .losses import MEAN, NONE, SUM, count_scalar
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]


class MarginLoss(OperatorDefinition):
    """Base: x (N, C) or (C), a loss for each row, reduced: 0 none, 1 mean, 2 sum. The gradient is that of the maps."""

    operands: tuple[str, ...] = ("x", "target")

    def check(
        self, types: Mapping[str, TensorType], attributes: Mapping[str, Any], target: tuple[IntLike, ...]
    ) -> dict[str, TensorType]:
        x, t = types["x"], types["target"]
        self.require(
            len(x.shape) <= 2, f"operand of shape {list(x.shape)} is not (batch, classes), batch optional"
        )
        self.require(x.dtype.is_float, f"operand x is {x.dtype}, not floating")
        self.require(t.dtype.is_integer, f"target is {t.dtype}, not integers (class numbers)")
        fits = len(t.shape) == len(target) and all(
            prove_eq(a, b) is not False for a, b in zip(t.shape, target, strict=True)
        )
        self.require(
            fits, f"target of shape {list(t.shape)} does not fit operand {list(x.shape)}, which asks for {list(target)}"
        )
        return {"y": TensorType(x.dtype, tuple(x.shape[:-1]) if attributes["reduction"] == NONE else ())}

    def maps(self, c: Expansion) -> None:
        if c.input().shape:
            self.rows(c)
        else:  # one class: no other to keep a margin from
            y = c.output()
            c.map((), {}, {"y": at(y)}, {"y": const(0, y.dtype)})

    def rows(self, c: Expansion) -> None:
        """The maps of operands with a dimension of classes."""
        raise NotImplementedError

    def reduced(self, c: Expansion, rows: Container) -> None:
        """The result from the loss of every row."""
        y, reduction = c.output(), c.attr("reduction")
        p = c.params(rows.shape)
        if reduction == NONE:
            c.map(p, {"l": at(rows, *p)}, {"y": at(y, *p)}, lambda l: {"y": cast(l, y.dtype)})
            return
        total = c.temp((), rows.dtype)
        c.map(p, {"l": at(rows, *p)}, {"y": at(total, combine="sum" if p else None)}, lambda l: {"y": l})
        c.map((), {"t": at(total)}, {"y": at(y)},
              lambda t: {"y": cast(t / count_scalar(rows.shape, t) if reduction == MEAN else t, y.dtype)})  # fmt: skip


@register
class MultiMarginLoss(MarginLoss):
    """For each row the mean over the classes j that are not the target t of max(0, margin - x[t] + x[j])^p, times the weight of t."""

    name = "multi_margin_loss"
    operands = ("x", "target", "weight?")
    attributes: Mapping[str, Any] = {"p": 1, "margin": 1.0, "reduction": MEAN}
    aten = ("aten.multi_margin_loss.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands = {"x": call["self"], "target": call["target"], "weight": call["weight"]}
        return operands, {k: call[k] for k in ("p", "margin", "reduction")}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(attributes["p"] in (1, 2), f"the power p is {attributes['p']}, not 1 or 2")
        x, target = types["x"], types["target"]
        rows = tuple(x.shape[:-1])
        one = not rows and len(target.shape) == 1  # PyTorch takes a target of one element for a single row
        return self.check(types, attributes, (1,) if one else rows)

    def rows(self, c: Expansion) -> None:
        x, target = c.input(), c.input("target")
        compute = x.dtype.compute
        rows = c.temp(x.shape[:-1], compute, "row_loss")
        p = c.params(x.shape)
        row = p[:-1] if x.shape[:-1] else (0,) * len(target.shape)
        reads = {"x": at(x, *p), "t": at(target, *row), "xt": at(x, *p[:-1], Indirect("t"))}
        if c.has("weight"):
            reads["w"] = at(c.input("weight"), Indirect("t"))

        def value(x: Scalar, t: Scalar, xt: Scalar, w: Scalar | None = None) -> dict[str, Scalar]:
            z = cast(x, compute) - cast(xt, compute) + c.attr("margin")
            z = z * z if c.attr("p") == 2 else z
            z = z if w is None else z * cast(w, compute)
            counts = (cast(x, compute) - cast(xt, compute) + c.attr("margin") > 0) & apply(
                "ne", cast(t, int64), index_value(p[-1])
            )
            return {"l": where(counts, z, 0) / cast(index_value(self._classes(c)), compute)}

        c.map(p, reads, {"l": at(rows, *p[:-1], combine="sum")}, value)
        self.reduced(c, rows)

    @staticmethod
    def _classes(c: Expansion) -> IntLike:
        return c.input().shape[-1]

    def samples(self) -> Iterable[Sample]:
        x, t, w = TensorType(float32, (4, 3)), TensorType(int64, (4,)), TensorType(float32, (3,))
        yield Sample({"x": x, "target": t}, {})
        yield Sample({"x": x, "target": t, "weight": w}, {"p": 2, "reduction": SUM, "margin": 0.5})
        yield Sample({"x": x, "target": t}, {"reduction": NONE})
        yield Sample({"x": TensorType(float32, (3,)), "target": TensorType(int64, ())}, {})
        yield Sample({"x": x, "target": t}, {"p": 3}, error="not 1 or 2")
        yield Sample({"x": x, "target": TensorType(int64, (3,))}, {}, error="does not fit")


@register
class MultilabelMarginLoss(MarginLoss):
    """For each row the mean over classes i that are no target, summed over targets j, of max(0, 1 - (x[j] - x[i])).

    A row of `target` lists the row's target classes, up to the first negative entry.
    """

    name = "multilabel_margin_loss"
    attributes: Mapping[str, Any] = {"reduction": MEAN}
    aten = ("aten.multilabel_margin_loss_forward.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"], "target": call["target"]}, {"reduction": call["reduction"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return self.check(types, attributes, tuple(types["x"].shape))

    def rows(self, c: Expansion) -> None:
        x, target = c.input(), c.input("target")
        compute = x.dtype.compute
        rows = c.temp(x.shape[:-1], compute, "row_loss")
        ended, klass, is_target = (
            c.temp(x.shape, bool_, "ended"),
            c.temp(x.shape, int64, "class"),
            c.temp(x.shape, bool_, "is_target"),
        )
        p = c.params(x.shape)
        c.map(p, {"t": at(target, *p)}, {"e": at(ended, *p, combine="any", scan=p[-1])}, lambda t: {"e": t < 0})
        p = c.params(x.shape)
        c.map(
            p,
            {"t": at(target, *p), "e": at(ended, *p)},
            {"k": at(klass, *p)},
            lambda t, e: {"k": where(e, 0, cast(t, int64))},
        )
        p = c.params(x.shape)
        (j,) = c.params((x.shape[-1],))
        c.map((*p, j), {"k": at(klass, *p[:-1], j), "e": at(ended, *p[:-1], j)}, {"t": at(is_target, *p, combine="any")},
              lambda k, e: {"t": ~e & apply("eq", k, index_value(p[-1]))})  # fmt: skip
        p = c.params(x.shape)
        (j,) = c.params((x.shape[-1],))
        reads = {"x": at(x, *p), "k": at(klass, *p[:-1], j), "e": at(ended, *p[:-1], j), "own": at(is_target, *p),
                 "xt": at(x, *p[:-1], Indirect("k"))}  # fmt: skip

        def value(x: Scalar, k: Scalar, e: Scalar, own: Scalar, xt: Scalar) -> dict[str, Scalar]:
            z = const(1, compute) - (cast(xt, compute) - cast(x, compute))
            return {"l": where((z > 0) & ~e & ~own, z, 0) / cast(index_value(c.input().shape[-1]), compute)}

        c.map((*p, j), reads, {"l": at(rows, *p[:-1], combine="sum")}, value)
        self.reduced(c, rows)

    def samples(self) -> Iterable[Sample]:
        x, t = TensorType(float32, (4, 3)), TensorType(int64, (4, 3))
        yield Sample({"x": x, "target": t}, {})
        yield Sample({"x": x, "target": t}, {"reduction": NONE})
        yield Sample({"x": TensorType(float32, (3,)), "target": TensorType(int64, (3,))}, {"reduction": SUM})
        yield Sample({"x": x, "target": TensorType(int64, (4, 2))}, {}, error="does not fit")
