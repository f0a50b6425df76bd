"""Writes where integers say: scatter, index_put, index_add / copy / fill / reduce, put, masked_scatter; and take.

Elements that several points write are combined by `reduce`: "assign" (the last point in row-major order wins, so the result does
not depend on the order of execution), "sum", "mean", "prod", "amax", "amin". Without `include_self` a written element of x does not
take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int64
from shorthaul.ir.memlet import Indirect, Memlet, Subscript
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, product, prove_eq

from .builder import Expansion, Gradient
from .elementwise import broadcast_at, broadcast_shapes
from .embedding import Index, IndexOperator, gather_padded, wrapped
from .ordering import flat
from .random import linear_index
from .registry import REGISTRY, AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import reshaped, wrap_dim

IntLike = Union[int, Expr]
COMBINE = {"sum": "sum", "mean": "sum", "prod": "prod", "amax": "max", "amin": "min"}


def scatter_maps(
    c: Expansion, x: Container, y: Container, shape: Sequence[IntLike], reads: Any, src: Container | None
) -> None:
    """y = x with src (or the attribute `value`) combined in at the points of `shape`.

    reads(params): the reads of indices, and the subscripts into y. src broadcasts to the points.
    """
    reduce, include_self = c.attr("reduce"), c.attr("include_self")
    p = c.params(shape)
    indices, subset = reads(p)
    if any(isinstance(n, int) and n == 0 for n in shape):  # no points
        q = c.params(y.shape)
        c.map(q, {"x": at(x, *q)}, {"y": at(y, *q)}, lambda x: {"y": x})
    elif src is None:
        hit = c.temp(y.shape, bool_, "hit")
        c.map(p, indices, {"h": at(hit, *subset, combine="any")}, {"h": const(True, bool_)})
        q = c.params(y.shape)
        value = const(c.attr("value"), y.dtype)
        c.map(q, {"x": at(x, *q), "h": at(hit, *q)}, {"y": at(y, *q)}, lambda x, h: {"y": where(h, value, x)})
    elif reduce == "assign":
        winner, place = c.temp(y.shape, int64, "winner"), c.temp(y.shape, int64, "place")
        c.map(p, indices, {"w": at(winner, *subset, combine="max")}, {"w": index_value(linear_index(p, shape))})
        q = c.params(y.shape)
        c.map(q, {"w": at(winner, *q)}, {"p": at(place, *q)}, lambda w: {"p": apply("max", w, 0)})
        values = c.temp((product(shape),), src.dtype, "values")
        (i,) = c.params(values.shape)
        c.map(
            (i,),
            {"s": broadcast_at(src, reshaped((i,), values.shape, shape))},
            {"v": at(values, i)},
            lambda s: {"v": s},
        )
        q = c.params(y.shape)
        c.map(q, {"x": at(x, *q), "w": at(winner, *q), "p": at(place, *q), "v": at(values, Indirect("p"))}, {"y": at(y, *q)},
              lambda x, w, p, v: {"y": where(w < 0, x, v)})  # fmt: skip
    else:
        wide = y.dtype.compute
        total, count = c.temp(y.shape, wide, "total"), c.temp(y.shape, int64, "count")
        point = {**indices, "s": broadcast_at(src, p)}
        scale = c.attr("alpha")
        c.map(
            p,
            point,
            {"t": at(total, *subset, combine=COMBINE[reduce])},
            lambda s, **i: {"t": _scaled(cast(s, wide), scale)},
        )
        counted = reduce == "mean" or not include_self
        q = c.params(y.shape)
        operands = {"x": at(x, *q), "t": at(total, *q)}
        if counted:
            k = c.params(shape)
            more, place_of = reads(k)
            c.map(k, more, {"n": at(count, *place_of, combine="sum")}, {"n": const(1, int64)})
            operands["n"] = at(count, *q)

        def combined(x: Scalar, t: Scalar, n: Scalar | None = None) -> dict[str, Scalar]:
            own = cast(x, wide)
            if include_self:
                joined = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}[reduce]
                t = apply(joined, own, t)
            if reduce == "mean":
                assert n is not None
                size = cast(apply("max", n + 1 if include_self else n, 1), wide)
                t = t / size if wide.is_float else apply("floordiv", t, size)
            if not include_self:
                assert n is not None
                t = where(apply("eq", n, 0), own, t)
            return {"y": cast(t, y.dtype)}

        c.map(q, operands, {"y": at(y, *q)}, combined)


def _scaled(value: Scalar, alpha: Any) -> Scalar:
    return value if alpha == 1 else value * alpha


class Scattering(IndexOperator):
    """Base. A subclass gives the points and the way back from them."""

    attributes: Mapping[str, Any] = {"reduce": "assign", "include_self": True, "value": 0.0, "alpha": 1}

    def again(self, g: Gradient, x: Container, src: Container | None, **attributes: Any) -> Container:
        """The same operator on another x and src (None: filled with zeros)."""
        own = {k: g.attr(k) for k in self.attributes}
        changes = {"value": 0.0, "alpha": 1, **attributes}
        indices = {k: v for k, v in g.inputs().items() if k not in ("x", "src")}
        return g.op(self.name, {**own, **changes}, x=x, src=src, **indices)

    def points(self, g: Gradient, v: Container) -> Container:
        """The elements of v (of x's shape) at the points, for every element of src."""
        raise NotImplementedError

    def spread(self, g: Gradient) -> Container:
        """src for every point."""
        return g.input("src")

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        reduce, include_self = g.attr("reduce"), g.attr("include_self")
        result: dict[str, Container | None] = {}
        if not g.has("src"):
            return {"x": self.again(g, gy, None)}
        if not include_self or reduce == "assign":
            result["x"] = self.again(g, gy, None)
        elif reduce == "sum":
            result["x"] = gy
        if reduce in ("assign", "sum"):
            found = self.points(g, gy) if g.needs("src") else None
            alpha = g.attr("alpha")
            if found is not None and alpha != 1:
                found = g.pointwise(lambda v: v * alpha, found)
        else:
            own, found = self._reduced(g, gy, x, reduce, include_self)
            result.setdefault("x", own)
        result["src"] = found and g.sum_to(found, g.input("src").shape)
        return result

    def _reduced(
        self, g: Gradient, gy: Container, x: Container, reduce: str, include_self: bool
    ) -> tuple[Container, Container]:
        """The gradients of x (where it takes part) and of src for each point."""
        src, y = self.spread(g), g.output()
        start = g.full(x.shape, 0, x.dtype)
        summed = {"reduce": "sum", "include_self": True}
        if reduce == "mean":
            ones = g.full(src.shape, 1, x.dtype)
            n = self.again(g, g.full(x.shape, 1 if include_self else 0, x.dtype), ones, **summed)
            share = g.pointwise(lambda v, n: v / apply("max", n, 1), gy, n)
            return share, self.points(g, share)
        if reduce in ("amax", "amin"):
            hit = lambda a, b: cast(apply("eq", a, b), a.dtype)  # noqa: E731
            own = g.pointwise(hit, x, y, dtype=x.dtype) if include_self else start
            hits = g.pointwise(hit, src, self.points(g, y), dtype=x.dtype)
            ties = self.again(g, own, hits, **summed)
            share = g.pointwise(lambda v, n: v / apply("max", n, 1), gy, ties)
            times = lambda a, b: a * b  # noqa: E731
            return g.pointwise(times, share, own), g.pointwise(times, self.points(g, share), hits)
        # a product: the others of each factor, exact where one factor is zero
        one_of = lambda v: where(apply("eq", v, 0), 1, v)  # noqa: E731
        rest = self.again(g, g.pointwise(one_of, x), src)
        own = g.pointwise(lambda v, r, x: v * r / one_of(x), gy, rest, x)
        zero = g.pointwise(lambda s: cast(apply("eq", s, 0), s.dtype), src)
        zeros = self.points(g, self.again(g, start, zero, **summed))
        single = lambda s, n: apply("eq", s, 0) & apply("eq", n, 1)  # noqa: E731
        others = self.again(g, x, g.pointwise(lambda s, n: where(single(s, n), 1, s), src, zeros))
        at_single = self.points(g, g.pointwise(lambda a, b: a * b, gy, others))
        usual = self.points(g, g.pointwise(lambda a, b: a * b, gy, y))
        return own, g.pointwise(lambda s, n, a, b: where(single(s, n), a, b / one_of(s)), src, zeros, at_single, usual)


@register
class Scatter(Scattering):
    """x with src (or a number) combined in at `index` along `dim`."""

    name = "scatter"
    operands = ("x", "index", "src?")
    attributes: Mapping[str, Any] = {"dim": 0, **Scattering.attributes}
    aten = (
        "aten.scatter.src",
        "aten.scatter.value",
        "aten.scatter.reduce",
        "aten.scatter_reduce.two",
    )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x, src = call["self"], call.arguments.get("src")
        reduce = call.arguments.get("reduce") or "assign"
        attributes = {
            "dim": wrap_dim(self.name, call["dim"], len(x.shape)),
            "include_self": call.arguments.get("include_self", True),
        }
        names = {"add": "sum", "multiply": "prod"}
        if src is None:
            attributes["value"] = call["value"]
        return {"x": x, "index": call["index"], "src": src}, {**attributes, "reduce": names.get(reduce, reduce)}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, i, src = types["x"], types["index"], types.get("src")
        self.check_index("index", i)
        ranks = {max(1, len(t.shape)) for t in (x, i, src) if t is not None}
        self.require(
            len(ranks) == 1,
            f"x, index and src have shapes {[list(t.shape) for t in types.values()]}: they differ in dimensions",
        )
        self.require(src is None or src.dtype is x.dtype, f"operand x is {x.dtype}, src {src and src.dtype}")
        self.require(bool(x.shape) or not i.shape or i.shape == (1,), "a scalar is written by one element")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, i, y = c.input(), c.input("index"), c.output()
        src = c.input("src") if c.has("src") else None

        def reads(p: Sequence[Any]) -> tuple[dict[str, Memlet], list[Subscript]]:
            if not x.shape:
                return {}, []
            point = [0] if not i.shape else p
            return {"i": at(i, *p)}, [Indirect("i") if d == c.attr("dim") else q for d, q in enumerate(point)]

        if src is not None and not x.shape and src.shape != i.shape:
            src = flat(c, src)
        scatter_maps(c, x, y, i.shape, reads, src)

    def points(self, g: Gradient, v: Container) -> Container:
        src = g.input("src")
        if not v.shape:
            return g.reshape(v, src.shape)
        return gather_padded(g, v)

    def samples(self) -> Iterable[Sample]:
        x, i, src = TensorType(float32, (4, 5)), TensorType(int64, (3, 5)), TensorType(float32, (3, 5))
        yield Sample({"x": x, "index": i}, {"dim": 0, "value": 2.0})
        for reduce in COMBINE:
            yield Sample({"x": x, "index": i, "src": src}, {"dim": 0, "reduce": reduce})
            yield Sample({"x": x, "index": i, "src": src}, {"dim": 0, "reduce": reduce, "include_self": False})
        yield Sample({"x": x, "index": i, "src": TensorType(float32, (3,))}, {"dim": 0}, error="differ in dimensions")


@register
class IndexPut(Scattering):
    """x with src (or a number) combined in where integer tensors i0, i1, ... say, in the dimensions `dims`.

    The points are those of `index`; src broadcasts to them. A scalar x counts as one element.
    """

    name = "index_put"
    operands = ("x", "src?", "i*")
    attributes: Mapping[str, Any] = {"dims": (), "wrap": True, **Scattering.attributes}
    aten = (
        "aten.index_put.default",
        "aten._unsafe_index_put.default",
        "aten._index_put_impl.default",
        "aten.index_add.default",
        "aten.index_copy.default",
        "aten.index_fill.int_Scalar",
        "aten.index_fill.int_Tensor",
        "aten.index_reduce.default",
    )

    def of_call(self, call: AtenCall) -> OperatorDefinition:
        indices = [i for i in call.arguments.get("indices", ()) if i is not None]
        return REGISTRY["mask_put"] if len(indices) == 1 and indices[0].dtype is bool_ else self

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        if "indices" in call.arguments:
            found = [(d, i) for d, i in enumerate(call["indices"]) if i is not None]
            indices = {f"i{k}": i for k, (_, i) in enumerate(found)}
            attributes: dict[str, Any] = {"dims": tuple(d for d, _ in found), "reduce": "sum" if call["accumulate"] else "assign"}
            return {"x": x, "src": call["values"], **indices}, attributes
        reduce = {"aten.index_add.default": "sum", "aten.index_reduce.default": call.arguments.get("reduce")}.get(
            call.target, "assign"
        )
        attributes = {
            "dims": (wrap_dim(self.name, call["dim"], len(x.shape)),),
            "wrap": "index_fill" in call.target,
            "reduce": reduce,
        }
        attributes.update({k: call[k] for k in ("alpha", "include_self") if k in call.arguments})
        src = call.arguments.get("source", call.arguments.get("value"))
        if not isinstance(src, Container):
            attributes["value"], src = src, None
        return {"x": x, "src": src, "i0": call["index"]}, attributes

    def _index_types(self, types: Mapping[str, Any]) -> dict[str, Any]:
        return {k: t for k, t in types.items() if k not in ("x", "src")}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, src, indices = types["x"], types.get("src"), self._index_types(types)
        self.require(src is None or src.dtype is x.dtype, f"operand x is {x.dtype}, src {src and src.dtype}")
        definition = Index()
        definition.name = self.name
        point = definition.infer({"x": x, **indices}, {"dims": attributes["dims"], "wrap": attributes["wrap"]})["y"]
        self.require(
            src is None or not x.shape or len(src.shape) <= len(point.shape),
            f"src of shape {src and list(src.shape)} for points {list(point.shape)}",
        )
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        src = c.input("src") if c.has("src") else None
        indices = {k: c.input(k) for k in c.node.reads if k not in ("x", "src")}
        if not x.shape:
            scatter_maps(c, x, y, indices["i0"].shape, lambda p: ({}, []), src)
            return
        shape, place, rest = Index().layout({"x": x, **indices}, c.node.attributes)
        points = [*(x.shape[d] for d in rest[:place]), *shape, *(x.shape[d] for d in rest[place:])]
        read = {
            k: wrapped(c, i, x.shape[d]) if c.attr("wrap") else i
            for (k, i), d in zip(indices.items(), c.attr("dims"), strict=True)
        }

        def reads(p: Sequence[Any]) -> tuple[dict[str, Memlet], list[Subscript]]:
            point, others = p[place : place + len(shape)], [*p[:place], *p[place + len(shape) :]]
            subset: list[Subscript] = [0] * len(x.shape)
            for d, q in zip(rest, others, strict=True):
                subset[d] = q
            for k, d in zip(read, c.attr("dims"), strict=True):
                subset[d] = Indirect(k)
            return {k: broadcast_at(i, point) for k, i in read.items()}, subset

        scatter_maps(c, x, y, points, reads, src)

    def points(self, g: Gradient, v: Container) -> Container:
        indices = self._index_types(g.inputs())
        if not v.shape:
            return g.op("expand", {"shape": g.input("src").shape}, x=v)
        return g.op("index", {"dims": g.attr("dims"), "wrap": g.attr("wrap")}, x=v, **indices)

    def spread(self, g: Gradient) -> Container:
        src, shape = g.input("src"), self.points(g, g.input()).shape
        return src if tuple(src.shape) == tuple(shape) else g.op("expand", {"shape": shape}, x=src)

    def samples(self) -> Iterable[Sample]:
        x, i = TensorType(float32, (4, 5, 6)), TensorType(int64, (2, 3))
        yield Sample(
            {"x": x, "src": TensorType(float32, (4, 2, 3, 6)), "i0": i}, {"dims": (1,), "reduce": "sum", "alpha": 0.5}
        )
        yield Sample({"x": x, "src": TensorType(float32, (6,)), "i0": i, "i1": i}, {"dims": (0, 1), "reduce": "sum"})
        yield Sample({"x": x, "i0": TensorType(int64, (3,))}, {"dims": (2,), "value": 1.5})
        yield Sample(
            {"x": TensorType(float32, ()), "src": TensorType(float32, ()), "i0": TensorType(int64, (1,))},
            {"dims": (0,)},
        )
        for reduce in ("mean", "prod", "amax", "amin"):
            attributes = {"dims": (0,), "reduce": reduce, "include_self": reduce != "amax", "wrap": False}
            yield Sample({"x": x, "src": TensorType(float32, (3, 5, 6)), "i0": TensorType(int64, (3,))}, attributes)
        yield Sample({"x": x, "i0": TensorType(bool_, (4,))}, {"dims": (0,)}, error="not an integer")
        yield Sample({"x": x, "src": TensorType(int64, ()), "i0": i}, {"dims": (0,)}, error="src int64")


@register
class Take(IndexOperator):
    """Elements of x, counted in row-major order, by index; negative entries count from the end."""

    name = "take"
    operands = ("x", "index")
    aten = ("aten.take.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_index("index", types["index"])
        return {"y": TensorType(types["x"].dtype, types["index"].shape)}

    def maps(self, c: Expansion) -> None:
        y, x = c.output(), flat(c, c.input())
        index = wrapped(c, c.input("index"), x.shape[0])
        p = c.params(y.shape)
        c.map(p, {"i": at(index, *p), "x": at(x, Indirect("i"))}, {"y": at(y, *p)}, lambda i, x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        total = g.op(
            "index_backward", {"dims": (0,), "wrap": True, "shape": (product(x.shape),)}, x=gy, i0=g.input("index")
        )
        return {"x": g.reshape(total, x.shape)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 4)), "index": TensorType(int64, (2, 5))})
        yield Sample({"x": TensorType(float32, (3, 4)), "index": TensorType(float32, (2,))}, error="integer")


