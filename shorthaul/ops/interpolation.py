"""Interpolation (nearest, linear, cubic, in one to three dimensions) and sampling at given coordinates.

Interpolation along a dimension reads, for each output position, a few elements ("taps") at computed places with computed weights; both
are small tables, so that the inner loop only multiplies and adds. The places are computed as PyTorch computes them, in the same
precision, so that the nearest element is the same one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, int64
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, floordiv, prove_eq, prove_le

from .builder import Expansion, Gradient
from .convolution import kept_params
from .normalization import number
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
CUBIC = -0.75  # PyTorch's parameter of the cubic convolution kernel
TAPS = {"nearest": 1, "nearest-exact": 1, "linear": 2, "cubic": 4}


def _size(value: IntLike, dtype: DType) -> Scalar:
    return number(value, const(0, dtype))


def source_position(o: IntLike, n: IntLike, m: IntLike, scale: float | None, align: bool, dtype: DType) -> Scalar:
    """Where output position o of m lies among n elements (linear and cubic modes)."""
    place = cast(index_value(o), dtype)
    if align:
        return place * ((_size(n, dtype) - 1) / apply("max", _size(m, dtype) - 1, 1))
    step = const(1 / scale, dtype) if scale else _size(n, dtype) / _size(m, dtype)
    return step * (place + 0.5) - 0.5


def cubic_weights(t: Scalar) -> list[Scalar]:
    """Weights of the four elements around a place that lies t behind the second (Keys 1981)."""

    def near(x: Scalar) -> Scalar:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1

    def far(x: Scalar) -> Scalar:
        return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _bounded(place: Scalar, n: IntLike) -> Scalar:
    """An int64 place cut to 0 .. n - 1."""
    return apply("max", apply("min", place, index_value(n - 1)), 0)


@register
class Interpolate(OperatorDefinition):
    """x resampled to attribute `size` over its last dimensions.

    scales: PyTorch's scale factors (None: the ratio of sizes); mode: "nearest", "nearest-exact", "linear" or "cubic"; align: whether
    the centres of the outer elements are mapped on each other.
    """

    name = "interpolate"
    attributes: Mapping[str, Any] = {"size": (), "scales": (), "mode": "nearest", "align": False}
    aten = tuple(
        f"aten.{op}.{overload}"
        for op in (*(f"{n}{d}d" for n in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)),
                   "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
        for overload in ("default", "vec")
    )  # fmt: skip

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        x = call["input"] if "input" in call.arguments else call["self"]
        rank = len(x.shape) - 2
        if "scale_factors" in call.arguments:
            scales = tuple(call["scale_factors"] or (None,) * rank)
        else:
            names = [f"scales_{k}" for k in ("d", "h", "w")[3 - rank :]]
            scales = tuple(call.arguments.get(k, call.arguments.get("scales")) for k in names)
        mode = next(m for k, m in (("nearest_exact", "nearest-exact"), ("nearest", "nearest"), ("cubic", "cubic"), ("linear", "linear"))
                    if k in call.target)  # fmt: skip
        return {"x": x}, {
            "size": call.results[0].shape[2:],
            "scales": scales,
            "mode": mode,
            "align": bool(call.arguments.get("align_corners")),
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, size = types["x"], tuple(attributes["size"])
        self.require(attributes["mode"] in TAPS, f"mode {attributes['mode']!r} is none of {', '.join(TAPS)}")
        self.require(
            len(x.shape) == len(size) + 2,
            f"operand of shape {list(x.shape)} is not (batch, channels, {len(size)} positions)",
        )
        empty = [n for n in x.shape[2:] if prove_le(n, 0) is True]
        self.require(not empty, f"operand of shape {list(x.shape)} has no elements to interpolate between")
        return {"y": TensorType(x.dtype, (*x.shape[:2], *size))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        rank, taps, compute = len(y.shape) - 2, TAPS[c.attr("mode")], y.dtype.compute
        scales = tuple(c.attr("scales")) or (None,) * rank
        tables = [self._table(c, n, m, s, compute) for n, m, s in zip(x.shape[2:], y.shape[2:], scales, strict=True)]
        p = c.params(y.shape)
        reads: dict[str, Memlet] = {}
        for d, (places, weights) in enumerate(tables):
            for k in range(taps):
                if isinstance(places[k], Container):
                    reads[f"i{d}_{k}"] = at(places[k], p[2 + d])
                if weights:
                    reads[f"w{d}_{k}"] = at(weights[k], p[2 + d])
        corners = list(itertools.product(range(taps), repeat=rank))
        for n, corner in enumerate(corners):
            subset: list[Any] = []
            for d, k in enumerate(corner):
                place = tables[d][0][k]
                subset.append(Indirect(f"i{d}_{k}") if isinstance(place, Container) else place(p[2 + d]))
            reads[f"x{n}"] = at(x, *p[:2], *subset)

        def value(**v: Scalar) -> dict[str, Scalar]:
            def along(d: int, corner: tuple[int, ...]) -> Scalar:
                """The interpolation over dimensions d and up."""
                if d == rank:
                    return cast(v[f"x{corners.index(corner)}"], compute)
                if taps == 1:
                    return along(d + 1, (*corner, 0))
                terms = [along(d + 1, (*corner, k)) * v[f"w{d}_{k}"] for k in range(taps)]
                return sum(terms[1:], terms[0])

            return {"y": cast(along(0, ()), y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value)

    def _table(
        self, c: Expansion, n: IntLike, m: IntLike, scale: float | None, compute: DType
    ) -> tuple[list[Any], list[Container]]:
        """For each tap: where it lies (a table of int64, or a function of the position), and its weight."""
        mode, align = c.attr("mode"), c.attr("align")
        whole = self._whole(mode, n, m)
        if whole is not None:
            return [lambda o: floordiv(o, whole)], []
        places = [c.temp((m,), int64, "place") for _ in range(TAPS[mode])]
        (o,) = c.params((m,))
        if TAPS[mode] == 1:
            step = const(1 / scale, float32) if scale else _size(n, float32) / _size(m, float32)
            shift = 0.5 if mode == "nearest-exact" else 0.0
            place = _bounded(cast(apply("floor", (cast(index_value(o), float32) + shift) * step), int64), n)
            c.map((o,), {}, {"i0": at(places[0], o)}, {"i0": place})
            return places, []
        weights = [c.temp((m,), compute, "weight") for _ in range(TAPS[mode])]
        source = source_position(o, n, m, scale, align, compute)
        if mode == "linear":
            source = apply("max", source, 0)
            first = apply("min", cast(apply("floor", source), int64), index_value(n - 1))
            t = apply("min", apply("max", source - cast(first, compute), 0), 1)
            values, shares = [first, first + where(first < index_value(n - 1), const(1, int64), 0)], [1 - t, t]
        else:
            floor = apply("floor", source)
            first = cast(floor, int64)
            values, shares = [_bounded(first + (k - 1), n) for k in range(4)], cubic_weights(source - floor)
        writes = {f"i{k}": at(q, o) for k, q in enumerate(places)} | {f"w{k}": at(w, o) for k, w in enumerate(weights)}
        c.map((o,), {}, writes, {f"i{k}": v for k, v in enumerate(values)} | {f"w{k}": s for k, s in enumerate(shares)})
        return places, weights

    @staticmethod
    def _whole(mode: str, n: IntLike, m: IntLike) -> int | None:
        """By how much every element is repeated, where that is a small whole number (then PyTorch's rounding gives the same)."""
        if TAPS[mode] > 1:
            return None
        return next((k for k in (1, 2, 4, 8) if prove_eq(m, k * n) is True), None)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        attributes = {k: g.attr(k) for k in self.attributes}
        return {"x": gy and g.op("interpolate_backward", {**attributes, "size": x.shape[2:]}, g=gy)}

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"x": t(2, 3, 4)}, {"size": (8,)})
        yield Sample({"x": t(2, 3, 4, 5)}, {"size": (7, 3), "scales": (1.8, None)})
        yield Sample({"x": t(1, 2, 4, 5)}, {"size": (7, 10), "mode": "nearest-exact"})
        yield Sample({"x": t(2, 2, 4, 5)}, {"size": (7, 3), "mode": "linear", "align": True})
        yield Sample({"x": t(1, 2, 3, 2, 3)}, {"size": (2, 3, 4), "mode": "linear"})
        yield Sample({"x": t(1, 2, 4, 3)}, {"size": (5, 2), "mode": "cubic"})
        yield Sample({"x": t(2, 3, 4)}, {"size": (8, 8)}, error="positions")
        yield Sample({"x": t(2, 3, 0)}, {"size": (8,)}, error="no elements")


