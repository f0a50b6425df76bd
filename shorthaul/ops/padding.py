"""Padding with the operand's own elements (reflected, replicated, circular), and sliding windows laid out as columns and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, cast, const
from shorthaul.symbolic import Expr, floordiv, maximum, minimum, mod, product, prove_eq, prove_le

from .builder import Expansion, Gradient
from .convolution import kept_params, per_dimension, window_of, window_sources
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
MODES = ("reflect", "replicate", "circular")


@register
class PadOwn(OperatorDefinition):
    """x padded with its own elements. attributes pad: (before, after) from the last dimension on, as in PyTorch, negative crops
    (but in mode "circular"); mode: "reflect" (mirrored at the outer element, which is not repeated), "replicate" or "circular"."""

    name = "pad_own"
    attributes: Mapping[str, Any] = {"pad": (), "mode": "reflect"}
    aten = (
        *(f"aten.{m}_pad{d}d.default" for m in ("reflection", "replication") for d in (1, 2, 3)),
        "aten._pad_circular.default",
    )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        mode = next(m for m in MODES if m[:4] in call.target)
        return {"x": call["self"]}, {
            "pad": tuple(call["padding" if "padding" in call.arguments else "pad"]),
            "mode": mode,
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, pad, mode = types["x"], tuple(attributes["pad"]), attributes["mode"]
        self.require(mode in MODES, f"mode {mode!r} is none of {', '.join(MODES)}")
        self.require(
            len(pad) % 2 == 0 and len(pad) <= 2 * len(x.shape),
            f"padding {list(pad)} does not fit {len(x.shape)} dimensions",
        )
        shape = list(x.shape)
        for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
            n = shape[-1 - i]
            self.require(mode != "circular" or (prove_le(0, before) is not False and prove_le(0, after) is not False),
                         f"padding {list(pad)} by circular is negative")  # fmt: skip
            most = n - 1 if mode == "reflect" else n
            fits = mode == "replicate" or (prove_le(before, most) is not False and prove_le(after, most) is not False)
            d = len(shape) - 1 - i
            self.require(
                fits, f"padding {list(pad)} by {mode} takes more elements than dimension {d} of {list(x.shape)} has"
            )
            self.require(prove_le(n, 0) is not True, f"operand of shape {list(x.shape)} has no elements to pad with")
            shape[-1 - i] = n + before + after
        return {"y": TensorType(x.dtype, tuple(shape))}

    def maps(self, c: Expansion) -> None:
        x, y, pad, mode = c.input(), c.output(), c.attr("pad"), c.attr("mode")
        p = c.params(y.shape)
        subset: list[IntLike] = list(p)
        for i, before in enumerate(pad[::2]):
            d = len(subset) - 1 - i
            subset[d] = self._source(mode, p[d] - before, x.shape[d])
        c.map(p, {"x": at(x, *subset)}, {"y": at(y, *p)}, lambda x: {"y": x})

    @staticmethod
    def _source(mode: str, i: IntLike, n: IntLike) -> IntLike:
        if mode == "circular":
            return mod(i, n)
        if mode == "replicate":
            return maximum(minimum(i, n - 1), 0)
        inner = maximum(i, -i)
        return minimum(inner, 2 * (n - 1) - inner)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        x = g.input()
        # one dimension after the other; each only moves what lies outside
        for i in range(len(g.attr("pad")) // 2):
            d = len(x.shape) - 1 - i
            attributes = {"pad": g.attr("pad")[2 * i : 2 * i + 2], "mode": g.attr("mode"), "dim": d, "size": x.shape[d]}
            gy = g.op("pad_own_backward", attributes, g=gy)
        return {"x": gy}

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"x": t(2, 3, 5)}, {"pad": (2, 4)})
        yield Sample({"x": t(2, 3, 4, 5)}, {"pad": (2, 1, 0, 7), "mode": "replicate"})
        yield Sample({"x": t(1, 2, 3, 4)}, {"pad": (4, 2, 1, 3), "mode": "circular"})
        yield Sample({"x": t(2, 3, 5)}, {"pad": (5, 0)}, error="takes more elements")
        yield Sample({"x": t(2, 5)}, {"pad": (1, 0), "mode": "mirror"}, error="none of")


@register
class PadOwnBackward(OperatorDefinition):
    """The gradient of padding along `dim`, of `size` elements: each element's own, and those of its copies.

    The inner part is copied; every element has at most one copy in front and one behind (reflect, circular), or the outer elements
    take all of them (replicate).
    """

    name = "pad_own_backward"
    operands = ("g",)
    attributes: Mapping[str, Any] = {"pad": (0, 0), "mode": "reflect", "dim": 0, "size": 0}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, d = types["g"], attributes["dim"]
        size, pad = attributes["size"], attributes["pad"]
        self.require(prove_eq(g.shape[d], size + pad[0] + pad[1]) is not False,
                     f"gradient of shape {list(g.shape)} does not fit {size} elements padded by {list(pad)}")  # fmt: skip
        return {"y": TensorType(g.dtype, (*g.shape[:d], attributes["size"], *g.shape[d + 1 :]))}

    def maps(self, c: Expansion) -> None:
        g, y, mode, d, n = c.input("g"), c.output(), c.attr("mode"), c.attr("dim"), c.attr("size")
        before, after = c.attr("pad")
        compute = y.dtype.compute

        def place(p: Sequence[Any], e: IntLike) -> list[Any]:
            return [*p[:d], e, *p[d + 1 :]]

        p = c.params(y.shape)
        i = p[d]
        own = [Condition(i + before), Condition(n + after - 1 - i)]  # cropped elements have none
        reads = {"own": at(g, *place(p, i + before), guard=own, fill=0)}
        if mode == "replicate":
            rest = [c.temp((*y.shape[:d], 1, *y.shape[d + 1 :]), compute) for _ in range(2)]
            for side, (total, count, first) in enumerate(zip(rest, (before, after), (0, n + before), strict=True)):
                outer = c.params(total.shape)
                (k,) = c.params((maximum(count, 0),))
                if prove_le(count, 0) is True:
                    c.map(outer, {}, {"y": at(total, *outer)}, lambda: {"y": const(0, compute)})
                else:
                    c.map((*outer, k), {"g": at(g, *place(outer, first + k))}, {"y": at(total, *outer, combine="sum")},
                          lambda g: {"y": cast(g, compute)})  # fmt: skip
                edge = Condition(-i if side == 0 else i - (n - 1))
                reads[f"r{side}"] = at(total, *place(p, 0), guard=[edge], fill=0)
        else:
            front, behind = (
                (before - i, 2 * (n - 1) - i + before) if mode == "reflect" else (i + before - n, i + before + n)
            )
            reads["f"] = at(g, *place(p, front), guard=[Condition(front), Condition(before - 1 - front)], fill=0)
            last = n + before + after - 1
            reads["b"] = at(
                g, *place(p, behind), guard=[Condition(behind - n - before), Condition(last - behind)], fill=0
            )

        def value(own: Scalar, **copies: Scalar) -> dict[str, Scalar]:
            return {"y": cast(sum((cast(v, compute) for v in copies.values()), cast(own, compute)), y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value)

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"g": t(2, 8, 3)}, {"pad": (1, 2), "dim": 1, "size": 5})
        yield Sample({"g": t(2, 8)}, {"pad": (1, 2), "dim": 1, "size": 5, "mode": "replicate"})
        yield Sample({"g": t(2, 8)}, {"pad": (1, 2), "dim": 1, "size": 4}, error="does not fit")


class Columns(OperatorDefinition):
    """Base of `unfold` and `fold`: windows of `kernel` over an image (.., C, H, W), as columns (.., C * kernel, windows)."""

    attributes: Mapping[str, Any] = {
        "kernel": (1, 1),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "size": (),
    }

    def window(self, attributes: Mapping[str, Any]) -> list[tuple[IntLike, ...]]:
        return list(
            zip(*(per_dimension(attributes[k], 2) for k in ("kernel", "stride", "padding", "dilation")), strict=True)
        )

    def counts(self, size: Sequence[IntLike], attributes: Mapping[str, Any]) -> list[IntLike]:
        """Windows along each dimension of an image of that size."""
        return [
            floordiv(n + 2 * p - d * (k - 1) - 1, s) + 1
            for n, (k, s, p, d) in zip(size, self.window(attributes), strict=True)
        ]

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        attributes = {k: per_dimension(call[a], 2) for k, a in (("kernel", "kernel_size"), ("stride", "stride"), ("padding", "padding"),
                                                               ("dilation", "dilation"))}  # fmt: skip
        size = per_dimension(call["output_size"], 2) if "output_size" in call.arguments else call["self"].shape[-2:]
        return {"x": call["self"]}, {**attributes, "size": tuple(size)}

    def geometry(self, c: Expansion, channels: IntLike, batch: Sequence[Any]) -> tuple[Any, ...]:
        """Parameters and subscripts: (batch, channel, taps, windows), the row and column of the columns' tensor, all parameters."""
        window, counts = self.window(c.node.attributes), self.counts(c.attr("size"), c.node.attributes)
        (channel,), own = kept_params(c, [channels])
        taps, tap_params = kept_params(c, [k for k, *_ in window])
        places, place_params = kept_params(c, counts)
        row = (channel * window[0][0] + taps[0]) * window[1][0] + taps[1]
        return channel, taps, places, row, places[0] * counts[1] + places[1], [*batch, *own, *tap_params, *place_params]


