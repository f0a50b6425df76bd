"""Operators between one tensor and several along a dimension: split, unbind, stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, float64, promote
from shorthaul.ir.scalar import cast
from shorthaul.symbolic import Expr, prove_eq, summation

from .builder import Expansion, Gradient
from .elementwise import agreed
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim

IntLike = Union[int, Expr]


class Parts(OperatorDefinition):
    """Base: the parts y0, y1, ... of x along `dim`; parts that nobody uses are not copied."""

    def place(self, i: int, params: Sequence[Any], attributes: Mapping[str, Any]) -> list[Any]:
        """Subscripts into x of a point of part i."""
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        x = c.input()
        for k in c.node.writes:
            y = c.output(k)
            p = c.params(y.shape)
            c.map(p, {"x": at(x, *self.place(int(k[1:]), p, c.node.attributes))}, {"y": at(y, *p)}, lambda x: {"y": x})

    def gradients(self, g: Gradient) -> list[Container] | None:
        """The incoming gradients of all parts, zeros where there is none; None when there is none at all."""
        if all(g.grad(k) is None for k in g.node.writes):
            return None
        found = []
        for k in g.node.writes:
            gy, y = g.grad(k), g.output(k)
            found.append(gy if gy is not None else g.full(y.shape, 0, y.dtype))
        return found


@register
class Split(Parts):
    """Consecutive parts of attribute `sizes` along `dim`."""

    name = "split"
    attributes: Mapping[str, Any] = {"dim": 0, "sizes": ()}
    aten = (
        "aten.split.Tensor",
        "aten.unsafe_split.Tensor",
        "aten.split_with_sizes.default",
        "aten.unsafe_split_with_sizes.default",
        "aten.chunk.default",
        "aten.unsafe_chunk.default",
        "aten.split.sizes",
        "aten.split_copy.Tensor",
        "aten.split_with_sizes_copy.default",
    )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        dim = wrap_dim(self.name, call["dim"], len(x.shape))
        return {"x": x}, {"dim": dim, "sizes": tuple(t.shape[dim] for t in call.results if t is not None)}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, dim, sizes = types["x"], attributes["dim"], attributes["sizes"]
        wrap_dim(self.name, dim, len(x.shape))
        self.require(
            prove_eq(summation(sizes), x.shape[dim]) is not False,
            f"sizes {list(sizes)} do not add up to {x.shape[dim]}",
        )
        return {f"y{i}": TensorType(x.dtype, (*x.shape[:dim], n, *x.shape[dim + 1 :])) for i, n in enumerate(sizes)}

    def place(self, i: int, params: Sequence[Any], attributes: Mapping[str, Any]) -> list[Any]:
        d, sizes = attributes["dim"], attributes["sizes"]
        return [*params[:d], params[d] + summation(sizes[:i]), *params[d + 1 :]]

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        parts = self.gradients(g)
        return {"x": g.op("cat", {"dim": g.attr("dim")}, **{f"x{i}": p for i, p in enumerate(parts)})} if parts else {}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 7))}, {"dim": 1, "sizes": (2, 4, 1)})
        yield Sample({"x": TensorType(float32, (3, 7))}, {"dim": 1, "sizes": (2, 4)}, error="add up")


@register
class Unbind(Parts):
    """All slices along `dim`, which goes."""

    name = "unbind"
    attributes: Mapping[str, Any] = {"dim": 0}
    aten = ("aten.unbind.int", "aten.unbind_copy.int")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {"dim": wrap_dim(self.name, call["dim"], len(call["self"].shape))}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, dim = types["x"], attributes["dim"]
        wrap_dim(self.name, dim, len(x.shape))
        count = x.shape[dim]
        self.require(isinstance(count, int), f"the number of slices, {count}, is not known when the program is built")
        return {f"y{i}": TensorType(x.dtype, (*x.shape[:dim], *x.shape[dim + 1 :])) for i in range(int(count))}  # type: ignore[arg-type]

    def place(self, i: int, params: Sequence[Any], attributes: Mapping[str, Any]) -> list[Any]:
        d = attributes["dim"]
        return [*params[:d], i, *params[d:]]

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        parts = self.gradients(g)
        return (
            {"x": g.op("stack", {"dim": g.attr("dim")}, **{f"x{i}": p for i, p in enumerate(parts)})} if parts else {}
        )

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 3, 4))}, {"dim": 1})


@register
class Stack(OperatorDefinition):
    """Operands x0, x1, ... of one shape along a new dimension, in their common dtype; each is written in place, by a map of its own."""

    name = "stack"
    operands = ("x*",)
    attributes: Mapping[str, Any] = {"dim": 0}
    aten = ("aten.stack.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = call["tensors"]
        return {f"x{i}": t for i, t in enumerate(tensors)}, {
            "dim": wrap_dim(self.name, call["dim"], len(tensors[0].shape) + 1)
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        xs, dim = list(types.values()), attributes["dim"]
        first = xs[0]
        for k, x in types.items():
            same = len(x.shape) == len(first.shape) and all(
                prove_eq(a, b) is not False for a, b in zip(x.shape, first.shape, strict=True)
            )
            self.require(same, f"operand {k} of shape {list(x.shape)} differs from the first of {list(first.shape)}")
        shape = [reduce(agreed, sizes) for sizes in zip(*(x.shape for x in xs), strict=True)]
        return {"y": TensorType(promote(*(x.dtype for x in xs)), (*shape[:dim], len(xs), *shape[dim:]))}

    def maps(self, c: Expansion) -> None:
        y, d = c.output(), c.attr("dim")
        for i, x in enumerate(c.inputs()):
            p = c.params(x.shape)
            c.map(p, {"x": at(x, *p)}, {"y": at(y, *p[:d], i, *p[d:])}, lambda x: {"y": cast(x, y.dtype)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        result: dict[str, Container | None] = {}
        for i, (k, x) in enumerate(g.inputs().items()):
            if gy is not None and g.needs(k):
                part = g.op("select", {"dim": g.attr("dim"), "index": i}, x=gy)
                result[k] = g.cast(part, x.dtype)
        return result

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (2, 3))
        yield Sample({"x0": x, "x1": x}, {"dim": 1})
        yield Sample({"x0": x, "x1": TensorType(float64, (2, 3))}, {"dim": 0})
        yield Sample({"x0": x, "x1": TensorType(float32, (3, 2))}, {"dim": 0}, error="differs")
