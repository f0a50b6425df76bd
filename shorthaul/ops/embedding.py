"""Operators that read or write where integers say: embedding, gather, index_select, indexing by tensors, scatter_add, and their gradients.

An indirect subscript is the value of an integer tensor; the gradient of a read by index is a sum by index, never a one-hot product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, int64
from shorthaul.ir.memlet import Indirect, Memlet, Subscript
from shorthaul.ir.scalar import Scalar, apply, cast, index_value, where
from shorthaul.symbolic import Expr, prove_le

from .builder import Expansion, Gradient
from .elementwise import broadcast_at, broadcast_shapes
from .registry import REQUIRED, AtenCall, OperatorDefinition, Sample, TensorType, register
from .views import wrap_dim

IntLike = Union[int, Expr]


def scatter_sum(
    c: Expansion,
    params: Sequence[Any],
    reads: Mapping[str, Memlet],
    y: Container,
    subset: Sequence[Subscript],
    code: Any,
) -> None:
    """y = the sum by index of the code's value "y", accumulated in float32 or better."""
    accumulate = y.dtype.compute
    total = y if accumulate is y.dtype else c.temp(y.shape, accumulate)
    c.map(params, reads, {"y": at(total, *subset, combine="sum")}, lambda **v: {"y": cast(code(**v), accumulate)})
    if total is not y:
        p = c.params(y.shape)
        c.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})


def wrapped(c: Expansion, index: Container, size: IntLike) -> Container:
    """An index tensor with negative entries counted from the end."""
    result = c.temp(index.shape, int64, "index")
    p = c.params(index.shape)
    c.map(
        p,
        {"i": at(index, *p)},
        {"w": at(result, *p)},
        lambda i: {"w": where(i < 0, cast(i, int64) + index_value(size), cast(i, int64))},
    )
    return result


class IndexOperator(OperatorDefinition):
    """Base with the check of index operands."""

    def check_index(self, name: str, t: TensorType) -> None:
        self.require(t.dtype.is_integer, f"operand {name} is {t.dtype}, not an integer tensor")


@register
class Embedding(IndexOperator):
    """Rows of `weight` by index. attribute padding_idx: a row that gets no gradient (-1: none)."""

    name = "embedding"
    operands = ("weight", "indices")
    attributes: Mapping[str, Any] = {"padding_idx": -1}
    aten = ("aten.embedding.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        self.require(
            not call["sparse"], "sparse=True gives sparse gradients, which are not supported: use sparse=False"
        )
        self.require(not call["scale_grad_by_freq"], "scale_grad_by_freq=True is not supported")
        return {"weight": call["weight"], "indices": call["indices"]}, {"padding_idx": call["padding_idx"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        w, i = types["weight"], types["indices"]
        self.require(len(w.shape) == 2, f"weight of shape {list(w.shape)} is not (rows, features)")
        self.check_index("indices", i)
        return {"y": TensorType(w.dtype, (*i.shape, w.shape[1]))}

    def maps(self, c: Expansion) -> None:
        w, i, y = c.input("weight"), c.input("indices"), c.output()
        p = c.params(y.shape)
        c.map(p, {"i": at(i, *p[:-1]), "w": at(w, Indirect("i"), p[-1])}, {"y": at(y, *p)}, lambda i, w: {"y": w})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        attributes = {"rows": g.input("weight").shape[0], "padding_idx": g.attr("padding_idx")}
        return {"weight": gy and g.op("embedding_backward", attributes, g=gy, indices=g.input("indices"))}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"weight": TensorType(float32, (7, 3)), "indices": TensorType(int64, (2, 5))}, {})
        yield Sample({"weight": TensorType(float32, (7, 3)), "indices": TensorType(int64, (4,))}, {"padding_idx": 2})
        yield Sample({"weight": TensorType(float32, (7, 3)), "indices": TensorType(float32, (5,))}, {}, error="integer")


