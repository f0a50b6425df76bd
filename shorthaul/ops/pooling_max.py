"""Pooling by maximum over windows that are no regular grid (adaptive, fractional), and the way back from pooled values by indices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, int16, int32, int64, uint8
from shorthaul.ir.memlet import Condition, Indirect
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, product, prove_eq, prove_le

from .builder import Expansion, Gradient
from .convolution import kept_params
from .embedding import scatter_sum
from .pooling import AdaptiveAvgPool, number, row_major
from .random import linear_index
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]


def by_flat_index(g: Gradient, gy: Container, index: Container, rank: int, shape: tuple[IntLike, ...]) -> Container:
    """Zeros of `shape` plus the gradient of each pooled value at its index, which counts in the last `rank` dimensions."""
    rows = tuple(shape[: len(shape) - rank])
    flat = (*rows, product(gy.shape[len(rows) :]))
    found = g.op("scatter_sum", {"dim": len(rows), "shape": (*rows, product(shape[len(rows) :]))},
                 index=g.reshape(index, flat), src=g.reshape(gy, flat))  # fmt: skip
    return g.reshape(found, shape)


def place_dtype(sizes: Iterable[IntLike]) -> DType:
    """The narrowest integer type that numbers all elements of these sizes: a map of 14 by 14 takes a byte an element."""
    count = product(sizes)
    return next((d for d, most in ((uint8, 1 << 8), (int16, 1 << 15), (int32, 1 << 31)) if prove_le(count, most) is True), int64)


def numbered(c: Expansion, number: Container) -> None:
    """The optional results `indices` and `place` from the row-major number of each maximum, where it is neither itself."""
    for name in ("indices", "place"):
        if c.wants(name) and (result := c.output(name)) is not number:
            p = c.params(result.shape)
            dtype = result.dtype
            c.map(p, {"i": at(number, *p)}, {"place": at(result, *p)}, lambda i, dtype=dtype: {"place": cast(i, dtype)})


def number_of(c: Expansion, shape: tuple[IntLike, ...]) -> Container:
    """Where the row-major number of each maximum goes: into `indices` where they are wanted."""
    return c.output("indices") if c.wants("indices") else c.temp(shape, int64)


@register
class AdaptiveMaxPool(OperatorDefinition):
    """The maximum of windows that cut each of the last dimensions into `size` parts, and its row-major index in those dimensions: `indices`
    as PyTorch returns it, and `place`, which the gradient takes, in the narrowest type.
    """

    name = "adaptive_max_pool"
    results = ("y", "indices", "place")
    optional_results = ("indices", "place")
    attributes: Mapping[str, Any] = {"size": ()}
    aten = ("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        return {"x": call["self"]}, {"size": call.results[0].shape[-len(call["output_size"]) :]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, size = types["x"], tuple(attributes["size"])
        self.require(1 <= len(size) <= 3 and len(x.shape) > len(size),
                     f"operand of shape {list(x.shape)} does not end in {len(size)} pooled dimensions")  # fmt: skip
        self.require(
            all(prove_le(n, 0) is not True for n in x.shape[-len(size) :]),
            f"operand of shape {list(x.shape)} has no elements",
        )
        shape = (*x.shape[: -len(size)], *size)
        place = TensorType(place_dtype(x.shape[-len(size) :]), shape)
        return {"y": TensorType(x.dtype, shape), "indices": TensorType(int64, shape), "place": place}

    def maps(self, c: Expansion) -> None:
        x, y, size = c.input(), c.output(), c.attr("size")
        rank = len(size)
        sizes = x.shape[-rank:]
        outer, params = kept_params(c, y.shape)
        taps, tap_params = kept_params(c, [AdaptiveAvgPool.longest(n, m) for n, m in zip(sizes, size, strict=True)])
        source: list[IntLike] = []
        guard = []
        for o, tap, n, m in zip(outer[-rank:], taps, sizes, size, strict=True):
            start, end = AdaptiveAvgPool.part(o, n, m)
            source.append(start + tap)
            guard.append(Condition(end - 1 - start - tap))
        reads = {"x": at(x, *outer[:-rank], *source, guard=guard, fill=-math.inf)}
        if not c.wants("indices") and not c.wants("place"):
            c.map([*params, *tap_params], reads, {"y": at(y, *outer, combine="max")}, lambda x: {"y": x})
            return
        index, number = index_value(row_major(source, sizes)), number_of(c, y.shape)
        c.map([*params, *tap_params], reads,
              {"value": at(y, *outer, combine="argmax"), "index": at(number, *outer, combine="argmax")},
              lambda x: {"value": x, "index": index})  # fmt: skip
        numbered(c, number)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        return {"x": gy and by_flat_index(g, gy, g.output("place"), len(g.attr("size")), x.shape)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (2, 3, 7, 6))
        yield Sample({"x": x}, {"size": (3, 2)})
        yield Sample({"x": x}, {"size": (1, 1)})
        yield Sample({"x": x}, {"size": (9, 4)})
        yield Sample({"x": TensorType(float32, (7,))}, {"size": (3,)}, error="pooled dimensions")


@register
class PooledGradient(OperatorDefinition):
    """The gradient g of pooled values at their row-major indices in the last `rank` dimensions of x, zeros elsewhere: PyTorch's own
    backward operator, where it stands in a graph. x gives the shape.
    """

    name = "max_pool_indices_backward"
    operands = ("g", "x", "indices")
    attributes: Mapping[str, Any] = {"rank": 2}
    aten = ("aten.max_pool2d_with_indices_backward.default", "aten.max_pool3d_with_indices_backward.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"g": call["grad_output"], "x": call["self"], "indices": call["indices"]}, {"rank": 3 if "pool3d" in call.target else 2}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, x, i = types["g"], types["x"], types["indices"]
        self.require(i.dtype.is_integer, f"indices are {i.dtype}, not integers")
        fits = len(g.shape) == len(i.shape) and all(prove_eq(a, b) is not False for a, b in zip(g.shape, i.shape, strict=True))
        self.require(fits and len(x.shape) == len(g.shape) > attributes["rank"],
                     f"indices of shape {list(i.shape)} do not fit gradient {list(g.shape)} and operand {list(x.shape)}")  # fmt: skip
        return {"y": TensorType(g.dtype, x.shape)}

    def maps(self, c: Expansion) -> None:
        g, i, y = c.input("g"), c.input("indices"), c.output()
        kept = len(y.shape) - c.attr("rank")
        flat = c.temp((*y.shape[:kept], product(y.shape[kept:])), y.dtype, "flat")
        p = c.params(g.shape)
        scatter_sum(c, p, {"i": at(i, *p), "g": at(g, *p)}, flat, (*p[:kept], Indirect("i")), lambda i, g: g)
        p = c.params(y.shape)
        c.map(p, {"v": at(flat, *p[:kept], linear_index(p[kept:], y.shape[kept:]))}, {"y": at(y, *p)}, lambda v: {"y": v})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, incoming, kept = g.grad(), g.input("g"), len(g.input().shape) - g.attr("rank")
        if gy is None:
            return {}
        rows = tuple(gy.shape[:kept])
        taken = g.op("gather", {"dim": kept}, x=g.reshape(gy, (*rows, product(gy.shape[kept:]))),
                     index=g.reshape(g.input("indices"), (*rows, product(incoming.shape[kept:]))))  # fmt: skip
        return {"g": g.reshape(taken, incoming.shape)}

    def samples(self) -> Iterable[Sample]:
        small, x = TensorType(float32, (2, 3, 2)), TensorType(float32, (2, 4, 5))
        yield Sample({"g": small, "x": x, "indices": TensorType(int64, (2, 3, 2))})
        yield Sample({"g": small, "x": x, "indices": TensorType(float32, (2, 3, 2))}, error="not integers")
        yield Sample({"g": small, "x": x, "indices": TensorType(int64, (2, 3, 3))}, error="do not fit")


@register
class FractionalMaxPool(OperatorDefinition):
    """The maximum of windows of `kernel`, `size` of them along each of the last dimensions, spread by the random numbers `samples`.

    samples (batch, channels, rank) in [0, 1), of two dimensions the last one first: window o starts at floor((o + u) a) - floor(u a), where
    a = (n - kernel) / (size - 1); the last ends the operand (Graham 2014). Results indices and place: row-major in the pooled dimensions.
    """

    name = "fractional_max_pool"
    operands = ("x", "samples")
    results = ("y", "indices", "place")
    optional_results = ("indices", "place")
    attributes: Mapping[str, Any] = {"kernel": (), "size": ()}
    aten = ("aten.fractional_max_pool2d.default", "aten.fractional_max_pool3d.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"], "samples": call["random_samples"]}, {
            "kernel": tuple(call["kernel_size"]),
            "size": tuple(call["output_size"]),
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, u, kernel, size = types["x"], types["samples"], attributes["kernel"], attributes["size"]
        rank = len(size)
        self.require(
            len(x.shape) in (rank + 1, rank + 2),
            f"operand of shape {list(x.shape)} is not (batch, channels, {rank} positions)",
        )
        for n, k, m in zip(x.shape[-rank:], kernel, size, strict=True):
            self.require(
                prove_le(m + k - 1, n) is not False,
                f"{m} windows of {k} elements do not fit into {n} of {list(x.shape)}",
            )
        batch = x.shape[0] if len(x.shape) == rank + 2 else 1
        fits = all(prove_eq(a, b) is not False for a, b in zip(u.shape, (batch, x.shape[-rank - 1], rank), strict=True))
        self.require(fits, f"samples of shape {list(u.shape)} do not fit operand {list(x.shape)}")
        self.require(u.dtype is x.dtype, f"samples are {u.dtype}, the operand {x.dtype}")
        shape = (*x.shape[:-rank], *size)
        place = TensorType(place_dtype(x.shape[-rank:]), shape)
        return {"y": TensorType(x.dtype, shape), "indices": TensorType(int64, shape), "place": place}

    def maps(self, c: Expansion) -> None:
        x, u, y, size, kernel = c.input(), c.input("samples"), c.output(), c.attr("size"), c.attr("kernel")
        rank = len(size)
        rows, sizes = x.shape[:-rank], x.shape[-rank:]
        compute = u.dtype.compute
        places = []
        for d, (n, k, m) in enumerate(zip(sizes, kernel, size, strict=True)):
            place = c.temp((*rows, m, k), int64, "place")
            *row, o, tap = c.params(place.shape)

            def start(
                u: Scalar, n: IntLike = n, k: IntLike = k, m: IntLike = m, o: Any = o, tap: Any = tap
            ) -> dict[str, Scalar]:
                last = index_value(n - k)
                if isinstance(m, int) and m == 1:
                    return {"i": last + index_value(tap)}
                share = cast(u, compute)
                step = number(n - k, compute) / number(m - 1, compute)
                first = cast(
                    apply("floor", (cast(index_value(o), compute) + share) * step) - apply("floor", share * step), int64
                )
                # PyTorch's start is a truncation, which it cuts to the operand
                first = apply("max", apply("min", first, last), 0)
                return {"i": where(apply("eq", index_value(o), index_value(m - 1)), last, first) + index_value(tap)}

            batch = row if len(rows) == 2 else [0, *row]
            c.map((*row, o, tap), {"u": at(u, *batch, rank - 1 - d if rank == 2 else d)}, {"i": at(place, *row, o, tap)}, start)
            places.append(place)
        p = c.params(y.shape)
        taps = c.params(kernel)
        outer, outputs = p[:-rank], p[-rank:]
        reads = {f"i{d}": at(place, *outer, outputs[d], taps[d]) for d, place in enumerate(places)}
        reads["x"] = at(x, *outer, *(Indirect(f"i{d}") for d in range(rank)))
        index = number_of(c, y.shape)

        def value(x: Scalar, **i: Scalar) -> dict[str, Scalar]:
            flat = const(0, int64)
            for d in range(rank):
                flat = flat * index_value(sizes[d]) + i[f"i{d}"]
            return {"value": x, "index": flat}

        c.map(
            (*p, *taps), reads, {"value": at(y, *p, combine="argmax"), "index": at(index, *p, combine="argmax")}, value
        )
        numbered(c, index)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        return {"x": gy and by_flat_index(g, gy, g.output("place"), len(g.attr("size")), x.shape)}

    def samples(self) -> Iterable[Sample]:
        x, u = TensorType(float32, (2, 3, 7, 6)), TensorType(float32, (2, 3, 2))
        yield Sample({"x": x, "samples": u}, {"kernel": (2, 3), "size": (3, 2)})
        yield Sample({"x": x, "samples": u}, {"kernel": (2, 3), "size": (1, 4)})
        yield Sample({"x": x, "samples": u}, {"kernel": (2, 3), "size": (7, 2)}, error="do not fit")


@register
class MaxUnpool(OperatorDefinition):
    """Zeros of `size` over the last dimensions, with each element of x at its row-major index there (the last of several)."""

    name = "max_unpool"
    operands = ("x", "indices")
    attributes: Mapping[str, Any] = {"size": ()}
    aten = ("aten.max_unpool2d.default", "aten.max_unpool3d.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"], "indices": call["indices"]}, {"size": tuple(call["output_size"])}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, i, size = types["x"], types["indices"], tuple(attributes["size"])
        self.require(i.dtype.is_integer, f"indices are {i.dtype}, not integers")
        fits = len(x.shape) == len(i.shape) and all(
            prove_eq(a, b) is not False for a, b in zip(x.shape, i.shape, strict=True)
        )
        self.require(
            fits and len(x.shape) > len(size), f"indices of shape {list(i.shape)} do not fit operand {list(x.shape)}"
        )
        return {"y": TensorType(x.dtype, (*x.shape[: len(x.shape) - len(size)], *size))}

    def maps(self, c: Expansion) -> None:
        x, i, y, size = c.input(), c.input("indices"), c.output(), c.attr("size")
        rank = len(size)
        rows = x.shape[: len(x.shape) - rank]
        writer = c.temp((*rows, product(size)), int64, "writer")  # which element an index belongs to, -1 for none
        p = c.params(x.shape)
        number_ = index_value(linear_index(p[len(rows) :], x.shape[len(rows) :]))
        c.map(
            p,
            {"i": at(i, *p)},
            {"w": at(writer, *p[: len(rows)], Indirect("i"), combine="max")},
            lambda i: {"w": number_},
        )
        place = [c.temp(writer.shape, int64, "place") for _ in range(rank)]
        q = c.params(writer.shape)

        def split(w: Scalar) -> dict[str, Scalar]:
            rest = apply("max", w, 0)
            found = {}
            for d in reversed(range(rank)):
                n = index_value(x.shape[len(rows) + d])
                found[f"i{d}"] = apply("mod", rest, n)
                rest = apply("floordiv", rest, n)
            return found

        c.map(q, {"w": at(writer, *q)}, {f"i{d}": at(t, *q) for d, t in enumerate(place)}, split)
        p = c.params(y.shape)
        flat = (*p[: len(rows)], linear_index(p[len(rows) :], size))
        reads = {"w": at(writer, *flat), **{f"i{d}": at(t, *flat) for d, t in enumerate(place)},
                 "x": at(x, *p[: len(rows)], *(Indirect(f"i{d}") for d in range(rank)))}  # fmt: skip
        c.map(p, reads, {"y": at(y, *p)}, lambda w, x, **i: {"y": where(w >= 0, x, 0)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, i = g.grad(), g.input(), g.input("indices")
        if gy is None:
            return {}
        rank = len(g.attr("size"))
        rows = tuple(x.shape[: len(x.shape) - rank])
        flat = (*rows, product(x.shape[len(rows) :]))
        taken = g.op(
            "gather", {"dim": len(rows)}, x=g.reshape(gy, (*rows, product(g.attr("size")))), index=g.reshape(i, flat)
        )
        return {"x": g.reshape(taken, x.shape)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 2, 3)), "indices": TensorType(int64, (2, 2, 3))}, {"size": (4, 5)})
        yield Sample(
            {"x": TensorType(float32, (2, 2, 3)), "indices": TensorType(float32, (2, 2, 3))},
            {"size": (4, 5)},
            error="not integers",
        )