@register
class InterpolateBackward(Interpolate):
    """The gradient of interpolation by its operand, whose positions are attribute `size`: each output's gradient goes to its taps.

    Nearest by a whole factor sums over blocks; otherwise the map over output positions adds to where the tables say.
    """

    name = "interpolate_backward"
    operands = ("g",)
    aten = ()
    gradient = None  # type: ignore[assignment]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, size = types["g"], tuple(attributes["size"])
        self.require(len(g.shape) == len(size) + 2, f"size {list(size)} does not fit gradient {list(g.shape)}")
        return {"y": TensorType(g.dtype, (*g.shape[:2], *size))}

    def maps(self, c: Expansion) -> None:
        g, y = c.input("g"), c.output()
        rank, mode, compute = len(y.shape) - 2, c.attr("mode"), y.dtype.compute
        total = c.wide(y)
        whole = [self._whole(mode, n, m) for n, m in zip(y.shape[2:], g.shape[2:], strict=True)]
        if all(k is not None for k in whole):
            p = c.params(y.shape)
            inner, summed = kept_params(c, whole)  # type: ignore[arg-type]
            place = [q * k + i for q, k, i in zip(p[2:], whole, inner, strict=True)]  # type: ignore[operator]
            c.map([*p, *summed], {"g": at(g, *p[:2], *place)}, {"y": at(total, *p, combine="sum" if summed else None)},
                  lambda g: {"y": cast(g, compute)})  # fmt: skip
        else:
            self._scatter(c, g, total, rank)
        c.narrow(total, y)

    def _scatter(self, c: Expansion, g: Container, total: Container, rank: int) -> None:
        """One dimension after the other: positions g.shape[2:] become total.shape[2:]."""
        scales = tuple(c.attr("scales")) or (None,) * rank
        current, compute = g, total.dtype
        for d in range(rank):
            n, m = total.shape[2 + d], g.shape[2 + d]
            places, weights = self._table(c, n, m, scales[d], compute)
            shape = (*current.shape[: 2 + d], n, *current.shape[3 + d :])
            target = total if d == rank - 1 else c.temp(shape, compute)
            p = c.params(current.shape)
            parts = [target] if len(places) == 1 else [c.temp(shape, compute) for _ in places]
            for k, place in enumerate(places):
                reads = {"g": at(current, *p)}
                where_: Any = place(p[2 + d]) if not isinstance(place, Container) else Indirect("i")
                if isinstance(place, Container):
                    reads["i"] = at(place, p[2 + d])
                if weights:
                    reads["w"] = at(weights[k], p[2 + d])
                c.map(p, reads, {"y": at(parts[k], *p[: 2 + d], where_, *p[3 + d :], combine="sum")},
                      lambda g, w=None, i=None: {"y": cast(g, compute) if w is None else cast(g, compute) * w})  # fmt: skip
                p = c.params(current.shape)
            if len(parts) > 1:
                q = c.params(shape)
                c.map(q, {f"a{k}": at(t, *q) for k, t in enumerate(parts)}, {"y": at(target, *q)},
                      lambda **v: {"y": sum(list(v.values())[1:], next(iter(v.values())))})  # fmt: skip
            current = target

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"g": t(2, 3, 8, 10)}, {"size": (4, 5)})
        yield Sample({"g": t(2, 3, 7, 3)}, {"size": (4, 5), "mode": "nearest-exact"})
        yield Sample({"g": t(2, 3, 7, 3)}, {"size": (4, 5), "mode": "linear"})
        yield Sample({"g": t(1, 2, 5)}, {"size": (3,), "mode": "cubic"})