@register
class EmbeddingBackward(IndexOperator):
    """The sum of the gradient's rows by index, over `rows` rows; those of padding_idx do not count."""

    name = "embedding_backward"
    operands = ("g", "indices")
    attributes: Mapping[str, Any] = {"rows": REQUIRED, "padding_idx": -1}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(types["g"].dtype, (attributes["rows"], types["g"].shape[-1]))}

    def maps(self, c: Expansion) -> None:
        g, i, y = c.input("g"), c.input("indices"), c.output()
        p = c.params(g.shape)
        padding = c.attr("padding_idx")

        def value(i: Scalar, g: Scalar) -> Scalar:
            return g if isinstance(padding, int) and padding < 0 else where(apply("eq", i, padding), 0, g)

        scatter_sum(c, p, {"i": at(i, *p[:-1]), "g": at(g, *p)}, y, (Indirect("i"), p[-1]), value)

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            {"g": TensorType(float32, (2, 5, 3)), "indices": TensorType(int64, (2, 5))}, {"rows": 7, "padding_idx": 2}
        )


@register
class Gather(IndexOperator):
    """y[..., i, ...] = x[..., index[..., i, ...], ...] along `dim`."""

    name = "gather"
    operands = ("x", "index")
    attributes: Mapping[str, Any] = {"dim": 0}
    aten = ("aten.gather.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"], "index": call["index"]}, {
            "dim": wrap_dim(self.name, call["dim"], len(call["self"].shape))
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, i, dim = types["x"], types["index"], attributes["dim"]
        self.check_index("index", i)
        self.require(
            len(x.shape) == len(i.shape),
            f"index of shape {list(i.shape)} does not have the dimensions of {list(x.shape)}",
        )
        fits = all(
            d == dim or prove_le(m, n) is not False for d, (n, m) in enumerate(zip(x.shape, i.shape, strict=True))
        )
        self.require(
            fits, f"index of shape {list(i.shape)} is larger than operand {list(x.shape)} outside dimension {dim}"
        )
        return {"y": TensorType(x.dtype, i.shape)}

    def maps(self, c: Expansion) -> None:
        x, i, y, dim = c.input(), c.input("index"), c.output(), c.attr("dim")
        p = c.params(y.shape)
        subset = [Indirect("i") if d == dim else q for d, q in enumerate(p)]
        c.map(p, {"i": at(i, *p), "x": at(x, *subset)}, {"y": at(y, *p)}, lambda i, x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        return {
            "x": gy and g.op("scatter_sum", {"dim": g.attr("dim"), "shape": x.shape}, index=g.input("index"), src=gy)
        }

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4, 5)), "index": TensorType(int64, (3, 5))}, {"dim": 0})
        yield Sample({"x": TensorType(float32, (4, 5)), "index": TensorType(int64, (4, 2))}, {"dim": 1})
        yield Sample(
            {"x": TensorType(float32, (4, 5)), "index": TensorType(int64, (5, 2))},
            {"dim": 1},
            error="larger than operand",
        )


@register
class ScatterSum(IndexOperator):
    """Zeros of `shape` plus every element of src at its index along `dim`."""

    name = "scatter_sum"
    operands = ("index", "src")
    attributes: Mapping[str, Any] = {"dim": 0, "shape": ()}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_index("index", types["index"])
        return {"y": TensorType(types["src"].dtype, tuple(attributes["shape"]))}

    def maps(self, c: Expansion) -> None:
        i, src, y, dim = c.input("index"), c.input("src"), c.output(), c.attr("dim")
        p = c.params(i.shape)
        subset = [Indirect("i") if d == dim else q for d, q in enumerate(p)]
        scatter_sum(c, p, {"i": at(i, *p), "src": at(src, *p)}, y, subset, lambda i, src: src)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"src": gy and gather_padded(g, gy)}

    def samples(self) -> Iterable[Sample]:
        t = TensorType(int64, (3, 5))
        yield Sample({"index": t, "src": TensorType(float32, (3, 5))}, {"dim": 0, "shape": (4, 5)})


