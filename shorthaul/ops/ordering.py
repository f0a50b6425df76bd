"""Operators that order elements: sort, top-k, k-th value, median, mode, search in sorted sequences, membership, histogram.

The maps rank by counting: the place of an element is the number of elements that come before it. That is the meaning, and the
fastest way for short rows, where it fuses with what is around it. Longer rows go to the library, which sorts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int32, int64, promote
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Operator
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, where
from shorthaul.symbolic import Expr, product

from .builder import Expansion, Gradient
from .reductions import kept_subset, reduced_shape
from .registry import AtenCall, ExpansionRule, OperatorDefinition, Sample, TensorType, register
from .statistics import spread_at
from .views import reshaped, wrap_dim

IntLike = Union[int, Expr]
SHORT = 64  # elements of a row up to which counting is not slower than sorting


def before(a: Scalar, i: IntLike, b: Scalar, j: IntLike, descending: bool) -> Scalar:
    """Whether element a at place i comes before element b at place j; NaN counts as the largest number, ties keep their order."""
    smaller = apply("gt" if descending else "lt", a, b)
    equal = apply("eq", a, b)
    if a.dtype.is_float:
        nan_a, nan_b = apply("ne", a, a), apply("ne", b, b)
        smaller = smaller | ((nan_a & ~nan_b) if descending else (nan_b & ~nan_a))
        equal = equal | (nan_a & nan_b)
    return smaller | (equal & apply("lt", index_value(i), index_value(j)))


def order_of(c: Expansion, x: Container, d: int, descending: bool) -> Container:
    """The index in x, along dimension d, of the element at each place of the sorted row."""
    rank = c.temp(x.shape, int64, "rank")
    *p, j = c.params((*x.shape, x.shape[d]))
    other = [j if e == d else q for e, q in enumerate(p)]
    c.map((*p, j), {"a": at(x, *other), "b": at(x, *p)}, {"rank": at(rank, *p, combine="sum")},
          lambda a, b: {"rank": cast(before(a, j, b, p[d], descending), int64)})  # fmt: skip
    order = c.temp(x.shape, int64, "order")
    q = c.params(x.shape)
    c.map(q, {"r": at(rank, *q)}, {"o": at(order, *(Indirect("r") if e == d else s for e, s in enumerate(q)), combine="sum")},
          lambda r: {"o": index_value(q[d])})  # fmt: skip
    return order


def flat(c: Expansion, x: Container) -> Container:
    """x in one dimension."""
    y = c.temp((product(x.shape),), x.dtype, "flat")
    p = c.params(y.shape)
    c.map(p, {"x": at(x, *reshaped(p, y.shape, x.shape))}, {"y": at(y, *p)}, lambda x: {"y": x})
    return y


def taken(c: Expansion, x: Container, d: int, index: Container, y: Container, keepdim: bool) -> None:
    """y = x at the index along d; index and y lack d, or have it as size one."""
    p = c.params(y.shape)
    rest = [q for e, q in enumerate(p) if not (keepdim and e == d)]
    subset: list[Any] = [*rest[:d], Indirect("i"), *rest[d:]]
    c.map(p, {"i": at(index, *p), "x": at(x, *subset)}, {"y": at(y, *p)}, lambda i, x: {"y": x})


def short_rows(node: Operator, containers: Mapping[str, Container]) -> bool:
    x = containers[node.reads["x"].container]
    if not x.shape:
        return True
    dim = node.attributes.get("dim", 0)
    n = product(x.shape) if dim is None else x.shape[dim % len(x.shape)]
    return isinstance(n, int) and n <= SHORT


class Ordering(OperatorDefinition):
    """Base: `maps` for short rows, the library function of the operator's name for long ones."""

    results: tuple[str, ...] = ("values", "indices")

    def more_expansions(self) -> dict[str, ExpansionRule]:
        return {"library": ExpansionRule(lambda c: c.library(self.name), lambda n, cs: not short_rows(n, cs))}  # type: ignore[arg-type,return-value]

    def dim_of(self, types: Mapping[str, Any], attributes: Mapping[str, Any]) -> int:
        return wrap_dim(self.name, attributes["dim"], len(types["x"].shape))