def mirrored(place: Scalar, n: IntLike, align: bool) -> Scalar:
    """A place mirrored at the outer elements (align) or at the edges half an element outside, as often as it takes."""
    if align and prove_eq(n, 1) is True:
        return place * 0
    size = _size(n, place.dtype)
    low, span = (const(0, place.dtype), size - 1) if align else (const(-0.5, place.dtype), size)
    away = apply("abs", place - low)
    flips = apply("floor", away / span)
    extra = away - flips * span
    even = apply("eq", flips - 2 * apply("floor", flips / 2), 0)
    return where(even, extra + low, span - extra + low)


def sampling_position(u: Scalar, n: IntLike, padding: str, align: bool) -> Scalar:
    """The place among n elements of the coordinate u in [-1, 1]; outside, "border" cuts it and "reflection" mirrors it."""
    size = _size(n, u.dtype)
    place = (u + 1) / 2 * (size - 1) if align else ((u + 1) * size - 1) / 2
    if padding == "reflection":
        place = mirrored(place, n, align)
    if padding in ("border", "reflection"):
        # at a bound the gradient is zero, as in PyTorch
        place = where(place <= 0, 0, where(place >= size - 1, size - 1, place))
    return place


@register
class GridSample(OperatorDefinition):
    """x (N, C, positions...) read at coordinates `grid` (N, out..., rank), the last coordinate first; [-1, 1] spans the operand.

    mode: "linear", "nearest" or "cubic"; padding: "zeros", "border" or "reflection"; align: whether -1 and 1 are centres of elements.
    """

    name = "grid_sample"
    operands = ("x", "grid")
    attributes: Mapping[str, Any] = {"mode": "linear", "padding": "zeros", "align": False}
    aten = ("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        mode = ("linear", "nearest", "cubic")[call["interpolation_mode"]]
        padding = ("zeros", "border", "reflection")[call["padding_mode"]]
        return {"x": call["input"], "grid": call["grid"]}, {
            "mode": mode,
            "padding": padding,
            "align": call["align_corners"],
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, grid = types["x"], types["grid"]
        rank = len(x.shape) - 2
        fits = rank >= 1 and len(grid.shape) == rank + 2 and prove_eq(grid.shape[-1], rank) is True
        self.require(
            fits, f"grid of shape {list(grid.shape)} does not give {rank} coordinates for operand {list(x.shape)}"
        )
        self.require(
            prove_eq(x.shape[0], grid.shape[0]) is not False,
            f"batches of {list(x.shape)} and grid {list(grid.shape)} differ",
        )
        self.require(x.dtype is grid.dtype, f"operand is {x.dtype}, grid {grid.dtype}: cast one")
        return {"y": TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))}

    def maps(self, c: Expansion) -> None:
        x, grid, y = c.input(), c.input("grid"), c.output()
        rank, taps, compute = len(x.shape) - 2, TAPS[c.attr("mode")], y.dtype.compute
        sizes = list(x.shape[2:])
        places = [[c.temp(grid.shape[:-1], int64, "place") for _ in range(taps)] for _ in range(rank)]
        q = c.params(grid.shape[:-1])
        writes = {f"i{d}_{k}": at(places[d][k], *q) for d in range(rank) for k in range(taps)}
        # dimension d of the operand is coordinate rank - 1 - d
        coordinates = {f"u{d}": (rank - 1 - d) for d in range(rank)}

        def indices(**u: Scalar) -> dict[str, Scalar]:
            found = {}
            for d in range(rank):
                for k, (place, _) in enumerate(self._taps(c, cast(u[f"u{d}"], compute), sizes[d])):
                    found[f"i{d}_{k}"] = _bounded(cast(place, int64), sizes[d])
            return found

        c.map(q, {u: at(grid, *q, e) for u, e in coordinates.items()}, writes, indices)
        p = c.params(y.shape)
        point = (p[0], *p[2:])
        reads = {u: at(grid, *point, e) for u, e in coordinates.items()}
        reads |= {f"i{d}_{k}": at(places[d][k], *point) for d in range(rank) for k in range(taps)}
        corners = list(itertools.product(range(taps), repeat=rank))
        for n, corner in enumerate(corners):
            reads[f"x{n}"] = at(x, p[0], p[1], *(Indirect(f"i{d}_{k}") for d, k in enumerate(corner)))

        def value(**v: Scalar) -> dict[str, Scalar]:
            along = [self._taps(c, cast(v[f"u{d}"], compute), sizes[d]) for d in range(rank)]
            total: Scalar | None = None
            for n, corner in enumerate(corners):
                term = cast(v[f"x{n}"], compute)
                for d, k in enumerate(corner):
                    if along[d][k][1] is not None:
                        term = term * along[d][k][1]
                if c.attr("padding") == "zeros":
                    for d, k in enumerate(corner):
                        place = along[d][k][0]
                        term = where((place >= 0) & (place <= _size(sizes[d] - 1, compute)), term, 0)
                total = term if total is None else total + term
            assert total is not None
            return {"y": cast(total, y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value)

    def _taps(self, c: Expansion, u: Scalar, n: IntLike) -> list[tuple[Scalar, Any]]:
        """(place, weight) of each tap along a dimension; places are whole numbers of u's dtype that may lie outside."""
        mode, padding, align = c.attr("mode"), c.attr("padding"), c.attr("align")
        if mode == "cubic":  # the place itself is not cut, but each of its taps
            source = sampling_position(u, n, "zeros", align)
            floor = apply("floor", source)
            found = []
            for k, w in enumerate(cubic_weights(source - floor)):
                place = floor + (k - 1)
                if padding != "zeros":
                    place = _inside(place, n, padding, align)
                found.append((place, w))
            return found
        source = sampling_position(u, n, padding, align)
        if mode == "nearest":
            return [(apply("round", source), None)]
        floor = apply("floor", source)
        t = source - floor
        return [(floor, 1 - t), (floor + 1, t)]

    def samples(self) -> Iterable[Sample]:
        x, grid = TensorType(float32, (2, 2, 4, 3)), TensorType(float32, (2, 3, 2, 2))
        yield Sample({"x": x, "grid": grid}, {})
        yield Sample({"x": x, "grid": grid}, {"padding": "border", "align": True})
        yield Sample({"x": x, "grid": grid}, {"mode": "nearest", "padding": "reflection"})
        yield Sample({"x": x, "grid": grid}, {"mode": "cubic", "padding": "reflection", "align": True})
        yield Sample({"x": TensorType(float32, (2, 2, 3, 2, 3)), "grid": TensorType(float32, (2, 2, 1, 2, 3))}, {})
        yield Sample({"x": x, "grid": TensorType(float32, (2, 3, 2, 3))}, {}, error="coordinates")


def _inside(place: Scalar, n: IntLike, padding: str, align: bool) -> Scalar:
    """A whole place cut to, or mirrored into, 0 .. n - 1."""
    if padding == "reflection":
        place = mirrored(place, n, align)
    return apply("min", apply("max", place, 0), _size(n - 1, place.dtype))