def gather_padded(g: Gradient, gy: Container) -> Container:
    """The incoming gradient at the index, for the elements of src that the index reaches (the rest of src gets zeros)."""
    index, src = g.input("index"), g.input("src")
    taken = g.op("gather", {"dim": g.attr("dim")}, x=gy, index=index)
    pad: list[Any] = []
    for n, m in reversed(list(zip(src.shape, index.shape, strict=True))):
        pad += [0, n - m]
    return (
        taken
        if all(isinstance(e, int) and e == 0 for e in pad)
        else g.op("pad", {"pad": tuple(pad), "value": 0.0}, x=taken)
    )


@register
class ScatterAdd(IndexOperator):
    """x plus every element of src at its index along `dim`."""

    name = "scatter_add"
    operands = ("x", "index", "src")
    attributes: Mapping[str, Any] = {"dim": 0}
    aten = ("aten.scatter_add.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        dim = wrap_dim(self.name, call["dim"], len(call["self"].shape))
        return {"x": call["self"], "index": call["index"], "src": call["src"]}, {"dim": dim}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, i, src = (types[k] for k in ("x", "index", "src"))
        self.check_index("index", i)
        self.require(
            len(x.shape) == len(i.shape) == len(src.shape),
            f"{list(x.shape)}, {list(i.shape)} and {list(src.shape)} differ in dimensions",
        )
        self.require(x.dtype is src.dtype, f"operand x is {x.dtype}, src {src.dtype}")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        x, i, src, y, dim = c.input(), c.input("index"), c.input("src"), c.output(), c.attr("dim")
        total = c.temp(y.shape, y.dtype.compute)
        p = c.params(i.shape)
        subset = [Indirect("i") if d == dim else q for d, q in enumerate(p)]
        scatter_sum(c, p, {"i": at(i, *p), "src": at(src, *p)}, total, subset, lambda i, src: src)
        p = c.params(y.shape)
        c.map(
            p,
            {"x": at(x, *p), "t": at(total, *p)},
            {"y": at(y, *p)},
            lambda x, t: {"y": cast(cast(x, t.dtype) + t, y.dtype)},
        )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy, "src": gy and gather_padded(g, gy) if g.needs("src") else None}

    def samples(self) -> Iterable[Sample]:
        t = TensorType(int64, (3, 5))
        yield Sample({"x": TensorType(float32, (4, 5)), "index": t, "src": TensorType(float32, (3, 6))}, {"dim": 0})
        yield Sample(
            {"x": TensorType(float32, (4, 5)), "index": t, "src": TensorType(float32, (3,))},
            {"dim": 0},
            error="differ in dimensions",
        )


