"""CommonSubexpressions: equal computations of equal containers happen once."""

from __future__ import annotations

from typing import Any

import pytest
from transform_nets import apply_checked, assert_refuses, assert_same, kernels, matches, network, only, results, values

from shorthaul.ir.verify import verify
from shorthaul.transforms.level4_global.common_subexpressions import (
    CommonSubexpressions,
    eliminate_common_subexpressions,
)


def twice(b: Any, x: Any) -> Any:
    return b.op("mul", a=b.op("square", x=b.op("sigmoid", x=x)), b=b.op("square", x=b.op("sigmoid", x=x)))


@pytest.mark.parametrize("maps", [False, True], ids=["operators", "maps"])
def test_equal_nodes_become_one(maps: bool) -> None:
    p = network(twice, train=False, maps=maps, x=(4, 6))
    if maps:
        apply_checked(CommonSubexpressions(), only(matches(CommonSubexpressions(), p)))
        apply_checked(CommonSubexpressions(), only(matches(CommonSubexpressions(), p)))
        assert [k.label for k in kernels(p)] == ["sigmoid", "square", "mul"]
    else:
        assert eliminate_common_subexpressions(p) == 2
        verify(p)
        assert len(p.nodes) == 3


def test_in_program_order_everything_at_once() -> None:
    p = network(twice, x=(4, 6))
    inputs = values(p)
    expected = results(p, inputs)
    assert eliminate_common_subexpressions(p) >= 2
    verify(p)
    assert_same(p, inputs, expected)
    assert not matches(CommonSubexpressions(), p)


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x, y: b.op("mul", a=b.op("sigmoid", x=x), b=b.op("sigmoid", x=y)),
        lambda b, x, y: b.op("mul", a=b.op("sigmoid", x=x), b=b.op("tanh", x=x)),
        lambda b, x, y: b.op("mul", a=b.op("sub", a=x, b=y), b=b.op("sub", a=y, b=x)),
        lambda b, x, y: b.op(
            "add",
            a=b.op("sum", {"dims": (1,), "keepdim": True}, x=x),
            b=b.op("amax", {"dims": (1,), "keepdim": True}, x=x),
        ),
    ],
    ids=["operands", "code", "order of operands", "combiner"],
)
def test_what_differs_is_no_match(build: Any) -> None:
    assert not matches(CommonSubexpressions(), network(build, train=False, x=(4, 6), y=(4, 6)))


def test_the_same_difference_in_the_same_order_is_a_match() -> None:
    p = network(
        lambda b, x, y: b.op("mul", a=b.op("sub", a=x, b=y), b=b.op("sub", a=x, b=y)), train=False, x=(4, 6), y=(4, 6)
    )
    apply_checked(CommonSubexpressions(), only(matches(CommonSubexpressions(), p)))


def test_refuses_a_second_output() -> None:
    p = network(lambda b, x: [b.op("sigmoid", x=x), b.op("sigmoid", x=x)], train=False, x=(4, 6))
    assert_refuses(CommonSubexpressions(), only(matches(CommonSubexpressions(), p)), "the caller gets both results")


def test_an_output_serves_a_later_equal_value() -> None:
    p = network(lambda b, x: [b.op("sigmoid", x=x), b.op("neg", x=b.op("sigmoid", x=x))], train=False, x=(4, 6))
    apply_checked(CommonSubexpressions(), only(matches(CommonSubexpressions(), p)))
    assert len(kernels(p)) == 2


def test_refuses_parts_of_a_container() -> None:
    p = network(lambda b, x: b.op("neg", x=b.op("cat", {"dim": 0}, x0=x, x1=x)), train=False, x=(4, 6))
    for m in matches(CommonSubexpressions(), p):
        assert_refuses(CommonSubexpressions(), m, "other nodes write parts of the result")


def test_phases_stay_apart() -> None:
    p = network(lambda b, x: b.op("square", x=b.op("sigmoid", x=x)), x=(4, 6))
    assert not [m for m in matches(CommonSubexpressions(), p) if m.first.phase != m.second.phase]
