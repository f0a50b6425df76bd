"""Pooling over windows of one to three dimensions: maximum, average, adaptive average, and their gradients as gathers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, int32, int64, uint8
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, ceildiv, floordiv, maximum, minimum, mod, product, prove_eq, prove_le

from .builder import Expansion, Gradient
from .convolution import kept_params, per_dimension, window_of, window_sources
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
WINDOW: Mapping[str, Any] = {"kernel": (), "stride": (), "padding": (0,), "dilation": (1,), "ceil_mode": False}


def pooled_size(n: IntLike, k: IntLike, s: IntLike, p: IntLike, d: IntLike, ceil_mode: bool) -> IntLike:
    """PyTorch's number of windows: with ceil_mode the last one may hang over, but must start inside the operand or its left padding."""
    span = n + 2 * p - d * (k - 1) - 1
    if not ceil_mode:
        return floordiv(span, s) + 1
    return minimum(ceildiv(span, s) + 1, floordiv(n + p - 1, s) + 1)


class Pooling(OperatorDefinition):
    """Base: windows over the last dimensions, as many as the kernel has."""

    attributes: Mapping[str, Any] = WINDOW

    def window(self, c: Any) -> list[tuple[IntLike, ...]]:
        """(kernel, stride, padding, dilation) of each pooled dimension."""
        return self.window_of_attributes({k: c.attr(k) for k in WINDOW})

    def window_of_attributes(self, attributes: Mapping[str, Any]) -> list[tuple[IntLike, ...]]:
        rank = len(attributes["kernel"])
        return list(
            zip(
                *(
                    per_dimension(attributes.get(k, WINDOW[k]), rank)
                    for k in ("kernel", "stride", "padding", "dilation")
                ),
                strict=True,
            )
        )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        kernel = call["kernel_size"]
        rank = next((int(c) for c in call.target if c in "123"), 2)
        kernel = per_dimension(kernel, rank)
        stride = call.arguments.get("stride")
        attributes = {
            "kernel": tuple(kernel),
            "stride": per_dimension(stride, rank) if stride not in (None, [], ()) else tuple(kernel),
        }
        for k in ("padding", "dilation"):
            if k in call.arguments:
                attributes[k] = per_dimension(call[k], rank)
        return {"x": call["self"]}, {**attributes, "ceil_mode": bool(call.arguments.get("ceil_mode", False))}

    def pooled_shape(self, x: TensorType, attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        rank = len(attributes["kernel"])
        self.require(
            1 <= rank <= 3 and len(x.shape) > rank,
            f"operand of shape {list(x.shape)} does not end in {rank} pooled dimensions behind channels",
        )
        self.require(x.dtype.is_float, f"operand is {x.dtype}; only floats are pooled")
        sizes = []
        for n, (k, s, p, d) in zip(x.shape[-rank:], self.window_of_attributes(attributes), strict=True):
            self.require(prove_le(1, s) is not False, f"stride {s} must be at least 1")
            self.require(prove_le(2 * p, k) is not False, f"padding {p} is more than half of the kernel size {k}")
            size = pooled_size(n, k, s, p, d, attributes["ceil_mode"])
            self.require(
                prove_le(size, 0) is not True,
                f"kernel {list(attributes['kernel'])} is larger than the padded operand {list(x.shape)}",
            )
            sizes.append(size)
        return (*x.shape[:-rank], *sizes)


def tiles(window: Sequence[tuple[IntLike, ...]]) -> bool:
    """Whether windows neither overlap nor leave gaps nor start outside: stride = kernel, no padding, no dilation."""
    return all(prove_eq(k, s) is True and p == 0 and d == 1 for k, s, p, d in window)


def windows_over(
    c: Expansion, window: Sequence[tuple[IntLike, ...]], positions: Sequence[IntLike], outputs: Sequence[IntLike]
) -> tuple[list[IntLike], list[Condition], list[IntLike], list[Any]]:
    """The windows that hold a position: (window subscripts, their guard, offset inside the window per dimension,
    parameters to sum over).
    """
    where_: list[IntLike] = []
    guard: list[Condition] = []
    if tiles(window):
        for i, (k, _, _, _), size in zip(positions, window, outputs, strict=True):
            o = floordiv(i, k)
            where_.append(o)
            guard += inside(o, size)
        return where_, guard, [mod(i, k) for i, (k, *_) in zip(positions, window, strict=True)], []
    taps, params = kept_params(c, [k for k, *_ in window])
    for i, tap, (_, s, p, d), size in zip(positions, taps, window, outputs, strict=True):
        o, conditions = window_of(i, tap, s, p, d, size)
        where_.append(o)
        guard += conditions
    return where_, guard, taps, params


def row_major(indices: Sequence[IntLike], sizes: Sequence[IntLike]) -> IntLike:
    result: IntLike = 0
    for i, n in zip(indices, sizes, strict=True):
        result = result * n + i
    return result


@register
class MaxPool(Pooling):
    """The maximum of each window; result `offset` says which window element it is (the first of equals), in row-major order.

    The offset takes one byte an element for windows of up to 255 elements; PyTorch keeps a 64-bit index.
    """

    name = "max_pool"
    results = ("y", "offset")
    optional_results = ("offset",)
    aten: tuple[str, ...] = ("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")

    def index_dtype(self, attributes: Mapping[str, Any]) -> DType:
        return uint8 if prove_le(product(attributes["kernel"]), 255) is True else int32

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        shape = self.pooled_shape(types["x"], attributes)
        return {
            "y": TensorType(types["x"].dtype, shape),
            self.results[1]: TensorType(self.index_dtype(attributes), shape),
        }

    def index_of(
        self, taps: Sequence[IntLike], source: Sequence[IntLike], window: Sequence[tuple[IntLike, ...]], x: Container
    ) -> IntLike:
        """What is saved of a window element: its row-major number in the window."""
        return row_major(taps, [k for k, *_ in window])

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        window = self.window(c)
        rank = len(window)
        outer, params = kept_params(c, y.shape)
        taps, tap_params = kept_params(c, [k for k, *_ in window])
        source, guard = window_sources(outer[-rank:], taps, window, x.shape[-rank:])
        reads = {"x": at(x, *outer[:-rank], *source, guard=guard, fill=-math.inf if guard else None)}
        saved = self.results[1]
        if not c.wants(saved):
            c.map([*params, *tap_params], reads, {"y": at(y, *outer, combine="max")}, lambda x: {"y": x})
            return
        result = c.output(saved)
        number = result if result.dtype is int64 else c.temp(y.shape, int64)
        index = index_value(self.index_of(taps, source, window, x))
        c.map(
            [*params, *tap_params],
            reads,
            {"value": at(y, *outer, combine="argmax"), "index": at(number, *outer, combine="argmax")},
            lambda x: {"value": x, "index": index},
        )
        if number is not result:
            point = c.params(y.shape)
            c.map(
                point,
                {"i": at(number, *point)},
                {"offset": at(result, *point)},
                lambda i: {"offset": cast(i, result.dtype)},
            )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, saved = g.grad(), g.input(), self.results[1]
        if gy is None:
            return {}
        attributes = {k: g.attr(k) for k in WINDOW}
        size = tuple(x.shape[len(x.shape) - len(attributes["kernel"]) :])
        return {
            "x": g.op(
                "max_pool_backward",
                {**attributes, "size": size, "flat": saved == "indices"},
                g=gy,
                index=g.output(saved),
            )
        }

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"x": t(2, 3, 6, 4)}, {"kernel": (2, 2), "stride": (2, 2)})
        yield Sample({"x": t(2, 3, 7, 5)}, {"kernel": (2, 2), "stride": (2, 2)})
        yield Sample({"x": t(2, 3, 7, 6)}, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1), "ceil_mode": True})
        yield Sample({"x": t(3, 9)}, {"kernel": (3,), "stride": (2,), "dilation": (2,)})
        yield Sample({"x": t(2, 2, 4, 4, 4)}, {"kernel": (2, 2, 2), "stride": (2, 2, 2)})
        yield Sample({"x": t(2, 3, 2, 2)}, {"kernel": (3, 3), "stride": (1, 1)}, error="larger than the padded operand")
        yield Sample(
            {"x": t(2, 3, 6, 6)}, {"kernel": (2, 2), "stride": (2, 2), "padding": (2, 2)}, error="more than half"
        )