@register
class Index(IndexOperator):
    """x indexed by integer tensors i0, i1, ... in the dimensions `dims`; they broadcast against each other, negative
    entries count from the end.

    The broadcast dimensions stand where `dims` were if those are neighbours, else in front, as in NumPy.
    """

    name = "index"
    operands = ("x", "i*")
    attributes: Mapping[str, Any] = {"dims": (), "wrap": True}
    aten: tuple[str, ...] = ("aten.index.Tensor", "aten.index_select.default", "aten._unsafe_index.Tensor")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        if call.target == "aten.index_select.default":
            dim = wrap_dim(self.name, call["dim"], len(x.shape))
            return {"x": x, "i0": call["index"]}, {"dims": (dim,), "wrap": False}
        found = [(d, i) for d, i in enumerate(call["indices"]) if i is not None]
        self.require(
            all(i.dtype.is_integer for _, i in found),
            "indexing by a mask gives a size that depends on data, which programs do not have",
        )
        return {"x": x, **{f"i{k}": i for k, (_, i) in enumerate(found)}}, {"dims": tuple(d for d, _ in found)}

    def layout(
        self, types: Mapping[str, Any], attributes: Mapping[str, Any]
    ) -> tuple[tuple[IntLike, ...], int, list[int]]:
        """(broadcast shape of the indices, where it stands in the result, the dimensions of x that stay)."""
        dims = attributes["dims"]
        shape = broadcast_shapes(self.name, [t.shape for k, t in types.items() if k != "x"])
        together = list(dims) == list(range(dims[0], dims[0] + len(dims)))
        return shape, dims[0] if together else 0, [d for d in range(len(types["x"].shape)) if d not in dims]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        for k, t in types.items():
            if k != "x":
                self.check_index(k, t)
        dims = attributes["dims"]
        if not x.shape and dims == (0,):  # a scalar counts as one element
            return {"y": x}
        self.require(
            len(dims) == len(types) - 1 and all(0 <= d < len(x.shape) for d in dims),
            f"{len(types) - 1} indices for dimensions {list(dims)} of {list(x.shape)}",
        )
        shape, place, rest = self.layout(types, attributes)
        kept = [x.shape[d] for d in rest]
        return {"y": TensorType(x.dtype, (*kept[:place], *shape, *kept[place:]))}

    def subscripts(
        self, c: Expansion, x: Container, params: Sequence[Any]
    ) -> tuple[dict[str, Memlet], list[Subscript]]:
        """Reads of the indices, and subscripts into x's shape, for a point of the result."""
        indices = {k: c.input(k) for k in c.node.reads if k.startswith("i")}
        shape, place, rest = self.layout({"x": x, **indices}, c.node.attributes)
        point = params[place : place + len(shape)]
        others = [*params[:place], *params[place + len(shape) :]]
        subset: list[Subscript] = [0] * len(x.shape)
        for d, q in zip(rest, others, strict=True):
            subset[d] = q
        reads: dict[str, Memlet] = {}
        for k, d in zip(indices, c.attr("dims"), strict=True):
            index = wrapped(c, indices[k], x.shape[d]) if c.attr("wrap") else indices[k]
            reads[k] = broadcast_at(index, point)
            subset[d] = Indirect(k)
        return reads, subset

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        if not x.shape:
            c.map((), {"x": at(x)}, {"y": at(y)}, lambda x: {"y": x})
            return
        p = c.params(y.shape)
        reads, subset = self.subscripts(c, x, p)
        c.map(p, {**reads, "x": at(x, *subset)}, {"y": at(y, *p)}, lambda x, **i: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None or not g.input().shape:
            return {"x": gy}
        indices = {k: c for k, c in g.inputs().items() if k != "x"}
        attributes = {"dims": g.attr("dims"), "wrap": g.attr("wrap"), "shape": g.input().shape}
        return {"x": g.op("index_backward", attributes, x=gy, **indices)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (4, 5, 6))
        yield Sample({"x": x, "i0": TensorType(int64, (2, 3))}, {"dims": (1,)})
        yield Sample({"x": x, "i0": TensorType(int64, (3,)), "i1": TensorType(int64, (2, 1))}, {"dims": (0, 1)})
        yield Sample({"x": x, "i0": TensorType(int64, (3,)), "i1": TensorType(int64, (3,))}, {"dims": (0, 2)})
        yield Sample({"x": x, "i0": TensorType(float32, (3,))}, {"dims": (0,)}, error="integer")


@register
class IndexBackward(Index):
    """The sum of the gradient `x` by index into zeros of `shape`: what indexing passes back."""

    name = "index_backward"
    aten = ()
    attributes: Mapping[str, Any] = {"dims": (), "wrap": True, "shape": ()}
    gradient = None  # type: ignore[assignment]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(types["x"].dtype, tuple(attributes["shape"]))}

    def maps(self, c: Expansion) -> None:
        g, y = c.input(), c.output()
        p = c.params(g.shape)
        reads, subset = self.subscripts(c, y, p)
        scatter_sum(c, p, {**reads, "g": at(g, *p)}, y, subset, lambda g, **i: g)

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            {"x": TensorType(float32, (4, 2, 3, 6)), "i0": TensorType(int64, (2, 3))},
            {"dims": (1,), "shape": (4, 5, 6)},
        )
