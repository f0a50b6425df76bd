"""Softmax, log-softmax, layer, batch and group normalization with their gradients in few passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, promote
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, product

from .builder import Expansion, Gradient
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim

IntLike = Union[int, Expr]


def number(value: IntLike, like: Scalar) -> Scalar:
    """A size as a scalar of another one's dtype."""
    return const(value, like.dtype) if isinstance(value, int) else cast(index_value(value), like.dtype)


class SoftmaxBase(OperatorDefinition):
    """Common part of softmax and log-softmax along `dim`."""

    attributes: Mapping[str, Any] = {"dim": -1, "dtype": None}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        return {"x": call["self"]}, {"dim": call["dim"], "dtype": call.results[0].dtype}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        wrap_dim(self.name, attributes["dim"], len(x.shape))
        return {"y": TensorType(attributes.get("dtype") or x.dtype, x.shape)}

    def _row(self, c: Expansion, params: Sequence[Any], dim: int) -> list[Any]:
        return [p for d, p in enumerate(params) if d != dim]

    def _statistics(self, c: Expansion) -> tuple[Container, Container, int]:
        """The maximum and the sum of shifted exponentials of every row."""
        x, y = c.input(), c.output()
        dim = wrap_dim(self.name, c.attr("dim"), len(x.shape))
        compute = y.dtype.compute
        rows = [n for d, n in enumerate(x.shape) if d != dim or not x.shape]
        top, total = c.temp(rows, compute, "row_max"), c.temp(rows, compute, "row_sum")
        params = c.params(x.shape)
        c.map(params, {"x": at(x, *params)}, {"m": at(top, *self._row(c, params, dim), combine="max")}, lambda x: {"m": cast(x, compute)})
        params = c.params(x.shape)
        row = self._row(c, params, dim)
        c.map(params, {"x": at(x, *params), "m": at(top, *row)}, {"s": at(total, *row, combine="sum")},
              lambda x, m: {"s": apply("exp", cast(x, compute) - m)})  # fmt: skip
        return top, total, dim

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        top, total, dim = self._statistics(c)
        compute = y.dtype.compute
        params = c.params(x.shape)
        row = self._row(c, params, dim)
        c.map(params, {"x": at(x, *params), "m": at(top, *row), "s": at(total, *row)}, {"y": at(y, *params)},
              lambda x, m, s: {"y": cast(self.value(cast(x, compute) - m, s), y.dtype)})  # fmt: skip

    def value(self, shifted: Scalar, total: Scalar) -> Scalar:
        raise NotImplementedError

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4, 7))}, {"dim": -1})
        yield Sample({"x": TensorType(float32, (2, 3, 5))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (2, 3))}, {"dim": 2}, error="out of range")


@register
class Softmax(SoftmaxBase):
    """exp(x - max) / sum(exp(x - max)) along a dimension."""

    name = "softmax"
    aten: tuple[str, ...] = ("aten._softmax.default", "aten.softmax.int")

    def value(self, shifted: Scalar, total: Scalar) -> Scalar:
        return apply("exp", shifted) / total

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, y = g.grad(), g.output()
        if gy is None:
            return {}
        inner = g.op("sum", {"dims": (g.attr("dim"),), "keepdim": True}, x=g.pointwise(lambda a, b: a * b, gy, y, dtype=y.dtype.compute))
        return {"x": g.pointwise(lambda a, b, s: b * (a - s), gy, y, inner, dtype=g.input().dtype)}


@register
class SafeSoftmax(Softmax):
    """Softmax that gives zeros for a row of which every element is -inf."""

    name = "safe_softmax"
    aten: tuple[str, ...] = ("aten._safe_softmax.default",)

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        top, total, dim = self._statistics(c)
        compute = y.dtype.compute
        params = c.params(x.shape)
        row = self._row(c, params, dim)

        def value(x: Scalar, m: Scalar, s: Scalar) -> dict[str, Scalar]:
            return {"y": cast(where(apply("eq", m, -math.inf), 0, self.value(cast(x, compute) - m, s)), y.dtype)}

        c.map(params, {"x": at(x, *params), "m": at(top, *row), "s": at(total, *row)}, {"y": at(y, *params)}, value)