class Sorted(Ordering):
    """Base: the values come from the operand along `dim` by the indices."""

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad("values"), g.input()
        if gy is None or not x.shape:
            return {"x": gy}
        attributes = {"dim": g.attr("dim") % len(x.shape), "shape": x.shape}
        return {"x": g.op("scatter_sum", attributes, index=g.output("indices"), src=gy)}

    def write_ordered(self, c: Expansion, descending: bool) -> None:
        """The first elements of the sorted rows: as many as the results have."""
        x, values, indices = c.input(), c.output("values"), c.output("indices")
        if not x.shape:
            c.map((), {"x": at(x)}, {"v": at(values), "i": at(indices)}, lambda x: {"v": x, "i": index_value(0)})
            return
        d = self.dim_of({"x": x}, c.node.attributes)
        order = order_of(c, x, d, descending)
        p = c.params(values.shape)
        c.map(p, {"o": at(order, *p)}, {"i": at(indices, *p)}, lambda o: {"i": o})
        p = c.params(values.shape)
        subset = [Indirect("o") if e == d else q for e, q in enumerate(p)]
        c.map(p, {"o": at(order, *p), "x": at(x, *subset)}, {"v": at(values, *p)}, lambda o, x: {"v": x})


@register
class Sort(Sorted):
    """The elements along `dim` in order, equal ones in theirs, and their indices. attribute below: a number that all elements are less
    than, none being negative, where that is known."""

    name = "sort"
    attributes: Mapping[str, Any] = {"dim": -1, "descending": False, "below": None}
    aten = ("aten.sort.default", "aten.sort.stable")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {
            "dim": wrap_dim(self.name, call["dim"], len(call["self"].shape)),
            "descending": call["descending"],
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.dim_of(types, attributes)
        return {"values": types["x"], "indices": TensorType(int64, types["x"].shape)}

    def maps(self, c: Expansion) -> None:
        self.write_ordered(c, c.attr("descending"))

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (70, 2))}, {"dim": 0, "descending": True})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 2}, error="out of range")


@register
class ArgSort(Ordering):
    """The indices that sort along `dim`."""

    name = "argsort"
    results = ("indices",)
    attributes: Mapping[str, Any] = {"dim": -1, "descending": False}
    aten = ("aten.argsort.default", "aten.argsort.stable")
    from_aten = Sort.from_aten

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.dim_of(types, attributes)
        return {"indices": TensorType(int64, types["x"].shape)}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output("indices")
        if not x.shape:
            c.map((), {}, {"i": at(y)}, {"i": index_value(0)})
            return
        order = order_of(c, x, self.dim_of({"x": x}, c.node.attributes), c.attr("descending"))
        p = c.params(y.shape)
        c.map(p, {"o": at(order, *p)}, {"i": at(y, *p)}, lambda o: {"i": o})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 0})
        yield Sample({"x": TensorType(float32, (2, 80))}, {"dim": 1})


@register
class TopK(Sorted):
    """The k largest (or smallest) elements along `dim`, in order."""

    name = "topk"
    attributes: Mapping[str, Any] = {"k": 1, "dim": -1, "largest": True}
    aten = ("aten.topk.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        dim = wrap_dim(self.name, call["dim"], len(call["self"].shape))
        return {"x": call["self"]}, {"k": call["k"], "dim": dim, "largest": call["largest"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, k = types["x"], attributes["k"]
        d = self.dim_of(types, attributes)
        n = x.shape[d] if x.shape else 1
        self.require(not (isinstance(k, int) and isinstance(n, int)) or 0 <= k <= n, f"k = {k} of {n} elements")
        shape = (*x.shape[:d], k, *x.shape[d + 1 :]) if x.shape else ()
        return {"values": TensorType(x.dtype, shape), "indices": TensorType(int64, shape)}

    def maps(self, c: Expansion) -> None:
        self.write_ordered(c, c.attr("largest"))

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1, "k": 2})
        yield Sample({"x": TensorType(float32, (70, 2))}, {"dim": 0, "k": 3, "largest": False})
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1, "k": 6}, error="k = 6")


