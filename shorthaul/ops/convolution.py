"""Convolutions of one to three dimensions with stride, padding, dilation, groups and transposition, and their two gradients.

Padding is a guard on the read. A transposed convolution, and the gradient by the operand of a plain one, gather: the
output position o reads the
operand at (o + padding - k * dilation) / stride wherever that is a whole number inside, so that every element is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import Condition, Memlet, full
from shorthaul.ir.nodes import Operator
from shorthaul.ir.scalar import cast
from shorthaul.symbolic import Expr, floordiv, free_symbols, mod, prove_eq, prove_le

from .builder import Expansion, Gradient
from .registry import AtenCall, ExpansionRule, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
CONV_ATTRIBUTES: Mapping[str, Any] = {
    "stride": (1,),
    "padding": (0,),
    "dilation": (1,),
    "transposed": False,
    "output_padding": (0,),
    "groups": 1,
}


def per_dimension(value: Any, rank: int) -> tuple[IntLike, ...]:
    """An attribute of one entry or one per spatial dimension, as one per dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * rank if len(values) == 1 else values


def window_source(
    o: IntLike, k: IntLike, stride: IntLike, padding: IntLike, dilation: IntLike, size: IntLike
) -> tuple[IntLike, list[Condition]]:
    """Where window element k of output o lies in an operand of that size, and the conditions for it to be inside."""
    source = o * stride + k * dilation - padding
    return source, list(inside(source, size))


def window_sources(
    outputs: Sequence[IntLike], taps: Sequence[IntLike], window: Sequence[Sequence[IntLike]], sizes: Sequence[IntLike]
) -> tuple[list[IntLike], list[Condition]]:
    """`window_source` along every dimension; `window` has (kernel, stride, padding, dilation) of each."""
    source: list[IntLike] = []
    guard: list[Condition] = []
    for o, tap, (_, s, p, d), n in zip(outputs, taps, window, sizes, strict=True):
        i, conditions = window_source(o, tap, s, p, d, n)
        source.append(i)
        guard += conditions
    return source, guard


def window_of(
    i: IntLike, k: IntLike, stride: IntLike, padding: IntLike, dilation: IntLike, size: IntLike
) -> tuple[IntLike, list[Condition]]:
    """The output (of `size` outputs) whose window element k lies at i, and the conditions for there to be one."""
    offset = i + padding - k * dilation
    o = floordiv(offset, stride)
    whole = [Condition(mod(offset, stride), "eq")] if not (isinstance(stride, int) and stride == 1) else []
    return o, [*inside(o, size), *whole]


def kept_params(c: Expansion, sizes: Sequence[IntLike]) -> tuple[list[Any], list[Any]]:
    """Map parameters for the sizes, except that a size of one gets the index 0: (all indices, the parameters)."""
    indices = [0 if isinstance(n, int) and n == 1 else c.params((n,))[0] for n in sizes]
    return indices, [i for i in indices if not isinstance(i, int)]


