"""Flat forms: which maps have one, and that it computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shorthaul.ir.builder import MapBuilder, at, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, float64
from shorthaul.ir.flat import ELEMENTS, flat_form
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program, Signature
from shorthaul.ir.scalar import index_value
from shorthaul.symbolic import Symbol, index

I, J = index("i", 4), index("j", 6)


def of(**containers: Container) -> dict[str, Container]:
    return {c.name: c for c in containers.values()}


def scaled(x: Container, y: Container, params: Any = (I, J), *, reads: Any = None, writes: Any = None) -> Map:
    dtypes = {x.name: x.dtype, "s": float64}
    given = {"x": reads or at(x, *params), "s": at(Container("s", float64, ()))}
    return make_map(params, given, {"y": writes or at(y, *params)}, lambda x, s: {"y": x * s}, dtypes)


def test_equal_for_other_sizes_names_and_orders() -> None:
    """A matrix in rows, one in columns, and a row of another length are the same loop."""
    s = Container("s", float64, ())
    a, b = (Container(n, float64, (4, 6)) for n in "ab")
    c, d = (Container(n, float64, (4, 6), (1, 4)) for n in "cd")
    e, f = (Container(n, float64, (1, 9)) for n in "ef")
    k = index("k", 9)
    forms = [flat_form(scaled(a, b), of(a=a, b=b, s=s)), flat_form(scaled(c, d), of(c=c, d=d, s=s)),
             flat_form(scaled(e, f, (index("u", 1), k)), of(e=e, f=f, s=s))]  # fmt: skip
    assert len({f.key for f in forms if f is not None}) == 1
    assert [f.elements for f in forms if f is not None] == [24, 24, 9]
    assert [f.names for f in forms if f is not None] == [("a", "s", "b"), ("c", "s", "d"), ("e", "s", "f")]


def test_it_computes_the_same() -> None:
    p = Program("flat")
    rng = np.random.default_rng(0)
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x = edit.add_container(Container("x", float64, (4, 6), role="input"))
        s = edit.add_container(Container("s", float64, (), role="input"))
        y = edit.add_container(Container("y", float64, (4, 6), role="output"))
        b.map((I, J), {"x": at(x, I, J), "s": at(s)}, {"y": at(y, I, J)}, lambda x, s: {"y": x * s + x})
        edit.add(*b.nodes)
        edit.set_signature(Signature(("x", "s"), ("y",)))
    given = {"x": rng.uniform(-1, 1, (4, 6)), "s": np.array(3.0)}
    (node,) = p.nodes
    form = flat_form(node, p.containers)  # type: ignore[arg-type]
    assert form is not None
    flat = Program("again", symbols=(ELEMENTS,))
    with flat.edit("Build") as edit:
        for own, name in zip(form.containers, form.names, strict=True):
            edit.add_container(form.containers[own].with_(role="output" if name == "y" else "input"))
        edit.add(form.tree)
        edit.set_signature(Signature(("c0", "c1"), ("c2",)))
    found = interpret(flat, {"c0": given["x"].reshape(-1), "c1": given["s"]}, sizes={ELEMENTS: 24})
    np.testing.assert_array_equal(found["c2"], interpret(p, given)["y"].reshape(-1))


def test_symbolic_sizes() -> None:
    n = Symbol("B", 1)
    a, b, s = Container("a", float64, (n, 6)), Container("b", float64, (n, 6)), Container("s", float64, ())
    form = flat_form(scaled(a, b, (index("i", n), J)), of(a=a, b=b, s=s))
    assert form is not None and form.elements == n * 6


def test_other_types_are_another_form() -> None:
    s = Container("s", float64, ())
    a, b = (Container(n, float64, (4, 6)) for n in "ab")
    c = Container("c", float32, (4, 6))
    narrow = make_map((I, J), {"x": at(a, I, J)}, {"y": at(c, I, J)}, lambda x: {"y": x}, {"a": float64})
    wide = make_map((I, J), {"x": at(a, I, J)}, {"y": at(b, I, J)}, lambda x: {"y": x}, {"a": float64})
    forms = [flat_form(m, of(a=a, b=b, c=c, s=s)) for m in (narrow, wide)]
    assert forms[0] is not None and forms[1] is not None and forms[0].key != forms[1].key


NONE: dict[str, Any] = {
    "shifted": lambda a, b: scaled(a, b, (index("i", 3), J), reads=at(a, index("i", 3) + 1, J)),
    "a part": lambda a, b: scaled(a, b, (I, index("j", 5))),
    "repeated": lambda a, b: make_map((I, J), {"x": at(a, I, 0)}, {"y": at(b, I, J)}, lambda x: {"y": x}, {"a": float64}),
    "summed": lambda a, b: make_map((I, J), {"x": at(a, I, J)}, {"y": at(b, I, 0, combine="sum")}, lambda x: {"y": x}, {"a": float64}),
    "place": lambda a, b: make_map((I, J), {"x": at(a, I, J)}, {"y": at(b, I, J)}, lambda x: {"y": x + index_cast(I)}, {"a": float64}),
}


def index_cast(i: Symbol) -> Any:
    from shorthaul.ir.scalar import cast

    return cast(index_value(i), float64)


@pytest.mark.parametrize("why", NONE)
def test_none_where_elements_are_not_alike(why: str) -> None:
    s = Container("s", float64, ())
    a, b = (Container(n, float64, (4, 6)) for n in "ab")
    assert flat_form(NONE[why](a, b), of(a=a, b=b, s=s)) is None


def test_none_where_the_result_lies_otherwise() -> None:
    s = Container("s", float64, ())
    a, b = Container("a", float64, (4, 6)), Container("b", float64, (4, 6), (1, 4))
    assert flat_form(scaled(a, b), of(a=a, b=b, s=s)) is None