class Selected(Ordering):
    """Base: one element of each row, at a place of the sorted row."""

    attributes: Mapping[str, Any] = {"dim": -1, "keepdim": False}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        dim = wrap_dim(self.name, call["dim"], len(call["self"].shape))
        return {"x": call["self"]}, {
            "dim": dim,
            "keepdim": call["keepdim"],
            **({"k": call["k"]} if "k" in call.arguments else {}),
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, d = types["x"], self.dim_of(types, attributes)
        shape = reduced_shape(x.shape, frozenset({d}), attributes["keepdim"])
        return {"values": TensorType(x.dtype, shape), "indices": TensorType(int64, shape)}

    def place(self, numbers: Scalar, n: IntLike, attributes: Mapping[str, Any]) -> Scalar:
        """The place in the sorted row, from the count of elements that are numbers."""
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        x, values, indices = c.input(), c.output("values"), c.output("indices")
        if not x.shape:
            c.map((), {"x": at(x)}, {"v": at(values), "i": at(indices)}, lambda x: {"v": x, "i": index_value(0)})
            return
        d, keepdim = self.dim_of({"x": x}, c.node.attributes), c.attr("keepdim")
        order = order_of(c, x, d, False)
        numbers, place = c.temp(values.shape, int64, "numbers"), c.temp(values.shape, int64, "place")
        p = c.params(x.shape)
        c.map(p, {"x": at(x, *p)}, {"n": at(numbers, *kept_subset(p, frozenset({d}), keepdim), combine="sum")},
              lambda x: {"n": cast(apply("eq", x, x), int64)})  # fmt: skip
        p = c.params(values.shape)
        c.map(
            p,
            {"n": at(numbers, *p)},
            {"k": at(place, *p)},
            lambda n: {"k": self.place(n, x.shape[d], c.node.attributes)},
        )
        taken(c, order, d, place, indices, keepdim)
        taken(c, x, d, indices, values, keepdim)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {"x": spread_at(g, g.grad("values"), g.output("indices"), g.attr("dim"), g.attr("keepdim"))}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))}, {"dim": 1})
        yield Sample({"x": TensorType(float32, (70, 2))}, {"dim": 0, "keepdim": True})


@register
class KthValue(Selected):
    """The k-th smallest element along `dim`."""

    name = "kthvalue"
    attributes: Mapping[str, Any] = {"k": 1, **Selected.attributes}
    aten = ("aten.kthvalue.default",)

    def place(self, numbers: Scalar, n: IntLike, attributes: Mapping[str, Any]) -> Scalar:
        return index_value(attributes["k"] - 1)


@register
class MedianOf(Selected):
    """The lower median along `dim`; NaN where a row has one."""

    name = "median_dim"
    aten = ("aten.median.dim",)

    def place(self, numbers: Scalar, n: IntLike, attributes: Mapping[str, Any]) -> Scalar:
        return where(apply("lt", numbers, index_value(n)), numbers, index_value((n - 1) // 2))


def _middle(numbers: Scalar) -> Scalar:
    return apply("max", apply("shr", numbers - 1, 1), 0)


@register
class NanMedianOf(Selected):
    """The lower median along `dim` of the elements that are numbers."""

    name = "nanmedian_dim"
    aten = ("aten.nanmedian.dim",)

    def place(self, numbers: Scalar, n: IntLike, attributes: Mapping[str, Any]) -> Scalar:
        return _middle(numbers)


class MedianOfAll(Ordering):
    """Base: the lower median of all elements; equal elements share the gradient."""

    results = ("y",)
    attributes: Mapping[str, Any] = {"dim": None}
    by: type[Selected]

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(types["x"].dtype, ())}

    def maps(self, c: Expansion) -> None:
        x, y = flat(c, c.input()), c.output()
        order = order_of(c, x, 0, False)
        numbers, place, index = (c.temp((), int64, h) for h in ("numbers", "place", "index"))
        (i,) = c.params(x.shape)
        c.map((i,), {"x": at(x, i)}, {"n": at(numbers, combine="sum")}, lambda x: {"n": cast(apply("eq", x, x), int64)})
        c.map((), {"n": at(numbers)}, {"k": at(place)}, lambda n: {"k": self.by().place(n, x.shape[0], {})})
        taken(c, order, 0, place, index, False)
        taken(c, x, 0, index, y, False)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        hits = g.pointwise(_same, x, g.output(), dtype=x.dtype.compute)
        ties = g.op("sum", {"dims": (), "keepdim": False}, x=hits)
        return {"x": g.pointwise(lambda h, n, v: h * (v / n), hits, ties, gy, dtype=x.dtype)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 5))})
        yield Sample({"x": TensorType(float32, (80,))})


def _same(a: Scalar, b: Scalar) -> Scalar:
    return cast(apply("eq", a, b) | (apply("ne", a, a) & apply("ne", b, b)), a.dtype)


@register
class Median(MedianOfAll):
    """The lower median of all elements; NaN where there is one."""

    name = "median"
    by = MedianOf
    aten = ("aten.median.default",)


@register
class NanMedian(MedianOfAll):
    """The lower median of the elements that are numbers."""

    name = "nanmedian"
    by = NanMedianOf
    aten = ("aten.nanmedian.default",)