class ConvolutionBase(OperatorDefinition):
    """Common part: the library expansion and the loop over windows.

    Weights are (out, in / groups, k...), or (in, out / groups, k...) when transposed. `wide` is the tensor whose
    positions windows slide over (the
    operand of a plain convolution, the result of a transposed one), `narrow` the other one (its positions are windows).
    """

    attributes: Mapping[str, Any] = CONV_ATTRIBUTES
    function = "aten::convolution"

    def geometry(self, c: Any, rank: int) -> list[tuple[IntLike, IntLike, IntLike]]:
        names = ("stride", "padding", "dilation")
        return list(zip(*(per_dimension(c.attr(n), rank) for n in names), strict=True))

    def more_expansions(self) -> dict[str, ExpansionRule]:
        def is_float(node: Operator, containers: Mapping[str, Container]) -> bool:
            return all(containers[m.container].dtype.is_float for m in node.reads.values())

        return {"library": ExpansionRule(lambda c: c.library(self.function), is_float)}  # type: ignore[arg-type,return-value]

    def check_attributes(self, rank: int, attributes: Mapping[str, Any]) -> None:
        for n, least in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            values = per_dimension(attributes[n], rank)
            self.require(
                len(values) == rank, f"{n} {list(values)} does not have one entry for each of {rank} spatial dimensions"
            )
            self.require(
                all(prove_le(least, v) is not False for v in values), f"{n} {list(values)} must be at least {least}"
            )

    def accumulated(
        self, c: Expansion, y: Container, params: Sequence[Any], subset: Sequence[Any], reads: Mapping[str, Memlet]
    ) -> None:
        """y[subset] = the sum over the parameters that the subset lacks of the product of the two reads (and a bias per channel)."""
        accumulate = y.dtype.compute
        plain = accumulate is y.dtype and not c.has("bias")
        total = y if plain else c.temp(y.shape, accumulate)
        used = {s for e in subset if isinstance(e, Expr) for s in free_symbols(e)}
        summed = any(p not in used for p in params)
        first, second = reads
        c.map(
            params,
            reads,
            {"y": at(total, *subset, combine="sum" if summed else None)},
            lambda **v: {"y": cast(v[first], accumulate) * cast(v[second], accumulate)},
        )
        if plain:
            return
        p = c.params(y.shape)
        bias = {"bias": at(c.input("bias"), p[1])} if c.has("bias") else {}
        c.map(
            p,
            {"t": at(total, *p), **bias},
            {"y": at(y, *p)},
            lambda t, bias=None: {"y": cast(t if bias is None else t + cast(bias, accumulate), y.dtype)},
        )

    def weighted_sum(self, c: Expansion, operand: str, *, wide: bool) -> None:
        """y = the sum of the operand's elements under the window times the weight. wide: the operand is the side that the window
        slides over (a convolution), else the result is (a transposed one, or the gradient of the operand)."""
        x, w, y = c.input(operand), c.input("weight"), c.output()
        if wide:
            s = self.slide(c, y, x, c.attr("groups"), w.shape[2:], "narrow")
            source, target = s.wide, s.narrow
        else:
            s = self.slide(c, x, y, c.attr("groups"), w.shape[2:], "wide")
            source, target = s.narrow, s.wide
        reads = {operand: at(x, *source, guard=s.guard, fill=0 if s.guard else None), "w": at(w, *s.weight)}
        self.accumulated(c, y, s.params, target, reads)

    def slide(
        self, c: Expansion, narrow: Container, wide: Container, groups: int, kernel: Sequence[IntLike], target: str
    ) -> _Slide:
        return _Slide(c, self.geometry(c, len(kernel)), narrow, wide, groups, kernel, target)


class _Slide:
    """Parameters and subscripts of the three tensors of a convolution, for the loop that writes `target` ("narrow", "wide" or "weight")."""

    def __init__(
        self,
        c: Expansion,
        geometry: Sequence[tuple[IntLike, IntLike, IntLike]],
        narrow: Container,
        wide: Container,
        groups: int,
        kernel: Sequence[IntLike],
        target: str,
    ) -> None:
        per_narrow, per_wide = floordiv(narrow.shape[1], groups), floordiv(wide.shape[1], groups)
        batch, batch_params = kept_params(c, [narrow.shape[0]])
        taps, tap_params = kept_params(c, kernel)
        self.guard: list[Condition] = []
        if target == "wide":
            (channel,), own = kept_params(c, [wide.shape[1]])
            (inner,), reduced = kept_params(c, [per_narrow])
            wide_channel, weight_wide = channel, mod(channel, per_wide) if groups > 1 else channel
            narrow_channel = inner if groups == 1 else floordiv(channel, per_wide) * per_narrow + inner
            positions, position_params = kept_params(c, wide.shape[2:])
            wide_at, narrow_at = list(positions), []
            for i, k, (s, p, d), size in zip(positions, taps, geometry, narrow.shape[2:], strict=True):
                o, conditions = window_of(i, k, s, p, d, size)
                narrow_at.append(o)
                self.guard += conditions
        else:
            (channel,), own = kept_params(c, [narrow.shape[1]])
            (inner,), reduced = kept_params(c, [per_wide])
            narrow_channel, weight_wide = channel, inner
            wide_channel = inner if groups == 1 else floordiv(channel, per_narrow) * per_wide + inner
            positions, position_params = kept_params(c, narrow.shape[2:])
            narrow_at, wide_at = list(positions), []
            for o, k, (s, p, d), size in zip(positions, taps, geometry, wide.shape[2:], strict=True):
                source, conditions = window_source(o, k, s, p, d, size)
                wide_at.append(source)
                self.guard += conditions
        self.params = [*batch_params, *own, *position_params, *reduced, *tap_params]
        if target == "weight":
            self.params = [*own, *reduced, *tap_params, *batch_params, *position_params]
        self.narrow = [*batch, narrow_channel, *narrow_at]
        self.wide = [*batch, wide_channel, *wide_at]
        self.weight = [narrow_channel, weight_wide, *taps]