@register
class MaxPoolIndices(MaxPool):
    """The maximum of each window and its row-major index in the operand's pooled dimensions, as PyTorch returns it."""

    name = "max_pool_with_indices"
    results = ("y", "indices")
    optional_results = ("indices",)
    aten = (
        "aten.max_pool2d_with_indices.default",
        "aten.max_pool3d_with_indices.default",
        "aten.max_pool1d_with_indices.default",
    )

    def index_dtype(self, attributes: Mapping[str, Any]) -> DType:
        return int64

    def index_of(
        self, taps: Sequence[IntLike], source: Sequence[IntLike], window: Sequence[tuple[IntLike, ...]], x: Container
    ) -> IntLike:
        return row_major(source, x.shape[-len(window) :])


@register
class MaxPoolBackward(Pooling):
    """For each position, the sum of the incoming gradients of the windows whose maximum it is. `flat`: the index
    counts in the operand, not in the window.
    """

    name = "max_pool_backward"
    operands = ("g", "index")
    attributes: Mapping[str, Any] = {**WINDOW, "size": (), "flat": False}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g = types["g"]
        rank = len(attributes["kernel"])
        self.require(
            len(attributes["size"]) == rank,
            f"size {list(attributes['size'])} does not fit kernel {list(attributes['kernel'])}",
        )
        return {"y": TensorType(g.dtype, (*g.shape[:-rank], *attributes["size"]))}

    def maps(self, c: Expansion) -> None:
        g, index, y = c.input("g"), c.input("index"), c.output()
        window = self.window(c)
        rank = len(window)
        outer, params = kept_params(c, y.shape)
        place, guard, taps, summed = windows_over(c, window, outer[-rank:], g.shape[-rank:])
        wanted = (
            row_major(outer[-rank:], y.shape[-rank:]) if c.attr("flat") else row_major(taps, [k for k, *_ in window])
        )
        accumulate = y.dtype.compute if summed else y.dtype
        total = y if accumulate is y.dtype else c.temp(y.shape, accumulate)

        def value(g: Scalar, i: Scalar) -> dict[str, Scalar]:
            return {"y": where(apply("eq", cast(i, int64), index_value(wanted)), cast(g, accumulate), 0)}

        fill = 0 if guard else None  # outside of all windows the gradient is zero, whatever the index
        reads = {
            "g": at(g, *outer[:-rank], *place, guard=guard, fill=fill),
            "i": at(index, *outer[:-rank], *place, guard=guard, fill=fill),
        }
        c.map([*params, *summed], reads, {"y": at(total, *outer, combine="sum" if summed else None)}, value)
        if total is not y:
            p = c.params(y.shape)
            c.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})

    def samples(self) -> Iterable[Sample]:
        return ()  # its operands belong together: tested as the gradient of max_pool


