"""Rows of a table that a step touches: grouped by row, summed, stepped by an optimizer, and written back.

What `SparseUpdate` makes of a dense gradient. `rows` are the row numbers of all lookups of a step in ascending order, equal ones next to
each other; `starts` says for each the place of the first equal one. The sums lie at these places, so that every container has as many rows
as there are lookups, however many of them are equal: no size depends on data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.dtypes import bool_, float32, float64, int64
from shorthaul.ir.memlet import Condition, Indirect, Memlet
from shorthaul.ir.pointwise_program import codes_of
from shorthaul.ir.scalar import Scalar, apply, cast, index_value, read, reads_of, substitute_reads, where
from shorthaul.symbolic import Expr

from .builder import Expansion
from .embedding import IndexOperator, scatter_sum
from .registry import ExpansionRule, Sample, TensorType, register
from .scatter import scatter_maps

IntLike = Union[int, Expr]
TABLE, ROWS, WHOLE = "table", "rows", "whole"


@register
class RowStarts(IndexOperator):
    """For each of the ascending numbers the place of the first equal one."""

    name = "row_starts"
    operands = ("rows",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.check_index("rows", types["rows"])
        self.require(len(types["rows"].shape) == 1, f"rows have shape {list(types['rows'].shape)}: one dimension is needed")
        return {"y": TensorType(int64, types["rows"].shape)}

    def maps(self, c: Expansion) -> None:
        rows, y = c.input("rows"), c.output()
        (i,) = c.params(rows.shape)
        before = at(rows, i - 1, guard=(Condition(i - 1),), fill=-1)
        c.map((i,), {"r": at(rows, i), "b": before}, {"y": at(y, i, combine="max", scan=i)},
              lambda r, b: {"y": where(apply("eq", r, b), 0, index_value(i))})  # fmt: skip

    def samples(self) -> Iterable[Sample]:
        yield Sample({"rows": TensorType(int64, (6,))})
        yield Sample({"rows": TensorType(float32, (6,))}, error="integer")


@register
class RowSums(IndexOperator):
    """At the place of the first of equal rows the sum of g over them, in the order of the lookups; zeros at the others' places.

    order: which lookup stands at each place of the ascending rows. Accumulated in float32 or better.
    """

    name = "row_sums"
    operands = ("g", "order", "starts")

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        g = types["g"]
        for k in ("order", "starts"):
            self.check_index(k, types[k])
            self.require(tuple(types[k].shape) == tuple(g.shape[:1]), f"{k} of shape {list(types[k].shape)} for {list(g.shape)}")
        return {"y": g}

    def maps(self, c: Expansion) -> None:
        g, y = c.input("g"), c.output()
        p = c.params(g.shape)
        reads = {"o": at(c.input("order"), p[0]), "s": at(c.input("starts"), p[0]), "g": at(g, Indirect("o"), *p[1:])}
        scatter_sum(c, p, reads, y, (Indirect("s"), *p[1:]), lambda g, o, s: g)

    def samples(self) -> Iterable[Sample]:
        i = TensorType(int64, (6,))
        yield Sample({"g": TensorType(float32, (6, 3)), "order": i, "starts": i})
        yield Sample({"g": TensorType(float32, (5, 3)), "order": i, "starts": i}, error="order of shape")


@register
class RowStep(IndexOperator):
    """What an optimizer makes of the touched rows of a table and its state: `body`, which computes element by element, on these rows alone.

    operands: x0, x1, ... are the body's inputs. roles: for each of them TABLE (one row of it for each of `rows`), ROWS (already one row
    for each place, read at `starts`), or WHOLE (a number). keep: where it holds, the results are the old rows. last, decay: of rows that
    were not touched for some time, see `lazy_rows`; tables are then brought up to date before the body sees them.
    results: y0, y1, ...: one row for each of `rows`, equal ones for equal rows. updates: for each result the operand whose new value it is.
    """

    name = "row_step"
    operands = ("rows", "starts", "keep?", "last?", "decay?", "x*")
    attributes: Mapping[str, Any] = {"body": None, "roles": (), "updates": ()}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        (n,) = types["rows"].shape
        olds = [types[f"x{i}"] for i in attributes["updates"]]
        return {f"y{k}": TensorType(t.dtype, (n, *t.shape[1:])) for k, t in enumerate(olds)}

    def maps(self, c: Expansion) -> None:
        body, roles = c.attr("body"), c.attr("roles")
        codes = codes_of(body)
        assert codes is not None
        rows, tables = c.input("rows"), [i for i, role in enumerate(roles) if role == TABLE]
        p = c.params((*rows.shape, *c.input(f"x{tables[0]}").shape[1:]))
        reads: dict[str, Memlet] = {"row": at(rows, p[0]), "start": at(c.input("starts"), p[0])}
        values: dict[int, Scalar] = {}
        for i, role in enumerate(roles):
            x = c.input(f"x{i}")
            place = "row" if role == TABLE else "start"
            reads[f"x{i}"] = at(x, *(0 for _ in x.shape)) if role == WHOLE else at(x, Indirect(place), *p[1:])
            values[i] = read(f"x{i}", x.dtype)
        if c.has("last"):
            reads["last"] = at(c.input("last"), Indirect("row"))
            values |= _caught_up(c, tables, values, reads)
        names = {n: values[i] for i, n in enumerate(body.signature.inputs)}
        code: dict[str, Scalar] = {}
        for k, (name, i) in enumerate(zip(body.signature.outputs, c.attr("updates"), strict=True)):
            code[f"y{k}"] = substitute_reads(codes[name], names)
            if c.has("keep"):
                reads["keep"] = at(c.input("keep"), *(0 for _ in c.input("keep").shape))
                code[f"y{k}"] = where(read("keep", bool_), values[i], code[f"y{k}"])
        used = set(reads_of(*code.values()))
        used |= {s.name for k in used for s in reads[k].subset if isinstance(s, Indirect)}
        used |= {s.name for k in used for s in reads[k].subset if isinstance(s, Indirect)}
        reads = {k: m for k, m in reads.items() if k in used}
        c.map(p, reads, {f"y{k}": at(c.output(f"y{k}"), *p) for k in range(len(code))}, code)


@register
class WriteRows(IndexOperator):
    """x with the rows of `values` at the places `rows`; equal places have equal rows.

    Where the result may take the memory of x (see `UpdateInPlace`) only these rows move.
    """

    name = "write_rows"
    operands = ("x", "rows", "values")
    attributes: Mapping[str, Any] = {"reduce": "assign", "include_self": True, "alpha": 1}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, rows, values = types["x"], types["rows"], types["values"]
        self.check_index("rows", rows)
        fits = tuple(values.shape) == (*rows.shape, *x.shape[1:])
        self.require(fits, f"values of shape {list(values.shape)} for rows of {list(x.shape)}")
        self.require(values.dtype is x.dtype, f"operand x is {x.dtype}, values {values.dtype}")
        return {"y": x}

    def maps(self, c: Expansion) -> None:
        values, rows = c.input("values"), c.input("rows")

        def reads(p: Sequence[Any]) -> tuple[dict[str, Memlet], list[Any]]:
            return {"r": at(rows, p[0])}, [Indirect("r"), *p[1:]]

        scatter_maps(c, c.input(), c.output(), values.shape, reads, values)

    def more_expansions(self) -> dict[str, ExpansionRule]:
        return {"library": ExpansionRule(self._library)}

    def _library(self, c: Expansion) -> None:
        c.library(self.name, {})

    def samples(self) -> Iterable[Sample]:
        x, rows = TensorType(float32, (7, 3)), TensorType(int64, (1,))
        yield Sample({"x": x, "rows": rows, "values": TensorType(float32, (1, 3))})
        yield Sample({"x": x, "rows": rows, "values": TensorType(float32, (2, 3))}, error="values of shape")


@register
class LazyRows(IndexOperator):
    """Rows of a table by index, as they would be if every row had been stepped at every step.

    x0: the table; x1, ...: its state, of the table's shape. last: for each row the step after which it is up to date. decay: (steps, k, k)
    with k tables: what the steps after each one until now make of an untouched row: x_i becomes the sum over j of decay[last, i, j] * x_j.
    """

    name = "lazy_rows"
    operands = ("indices", "last", "decay", "x*")

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        i, x = types["indices"], types["x0"]
        self.check_index("indices", i)
        self.require(tuple(types["last"].shape) == tuple(x.shape[:1]), f"last of shape {list(types['last'].shape)} for {list(x.shape)}")
        return {"y": TensorType(x.dtype, (*i.shape, *x.shape[1:]))}

    def maps(self, c: Expansion) -> None:
        i, y = c.input("indices"), c.output()
        p = c.params(y.shape)
        rank = len(i.shape)
        tables = [int(k[1:]) for k in c.node.reads if k.startswith("x")]
        reads: dict[str, Memlet] = {"row": at(i, *p[:rank]), "last": at(c.input("last"), Indirect("row"))}
        values = {}
        for k in tables:
            reads[f"x{k}"] = at(c.input(f"x{k}"), Indirect("row"), *p[rank:])
            values[k] = read(f"x{k}", c.input(f"x{k}").dtype)
        c.map(p, reads, {"y": at(y, *p)}, {"y": _caught_up(c, tables, values, reads, tables[:1])[tables[0]]})

    def samples(self) -> Iterable[Sample]:
        x, last = TensorType(float32, (7, 3)), TensorType(int64, (7,))
        given = {"indices": TensorType(int64, (2, 5)), "last": last, "decay": TensorType(float64, (7, 2, 2)), "x0": x, "x1": x}
        yield Sample(given)
        yield Sample({**given, "last": TensorType(int64, (5,))}, error="last of shape")


def _caught_up(c: Expansion, tables: Sequence[int], values: Mapping[int, Scalar], reads: dict[str, Memlet],
               wanted: Sequence[int] | None = None) -> dict[int, Scalar]:  # fmt: skip
    """The elements of a row of all tables after the steps that it was left out of; adds the reads that it takes.

    Computed in float64, where the coefficients are, and rounded once; a row that is up to date has the identity there.
    """
    result: dict[int, Scalar] = {}
    for a, i in enumerate(tables):
        if wanted is not None and i not in wanted:
            continue
        total: Scalar | None = None
        for b, j in enumerate(tables):
            name = f"d{a}_{b}"
            reads[name] = at(c.input("decay"), Indirect("last"), a, b)
            term = cast(read(name, c.input("decay").dtype), float64) * cast(values[j], float64)
            total = term if total is None else total + term
        assert total is not None
        result[i] = cast(total, values[i].dtype)
    return result
