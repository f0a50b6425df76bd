"""ConstantFolding: what depends on constants alone is computed at compile time."""

from __future__ import annotations

from typing import Any

import numpy as np
from transform_nets import apply_checked, assert_refuses, kernels, matches, network, only

from shorthaul.ir.dtypes import float64
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import cast, index_value, read
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.symbolic import Symbol
from shorthaul.transforms.level3_layout.constant_folding import ConstantFolding


def with_table(build: Any, **shapes: Any) -> Program:
    """A program whose input `table` has become a constant."""
    p = network(build, train=False, **shapes)
    c = p.containers["table"]
    with p.edit("constant") as edit:
        edit.set_signature(p.signature.with_(inputs=tuple(i for i in p.signature.inputs if i != "table")))
        edit.set_container(c.with_(role="constant"))
        edit.set_constant("table", np.arange(np.prod(c.shape), dtype=float).reshape(c.shape) / 7)  # type: ignore[arg-type]
    return p


def test_a_map_of_constants_becomes_its_value() -> None:
    p = with_table(
        lambda b, x, table: b.op("mul", a=x, b=b.op("sum", {"dims": (0,)}, x=b.op("sigmoid", x=table))),
        x=(4, 6),
        table=(3, 6),
    )
    table = p.constants["table"]
    apply_checked(ConstantFolding(), only(matches(ConstantFolding(), p, node="sigmoid")))
    apply_checked(ConstantFolding(), only(matches(ConstantFolding(), p, node="sum")))
    assert [k.label for k in kernels(p)] == ["mul"]
    assert list(p.constants) == ["sum"]
    np.testing.assert_allclose(p.constants["sum"], (1 / (1 + np.exp(-table))).sum(0), rtol=1e-14)


def test_refuses_what_depends_on_an_input() -> None:
    p = with_table(lambda b, x, table: b.op("mul", a=x, b=table), x=(3, 6), table=(3, 6))
    assert_refuses(ConstantFolding(), only(matches(ConstantFolding(), p)), "x is known at run time only")


def test_refuses_an_output() -> None:
    p = with_table(lambda b, x, table: [b.op("sigmoid", x=table), b.op("tanh", x=x)], x=(3, 6), table=(3, 6))
    assert_refuses(ConstantFolding(), only(matches(ConstantFolding(), p, node="sigmoid")), "as a tensor of its own")


def test_refuses_large_results() -> None:
    p = with_table(lambda b, x, table: b.op("mul", a=x, b=b.op("sigmoid", x=table)), x=(3, 6), table=(3, 6))
    assert_refuses(
        ConstantFolding(max_elements=17),
        only(matches(ConstantFolding(), p, node="sigmoid")),
        "has 18 elements, more than 17",
    )


def test_refuses_a_size_that_is_not_known() -> None:
    n = Symbol("N", 1)

    def build(b: Any, x: Any, table: Any) -> Any:
        return b.op("mul", a=x, b=b.op("expand", {"shape": (n, 6)}, x=b.op("reshape", {"shape": (1, 6)}, x=table)))

    p = with_table(build, sizes=[n], x=(n, 6), table=(6,))
    apply_checked(ConstantFolding(), only(matches(ConstantFolding(), p, node="reshape")), sizes={n: 2})
    assert_refuses(ConstantFolding(), only(matches(ConstantFolding(), p, node="expand")), "known at run time only")


def test_leaves_fills_to_their_readers() -> None:
    p = network(lambda b, x: b.op("mul", a=x, b=b.full((6,), 2.0, x.dtype)), train=False, x=(4, 6))
    assert_refuses(
        ConstantFolding(), only(matches(ConstantFolding(), p, node="full")), "its readers evaluate it for nothing"
    )


def test_refuses_a_value_that_depends_on_a_size() -> None:
    """One over the size of a batch, times a constant: what the gradient of a mean is in a whole step."""
    n = Symbol("N", 1)
    code = {"code": read("x0", float64) * cast(index_value(n), float64)}
    p = network(lambda b, x, table: b.op("mul", a=b.op("pointwise", code, x0=table), b=b.op("sum", {"dims": (0,)}, x=x)),
                train=False, maps=False, sizes=(n,), x=(n, 6), table=(6,))  # fmt: skip
    with p.edit("constant") as edit:
        edit.set_signature(p.signature.with_(inputs=("x",)))
        edit.set_container(p.containers["table"].with_(role="constant"))
        edit.set_constant("table", np.ones(6))
    expand(p, choose_maps)
    assert_refuses(ConstantFolding(), only(matches(ConstantFolding(), p, node="pointwise")), "computes with N, known at run time only")