@register
class AvgPool(Pooling):
    """The mean of each window: over the elements inside the padded operand, or only those inside the operand (count_include_pad=False)."""

    name = "avg_pool"
    attributes: Mapping[str, Any] = {**WINDOW, "count_include_pad": True, "divisor": None}
    aten: tuple[str, ...] = ("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        return operands, {
            **attributes,
            "count_include_pad": call.arguments.get("count_include_pad", True),
            "divisor": call.arguments.get("divisor_override"),
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(types["x"].dtype, self.pooled_shape(types["x"], attributes))}

    def count(self, c: Any, windows: Sequence[IntLike], sizes: Sequence[IntLike]) -> IntLike:
        """By how much the sum of a window is divided."""
        if c.attr("divisor") is not None:
            return c.attr("divisor")
        total: IntLike = 1
        for o, (k, s, p, _), n in zip(windows, self.window(c), sizes, strict=True):
            if p == 0 and not c.attr("ceil_mode"):
                total = total * k
            elif c.attr("count_include_pad"):
                total = total * (minimum(o * s - p + k, n + p) - (o * s - p))
            else:
                total = total * (minimum(o * s - p + k, n) - maximum(o * s - p, 0))
        return total

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        window = self.window(c)
        rank = len(window)
        accumulate = y.dtype.compute
        total = c.temp(y.shape, accumulate)
        outer, params = kept_params(c, y.shape)
        taps, tap_params = kept_params(c, [k for k, *_ in window])
        source, guard = window_sources(outer[-rank:], taps, window, x.shape[-rank:])
        c.map(
            [*params, *tap_params],
            {"x": at(x, *outer[:-rank], *source, guard=guard, fill=0 if guard else None)},
            {"s": at(total, *outer, combine="sum" if tap_params else None)},
            lambda x: {"s": cast(x, accumulate)},
        )
        p_ = c.params(y.shape)
        count = number(self.count(c, p_[-rank:], x.shape[-rank:]), accumulate)
        c.map(p_, {"s": at(total, *p_)}, {"y": at(y, *p_)}, lambda s: {"y": cast(s / count, y.dtype)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        attributes = {k: g.attr(k) for k in self.attributes}
        return {
            "x": g.op(
                "avg_pool_backward",
                {**attributes, "size": tuple(x.shape[len(x.shape) - len(attributes["kernel"]) :])},
                g=gy,
            )
        }

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"x": t(2, 3, 6, 4)}, {"kernel": (2, 2), "stride": (2, 2)})
        yield Sample({"x": t(2, 3, 7, 6)}, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)})
        yield Sample(
            {"x": t(2, 3, 8, 6)},
            {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True, "count_include_pad": False},
        )
        yield Sample({"x": t(2, 3, 8, 6)}, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True})
        yield Sample({"x": t(3, 9)}, {"kernel": (4,), "stride": (3,), "divisor": 3})
        yield Sample({"x": t(2, 4, 4, 4)}, {"kernel": (2, 2, 2), "stride": (2, 2, 2)})
        yield Sample({"x": t(2, 3, 2, 2)}, {"kernel": (3, 3), "stride": (1, 1)}, error="larger than the padded operand")


