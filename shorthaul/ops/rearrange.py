"""More operators that only address elements: diagonals, repetition, rotation, sliding windows, and writes into a part of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, apply, index_value, where
from shorthaul.symbolic import Expr, floordiv, maximum, minimum, mod, prove_eq, prove_le

from .builder import Expansion, Gradient
from .elementwise import broadcast_shapes
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import View, wrap_dim

IntLike = Union[int, Expr]


def holds(conditions: Sequence[Condition]) -> Scalar:
    """The conjunction of conditions on subscripts as scalar code."""
    terms = [apply("ge" if c.relation == "ge" else "eq", index_value(c.expr), 0) for c in conditions]
    result = terms[0]
    for t in terms[1:]:
        result = result & t
    return result


def _is_empty(n: IntLike) -> bool:
    return isinstance(n, int) and n == 0


def diagonal_length(n: IntLike, m: IntLike, offset: int) -> IntLike:
    """The number of elements on a diagonal of an n by m matrix."""
    return maximum(minimum(n, m - offset) if offset >= 0 else minimum(n + offset, m), 0)


@register
class Diagonal(View):
    """The elements with x's index `dim2` = index `dim1` + offset, as the last dimension of the result."""

    name = "diagonal"
    attributes: Mapping[str, Any] = {"offset": 0, "dim1": 0, "dim2": 1}
    aten = ("aten.diagonal.default", "aten.diagonal_copy.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        rank = len(call["self"].shape)
        dims = {k: wrap_dim(self.name, call[k], rank) for k in ("dim1", "dim2")}
        return {"x": call["self"]}, {"offset": call["offset"], **dims}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, a, b = types["x"], attributes["dim1"], attributes["dim2"]
        self.require(a != b, f"the diagonal is along two dimensions, not twice along {a}")
        kept = [n for d, n in enumerate(x.shape) if d not in (a, b)]
        return {"y": TensorType(x.dtype, (*kept, diagonal_length(x.shape[a], x.shape[b], attributes["offset"])))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        a, b, offset = attributes["dim1"], attributes["dim2"], attributes["offset"]
        rest = iter(params[:-1])
        along = {a: params[-1] + max(-offset, 0), b: params[-1] + max(offset, 0)}
        return tuple(along[d] if d in along else next(rest) for d in range(len(x.shape)))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, shape = g.grad(), g.input().shape
        own = {k: g.attr(k) for k in ("offset", "dim1", "dim2")}
        return {"x": gy and g.op("diag_embed", {**own, "sizes": (shape[own["dim1"]], shape[own["dim2"]])}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4, 5))
        yield Sample({"x": x}, {"offset": 1, "dim1": 2, "dim2": 0})
        yield Sample({"x": x}, {"offset": -1, "dim1": 0, "dim2": 1})
        yield Sample({"x": x}, {"dim1": 1, "dim2": 1}, error="two dimensions")


@register
class DiagonalEmbed(OperatorDefinition):
    """Zeros with x's last dimension on a diagonal of the new dimensions dim1 and dim2, which have `sizes`."""

    name = "diag_embed"
    attributes: Mapping[str, Any] = {"offset": 0, "dim1": 0, "dim2": 1, "sizes": ()}
    aten = ("aten.diag_embed.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        shape = call.results[0].shape
        a, b = (wrap_dim(self.name, call[k], len(shape)) for k in ("dim1", "dim2"))
        return {"x": call["self"]}, {"offset": call["offset"], "dim1": a, "dim2": b, "sizes": (shape[a], shape[b])}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, (n, m) = types["x"], attributes["sizes"]
        length = diagonal_length(n, m, attributes["offset"])
        self.require(
            prove_eq(length, x.shape[-1]) is not False, f"{x.shape[-1]} elements on a diagonal of length {length}"
        )
        rest = iter(x.shape[:-1])
        along = {attributes["dim1"]: n, attributes["dim2"]: m}
        return {
            "y": TensorType(x.dtype, tuple(along[d] if d in along else next(rest) for d in range(len(x.shape) + 1)))
        }

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        a, b, offset = c.attr("dim1"), c.attr("dim2"), c.attr("offset")
        p = c.params(y.shape)
        place = p[a] - max(-offset, 0)
        guard = [Condition(p[b] - p[a] - offset, "eq"), *inside(place, x.shape[-1])]
        rest = [q for d, q in enumerate(p) if d not in (a, b)]
        c.map(p, {"x": at(x, *rest, place, guard=guard, fill=0)}, {"y": at(y, *p)}, lambda x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("diagonal", {k: g.attr(k) for k in ("offset", "dim1", "dim2")}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 3))}, {"offset": -1, "dim1": 0, "dim2": 2, "sizes": (4, 5)})
        yield Sample({"x": TensorType(float32, (3,))}, {"sizes": (4, 4)}, error="diagonal of length")


@register
class Repeat(View):
    """x repeated `repeats` times along each dimension of the result (leading ones are new)."""

    name = "repeat"
    attributes: Mapping[str, Any] = {"repeats": ()}
    aten = ("aten.repeat.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {"repeats": tuple(call["repeats"])}

    def padded(self, shape: Sequence[IntLike], repeats: Sequence[IntLike]) -> tuple[IntLike, ...]:
        """The operand's shape with leading ones."""
        return (*[1] * (len(repeats) - len(shape)), *shape)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, repeats = types["x"], attributes["repeats"]
        self.require(len(repeats) >= len(x.shape), f"{len(repeats)} repeats for {len(x.shape)} dimensions")
        return {
            "y": TensorType(x.dtype, tuple(n * r for n, r in zip(self.padded(x.shape, repeats), repeats, strict=True)))
        }

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        extra = len(params) - len(x.shape)
        # an empty dimension has no places to wrap
        once = [(isinstance(r, int) and r == 1) or _is_empty(n) for r, n in zip(attributes["repeats"][extra:], x.shape, strict=True)]
        return tuple(p if one else mod(p, n) for p, n, one in zip(params[extra:], x.shape, once, strict=True))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, repeats = g.grad(), g.input(), g.attr("repeats")
        if gy is None:
            return {}
        own = self.padded(x.shape, repeats)
        split = g.reshape(gy, [n for pair in zip(repeats, own, strict=True) for n in pair])
        total = g.op("sum", {"dims": tuple(range(0, 2 * len(own), 2)), "keepdim": False}, x=split) if own else split
        return {"x": g.reshape(total, x.shape)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 3))}, {"repeats": (4, 1, 2)})
        yield Sample({"x": TensorType(float32, (2, 3))}, {"repeats": (4,)}, error="dimensions")