@register
class Put(Scattering):
    """x with elements, counted in row-major order, replaced by src (or src added)."""

    name = "put"
    operands = ("x", "index", "src")
    aten = ("aten.put.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands = {"x": call["self"], "index": call["index"], "src": call["source"]}
        return operands, {"reduce": "sum" if call["accumulate"] else "assign"}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, src = types["x"], types["src"]
        self.check_index("index", types["index"])
        self.require(src.dtype is x.dtype, f"operand x is {x.dtype}, src {src.dtype}")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, y = flat(c, c.input()), c.output()
        index, src = flat(c, wrapped(c, c.input("index"), x.shape[0])), flat(c, c.input("src"))
        result = c.temp(x.shape, x.dtype, "flat")
        scatter_maps(c, x, result, index.shape, lambda p: ({"i": at(index, *p)}, [Indirect("i")]), src)
        p = c.params(y.shape)
        c.map(p, {"x": at(result, linear_index(p, y.shape))}, {"y": at(y, *p)}, lambda x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x, src = g.grad(), g.input(), g.input("src")
        if gy is None:
            return {}
        own: Container | None = gy
        if g.attr("reduce") == "assign":
            line = g.reshape(gy, (product(x.shape),))
            own = g.reshape(g.op("index_put", {"dims": (0,)}, x=line, i0=g.input("index")), x.shape)
        return {"x": own, "src": g.reshape(g.op("take", x=gy, index=g.input("index")), src.shape)}

    def samples(self) -> Iterable[Sample]:
        operands = {
            "x": TensorType(float32, (3, 4)),
            "index": TensorType(int64, (2, 3)),
            "src": TensorType(float32, (6,)),
        }
        yield Sample(operands, {"reduce": "sum"})
        yield Sample({**operands, "src": TensorType(int64, (6,))}, error="src int64")


@register
class MaskPut(IndexOperator):
    """x with the elements that `mask` marks in the dimensions from `dim` on replaced by src, or src added.

    src broadcasts to (dimensions before `dim`, number of marked places, dimensions behind the mask's).
    """

    name = "mask_put"
    operands = ("x", "src", "mask")
    attributes: Mapping[str, Any] = {"dim": 0, "accumulate": False}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        ((dim, mask),) = [(d, i) for d, i in enumerate(call["indices"]) if i is not None]
        return {"x": call["self"], "src": call["values"], "mask": mask}, {"dim": dim, "accumulate": call["accumulate"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, src, mask, d = types["x"], types["src"], types["mask"], attributes["dim"]
        self.require(mask.dtype is bool_, f"the mask is {mask.dtype}, not bool")
        self.require(src.dtype is x.dtype, f"operand x is {x.dtype}, src {src.dtype}")
        marked = x.shape[d : d + len(mask.shape)]
        fits = len(marked) == len(mask.shape) and all(
            prove_eq(a, b) is not False for a, b in zip(marked, mask.shape, strict=True)
        )
        self.require(fits, f"mask of shape {list(mask.shape)} does not fit x of {list(x.shape)} from dimension {d} on")
        self.require(
            len(src.shape) <= len(x.shape) - len(mask.shape) + 1,
            f"src of shape {list(src.shape)} has too many dimensions",
        )
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, src, mask, y, d = c.input(), c.input("src"), c.input("mask"), c.output(), c.attr("dim")
        p = c.params(y.shape)
        marked = p[d : d + len(mask.shape)]
        point: list[Any] = [*p[:d], None, *p[d + len(mask.shape) :]][
            len(x.shape) - len(mask.shape) + 1 - len(src.shape) :
        ]
        reads = {"x": at(x, *p), "m": at(mask, *marked)}
        subset: list[Subscript] = []
        for n, q in zip(src.shape, point, strict=True):
            if q is None and not (isinstance(n, int) and n == 1):
                _, places = mask_places(c, mask, n)
                reads["p"] = at(places, linear_index(marked, mask.shape))
                subset.append(Indirect("p"))
            else:
                subset.append(0 if q is None or (isinstance(n, int) and n == 1) else q)
        reads["s"] = at(src, *subset)
        add = c.attr("accumulate")
        c.map(p, reads, {"y": at(y, *p)}, lambda x, m, s, p=None: {"y": where(m, x + s if add else s, x)})

    def samples(self) -> Iterable[Sample]:
        x, mask = TensorType(float32, (4, 5, 6)), TensorType(bool_, (4, 5))
        yield Sample({"x": x, "src": TensorType(float32, ()), "mask": mask})
        yield Sample({"x": x, "src": TensorType(float32, (20, 6)), "mask": mask})
        yield Sample(
            {"x": x, "src": TensorType(float32, (5, 1)), "mask": TensorType(bool_, (5,))},
            {"dim": 1, "accumulate": True},
        )
        yield Sample({"x": x, "src": TensorType(float32, ()), "mask": TensorType(bool_, (5,))}, error="does not fit")


def mask_places(c: Expansion, mask: Container, limit: IntLike) -> tuple[Container, Container]:
    """The mask in one dimension, and for every place of it the number of true elements before it (below `limit`)."""
    line = flat(c, mask)
    upto, places = c.temp(line.shape, int64, "upto"), c.temp(line.shape, int64, "places")
    (i,) = c.params(line.shape)
    c.map((i,), {"m": at(line, i)}, {"n": at(upto, i, combine="sum", scan=i)}, lambda m: {"n": cast(m, int64)})
    (i,) = c.params(line.shape)
    c.map(
        (i,),
        {"n": at(upto, i)},
        {"p": at(places, i)},
        lambda n: {"p": apply("min", apply("max", n - 1, 0), index_value(limit - 1))},
    )
    return line, places


@register
class MaskedScatter(IndexOperator):
    """x with its masked elements replaced, in row-major order, by the elements of src from the first on. x and mask broadcast."""

    name = "masked_scatter"
    operands = ("x", "mask", "src")
    aten = ("aten.masked_scatter.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, mask, src = types["x"], types["mask"], types["src"]
        self.require(mask.dtype is bool_, f"the mask is {mask.dtype}, not bool")
        self.require(src.dtype is x.dtype, f"operand x is {x.dtype}, src {src.dtype}")
        return {"y": TensorType(x.dtype, broadcast_shapes(self.name, [x.shape, mask.shape]))}

    def maps(self, c: Expansion) -> None:
        x, src, y = c.input(), flat(c, c.input("src")), c.output()
        mask = c.temp(y.shape, bool_, "mask")
        p = c.params(y.shape)
        c.map(p, {"m": broadcast_at(c.input("mask"), p)}, {"y": at(mask, *p)}, lambda m: {"y": m})
        _, places = mask_places(c, mask, src.shape[0])
        p = c.params(y.shape)
        reads = {
            "x": broadcast_at(x, p),
            "m": at(mask, *p),
            "p": at(places, linear_index(p, y.shape)),
            "s": at(src, Indirect("p")),
        }
        c.map(p, reads, {"y": at(y, *p)}, lambda x, m, p, s: {"y": where(m, s, x)})

    def samples(self) -> Iterable[Sample]:
        operands = {
            "x": TensorType(float32, (3, 4)),
            "mask": TensorType(bool_, (3, 4)),
            "src": TensorType(float32, (4, 4)),
        }
        yield Sample(operands)
        yield Sample({**operands, "mask": TensorType(bool_, (4,))})
        yield Sample({**operands, "mask": TensorType(int64, (3, 4))}, error="not bool")