def number(value: Any, dtype: DType) -> Scalar:
    """A count as scalar code of that dtype."""
    return cast(index_value(value), dtype) if isinstance(value, Expr) else const(value, dtype)


@register
class AvgPoolBackward(AvgPool):
    """For each position, the sum of the incoming gradients of the windows over it, each divided by its window's count."""

    name = "avg_pool_backward"
    operands = ("g",)
    aten = ()
    attributes: Mapping[str, Any] = {**AvgPool.attributes, "size": ()}
    gradient = None  # type: ignore[assignment]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, size = types["g"], tuple(attributes["size"])
        rank = len(attributes["kernel"])
        fits = len(size) == rank and all(
            prove_eq(pooled_size(n, k, s, p, d, attributes["ceil_mode"]), m) is not False
            for n, m, (k, s, p, d) in zip(size, g.shape[-rank:], self.window_of_attributes(attributes), strict=True)
        )
        self.require(fits, f"pooling size {list(size)} does not give {list(g.shape)}")
        return {"y": TensorType(g.dtype, (*g.shape[:-rank], *size))}

    def maps(self, c: Expansion) -> None:
        g, y = c.input("g"), c.output()
        window = self.window(c)
        rank = len(window)
        outer, params = kept_params(c, y.shape)
        place, guard, _, summed = windows_over(c, window, outer[-rank:], g.shape[-rank:])
        accumulate = y.dtype.compute
        divisor = self.count(c, place, y.shape[-rank:])
        # outside of all windows the formula may give zero: the gradient is zero there, and must not become 0 / 0
        count = number(maximum(divisor, 1) if guard and isinstance(divisor, Expr) else divisor, accumulate)
        direct = accumulate is y.dtype or not summed
        total = y if direct else c.temp(y.shape, accumulate)
        c.map(
            [*params, *summed],
            {"g": at(g, *outer[:-rank], *place, guard=guard, fill=0 if guard else None)},
            {"y": at(total, *outer, combine="sum" if summed else None)},
            lambda g: {"y": cast(cast(g, accumulate) / count, total.dtype)},
        )
        if not direct:
            p = c.params(y.shape)
            c.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            {"g": TensorType(float32, (2, 4, 3))},
            {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0), "size": (7, 6)},
        )
        yield Sample(
            {"g": TensorType(float32, (2, 4, 3))},
            {"kernel": (2, 2), "stride": (2, 2), "size": (6, 6)},
            error="does not give",
        )