@register
class Convolution(ConvolutionBase):
    """Convolution (cross-correlation) of x (N, C, positions...) with a weight, plus a bias per output channel."""

    name = "convolution"
    operands = ("x", "weight", "bias?")
    aten = ("aten.convolution.default",)

    def more_expansions(self) -> dict[str, ExpansionRule]:
        """Besides the library's own bias, one that is added afterwards: a library that adds it in a pass of its own (cuDNN as PyTorch
        calls it) moves the result twice more, where a map fuses with what follows."""
        found = super().more_expansions()
        is_float = found["library"].condition

        def with_bias(node: Operator, containers: Mapping[str, Container]) -> bool:
            return "bias" in node.reads and (is_float is None or is_float(node, containers))

        def bias_after(c: Expansion) -> None:
            y = c.output()
            product = c.temp(y.shape, y.dtype)
            call = c.library(self.function)
            call.reads.pop("bias")
            call.writes["y"] = full(product)
            p, compute = c.params(y.shape), y.dtype.compute
            c.map(
                p,
                {"t": at(product, *p), "bias": at(c.input("bias"), p[1])},
                {"y": at(y, *p)},
                lambda t, bias: {"y": cast(cast(t, compute) + cast(bias, compute), y.dtype)},
            )

        return {**found, "bias_after": ExpansionRule(bias_after, with_bias)}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        attributes = {k: tuple(v) if isinstance(v := call[k], (list, tuple)) else v for k in CONV_ATTRIBUTES}
        return {"x": call["input"], "weight": call["weight"], "bias": call["bias"]}, attributes

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, w, groups = types["x"], types["weight"], attributes["groups"]
        rank = len(w.shape) - 2
        self.require(
            1 <= rank <= 3, f"weight of shape {list(w.shape)} is not (out, in / groups, one to three kernel sizes)"
        )
        self.require(
            len(x.shape) == rank + 2,
            f"operand of shape {list(x.shape)} is not (batch, channels, {rank} positions) as weight {list(w.shape)} asks",
        )
        self.check_attributes(rank, attributes)
        self.require(x.dtype is w.dtype, f"operand is {x.dtype}, weight {w.dtype}: cast one")
        transposed = attributes["transposed"]
        channels = w.shape[0] if transposed else w.shape[1] * groups
        self.require(
            prove_eq(x.shape[1], channels) is not False,
            f"operand of shape {list(x.shape)} has {x.shape[1]} channels, weight {list(w.shape)} with {groups} groups takes {channels}",
        )
        self.require(
            prove_eq(mod(w.shape[0], groups), 0) is not False,
            f"weight {list(w.shape)} is not divisible into {groups} groups",
        )
        out = w.shape[1] * groups if transposed else w.shape[0]
        sizes = []
        stride, padding, dilation, extra = (
            per_dimension(attributes[n], rank) for n in ("stride", "padding", "dilation", "output_padding")
        )
        for n, k, s, p, d, e in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, extra, strict=True):
            if transposed:
                size = (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            else:
                size = floordiv(n + 2 * p - d * (k - 1) - 1, s) + 1
            self.require(
                prove_le(size, 0) is not True,
                f"kernel {list(w.shape[2:])} is larger than the padded operand {list(x.shape)}",
            )
            sizes.append(size)
        if "bias" in types:
            b = types["bias"]
            self.require(
                len(b.shape) == 1 and prove_eq(b.shape[0], out) is not False,
                f"bias of shape {list(b.shape)} does not have the {out} output channels",
            )
        return {"y": TensorType(x.dtype, (x.shape[0], out, *sizes))}

    def maps(self, c: Expansion) -> None:
        self.weighted_sum(c, "x", wide=not c.attr("transposed"))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, w = g.grad(), g.input(), g.input("weight")
        if gy is None:
            return {}
        attributes = {k: g.attr(k) for k in CONV_ATTRIBUTES}
        result: dict[str, Container | None] = {}
        if g.needs("x"):
            result["x"] = g.op("conv_grad_input", {**attributes, "size": tuple(x.shape[2:])}, g=gy, weight=w)
        if g.needs("weight"):
            result["weight"] = g.op("conv_grad_weight", {**attributes, "size": tuple(w.shape[2:])}, g=gy, x=x)
        if g.has("bias") and g.needs("bias"):
            sums = g.sum_to(gy, (1, gy.shape[1], *(1 for _ in gy.shape[2:])))
            result["bias"] = g.reshape(sums, (gy.shape[1],))
        return result

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"x": t(2, 3, 6, 5), "weight": t(4, 3, 3, 3), "bias": t(4)}, {"padding": (1, 1)})
        yield Sample({"x": t(2, 3, 7, 6), "weight": t(4, 3, 3, 2)}, {"stride": (2, 3), "padding": (1, 0)})
        yield Sample(
            {"x": t(2, 4, 8), "weight": t(6, 2, 3)}, {"stride": (2,), "padding": (2,), "dilation": (2,), "groups": 2}
        )
        yield Sample(
            {"x": t(2, 4, 6, 6), "weight": t(4, 1, 3, 3), "bias": t(4)},
            {"stride": (2, 2), "padding": (1, 1), "groups": 4},
        )
        yield Sample({"x": t(1, 2, 3, 4, 5), "weight": t(3, 2, 1, 2, 3)}, {"padding": (0, 1, 1)})
        yield Sample({"x": t(2, 5, 4, 3), "weight": t(6, 5, 1, 1)}, {})
        yield Sample(
            {"x": t(2, 4, 3, 3), "weight": t(4, 3, 3, 2), "bias": t(3)},
            {"stride": (2, 2), "padding": (1, 0), "transposed": True, "output_padding": (1, 0)},
        )
        yield Sample({"x": t(2, 4, 5), "weight": t(4, 2, 3)}, {"transposed": True, "groups": 2, "dilation": (2,)})
        yield Sample({"x": t(2, 3, 6, 5), "weight": t(4, 2, 3, 3)}, {}, error="channels")
        yield Sample({"x": t(2, 3, 6), "weight": t(4, 3, 3, 3)}, {}, error="positions")
        yield Sample({"x": t(2, 3, 2, 2), "weight": t(4, 3, 3, 3)}, {}, error="larger than the padded operand")
        yield Sample({"x": t(2, 3, 4, 4), "weight": t(4, 3, 3, 3)}, {"stride": (0, 1)}, error="at least 1")
        yield Sample({"x": t(2, 3, 6, 5), "weight": t(4, 3, 3, 3), "bias": t(3)}, {}, error="output channels")