@register
class Roll(View):
    """Element i of dimension d moves to (i + shift) mod n."""

    name = "roll"
    attributes: Mapping[str, Any] = {"shifts": (), "dims": ()}
    aten = ("aten.roll.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        shifts, dims = tuple(call["shifts"]), tuple(wrap_dim(self.name, d, len(x.shape)) for d in call["dims"])
        return {"x": x}, {"shifts": shifts, "dims": dims}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        shifts, dims = attributes["shifts"], attributes["dims"]
        self.require(len(shifts) == (len(dims) or 1), f"{len(shifts)} shifts for {len(dims)} dimensions")
        return {"y": types["x"]}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        if any(_is_empty(n) for n in x.shape):
            return tuple(params)
        if not attributes["dims"]:  # along all elements in row-major order
            position: IntLike = 0
            for p, n in zip(params, x.shape, strict=True):
                position = position * n + p
            total: IntLike = 1
            for n in x.shape:
                total = total * n
            position = mod(position - attributes["shifts"][0], total)
            place: list[IntLike] = []
            for n in reversed(x.shape):
                place.append(mod(position, n))
                position = floordiv(position, n)
            return tuple(reversed(place))
        result = list(params)
        for shift, d in zip(attributes["shifts"], attributes["dims"], strict=True):
            result[d] = mod(result[d] - shift, x.shape[d])
        return tuple(result)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("roll", {"shifts": tuple(-s for s in g.attr("shifts")), "dims": g.attr("dims")}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (4, 3))
        yield Sample({"x": x}, {"shifts": (1, -2), "dims": (0, 1)})
        yield Sample({"x": x}, {"shifts": (5,)})
        yield Sample({"x": x}, {"shifts": (1, 2)}, error="shifts")


@register
class Rotate(View):
    """x turned by k quarters in the plane of two dimensions, from the first towards the second."""

    name = "rot90"
    attributes: Mapping[str, Any] = {"k": 1, "dims": (0, 1)}
    aten = ("aten.rot90.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        rank = len(call["self"].shape)
        return {"x": call["self"]}, {
            "k": call["k"] % 4,
            "dims": tuple(wrap_dim(self.name, d, rank) for d in call["dims"]),
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, (a, b) = types["x"], attributes["dims"]
        self.require(a != b, f"the plane is of two dimensions, not twice {a}")
        shape = list(x.shape)
        if attributes["k"] % 2:
            shape[a], shape[b] = shape[b], shape[a]
        return {"y": TensorType(x.dtype, tuple(shape))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        a, b = attributes["dims"]
        i, j, n, m = params[a], params[b], x.shape[a], x.shape[b]
        result = list(params)
        result[a], result[b] = ((i, j), (j, m - 1 - i), (n - 1 - i, m - 1 - j), (n - 1 - j, i))[attributes["k"] % 4]
        return tuple(result)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("rot90", {"k": -g.attr("k") % 4, "dims": g.attr("dims")}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        for k in range(4):
            yield Sample({"x": TensorType(float32, (2, 3, 4))}, {"k": k, "dims": (0, 2)})
        yield Sample({"x": TensorType(float32, (2, 3))}, {"dims": (1, 1)}, error="two dimensions")


@register
class Windows(View):
    """Windows of `size` elements every `step` along `dim`; the place inside a window is the last dimension."""

    name = "sliding_windows"
    attributes: Mapping[str, Any] = {"dim": 0, "size": 1, "step": 1}
    aten = ("aten.unfold.default", "aten.unfold_copy.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        return {"x": x}, {
            "dim": wrap_dim(self.name, call["dimension"], len(x.shape)),
            "size": call["size"],
            "step": call["step"],
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, d, size = types["x"], attributes["dim"], attributes["size"]
        n: IntLike = x.shape[d] if x.shape else 1
        self.require(prove_le(size, n) is not False, f"a window of {size} does not fit into {n} elements")
        count = floordiv(n - size, attributes["step"]) + 1
        return {"y": TensorType(x.dtype, (*x.shape[:d], count, *x.shape[d + 1 :], size) if x.shape else (size,))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        if not x.shape:
            return ()
        d = attributes["dim"]
        return (*params[:d], params[d] * attributes["step"] + params[-1], *params[d + 1 : -1])

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 7))}, {"dim": 1, "size": 3, "step": 2})
        yield Sample({"x": TensorType(float32, (5, 2))}, {"dim": 0, "size": 2, "step": 1})
        yield Sample({"x": TensorType(float32, (3,))}, {"dim": 0, "size": 4}, error="does not fit")


class PartWrite(OperatorDefinition):
    """Base: x with a part replaced by src. The view that takes the part out is `view`, with the attributes of this operator."""

    operands = ("x", "src")
    view = ""

    def place(
        self, x: TensorType, src: TensorType, params: Sequence[Any], attributes: Mapping[str, Any]
    ) -> tuple[list[Any], list[Condition]]:
        """Subscripts into src for a point of the result, and when it lies in the part."""
        raise NotImplementedError

    def part(self, x: TensorType, attributes: Mapping[str, Any]) -> TensorType:
        """The type of the part."""
        from .registry import definition

        return definition(self.view).infer({"x": x}, attributes)["y"]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, src = types["x"], types["src"]
        expected = self.part(x, attributes)
        fits = len(src.shape) == len(expected.shape) and all(
            prove_eq(a, b) is not False for a, b in zip(src.shape, expected.shape, strict=True)
        )
        self.require(fits, f"src of shape {list(src.shape)} is not the part of shape {list(expected.shape)}")
        self.require(src.dtype is x.dtype, f"src is {src.dtype}, x {x.dtype}")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, src, y = c.input(), c.input("src"), c.output()
        p = c.params(y.shape)
        subset, conditions = self.place(
            TensorType(x.dtype, x.shape), TensorType(src.dtype, src.shape), p, c.node.attributes
        )
        reads = {"x": at(x, *p), "src": at(src, *subset, guard=conditions, fill=0)}
        c.map(p, reads, {"y": at(y, *p)}, lambda x, src: {"y": where(holds(conditions), src, x)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        src, own = g.input("src"), {k: g.attr(k) for k in self.attributes}
        result: dict[str, Container | None] = {}
        if g.needs("x"):
            result["x"] = g.op(self.name, own, x=gy, src=g.full(src.shape, 0, gy.dtype))
        if g.needs("src"):
            result["src"] = g.op(self.view, own, x=gy)
        return result


@register
class SliceWrite(PartWrite):
    """x with the elements start, start+step, ... before stop along `dim` replaced by src."""

    name = "slice_scatter"
    view = "slice"
    attributes: Mapping[str, Any] = {"dim": 0, "start": 0, "stop": 0, "step": 1}
    aten = ("aten.slice_scatter.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        from .registry import REGISTRY

        _, attributes = REGISTRY["slice"].from_aten(call)
        return {"x": call["self"], "src": call["src"]}, attributes

    def place(
        self, x: TensorType, src: TensorType, params: Sequence[Any], attributes: Mapping[str, Any]
    ) -> tuple[list[Any], list[Condition]]:
        d, step = attributes["dim"], attributes["step"]
        offset = params[d] - attributes["start"]
        inner = floordiv(offset, step)
        strided = [] if isinstance(step, int) and step == 1 else [Condition(mod(offset, step), "eq")]
        return [*params[:d], inner, *params[d + 1 :]], [*inside(inner, src.shape[d]), *strided]

    def samples(self) -> Iterable[Sample]:
        x, attributes = TensorType(float32, (4, 7)), {"dim": 1, "start": 1, "stop": 6, "step": 2}
        yield Sample({"x": x, "src": TensorType(float32, (4, 3))}, attributes)
        yield Sample({"x": x, "src": TensorType(float32, (4, 2))}, attributes, error="not the part")


@register
class SelectWrite(PartWrite):
    """x with one index along `dim` replaced by src."""

    name = "select_scatter"
    view = "select"
    attributes: Mapping[str, Any] = {"dim": 0, "index": 0}
    aten = ("aten.select_scatter.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        from .registry import REGISTRY

        _, attributes = REGISTRY["select"].from_aten(call)
        return {"x": call["self"], "src": call["src"]}, attributes

    def place(
        self, x: TensorType, src: TensorType, params: Sequence[Any], attributes: Mapping[str, Any]
    ) -> tuple[list[Any], list[Condition]]:
        d = attributes["dim"]
        return [*params[:d], *params[d + 1 :]], [Condition(params[d] - attributes["index"], "eq")]

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4, 3, 2)), "src": TensorType(float32, (4, 2))}, {"dim": 1, "index": 2})


@register
class DiagonalWrite(PartWrite):
    """x with a diagonal replaced by src."""

    name = "diagonal_scatter"
    view = "diagonal"
    attributes: Mapping[str, Any] = {"offset": 0, "dim1": 0, "dim2": 1}
    aten = ("aten.diagonal_scatter.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        from .registry import REGISTRY

        _, attributes = REGISTRY["diagonal"].from_aten(call)
        return {"x": call["self"], "src": call["src"]}, attributes

    def place(
        self, x: TensorType, src: TensorType, params: Sequence[Any], attributes: Mapping[str, Any]
    ) -> tuple[list[Any], list[Condition]]:
        a, b, offset = attributes["dim1"], attributes["dim2"], attributes["offset"]
        along = params[a] - max(-offset, 0)
        rest = [q for d, q in enumerate(params) if d not in (a, b)]
        return [*rest, along], [Condition(params[b] - params[a] - offset, "eq"), *inside(along, src.shape[-1])]

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            {"x": TensorType(float32, (4, 2, 5)), "src": TensorType(float32, (2, 3))},
            {"offset": -1, "dim1": 0, "dim2": 2},
        )


@register
class BlockDiagonal(OperatorDefinition):
    """Matrices x0, x1, ... along the diagonal of a matrix of zeros (scalars and vectors are matrices of one row)."""

    name = "block_diag"
    operands = ("x*",)
    aten = ("aten.block_diag.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {f"x{i}": x for i, x in enumerate(call["tensors"])}, {}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        xs = list(types.values())
        rows: IntLike = 0
        columns: IntLike = 0
        for k, x in types.items():
            self.require(len(x.shape) <= 2, f"operand {k} of shape {list(x.shape)} is no matrix")
            self.require(x.dtype is xs[0].dtype, f"operand {k} is {x.dtype}, the first is {xs[0].dtype}")
            n, m = (1, 1, *x.shape)[-2:]
            rows, columns = rows + n, columns + m
        return {"y": TensorType(xs[0].dtype, (rows, columns))}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        row: IntLike = 0
        column: IntLike = 0
        for x in c.inputs():  # each operand writes its rows in full width
            n, m = (1, 1, *x.shape)[-2:]
            i, j = c.params((n, y.shape[1]))
            inner = j - column
            read = at(x, *(i, inner)[2 - len(x.shape) :], guard=inside(inner, m), fill=0)
            c.map((i, j), {"x": read}, {"y": at(y, i + row, j)}, lambda x: {"y": x})
            row, column = row + n, column + m

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        result: dict[str, Container | None] = {}
        row: IntLike = 0
        column: IntLike = 0
        for k, x in g.inputs().items():
            n, m = (1, 1, *x.shape)[-2:]
            if gy is not None and g.needs(k):
                part = g.op("slice", {"dim": 0, "start": row, "stop": row + n, "step": 1}, x=gy)
                part = g.op("slice", {"dim": 1, "start": column, "stop": column + m, "step": 1}, x=part)
                result[k] = g.reshape(part, x.shape)
            row, column = row + n, column + m
        return result

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            {"x0": TensorType(float32, (2, 3)), "x1": TensorType(float32, ()), "x2": TensorType(float32, (2,))}
        )
        yield Sample({"x0": TensorType(float32, (2, 3, 1))}, error="no matrix")


@register
class Cross(OperatorDefinition):
    """The cross product along a dimension of size three; the other dimensions broadcast."""

    name = "cross"
    operands = ("a", "b")
    attributes: Mapping[str, Any] = {"dim": -1}
    aten = ("aten.linalg_cross.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        a, b = types["a"], types["b"]
        shape = broadcast_shapes(self.name, [a.shape, b.shape])
        d = wrap_dim(self.name, attributes["dim"], len(shape))
        self.require(prove_eq(shape[d], 3) is not False, f"dimension {d} has size {shape[d]}, not 3")
        self.require(a.dtype is b.dtype, f"operands are {a.dtype} and {b.dtype}")
        return {"y": TensorType(a.dtype, shape)}

    def maps(self, c: Expansion) -> None:
        a, b, y = c.input("a"), c.input("b"), c.output()
        p = c.params(y.shape)
        d = wrap_dim(self.name, c.attr("dim"), len(p))

        def shifted(x: Container, by: int) -> Any:
            place = [mod(q + by, 3) if e == d else q for e, q in enumerate(p)][len(p) - len(x.shape) :]
            return at(x, *(0 if n == 1 else q for n, q in zip(x.shape, place, strict=True)))

        reads = {"a1": shifted(a, 1), "a2": shifted(a, 2), "b1": shifted(b, 1), "b2": shifted(b, 2)}
        c.map(p, reads, {"y": at(y, *p)}, lambda a1, a2, b1, b2: {"y": a1 * b2 - a2 * b1})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, a, b = g.grad(), g.input("a"), g.input("b")
        if gy is None:
            return {}
        d = {"dim": g.attr("dim")}
        result: dict[str, Container | None] = {}
        if g.needs("a"):
            result["a"] = g.sum_to(g.op("cross", d, a=b, b=gy), a.shape)
        if g.needs("b"):
            result["b"] = g.sum_to(g.op("cross", d, a=gy, b=a), b.shape)
        return result

    def samples(self) -> Iterable[Sample]:
        yield Sample({"a": TensorType(float32, (4, 3)), "b": TensorType(float32, (2, 1, 3))})
        yield Sample({"a": TensorType(float32, (3, 2)), "b": TensorType(float32, (3, 1))}, {"dim": 0})
        yield Sample({"a": TensorType(float32, (4,)), "b": TensorType(float32, (4,))}, error="not 3")