@register
class AdaptiveAvgPool(OperatorDefinition):
    """The mean over windows that cut each of the last dimensions into `size` parts: part o is from floor(o n / size)
    to ceil((o + 1) n / size).
    """

    name = "adaptive_avg_pool"
    attributes: Mapping[str, Any] = {"size": ()}
    aten: tuple[str, ...] = (
        "aten._adaptive_avg_pool2d.default",
        "aten._adaptive_avg_pool3d.default",
        "aten.adaptive_avg_pool1d.default",
        "aten.adaptive_avg_pool2d.default",
        "aten.adaptive_avg_pool3d.default",
    )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        rank = len(call["output_size"])
        return {"x": call["self"]}, {"size": call.results[0].shape[-rank:]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, size = types["x"], tuple(attributes["size"])
        self.require(
            1 <= len(size) <= 3 and len(x.shape) > len(size),
            f"operand of shape {list(x.shape)} does not end in {len(size)} pooled dimensions",
        )
        self.require(x.dtype.is_float, f"operand is {x.dtype}; only floats are averaged")
        return {"y": TensorType(x.dtype, (*x.shape[: -len(size)], *size))}

    @staticmethod
    def part(o: IntLike, n: IntLike, m: IntLike) -> tuple[IntLike, IntLike]:
        """Start and end of part o of n elements cut into m."""
        return floordiv(o * n, m), ceildiv((o + 1) * n, m)

    @staticmethod
    def longest(n: IntLike, m: IntLike) -> IntLike:
        """The most elements that a part of n cut into m can have."""
        return floordiv(n, m) if prove_eq(mod(n, m), 0) is True else ceildiv(n, m) + 1

    def count(self, windows: Sequence[IntLike], sizes: Sequence[IntLike], parts: Sequence[IntLike]) -> IntLike:
        total: IntLike = 1
        for o, n, m in zip(windows, sizes, parts, strict=True):
            start, end = self.part(o, n, m)
            total = total * (end - start)
        return total

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        size = c.attr("size")
        rank = len(size)
        accumulate = y.dtype.compute
        total = c.temp(y.shape, accumulate)
        sizes = x.shape[-rank:]
        outer, params = kept_params(c, y.shape)
        taps, tap_params = kept_params(c, [self.longest(n, m) for n, m in zip(sizes, size, strict=True)])
        source, guard = [], []
        for o, tap, n, m in zip(outer[-rank:], taps, sizes, size, strict=True):
            start, end = self.part(o, n, m)
            source.append(start + tap)
            guard.append(Condition(end - 1 - start - tap))
        c.map(
            [*params, *tap_params],
            {"x": at(x, *outer[:-rank], *source, guard=guard, fill=0)},
            {"s": at(total, *outer, combine="sum" if tap_params else None)},
            lambda x: {"s": cast(x, accumulate)},
        )
        p = c.params(y.shape)
        count = number(self.count(p[-rank:], sizes, size), accumulate)
        c.map(p, {"s": at(total, *p)}, {"y": at(y, *p)}, lambda s: {"y": cast(s / count, y.dtype)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        rank = len(g.attr("size"))
        return {"x": gy and g.op("adaptive_avg_pool_backward", {"size": tuple(x.shape[len(x.shape) - rank :])}, g=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (2, 3, 7, 6))
        yield Sample({"x": x}, {"size": (3, 2)})
        yield Sample({"x": x}, {"size": (1, 1)})
        yield Sample({"x": x}, {"size": (9, 6)})
        yield Sample({"x": TensorType(float32, (7,))}, {"size": (3,)}, error="pooled dimensions")


@register
class AdaptiveAvgPoolBackward(AdaptiveAvgPool):
    """For each position, the sum of the incoming gradients of the parts that hold it, each divided by its part's length."""

    name = "adaptive_avg_pool_backward"
    operands = ("g",)
    aten = ()
    gradient = None  # type: ignore[assignment]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, size = types["g"], tuple(attributes["size"])
        return {"y": TensorType(g.dtype, (*g.shape[: -len(size)], *size))}

    def maps(self, c: Expansion) -> None:
        g, y = c.input("g"), c.output()
        rank = len(c.attr("size"))
        sizes, parts = y.shape[-rank:], g.shape[-rank:]
        accumulate = y.dtype.compute
        outer, params = kept_params(c, y.shape)
        # the parts that hold position i start with floor(i m / n); there are at most as many as a part of m cut into n has elements
        taps, summed = kept_params(c, [self.longest(m, n) for n, m in zip(sizes, parts, strict=True)])
        place, guard = [], []
        for i, tap, n, m in zip(outer[-rank:], taps, sizes, parts, strict=True):
            o = floordiv(i * m, n) + tap
            start, end = self.part(o, n, m)
            place.append(o)
            guard += [Condition(m - 1 - o), Condition(i - start), Condition(end - 1 - i)]
        divisor = self.count(place, sizes, parts)
        count = number(maximum(divisor, 1) if isinstance(divisor, Expr) else divisor, accumulate)
        total = y if accumulate is y.dtype else c.temp(y.shape, accumulate)
        c.map(
            [*params, *summed],
            {"g": at(g, *outer[:-rank], *place, guard=guard, fill=0 if guard else None)},
            {"y": at(total, *outer, combine="sum" if summed else None)},
            lambda g: {"y": cast(g, accumulate) / count},
        )
        if total is not y:
            p = c.params(y.shape)
            c.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})

    def samples(self) -> Iterable[Sample]:
        yield Sample({"g": TensorType(float32, (2, 3, 2))}, {"size": (7, 6)})
        yield Sample({"g": TensorType(float32, (2, 5, 2))}, {"size": (3, 2)})
