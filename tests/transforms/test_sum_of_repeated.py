"""SumOfRepeated: reductions over equal values."""

from __future__ import annotations

from typing import Any

import pytest
from compiled import assert_compiled
from transform_nets import apply_checked, assert_refuses, matches, network, only, results, values

from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.level2_fusion.map_fusion import MapFusion
from shorthaul.transforms.level3_layout.sum_of_repeated import SumOfRepeated


def repeated(op: str = "sum", **more: Any) -> Program:
    """The sum (or another reduction) of a value that is repeated along a new dimension."""

    def build(b: Any, x: Any) -> Any:
        t = b.op("expand", {"shape": (5, 3, 4)}, x=b.op("tanh", x=x))
        return b.op("sigmoid", x=b.op(op, {"dims": (0,), "keepdim": False}, x=t))

    p = network(build, train=False, x=(3, 4), **more)
    apply_everywhere(p, [MapFusion("refuse")])
    return p


@pytest.mark.parametrize("op", ["sum", "amax"])
def test_the_loop_goes_and_the_map_becomes_elementwise(op: str) -> None:
    p = repeated(op)
    inputs = values(p)
    expected = results(p, inputs)
    m = only(m for m in matches(SumOfRepeated(), p))
    apply_checked(SumOfRepeated(), m)
    assert all(n.is_elementwise and len(n.params) == 2 for n in p.nodes if isinstance(n, Map))
    assert apply_everywhere(p, [MapFusion("refuse")]).applied == 2  # what the reduction was in the way of
    assert_compiled(p, inputs, expected)


def test_what_else_is_reduced_stays_a_reduction() -> None:
    def build(b: Any, x: Any) -> Any:
        return b.op("sum", {"dims": (0, 1), "keepdim": False}, x=b.op("expand", {"shape": (5, 3, 4)}, x=x))

    p = network(build, train=False, x=(3, 4))
    apply_everywhere(p, [MapFusion("refuse")])
    apply_checked(SumOfRepeated(), only(matches(SumOfRepeated(), p)))
    (node,) = p.nodes
    assert isinstance(node, Map) and not node.is_elementwise and len(node.params) == 2


def test_a_number_that_is_known_at_run_time_only() -> None:
    n = Symbol("N", 1)

    def build(b: Any, x: Any, y: Any) -> Any:
        return b.op("sum", {"dims": (0,), "keepdim": False}, x=b.op("expand", {"shape": (n, 4)}, x=x)), b.op("tanh", x=y)

    p = network(build, train=False, sizes=[n], x=(1, 4), y=(n, 4))
    apply_everywhere(p, [MapFusion("refuse")])
    apply_checked(SumOfRepeated(), only(matches(SumOfRepeated(), p)), sizes={n: 7})


def test_refuses_with_the_reason() -> None:
    p = network(lambda b, x: b.op("sum", {"dims": (0,), "keepdim": False}, x=x), train=False, x=(3, 4))
    assert_refuses(SumOfRepeated(), only(matches(SumOfRepeated(), p)), "every loop changes what is read or written")

    def product(b: Any, x: Any) -> Any:
        return b.op("prod", {"dims": (0,), "keepdim": False}, x=b.op("expand", {"shape": (5, 4)}, x=x))

    q = network(product, train=False, x=(1, 4))
    apply_everywhere(q, [MapFusion("refuse")])
    assert_refuses(SumOfRepeated(), matches(SumOfRepeated(), q)[0], "prod of equal values is not one of them")
