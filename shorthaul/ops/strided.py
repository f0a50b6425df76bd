"""`as_strided` and its kin, which address memory instead of elements.

The memory is an operand's own, laid out as PyTorch had it when the graph was captured: attribute `layout`, the strides of a dense tensor.
With it an address says which element is meant, whatever strides the operand has in the program; what is addressed several times gets the
sum of the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.symbolic import Expr, floordiv, mod, product, prove_eq, prove_le, summation

from .builder import Expansion, Gradient
from .embedding import scatter_sum
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .scatter import Scattering, scatter_maps
from .views import View

IntLike = Union[int, Expr]
GEOMETRY: Mapping[str, Any] = {"size": (), "stride": (), "offset": 0, "layout": ()}


def address(params: Sequence[IntLike], strides: Sequence[IntLike], offset: IntLike = 0) -> IntLike:
    """Where the element at `params` lies."""
    return summation([offset, *(p * s for p, s in zip(params, strides, strict=True))])


def element(place: IntLike, shape: Sequence[IntLike], layout: Sequence[IntLike]) -> tuple[IntLike, ...]:
    """The element of a dense tensor at an address."""
    total = product(shape)
    found: list[IntLike] = []
    for n, s in zip(shape, layout, strict=True):
        row = floordiv(place, s)
        found.append(0 if n == 1 else row if prove_eq(n * s, total) is True else mod(row, n))
    return tuple(found)


class Strided(OperatorDefinition):
    """Base: attributes size, stride and offset describe the elements that are addressed, `layout` the memory."""

    attributes: Mapping[str, Any] = GEOMETRY
    reads_memory = True

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands = {"x": call["self"], **({"src": call["src"]} if "src" in call.arguments else {})}
        return operands, {
            "size": tuple(call["size"]),
            "stride": tuple(call["stride"]),
            "offset": call["storage_offset"] or 0,
            "layout": call.layout("self"),
        }

    def check_geometry(self, shape: Sequence[IntLike], attributes: Mapping[str, Any]) -> None:
        size, stride, offset, layout = (attributes[k] for k in GEOMETRY)
        self.require(len(size) == len(stride), f"size {list(size)} and stride {list(stride)} differ in length")
        self.require(len(layout) == len(shape), f"layout {list(layout)} does not fit shape {list(shape)}")
        if any(prove_le(n, 0) is True for n in size):
            return
        last = address([n - 1 for n in size], stride, offset)
        total = product(shape)
        self.require(prove_le(0, offset) is not False and prove_le(total, last) is not True,
                     f"size {list(size)}, stride {list(stride)} and offset {offset} reach address {last} of {total} elements")  # fmt: skip


@register
class AsStrided(Strided, View):
    """The elements at addresses offset + sum of subscripts times strides."""

    name = "as_strided"
    aten = ("aten.as_strided.default", "aten.as_strided_copy.default")

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_geometry(types["x"].shape, attributes)
        return {"y": TensorType(types["x"].dtype, tuple(attributes["size"]))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        return element(address(params, attributes["stride"], attributes["offset"]), x.shape, attributes["layout"])

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        attributes = {**{k: g.attr(k) for k in GEOMETRY}, "shape": g.input().shape}
        return {"x": gy and g.op("as_strided_backward", attributes, x=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4))
        yield Sample({"x": x}, {"size": (3, 3), "stride": (2, 1), "offset": 1, "layout": (4, 1)})
        yield Sample({"x": x}, {"size": (2, 3, 2), "stride": (1, 4, 0), "layout": (1, 3)})
        yield Sample({"x": x}, {"size": (3, 4), "stride": (4, 1), "offset": 1, "layout": (4, 1)}, error="reach address 12")


@register
class AsStridedBackward(Strided):
    """The sum of the gradient's elements by address, as a tensor of attribute `shape`."""

    name = "as_strided_backward"
    attributes: Mapping[str, Any] = {**GEOMETRY, "shape": ()}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_geometry(attributes["shape"], attributes)
        return {"y": TensorType(types["x"].dtype, tuple(attributes["shape"]))}

    def maps(self, c: Expansion) -> None:
        g, y = c.input(), c.output()
        memory = c.temp((product(y.shape),), y.dtype, "memory")
        p = c.params(g.shape)
        scatter_sum(c, p, {"g": at(g, *p)}, memory, (address(p, c.attr("stride"), c.attr("offset")),), lambda g: g)
        p = c.params(y.shape)
        c.map(p, {"m": at(memory, address(p, c.attr("layout")))}, {"y": at(y, *p)}, lambda m: {"y": m})

    def samples(self) -> Iterable[Sample]:
        geometry = {"size": (3, 3), "stride": (2, 1), "offset": 1}
        for layout in ((4, 1), (1, 3)):
            yield Sample({"x": TensorType(float32, (3, 3))}, {**geometry, "layout": layout, "shape": (3, 4)})


@register
class AsStridedScatter(Strided, Scattering):
    """x with the elements that are addressed replaced by src, or by attribute `value`."""

    name = "as_strided_scatter"
    operands = ("x", "src?")
    attributes: Mapping[str, Any] = {**GEOMETRY, **Scattering.attributes}
    aten = ("aten.as_strided_scatter.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, src, size = types["x"], types.get("src"), attributes["size"]
        self.check_geometry(x.shape, attributes)
        self.require(src is None or src.dtype is x.dtype, f"operand x is {x.dtype}, src {src and src.dtype}")
        same = src is None or len(src.shape) == len(size)
        self.require(same and all(prove_eq(a, b) is not False for a, b in zip(src.shape if src else (), size, strict=False)),
                     f"src of shape {src and list(src.shape)} does not have the size {list(size)}")  # fmt: skip
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, y, layout = c.input(), c.output(), c.attr("layout")
        src = c.input("src") if c.has("src") else None
        before, after = (c.temp((product(x.shape),), x.dtype, "memory") for _ in range(2))
        (k,) = c.params(before.shape)
        c.map((k,), {"x": at(x, *element(k, x.shape, layout))}, {"m": at(before, k)}, lambda x: {"m": x})
        scatter_maps(c, before, after, c.attr("size"), lambda p: ({}, [address(p, c.attr("stride"), c.attr("offset"))]), src)
        p = c.params(y.shape)
        c.map(p, {"m": at(after, address(p, layout))}, {"y": at(y, *p)}, lambda m: {"y": m})

    def points(self, g: Gradient, v: Container) -> Container:
        return g.op("as_strided", {k: g.attr(k) for k in GEOMETRY}, x=v)

    def samples(self) -> Iterable[Sample]:
        x, src = TensorType(float32, (3, 4)), TensorType(float32, (2, 3))
        geometry = {"size": (2, 3), "stride": (6, 2), "offset": 1}
        for layout in ((4, 1), (1, 3)):
            yield Sample({"x": x, "src": src}, {**geometry, "layout": layout})
        yield Sample({"x": x}, {**geometry, "layout": (4, 1), "value": 1.5})
        yield Sample({"x": x, "src": TensorType(float32, (3,))}, {**geometry, "layout": (4, 1)}, error="does not have the size")