@register
class ConvGradInput(ConvolutionBase):
    """The gradient of a convolution by its operand, whose spatial sizes are attribute `size`."""

    name = "conv_grad_input"
    operands = ("g", "weight")
    attributes: Mapping[str, Any] = {**CONV_ATTRIBUTES, "size": ()}
    function = "aten::conv_grad_input"

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, w = types["g"], types["weight"]
        channels = w.shape[0] if attributes["transposed"] else w.shape[1] * attributes["groups"]
        self.require(
            len(attributes["size"]) == len(g.shape) - 2,
            f"size {list(attributes['size'])} does not fit gradient {list(g.shape)}",
        )
        return {"y": TensorType(g.dtype, (g.shape[0], channels, *attributes["size"]))}

    def maps(self, c: Expansion) -> None:
        self.weighted_sum(c, "g", wide=bool(c.attr("transposed")))

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample(
            {"g": t(2, 4, 3, 2), "weight": t(4, 3, 3, 3)}, {"stride": (2, 3), "padding": (1, 1), "size": (6, 5)}
        )
        yield Sample({"g": t(2, 6, 4), "weight": t(6, 1, 3)}, {"padding": (1,), "groups": 6, "size": (4,)})
        yield Sample(
            {"g": t(2, 4, 9), "weight": t(4, 2, 3)}, {"transposed": True, "groups": 2, "dilation": (2,), "size": (5,)}
        )
        yield Sample({"g": t(2, 4, 3, 2), "weight": t(4, 3, 3, 3)}, {"size": (6,)}, error="does not fit")


@register
class ConvGradWeight(ConvolutionBase):
    """The gradient of a convolution by its weight, whose kernel sizes are attribute `size`."""

    name = "conv_grad_weight"
    operands = ("g", "x")
    attributes: Mapping[str, Any] = {**CONV_ATTRIBUTES, "size": ()}
    function = "aten::conv_grad_weight"

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g, x, groups = types["g"], types["x"], attributes["groups"]
        self.require(
            len(attributes["size"]) == len(g.shape) - 2,
            f"size {list(attributes['size'])} does not fit gradient {list(g.shape)}",
        )
        first, second = (x, g) if attributes["transposed"] else (g, x)
        return {"y": TensorType(g.dtype, (first.shape[1], floordiv(second.shape[1], groups), *attributes["size"]))}

    def maps(self, c: Expansion) -> None:
        g, x, y = c.input("g"), c.input("x"), c.output()
        narrow, wide = (x, g) if c.attr("transposed") else (g, x)
        s = self.slide(c, narrow, wide, c.attr("groups"), c.attr("size"), "weight")
        reads = {"narrow": at(narrow, *s.narrow), "wide": at(wide, *s.wide, guard=s.guard, fill=0 if s.guard else None)}
        self.accumulated(c, y, s.params, s.weight, reads)

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"g": t(2, 4, 3, 2), "x": t(2, 3, 6, 5)}, {"stride": (2, 3), "padding": (1, 1), "size": (3, 3)})
        yield Sample({"g": t(2, 6, 4), "x": t(2, 6, 4)}, {"padding": (1,), "groups": 6, "size": (3,)})
        yield Sample(
            {"g": t(2, 4, 9), "x": t(2, 4, 5)}, {"transposed": True, "groups": 2, "dilation": (2,), "size": (3,)}
        )
        yield Sample({"g": t(2, 4, 3, 2), "x": t(2, 3, 6, 5)}, {"size": (3,)}, error="does not fit")