@register
class Unfold(Columns):
    """Every window of an image as a column (im2col); outside the image lie zeros."""

    name = "unfold"
    aten = ("aten.im2col.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        self.require(
            len(x.shape) in (3, 4),
            f"operand of shape {list(x.shape)} is not (batch, channels, height, width), batch optional",
        )
        counts = self.counts(x.shape[-2:], attributes)
        self.require(all(prove_le(n, 0) is not True for n in counts),
                     f"kernel {list(attributes['kernel'])} is larger than the padded operand {list(x.shape)}")  # fmt: skip
        return {"y": TensorType(x.dtype, (*x.shape[:-3], x.shape[-3] * product(attributes["kernel"]), product(counts)))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        batch = c.params(x.shape[:-3])
        channel, taps, places, row, column, params = self.geometry(c, x.shape[-3], batch)
        source, guard = window_sources(places, taps, self.window(c.node.attributes), x.shape[-2:])
        c.map(params, {"x": at(x, *batch, channel, *source, guard=guard, fill=0 if guard else None)}, {"y": at(y, *batch, row, column)},
              lambda x: {"y": x})  # fmt: skip

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("fold", {k: g.attr(k) for k in self.attributes}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (2, 3, 5, 4))
        yield Sample({"x": x}, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "size": (5, 4)})
        yield Sample({"x": TensorType(float32, (3, 5, 6))}, {"kernel": (2, 2), "dilation": (2, 3), "size": (5, 6)})
        yield Sample({"x": x}, {"kernel": (6, 1), "size": (5, 4)}, error="larger than the padded operand")


