"""Interpolation with antialiasing: where it makes smaller, the kernel is stretched over all elements that an output stands for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, int64
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, Symbol

from .builder import Expansion
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
RADIUS = {"linear": 1, "cubic": 2}
CUBIC = -0.5  # with antialiasing PyTorch takes the parameter of the cubic kernel that Pillow has


def kernel(mode: str, x: Scalar) -> Scalar:
    """The weight of an element at distance x >= 0, in units of the stretched kernel."""
    if mode == "linear":
        return apply("max", 1 - x, 0)
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
    return where(x < 1, near, where(x < 2, far, 0))


@register
class AntialiasedInterpolation(OperatorDefinition):
    """x (batch, channels, positions...) resampled to attribute `size`, one dimension after the other, the last one first.

    Output o along a dimension is the weighted mean of the elements within `RADIUS` stretched widths of scale * (o + 1/2). scales:
    PyTorch's scale factors (None: the ratio of sizes); mode: "linear" or "cubic"; align: the scale is that of the outer centres.
    """

    name = "interpolate_antialias"
    attributes: Mapping[str, Any] = {"size": (), "scales": (), "mode": "linear", "align": False}
    aten = tuple(f"aten._upsample_{n}2d_aa.{o}" for n in ("bilinear", "bicubic") for o in ("default", "vec"))

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        if "scale_factors" in call.arguments:
            scales = tuple(call["scale_factors"] or (None, None))
        else:
            scales = (call["scales_h"], call["scales_w"])
        x = call["input"] if "input" in call.arguments else call["self"]
        mode = "cubic" if "bicubic" in call.target else "linear"
        return {"x": x}, {"size": call.results[0].shape[2:], "scales": scales, "mode": mode, "align": bool(call["align_corners"])}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, size = types["x"], tuple(attributes["size"])
        self.require(attributes["mode"] in RADIUS, f"mode {attributes['mode']!r} is none of {', '.join(RADIUS)}")
        self.require(len(x.shape) == len(size) + 2, f"operand of shape {list(x.shape)} is not (batch, channels, {len(size)} positions)")
        sizes = [*x.shape[2:], *size]
        self.require(all(isinstance(n, int) and n > 0 for n in sizes), f"sizes {sizes} are not all known and positive")
        return {"y": TensorType(x.dtype, (*x.shape[:2], *size))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        rank, wide = len(y.shape) - 2, y.dtype.compute
        scales = tuple(c.attr("scales")) or (None,) * rank
        current = x
        for d in reversed(range(rank)):
            n, m = int(x.shape[2 + d]), int(y.shape[2 + d])  # type: ignore[arg-type]
            place, weight = self._table(c, n, m, scales[d], wide)
            shape = (*current.shape[: 2 + d], m, *current.shape[3 + d :])
            total = c.wide(y) if d == 0 else c.temp(shape, wide, "resampled")
            *p, k = c.params((*shape, weight.shape[1]))
            o = p[2 + d]
            reads = {"i": at(place, o, k), "w": at(weight, o, k), "x": at(current, *p[: 2 + d], Indirect("i"), *p[3 + d :])}
            c.map((*p, k), reads, {"y": at(total, *p, combine="sum")}, lambda i, w, x: {"y": cast(x, wide) * w})
            current = total
        c.narrow(current, y)

    def _table(self, c: Expansion, n: int, m: int, factor: float | None, dtype: DType) -> tuple[Container, Container]:
        """For each of m outputs the elements (of n) that it is made of, and their weights, which add up to 1."""
        mode = c.attr("mode")
        if c.attr("align"):
            scale = (n - 1) / (m - 1) if m > 1 else 0.0
        else:
            scale = 1 / factor if factor else n / m
        stretch = max(scale, 1.0)
        reach = RADIUS[mode] * stretch
        taps = min(2 * math.ceil(reach) + 1, n)
        place, raw, total = c.temp((m, taps), int64, "place"), c.temp((m, taps), dtype, "raw"), c.temp((m,), dtype, "total")

        def first(o: Symbol, k: Symbol) -> tuple[Scalar, Scalar, Scalar]:
            """The centre of output o, its tap k, and whether that is an element of its own."""
            centre = (cast(index_value(o), dtype) + 0.5) * scale
            begin = apply("max", cast(apply("floor", centre - (reach - 0.5)), int64), 0)
            at_k = begin + index_value(k)
            return centre, apply("min", at_k, const(n - 1, int64)), at_k < const(n, int64)

        def weigh(o: Symbol, k: Symbol) -> dict[str, Scalar]:
            centre, tap, valid = first(o, k)
            distance = apply("abs", cast(tap, dtype) + 0.5 - centre) / stretch
            return {"i": tap, "w": where(valid, kernel(mode, distance), 0)}

        o, k = c.params(place.shape)
        c.map((o, k), {}, {"i": at(place, o, k), "w": at(raw, o, k)}, weigh(o, k))
        o, k = c.params(place.shape)
        c.map((o, k), {"w": at(raw, o, k)}, {"t": at(total, o, combine="sum")}, lambda w: {"t": w})
        weight = c.temp((m, taps), dtype, "weight")
        o, k = c.params(place.shape)
        c.map((o, k), {"w": at(raw, o, k), "t": at(total, o)}, {"v": at(weight, o, k)}, lambda w, t: {"v": w / t})
        return place, weight

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"x": t(2, 3, 7, 5)}, {"size": (3, 2)})
        yield Sample({"x": t(1, 2, 6, 4)}, {"size": (3, 7), "mode": "cubic"})
        yield Sample({"x": t(1, 2, 5, 6)}, {"size": (2, 4), "scales": (0.45, None), "align": False})
        yield Sample({"x": t(1, 2, 5, 6)}, {"size": (2, 1), "align": True})
        yield Sample({"x": t(2, 3, 4)}, {"size": (3, 2)}, error="positions")
        yield Sample({"x": t(2, 3, 4, 0)}, {"size": (3, 2)}, error="positive")