@register
class Mode(Selected):
    """The most frequent element along `dim` (the smallest of several), and the index of its last place."""

    name = "mode"
    aten = ("aten.mode.default",)

    def maps(self, c: Expansion) -> None:
        x, values, indices = c.input(), c.output("values"), c.output("indices")
        if not x.shape:
            c.map((), {"x": at(x)}, {"v": at(values), "i": at(indices)}, lambda x: {"v": x, "i": index_value(0)})
            return
        d, keepdim = self.dim_of({"x": x}, c.node.attributes), c.attr("keepdim")
        count, rank = c.temp(x.shape, int64, "count"), c.temp(x.shape, int64, "rank")
        *p, j = c.params((*x.shape, x.shape[d]))
        other = [j if e == d else q for e, q in enumerate(p)]
        c.map((*p, j), {"a": at(x, *other), "b": at(x, *p)}, {"n": at(count, *p, combine="sum"), "r": at(rank, *p, combine="sum")},
              lambda a, b: {"n": cast(apply("eq", a, b), int64), "r": cast(before(a, 0, b, 0, False), int64)})  # fmt: skip
        # most frequent first, then smallest, then last: one number whose maximum is the choice
        score = c.temp(values.shape, int64, "score")
        q = c.params(x.shape)
        size, kept = index_value(x.shape[d]), kept_subset(q, frozenset({d}), keepdim)
        c.map(q, {"n": at(count, *q), "r": at(rank, *q)},
              {"value": at(score, *kept, combine="argmax"), "index": at(indices, *kept, combine="argmax")},
              lambda n, r: {"value": (n * size + (size - 1 - r)) * size + index_value(q[d]), "index": index_value(q[d])})  # fmt: skip
        taken(c, x, d, indices, values, keepdim)


# search ---------------------------------------------------------------------------------------------------------------
class Search(OperatorDefinition):
    """Base: for every value the number of elements of its sorted sequence that are smaller (or equal, with right)."""

    operands = ("x", "values", "sorter?")
    attributes: Mapping[str, Any] = {"right": False, "narrow": False}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, v = types["x"], types["values"]
        fits = len(x.shape) == 1 or (len(x.shape) == len(v.shape) and len(x.shape) > 0)
        self.require(fits, f"sequences of shape {list(x.shape)} for values of shape {list(v.shape)}")
        return {"y": TensorType(int32 if attributes["narrow"] else int64, v.shape)}

    def maps(self, c: Expansion) -> None:
        x, v, y = c.input(), c.input("values"), c.output()
        if c.has("sorter"):
            sequence_of = c.temp(x.shape, x.dtype, "sorted")
            taken(c, x, len(x.shape) - 1, c.input("sorter"), sequence_of, True)
            x = sequence_of
        *p, j = c.params((*y.shape, x.shape[-1]))
        sequence = [*(p[:-1] if len(x.shape) > 1 else ()), j]
        wide = promote(x.dtype, v.dtype).compute

        def counts(x: Scalar, v: Scalar) -> dict[str, Scalar]:
            a, b = cast(x, wide), cast(v, wide)
            smaller = ~apply("gt" if c.attr("right") else "ge", a, b)  # a NaN among the values comes behind everything
            return {"y": cast(smaller, y.dtype)}

        c.map((*p, j), {"x": at(x, *sequence), "v": at(v, *p)}, {"y": at(y, *p, combine="sum")}, counts)

    def more_expansions(self) -> dict[str, ExpansionRule]:
        return {"library": ExpansionRule(lambda c: c.library("searchsorted"), lambda n, cs: not _short_sequence(n, cs))}  # type: ignore[arg-type,return-value]

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


def _short_sequence(node: Operator, containers: Mapping[str, Container]) -> bool:
    n = containers[node.reads["x"].container].shape[-1]
    return isinstance(n, int) and n <= SHORT


@register
class SearchSorted(Search):
    """Places in sorted sequences; see `Search`."""

    name = "searchsorted"
    aten = ("aten.searchsorted.Tensor", "aten.bucketize.Tensor")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        right = bool(call["right"]) or call.arguments.get("side") == "right"
        names = ("sorted_sequence", "self") if "sorted_sequence" in call.arguments else ("boundaries", "self")
        return {"x": call[names[0]], "values": call[names[1]], "sorter": call.arguments.get("sorter")}, {
            "right": right,
            "narrow": bool(call["out_int32"]),
        }

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (5,)), "values": TensorType(float32, (3, 4))}, {"right": True})
        yield Sample({"x": TensorType(float32, (2, 70)), "values": TensorType(float32, (2, 3))}, {"narrow": True})
        x, v = TensorType(float32, (2, 5)), TensorType(float32, (2, 3))
        yield Sample({"x": x, "values": v, "sorter": TensorType(int64, (2, 5))})
        yield Sample(
            {"x": TensorType(float32, (2, 5)), "values": TensorType(float32, (3,))}, {}, error="sequences of shape"
        )