@register
class Fold(Columns):
    """The sum of columns at the elements of an image of `size` that their windows hold (col2im)."""

    name = "fold"
    aten = ("aten.col2im.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, size = types["x"], tuple(attributes["size"])
        self.require(
            len(x.shape) in (2, 3),
            f"operand of shape {list(x.shape)} is not (batch, channels * kernel, windows), batch optional",
        )
        taps, windows = product(attributes["kernel"]), product(self.counts(size, attributes))
        self.require(prove_eq(mod(x.shape[-2], taps), 0) is not False and prove_eq(x.shape[-1], windows) is not False,
                     f"operand of shape {list(x.shape)} does not hold {taps} elements of each of {windows} windows")  # fmt: skip
        return {"y": TensorType(x.dtype, (*x.shape[:-2], floordiv(x.shape[-2], taps), *size))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        window, counts = self.window(c.node.attributes), self.counts(c.attr("size"), c.node.attributes)
        compute, total = y.dtype.compute, c.wide(y)
        p = c.params(y.shape)
        taps, summed = kept_params(c, [k for k, *_ in window])
        places: list[IntLike] = []
        guard: list[Condition] = []
        for i, tap, (_, s, pad, d), n in zip(p[-2:], taps, window, counts, strict=True):
            o, conditions = window_of(i, tap, s, pad, d, n)
            places.append(o)
            guard += conditions
        row = (p[-3] * window[0][0] + taps[0]) * window[1][0] + taps[1]
        source = at(x, *p[:-3], row, places[0] * counts[1] + places[1], guard=guard, fill=0 if guard else None)
        c.map(
            [*p, *summed],
            {"x": source},
            {"y": at(total, *p, combine="sum" if summed else None)},
            lambda x: {"y": cast(x, compute)},
        )
        c.narrow(total, y)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("unfold", {k: g.attr(k) for k in self.attributes}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (2, 12, 6))
        yield Sample({"x": x}, {"kernel": (2, 2), "size": (4, 3)})
        yield Sample(
            {"x": TensorType(float32, (18, 9))}, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "size": (5, 4)}
        )
        yield Sample({"x": x}, {"kernel": (2, 2), "size": (4, 4)}, error="does not hold")
