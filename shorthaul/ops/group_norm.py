"""Group normalization (and instance normalization, one channel a group) with its gradient in few passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.scalar import Scalar, apply, cast
from shorthaul.symbolic import floordiv, mod, product, prove_eq, prove_le

from .builder import Expansion, Gradient
from .normalization import number, statistic_type
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register


@register
class GroupNorm(OperatorDefinition):
    """Normalize x (N, C, positions...) over each of `groups` groups of channels, then scale and shift by channel.

    results: y, and mean and rstd of each group (N, groups), saved for the gradient.
    """

    name = "group_norm"
    operands = ("x", "weight?", "bias?")
    results = ("y", "mean", "rstd")
    attributes: Mapping[str, Any] = {"groups": 1, "eps": 1e-5}
    aten = ("aten.group_norm.default", "aten.native_group_norm.default")

    def aten_results_match(self, i: int) -> bool:
        return False  # mean and rstd are saved for our own gradient

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands = {k: call.arguments.get(k) for k in ("input", "weight", "bias")}
        operands["x"] = operands.pop("input")
        return operands, {
            "groups": call["num_groups" if "num_groups" in call.arguments else "group"],
            "eps": call["eps"],
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, groups = types["x"], attributes["groups"]
        self.require(len(x.shape) >= 2, f"needs (batch, channels, ...), not {list(x.shape)}")
        self.require(x.dtype.is_float, f"operand x is {x.dtype}, not floating")
        self.require(prove_le(1, groups) is not False and prove_eq(mod(x.shape[1], groups), 0) is not False,
                     f"{x.shape[1]} channels of {list(x.shape)} do not divide into {groups} groups")  # fmt: skip
        for k, t in types.items():
            self.require(k == "x" or (len(t.shape) == 1 and prove_eq(t.shape[0], x.shape[1]) is not False),
                         f"{k} of shape {list(t.shape)} does not have the {x.shape[1]} channels of {list(x.shape)}")  # fmt: skip
        statistic = TensorType(statistic_type(x), (x.shape[0], groups))
        return {"y": x, "mean": statistic, "rstd": statistic}

    def maps(self, c: Expansion) -> None:
        x, y, mean, rstd = c.input(), c.output(), c.output("mean"), c.output("rstd")
        compute = mean.dtype
        groups = c.attr("groups")
        per = floordiv(x.shape[1], groups)
        domain = (x.shape[0], groups, per, *x.shape[2:])
        count = product(domain[2:])
        total, squares = c.temp(mean.shape, compute, "group_sum"), c.temp(mean.shape, compute, "group_m2")

        def element(p: Sequence[Any]) -> list[Any]:
            return [p[0], p[1] * per + p[2], *p[3:]]

        p = c.params(domain)
        c.map(p, {"x": at(x, *element(p))}, {"s": at(total, *p[:2], combine="sum")}, lambda x: {"s": cast(x, compute)})
        # The corrected two-pass algorithm (Chan, Golub, LeVeque 1983): the mean by the first pass is off by the rounding of its sum, which
        # the second pass sees as a mean deviation that is not zero. 16-bit elements are coarser than that rounding.
        corrects = x.dtype is compute
        first = c.temp(mean.shape, compute, "group_shift") if corrects else mean
        q = c.params(mean.shape)
        c.map(q, {"s": at(total, *q)}, {"m": at(first, *q)}, lambda s: {"m": s / number(count, s)})
        p = c.params(domain)
        writes = {"s": at(squares, *p[:2], combine="sum")}
        if corrects:
            rest = c.temp(mean.shape, compute, "group_rest")
            writes["d"] = at(rest, *p[:2], combine="sum")

        def deviation(x: Scalar, m: Scalar) -> dict[str, Scalar]:
            d = cast(x, compute) - m
            return {"s": d * d, "d": d} if corrects else {"s": d * d}

        c.map(p, {"x": at(x, *element(p)), "m": at(first, *p[:2])}, writes, deviation)

        def finish(s: Scalar, d: Scalar | None = None, f: Scalar | None = None) -> dict[str, Scalar]:
            variance = s / number(count, s)
            if d is None or f is None:
                return {"r": apply("rsqrt", variance + c.attr("eps"))}
            d = d / number(count, s)
            return {"r": apply("rsqrt", variance - d * d + c.attr("eps")), "m": f + d}

        q = c.params(mean.shape)
        if corrects:
            c.map(q, {"s": at(squares, *q), "d": at(rest, *q), "f": at(first, *q)}, {"r": at(rstd, *q), "m": at(mean, *q)}, finish)
        else:
            c.map(q, {"s": at(squares, *q)}, {"r": at(rstd, *q)}, finish)
        p = c.params(domain)
        reads: dict[str, Memlet] = {"x": at(x, *element(p)), "m": at(mean, *p[:2]), "r": at(rstd, *p[:2])}
        for k in ("weight", "bias"):
            if c.has(k):
                reads[k] = at(c.input(k), p[1] * per + p[2])

        def value(
            x: Scalar, m: Scalar, r: Scalar, weight: Scalar | None = None, bias: Scalar | None = None
        ) -> dict[str, Scalar]:
            v = (cast(x, compute) - m) * r
            v = v * cast(weight, compute) if weight is not None else v
            v = v + cast(bias, compute) if bias is not None else v
            return {"y": cast(v, y.dtype)}

        c.map(p, reads, {"y": at(y, *element(p))}, value)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        statistics = {k: v for k in ("mean", "rstd") if (v := g.grad(k)) is not None}
        if gy is None:
            if not statistics:
                return {}
            gy = g.full(x.shape, 0, x.dtype)
        compute, groups, channels = g.output("mean").dtype, g.attr("groups"), x.shape[1]
        per = floordiv(channels, groups)
        grouped = (x.shape[0], groups, per, *x.shape[2:])
        ones = tuple(1 for _ in x.shape[2:])
        mean, rstd = (g.reshape(g.output(k), (x.shape[0], groups, 1, *ones)) for k in ("mean", "rstd"))
        xhat = g.pointwise(lambda v, m, r: (v - m) * r, g.reshape(x, grouped), mean, rstd, dtype=compute)
        gv = g.reshape(gy, grouped)
        result: dict[str, Container | None] = {}
        if g.needs("x"):
            dims = tuple(range(2, len(grouped)))
            count = product(grouped[2:])
            weight = g.reshape(g.input("weight"), (groups, per, *ones)) if g.has("weight") else None
            gw = g.cast(gv, compute) if weight is None else g.pointwise(lambda a, w: a * w, gv, weight, dtype=compute)
            s1 = g.op("sum", {"dims": dims, "keepdim": True}, x=gw)
            s2 = g.op("sum", {"dims": dims, "keepdim": True}, x=g.pointwise(lambda a, h: a * h, gw, xhat))

            def gx(a: Scalar, h: Scalar, r: Scalar, u: Scalar, v: Scalar) -> Scalar:
                return r * (a - u / number(count, u) - h * (v / number(count, v)))

            total = g.pointwise(gx, gw, xhat, rstd, s1, s2, dtype=compute if statistics else x.dtype)
            for k, v in statistics.items():  # a caller may differentiate what the group norm saves, too
                column = g.reshape(v, mean.shape)
                if k == "mean":
                    total = g.pointwise(lambda t, a: t + a / number(count, t), total, column)
                else:
                    total = g.pointwise(lambda t, a, h, r: t - a * r * r * h / number(count, t), total, column, xhat, rstd)
            result["x"] = g.reshape(g.cast(total, x.dtype), x.shape)
        shape = (1, groups, per, *ones)
        if g.has("weight") and g.needs("weight"):
            sums = g.sum_to(g.pointwise(lambda a, h: a * h, gv, xhat, dtype=compute), shape)
            result["weight"] = g.cast(g.reshape(sums, (channels,)), g.input("weight").dtype)
        if g.has("bias") and g.needs("bias"):
            result["bias"] = g.cast(g.reshape(g.sum_to(g.cast(gv, compute), shape), (channels,)), g.input("bias").dtype)
        return result

    def samples(self) -> Iterable[Sample]:
        x, w = TensorType(float32, (2, 6, 3, 2)), TensorType(float32, (6,))
        yield Sample({"x": x, "weight": w, "bias": w}, {"groups": 3, "eps": 1e-4})
        yield Sample({"x": TensorType(float32, (3, 4))}, {"groups": 2})
        yield Sample({"x": x, "bias": w}, {"groups": 6})
        yield Sample({"x": x}, {"groups": 4}, error="do not divide")
        yield Sample({"x": x, "weight": TensorType(float32, (5,))}, {"groups": 3}, error="channels")