@register
class IsIn(OperatorDefinition):
    """Whether each element is among the test elements."""

    name = "isin"
    operands = ("x", "test")
    attributes: Mapping[str, Any] = {"invert": False}
    aten = ("aten.isin.Tensor_Tensor",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["elements"], "test": call["test_elements"]}, {"invert": call["invert"]}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(
            types["x"].dtype is types["test"].dtype,
            f"elements are {types['x'].dtype}, test elements {types['test'].dtype}",
        )
        return {"y": TensorType(bool_, types["x"].shape)}

    def maps(self, c: Expansion) -> None:
        x, test, y = c.input(), flat(c, c.input("test")), c.output()
        found = c.temp(y.shape, bool_, "found") if c.attr("invert") else y
        *p, j = c.params((*x.shape, test.shape[0]))
        c.map(
            (*p, j),
            {"x": at(x, *p), "t": at(test, j)},
            {"f": at(found, *p, combine="any")},
            lambda x, t: {"f": apply("eq", x, t)},
        )
        if found is not y:
            p = list(c.params(y.shape))
            c.map(p, {"f": at(found, *p)}, {"y": at(y, *p)}, lambda f: {"y": ~f})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(int64, (3, 4)), "test": TensorType(int64, (2, 2))})
        yield Sample({"x": TensorType(int64, (3,)), "test": TensorType(int64, (2,))}, {"invert": True})
        yield Sample({"x": TensorType(int64, (3,)), "test": TensorType(float32, (2,))}, error="test elements")


@register
class Histogram(OperatorDefinition):
    """Counts of x in `bins` equal parts from low to high (the extremes of x where both are equal); what lies outside does not count."""

    name = "histc"
    attributes: Mapping[str, Any] = {"bins": 100, "low": 0.0, "high": 0.0}
    aten = ("aten.histc.default",)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"]}, {"bins": call["bins"], "low": float(call["min"]), "high": float(call["max"])}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(types["x"].dtype.is_float, f"operand x is {types['x'].dtype}: only floats are counted")
        return {"y": TensorType(types["x"].dtype, (attributes["bins"],))}

    def maps(self, c: Expansion) -> None:
        x, y, bins = c.input(), c.output(), c.attr("bins")
        wide = x.dtype.compute
        low, high = c.temp((), wide, "low"), c.temp((), wide, "high")
        if c.attr("low") == c.attr("high"):
            p = c.params(x.shape)
            c.map(p, {"x": at(x, *p)}, {"l": at(low, combine="min"), "h": at(high, combine="max")},
                  lambda x: {"l": cast(x, wide), "h": cast(x, wide)})  # fmt: skip
        else:
            c.map(
                (),
                {},
                {"l": at(low), "h": at(high)},
                {"l": const(c.attr("low"), wide), "h": const(c.attr("high"), wide)},
            )
        part, weight, total = (
            c.temp(x.shape, int64, "bin"),
            c.temp(x.shape, wide, "weight"),
            c.temp((bins,), wide, "total"),
        )
        p = c.params(x.shape)

        def place(x: Scalar, l: Scalar, h: Scalar) -> dict[str, Scalar]:
            x = cast(x, wide)
            empty = apply("eq", l, h)
            l, h = where(empty, l - 1, l), where(empty, h + 1, h)
            inside = (x >= l) & (x <= h)
            at_bin = cast(where(inside, (x - l) / (h - l) * float(bins), 0), int64)
            return {"b": apply("min", at_bin, bins - 1), "w": cast(inside, wide)}

        c.map(p, {"x": at(x, *p), "l": at(low), "h": at(high)}, {"b": at(part, *p), "w": at(weight, *p)}, place)
        p = c.params(x.shape)
        c.map(
            p,
            {"b": at(part, *p), "w": at(weight, *p)},
            {"t": at(total, Indirect("b"), combine="sum")},
            lambda b, w: {"t": w},
        )
        p = c.params(y.shape)
        c.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 40))}, {"bins": 7})
        yield Sample({"x": TensorType(float32, (40,))}, {"bins": 4, "low": -1.0, "high": 1.5})
        yield Sample({"x": TensorType(int64, (40,))}, {"bins": 4}, error="only floats")