@register
class LogSoftmax(SoftmaxBase):
    """x - max - log(sum(exp(x - max))) along a dimension."""

    name = "log_softmax"
    aten = ("aten._log_softmax.default", "aten.log_softmax.int")

    def value(self, shifted: Scalar, total: Scalar) -> Scalar:
        return shifted - apply("log", total)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, y = g.grad(), g.output()
        if gy is None:
            return {}
        total = g.op("sum", {"dims": (g.attr("dim"),), "keepdim": True, "dtype": gy.dtype.compute}, x=gy)
        return {"x": g.pointwise(lambda a, b, s: a - apply("exp", b) * s, gy, y, total, dtype=g.input().dtype)}


def statistic_type(x: TensorType) -> Any:
    """Statistics of 16-bit floats are float32."""
    return x.dtype.compute


@register
class LayerNorm(OperatorDefinition):
    """Normalize over the last dimensions (attribute normalized_shape), then scale and shift."""

    name = "layer_norm"
    operands = ("x", "weight?", "bias?")
    results = ("y", "mean", "rstd")
    attributes: Mapping[str, Any] = {"normalized_shape": (), "eps": 1e-5}
    aten = ("aten.layer_norm.default", "aten.native_layer_norm.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands = {"x": call["input"], "weight": call.arguments.get("weight"), "bias": call.arguments.get("bias")}
        return operands, {"normalized_shape": tuple(call["normalized_shape"]), "eps": call["eps"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, shape = types["x"], tuple(attributes["normalized_shape"])
        fits = len(shape) <= len(x.shape) and all(
            a == b or a is b for a, b in zip(shape, x.shape[len(x.shape) - len(shape) :], strict=True)
        )
        self.require(fits, f"normalized_shape {list(shape)} does not end shape {list(x.shape)}")
        rows = x.shape[: len(x.shape) - len(shape)]
        statistic = TensorType(statistic_type(x), (*rows, *(1 for _ in shape)))
        return {"y": x, "mean": statistic, "rstd": statistic}

    def maps(self, c: Expansion) -> None:
        x, y, mean, rstd = c.input(), c.output(), c.output("mean"), c.output("rstd")
        inner = len(c.attr("normalized_shape"))
        rows = len(x.shape) - inner
        compute = mean.dtype
        count = product(x.shape[rows:])
        total, squares = c.temp(mean.shape, compute, "row_sum"), c.temp(mean.shape, compute, "row_m2")

        def row(params: Sequence[Any]) -> list[Any]:
            return [*params[:rows], *(0 for _ in range(inner))]

        p = c.params(x.shape)
        c.map(p, {"x": at(x, *p)}, {"s": at(total, *row(p), combine="sum")}, lambda x: {"s": cast(x, compute)})
        q = c.params(mean.shape)
        c.map(q, {"s": at(total, *q)}, {"m": at(mean, *q)}, lambda s: {"m": s / number(count, s)})
        p = c.params(x.shape)

        def centred(x: Scalar, m: Scalar) -> dict[str, Scalar]:
            d = cast(x, compute) - m
            return {"s": d * d}

        c.map(p, {"x": at(x, *p), "m": at(mean, *row(p))}, {"s": at(squares, *row(p), combine="sum")}, centred)
        q = c.params(mean.shape)
        c.map(q, {"s": at(squares, *q)}, {"r": at(rstd, *q)}, lambda s: {"r": apply("rsqrt", s / number(count, s) + c.attr("eps"))})
        p = c.params(x.shape)
        reads: dict[str, Memlet] = {"x": at(x, *p), "m": at(mean, *row(p)), "r": at(rstd, *row(p))}
        for k in ("weight", "bias"):
            if c.has(k):
                reads[k] = at(c.input(k), *p[rows:])

        def value(x: Scalar, m: Scalar, r: Scalar, weight: Scalar | None = None, bias: Scalar | None = None) -> dict[str, Scalar]:
            v = (cast(x, compute) - m) * r
            v = v * cast(weight, compute) if weight is not None else v
            v = v + cast(bias, compute) if bias is not None else v
            return {"y": cast(v, y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, mean, rstd = g.grad(), g.input(), g.output("mean"), g.output("rstd")
        if gy is None:
            return {}
        compute = mean.dtype
        inner = len(g.attr("normalized_shape"))
        rows = len(x.shape) - inner
        dims = tuple(range(rows, len(x.shape)))
        count = product(x.shape[rows:])
        xhat = g.pointwise(lambda v, m, r: (v - m) * r, x, mean, rstd, dtype=compute)
        result: dict[str, Container | None] = {}
        if g.needs("x"):
            gw = g.pointwise(lambda a, w: a * w, gy, g.input("weight"), dtype=compute) if g.has("weight") else g.cast(gy, compute)
            s1 = g.op("sum", {"dims": dims, "keepdim": True}, x=gw)
            s2 = g.op("sum", {"dims": dims, "keepdim": True}, x=g.pointwise(lambda a, h: a * h, gw, xhat))

            def gx(a: Scalar, h: Scalar, r: Scalar, u: Scalar, v: Scalar) -> Scalar:
                return r * (a - u / number(count, u) - h * (v / number(count, v)))

            result["x"] = g.pointwise(gx, gw, xhat, rstd, s1, s2, dtype=x.dtype)
        if g.has("weight") and g.needs("weight"):
            result["weight"] = g.cast(
                g.sum_to(g.pointwise(lambda a, h: a * h, gy, xhat, dtype=compute), x.shape[rows:]),
                g.input("weight").dtype,
            )
        if g.has("bias") and g.needs("bias"):
            result["bias"] = g.cast(g.sum_to(g.cast(gy, compute), x.shape[rows:]), g.input("bias").dtype)
        return result

    def samples(self) -> Iterable[Sample]:
        w = TensorType(float32, (6,))
        yield Sample({"x": TensorType(float32, (4, 6)), "weight": w, "bias": w}, {"normalized_shape": (6,)})
        yield Sample({"x": TensorType(float32, (2, 3, 6))}, {"normalized_shape": (3, 6), "eps": 1e-3})
        yield Sample({"x": TensorType(float32, (2, 3))}, {"normalized_shape": (4,)}, error="does not end")


@register
class BatchNormTraining(OperatorDefinition):
    """Batch normalization in training mode over all dimensions but the second.

    results: y, the batch statistics mean and rstd, and the running statistics after the step: running + momentum * (batch - running),
    with the unbiased variance, as PyTorch computes them.
    """

    name = "batch_norm"
    operands = ("x", "weight?", "bias?", "running_mean?", "running_var?")
    results = ("y", "mean", "rstd", "new_mean", "new_var")
    attributes: Mapping[str, Any] = {"momentum": 0.1, "eps": 1e-5}

    def aten_results_match(self, i: int) -> bool:
        return i > 2  # mean and rstd are saved for our own gradient

    aten = ("aten._native_batch_norm_legit_functional.default", "aten._native_batch_norm_legit.no_stats")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        self.require(call["training"] is True, "only training mode is imported here")
        operands = {"x": call["input"], **{k: call.arguments.get(k) for k in ("weight", "bias", "running_mean", "running_var")}}
        return operands, {"momentum": call["momentum"], "eps": call["eps"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        self.require(len(x.shape) >= 2, f"needs (batch, channels, ...), not {list(x.shape)}")
        for k, t in types.items():
            ok = k == "x" or (len(t.shape) == 1 and (t.shape[0] is x.shape[1] or t.shape[0] == x.shape[1]))
            self.require(ok, f"{k} of shape {list(t.shape)} does not have the {x.shape[1]} channels of {list(x.shape)}")
        statistic = TensorType(statistic_type(x), (x.shape[1],))
        out = {"y": x, "mean": statistic, "rstd": statistic}
        if "running_mean" in types:
            # of narrow buffers, as PyTorch has them before it writes them back
            kept = TensorType(promote(statistic.dtype, types["running_mean"].dtype), (x.shape[1],))
            out.update(new_mean=kept, new_var=kept)
        return out

    def maps(self, c: Expansion) -> None:
        x, y, mean, rstd = c.input(), c.output(), c.output("mean"), c.output("rstd")
        compute = mean.dtype
        channels = x.shape[1]
        count = product(n for d, n in enumerate(x.shape) if d != 1)
        n, m2 = c.temp((channels,), compute, "bn_count"), c.temp((channels,), compute, "bn_m2")
        p = c.params(x.shape)
        c.map(p, {"x": at(x, *p)},
              {"count": at(n, p[1], combine="welford"), "mean": at(mean, p[1], combine="welford"), "m2": at(m2, p[1], combine="welford")},
              lambda x: {"count": const(1, compute), "mean": cast(x, compute), "m2": const(0, compute)}, name="bn_statistics")  # fmt: skip
        (q,) = c.params((channels,))
        reads = {"s": at(m2, q)}
        writes = {"r": at(rstd, q)}
        if c.has("running_mean") and c.wants("new_mean"):
            reads.update(m=at(mean, q), rm=at(c.input("running_mean"), q), rv=at(c.input("running_var"), q))
            writes.update(nm=at(c.output("new_mean"), q), nv=at(c.output("new_var"), q))
        momentum = c.attr("momentum")
        kept = c.output("new_mean").dtype if "nm" in writes else compute

        def update(s: Scalar, m: Scalar | None = None, rm: Scalar | None = None, rv: Scalar | None = None) -> dict[str, Scalar]:
            result = {"r": apply("rsqrt", s / number(count, s) + c.attr("eps"))}
            if m is not None and rm is not None and rv is not None:
                unbiased = s / number(count - 1, s)
                result["nm"] = cast(m * momentum + cast(rm, compute) * (1 - momentum), kept)
                result["nv"] = cast(unbiased * momentum + cast(rv, compute) * (1 - momentum), kept)
            return result

        c.map((q,), reads, writes, update, name="bn_update")
        p = c.params(x.shape)
        reads = {"x": at(x, *p), "m": at(mean, p[1]), "r": at(rstd, p[1])}
        for k in ("weight", "bias"):
            if c.has(k):
                reads[k] = at(c.input(k), p[1])

        def value(x: Scalar, m: Scalar, r: Scalar, weight: Scalar | None = None, bias: Scalar | None = None) -> dict[str, Scalar]:
            scale = r if weight is None else r * cast(weight, compute)
            v = (cast(x, compute) - m) * scale
            return {"y": cast(v if bias is None else v + cast(bias, compute), y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value, name="bn_apply")

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, mean, rstd = g.grad(), g.input(), g.output("mean"), g.output("rstd")
        if gy is None:
            return {}
        compute = mean.dtype
        channels = x.shape[1]
        shape = (1, channels, *(1 for _ in x.shape[2:]))
        count = product(n for d, n in enumerate(x.shape) if d != 1)
        mean, rstd = g.reshape(mean, shape), g.reshape(rstd, shape)
        centred = g.pointwise(lambda v, m: v - m, x, mean, dtype=compute)
        s1 = g.sum_to(g.cast(gy, compute), shape)
        s2 = g.sum_to(g.pointwise(lambda a, d: a * d, gy, centred, dtype=compute), shape)
        result: dict[str, Container | None] = {}
        if g.needs("x"):
            factors = [rstd] + ([g.reshape(g.input("weight"), shape)] if g.has("weight") else [])
            scale = g.pointwise(lambda r, *w: r * w[0] if w else r, *factors, dtype=compute)
            k1 = g.pointwise(lambda s: s / number(count, s), s1)
            k2 = g.pointwise(lambda s, r: s * (r * r) / number(count, s), s2, rstd)
            result["x"] = g.pointwise(lambda a, d, u, v, s: (a - u - d * v) * s, gy, centred, k1, k2, scale, dtype=x.dtype)
        if g.has("weight") and g.needs("weight"):
            result["weight"] = g.cast(g.reshape(g.pointwise(lambda s, r: s * r, s2, rstd), (channels,)), g.input("weight").dtype)
        if g.has("bias") and g.needs("bias"):
            result["bias"] = g.cast(g.reshape(s1, (channels,)), g.input("bias").dtype)
        return result

    def samples(self) -> Iterable[Sample]:
        w = TensorType(float32, (3,))
        full = {"x": TensorType(float32, (4, 3, 2, 5)), "weight": w, "bias": w, "running_mean": w, "running_var": w}
        yield Sample(full, {"momentum": 0.3, "eps": 1e-4})
        yield Sample({"x": TensorType(float32, (6, 3))}, {})
        yield Sample({"x": TensorType(float32, (4, 2, 5)), "weight": w}, {}, error="channels")


@register
class BatchNormInference(OperatorDefinition):
    """Batch normalization with given statistics (evaluation mode)."""

    name = "batch_norm_inference"
    operands = ("x", "weight?", "bias?", "running_mean", "running_var")
    attributes: Mapping[str, Any] = {"eps": 1e-5}
    aten = ("aten._native_batch_norm_legit_no_training.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {
            "x": call["input"],
            **{k: call.arguments.get(k) for k in ("weight", "bias", "running_mean", "running_var")},
        }, {"eps": call["eps"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        self.require(len(x.shape) >= 2, f"needs (batch, channels, ...), not {list(x.shape)}")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        compute = x.dtype.compute
        p = c.params(x.shape)
        reads = {"x": at(x, *p), "m": at(c.input("running_mean"), p[1]), "v": at(c.input("running_var"), p[1])}
        for k in ("weight", "bias"):
            if c.has(k):
                reads[k] = at(c.input(k), p[1])

        def value(x: Scalar, m: Scalar, v: Scalar, weight: Scalar | None = None, bias: Scalar | None = None) -> dict[str, Scalar]:
            scale = apply("rsqrt", cast(v, compute) + c.attr("eps"))
            scale = scale if weight is None else scale * cast(weight, compute)
            r = (cast(x, compute) - cast(m, compute)) * scale
            return {"y": cast(r if bias is None else r + cast(bias, compute), y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        compute, channels, eps = x.dtype.compute, x.shape[1], g.attr("eps")
        shape = (1, channels, *(1 for _ in x.shape[2:]))
        rstd = g.pointwise(lambda v: apply("rsqrt", v + eps), g.reshape(g.input("running_var"), shape), dtype=compute)
        result: dict[str, Container | None] = {}
        if g.needs("x"):
            weights = [g.reshape(g.input("weight"), shape)] if g.has("weight") else []
            scale = g.pointwise(lambda r, *w: r * w[0] if w else r, rstd, *weights, dtype=compute)
            result["x"] = g.pointwise(lambda a, s: a * s, gy, scale, dtype=x.dtype)
        if g.has("weight") and g.needs("weight"):
            mean = g.reshape(g.input("running_mean"), shape)
            s = g.sum_to(g.pointwise(lambda a, v, m, r: a * ((v - m) * r), gy, x, mean, rstd, dtype=compute), shape)
            result["weight"] = g.cast(g.reshape(s, (channels,)), g.input("weight").dtype)
        if g.has("bias") and g.needs("bias"):
            result["bias"] = g.cast(g.reshape(g.sum_to(g.cast(gy, compute), shape), (channels,)), g.input("bias").dtype)
        return result

    def samples(self) -> Iterable[Sample]:
        w = TensorType(float32, (3,))
        yield Sample({"x": TensorType(float32, (4, 3, 5)), "weight": w, "bias": w, "running_mean": w, "running_var": w})
