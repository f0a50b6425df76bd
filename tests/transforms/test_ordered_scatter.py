"""OrderedScatter: a floating sum by index that is made in the same order at every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled
from transform_nets import apply_checked, assert_refuses, matches, network, only, results, values

from shorthaul.analysis.collisions import may_meet
from shorthaul.analysis.movement import movement
from shorthaul.codegen.library import LibraryError
from shorthaul.ir.builder import at, fresh_params, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64, int64
from shorthaul.ir.memlet import Condition, Indirect
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import cast, const, index_value
from shorthaul.ir.verify import verify
from shorthaul.symbolic import Symbol, index
from shorthaul.transforms.level1_operator.ordered_scatter import OrderedScatter

ROWS, WIDTH = 6, 3


def of_operator(build: Callable[..., Any], **shapes: tuple[Any, ...]) -> Program:
    kinds = {k: int64 for k in shapes if k.startswith("i")}
    return network(build, train=False, dtypes=kinds, **shapes)


def embedding(b: Any, g: Any, i: Any) -> Any:
    return b.op("embedding_backward", {"rows": ROWS, "padding_idx": 1}, g=g, indices=i)


def two_indices(b: Any, g: Any, i: Any, i2: Any) -> Any:
    return b.op("index_backward", {"dims": (0, 2), "shape": (3, 4, 5), "wrap": True}, x=g, i0=i, i1=i2)


def along_rows(b: Any, x: Any, src: Any, i: Any) -> Any:
    return b.op("scatter", {"dim": 1, "reduce": "sum"}, x=x, index=i, src=src)


def added(b: Any, x: Any, src: Any, i: Any) -> Any:
    return b.op("index_put", {"dims": (1,), "reduce": "sum", "wrap": False, "alpha": 2}, x=x, src=src, i0=i)


OPERATORS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "rows of a table": (embedding, {"g": (2, 4, WIDTH), "i": (2, 4)}),
    "two dimensions with one between": (two_indices, {"g": (7, 4), "i": (7,), "i2": (7,)}),
    "an index for every element": (along_rows, {"x": (3, 4), "src": (3, 5), "i": (3, 5)}),
    "columns": (added, {"x": (3, 4), "src": (3, 5), "i": (5,)}),
    "nothing": (embedding, {"g": (0, WIDTH), "i": (0,)}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_adds_what_an_operator_adds(name: str) -> None:
    build, shapes = OPERATORS[name]
    p = of_operator(build, **shapes)
    inputs = values(p)
    expected = results(p, inputs)
    apply_checked(OrderedScatter(), only(matches(OrderedScatter(), p)))
    assert not matches(OrderedScatter(), p)
    assert_compiled(p, inputs, expected)


def of_map(node: Map, *containers: Container, symbols: tuple[Symbol, ...] = ()) -> Program:
    outputs = node.written_containers()
    named = {c.name: c.with_(role="output" if c.name in outputs else "input") for c in containers}
    inputs = tuple(n for n in named if n not in outputs)
    return Program("sum", Form.MAPS, named, [node], Signature(inputs, tuple(sorted(outputs))), symbols)


X, I = Container("x", float64, (5, 4)), Container("i", int64, (5,))
DTYPES = {"x": float64, "i": int64}


def windows() -> tuple[Map, list[Container]]:
    """Windows that overlap, beyond the rim on both sides."""
    y = Container("y", float64, (8, 4))
    p, c = fresh_params(X.shape)
    (tap,) = fresh_params((3,))
    place = 2 * p + tap - 1
    write = at(y, place, c, combine="sum", guard=inside(place, 8))
    return make_map((p, tap, c), {"x": at(X, p, c)}, {"y": write}, lambda x: {"y": x * cast(index_value(tap + 1), float64)}, DTYPES), [X, y]


def summed_first() -> tuple[Map, list[Container]]:
    y = Container("y", float64, (3,))
    p, c = fresh_params(X.shape)
    write = at(y, Indirect("i"), combine="sum")
    return make_map((p, c), {"x": at(X, p, c), "i": at(I, p)}, {"y": write}, lambda x, i: {"y": x}, DTYPES), [X, I, y]


def beside_others() -> tuple[Map, list[Container]]:
    """The kernel also writes the values, counts, and adds a second sum that needs no index."""
    y, z, n, s = (Container(*a) for a in (("y", float64, (3, 4)), ("z", float64, (5, 4)), ("n", int64, (3,)), ("s", float64, (4,))))
    p, c = fresh_params(X.shape)
    where = Indirect("i")
    writes = {"y": at(y, where, c, combine="sum"), "z": at(z, p, c), "n": at(n, where, combine="sum"), "s": at(s, c, combine="sum")}
    code = lambda x, i: {"y": x * x, "z": x + 1, "n": const(1, int64), "s": x}  # noqa: E731
    return make_map((p, c), {"x": at(X, p, c), "i": at(I, p)}, writes, code, DTYPES), [X, I, y, z, n, s]


def partly() -> tuple[Map, list[Container]]:
    """Only the first columns of a result in another layout, and of the points only some."""
    y = Container("y", float64, (4, 3), (1, 4))
    p, c = fresh_params(X.shape)
    write = at(y, c, Indirect("i"), combine="sum", guard=(Condition(2 - c), Condition(p - 1)))
    return make_map((p, c), {"x": at(X, p, c), "i": at(I, p)}, {"y": write}, lambda x, i: {"y": x}, DTYPES), [X, I, y]


def through_another_index() -> tuple[Map, list[Container]]:
    order, y = Container("o", int64, (5,)), Container("y", float64, (3, 4))
    p, c = fresh_params(X.shape)
    reads = {"o": at(order, p), "i": at(I, Indirect("o")), "x": at(X, Indirect("o"), c)}
    write = at(y, Indirect("i"), c, combine="sum")
    return make_map((p, c), reads, {"y": write}, lambda x, i, o: {"y": x}, {**DTYPES, "o": int64}), [X, I, order, y]


@pytest.mark.parametrize("build", [windows, summed_first, beside_others, partly, through_another_index])
def test_adds_what_a_map_adds(build: Callable[[], tuple[Map, list[Container]]]) -> None:
    node, containers = build()
    p = of_map(node, *containers)
    inputs = values(p)
    expected = results(p, inputs)
    apply_checked(OrderedScatter(), only(matches(OrderedScatter(), p)))
    assert [n.function for n in p.nodes if isinstance(n, LibraryCall)] == ["ordered_sum"]
    assert_compiled(p, inputs, expected)


def test_sizes_may_be_symbols() -> None:
    n = Symbol("N", 1)
    p = network(lambda b, g, i: b.op("embedding_backward", {"rows": ROWS, "padding_idx": -1}, g=g, indices=i), train=False, sizes=[n],
                dtypes={"i": int64}, g=(n, WIDTH), i=(n,))  # fmt: skip
    m, before = only(matches(OrderedScatter(), p)), movement(p).bytes
    assert OrderedScatter().try_apply(m)
    verify(p)
    assert before - movement(p).bytes - OrderedScatter().saves(m) == 0
    assert isinstance(p.containers["embedding_backward_values"].shape[0], Symbol)


def test_what_needs_no_order_is_no_place() -> None:
    counts, most, own = Container("y", int64, (3,)), Container("y", float64, (3,)), Container("y", float64, (10, 4))
    p, c = fresh_params(X.shape)
    reads = {"x": at(X, p, c), "i": at(I, p)}
    integers = make_map((p, c), reads, {"y": at(counts, Indirect("i"), combine="sum")}, {"y": const(1, int64)}, DTYPES)
    maxima = make_map((p, c), reads, {"y": at(most, Indirect("i"), combine="max")}, lambda x, i: {"y": x}, DTYPES)
    apart = make_map((p, c), reads, {"y": at(own, 2 * p + 1, c, combine="sum")}, lambda x, i: {"y": x}, DTYPES)
    for node, y in ((integers, counts), (maxima, most), (apart, own)):
        assert not matches(OrderedScatter(), of_map(node, X, I, y))


def test_an_index_out_of_range_is_refused() -> None:
    node, containers = through_another_index()
    p = of_map(node, *containers)
    apply_checked(OrderedScatter(), only(matches(OrderedScatter(), p)))
    inputs = values(p)
    inputs["i"][:] = [0, 1, 3, 0, 0]
    inputs["o"][:] = np.arange(5)
    with pytest.raises(LibraryError, match="index is out of range"):
        results(p, inputs)


def test_may_meet_knows_what_is_one_to_one() -> None:
    c = Container("y", float64, (8, 8))
    i, j = index("i", 4), index("j", 2)
    assert not may_meet(at(c, i, j), (i, j), c)
    assert not may_meet(at(c, 2 * i + j, 0), (i, j), c)
    assert may_meet(at(c, i + j, 0), (i, j), c)
    assert may_meet(at(c, i // 2, j), (i, j), c)
    assert may_meet(at(c, Indirect("k"), j), (i, j), c)


# refusals ---------------------------------------------------------------------------------------------------------------
def refuses(p: Program, reason: str) -> None:
    assert_refuses(OrderedScatter(), matches(OrderedScatter(), p)[0], reason)


def test_refuses_a_nest() -> None:
    node, containers = summed_first()
    p, c = node.params
    nest = Map((p,), (Map((c,), node.body),))
    refuses(of_map(nest, *containers), "nested kernel")


def test_refuses_parts_of_several_kernels() -> None:
    node, containers = summed_first()
    other = make_map((), {}, {"y": at("y", 2)}, lambda: {"y": const(1, float64)}, {})
    p = of_map(node, *containers)
    with p.edit("Other") as edit:
        edit.add(other)
    refuses(p, "several kernels write parts of it")


def test_refuses_two_sums_of_one_kernel() -> None:
    y = Container("y", float64, (3,))
    (p,) = fresh_params((5,))
    writes = {k: at(y, Indirect("i"), combine="sum") for k in ("a", "b")}
    node = make_map((p,), {"x": at(X, p, 0), "i": at(I, p)}, writes, lambda x, i: {"a": x, "b": x + 1}, DTYPES)
    refuses(of_map(node, X, I, y), "in several places")


def test_refuses_a_range_that_depends_on_another() -> None:
    y = Container("y", float64, (3,))
    (p,) = fresh_params((5,))
    q = index("q", p + 1)
    node = make_map((p, q), {"x": at(X, p, 0), "i": at(I, q)}, {"y": at(y, Indirect("i"), combine="sum")}, lambda x, i: {"y": x}, DTYPES)
    refuses(of_map(node, X, I, y), "its range depends on another one")
