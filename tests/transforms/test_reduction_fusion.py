"""ReductionFusion: rows, their statistics and what is made of them become one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transform_nets import apply_checked, assert_refuses, assert_same, kernels, matches, network, results, values

from shorthaul.ir.builder import at, fresh_params
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import apply, read
from shorthaul.ir.verify import verify
from shorthaul.symbolic import Symbol
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.nest import tidy
from shorthaul.transforms.level2_fusion.reduction_fusion import ReductionFusion
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code

N = Symbol("N", 1)
CHAINS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "softmax": (lambda b, x: b.op("softmax", {"dim": -1}, x=x), {}),
    "log softmax": (lambda b, x: b.op("log_softmax", {"dim": -1}, x=x), {}),
    "layer norm": (lambda b, x, w, c: b.op("layer_norm", {"normalized_shape": (6,)}, x=x, weight=w, bias=c)[0], {"w": (6,), "c": (6,)}),
    "activation, layer norm, softmax": (
        lambda b, x, w, c: b.op("softmax", {"dim": -1}, x=b.op("layer_norm", {"normalized_shape": (6,)},
                                x=b.op("mul", a=b.op("tanh", x=x), b=b.op("sigmoid", x=x)), weight=w, bias=c)[0]), {"w": (6,), "c": (6,)}),
    "scaled and masked softmax": (
        lambda b, x, m: b.op("softmax", {"dim": -1}, x=b.op("add", a=b.pointwise(lambda t: t * 0.125, x), b=m)), {"m": (6,)}),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (N, 6)], ids=str)
@pytest.mark.parametrize("chain", CHAINS)
def test_one_kernel_forward_and_one_backward(chain: str, shape: tuple[Any, ...]) -> None:
    build, parameters = CHAINS[chain]
    sizes = {N: 3} if N in shape else {}
    p = network(build, parameters=parameters, sizes=list(sizes), x=shape)
    inputs = values(p, 0, sizes)
    expected = results(p, inputs)
    fuse(p)
    eliminate_dead_code(p)
    verify(p)
    assert_same(p, inputs, expected)
    assert len(kernels(p, "forward")) == 1
    rows = [k for k in kernels(p, "backward") if len(k.written_containers()) and k.label != "sum_to"]
    assert len(rows) == 1, [k.label for k in kernels(p, "backward")]


def softmax(shape: tuple[Any, ...] = (4, 6), dim: int = -1, **options: Any) -> Program:
    return network(lambda b, x: b.op("softmax", {"dim": dim}, x=x), train=False, x=shape, **options)


@pytest.mark.parametrize("shape", [(4, 6), (N, 6)], ids=str)
def test_each_step_is_right_and_claims_what_it_saves(shape: tuple[Any, ...]) -> None:
    sizes = {N: 5} if N in shape else {}
    p = softmax(shape, sizes=list(sizes))
    for _ in range(2):
        apply_checked(ReductionFusion(), matches(ReductionFusion(), p)[0], sizes=sizes)
    (k,) = kernels(p)
    assert len(k.body) == 3 and set(k.locals) == {"row_max__row", "row_sum__row"}


def test_an_intermediate_that_is_an_output_is_still_written() -> None:
    p = network(
        lambda b, x: [s := b.op("sum", {"dims": (1,), "keepdim": True}, x=x), b.op("div", a=x, b=s)],
        train=False,
        x=(4, 6),
    )
    apply_checked(ReductionFusion(), matches(ReductionFusion(), p)[0])
    (k,) = kernels(p)
    assert k.written_containers() == {"sum", "div"}


def test_statistics_of_batch_norm_in_nchw_are_rows_of_channels() -> None:
    p = network(
        lambda b, x, w, c: b.op("batch_norm", x=x, weight=w, bias=c)[0],
        parameters={"w": (3,), "c": (3,)},
        train=False,
        x=(2, 3, 4, 4),
    )
    inputs = values(p)
    expected = results(p, inputs)
    fuse(p)
    eliminate_dead_code(p)
    verify(p)
    assert_same(p, inputs, expected)
    (k,) = kernels(p)
    assert [q.size for q in k.params if q.size != 1] == [3], "one iteration a channel"


def test_refuses_statistics_of_batch_norm_channels_last() -> None:
    p = network(lambda b, x: b.op("batch_norm", x=b.op("tanh", x=x))[0], train=False, x=(4, 32, 8, 8))
    with p.edit("layout") as edit:
        edit.set_container(p.containers["tanh"].with_(strides=(32 * 8 * 8, 1, 8 * 32, 32)))
    reasons = []
    for m in matches(ReductionFusion(), p):
        notes: list[Any] = []
        if m.mid != "tanh" and not ReductionFusion().try_apply(m, notes):
            reasons += [r.reason for r in notes]
    assert any("rows are interleaved in tanh: neighbours in memory belong to different rows" in r for r in reasons)


def test_refuses_rows_that_do_not_fit_the_cache() -> None:
    p = softmax((2, 4096))
    m = matches(ReductionFusion(row_bytes=1024), p)[0]
    assert_refuses(ReductionFusion(row_bytes=1024), m, "more than the 1024 that stay in the cache")
    apply_checked(ReductionFusion(), m)


def test_refuses_a_reduction_to_a_single_value() -> None:
    p = network(lambda b, x: b.op("div", a=x, b=b.op("sum", {"dims": (0, 1)}, x=x)), train=False, x=(4, 6))
    for m in matches(ReductionFusion(), p):
        assert_refuses(ReductionFusion(), m, "there are no rows: the reduction gives a single value")


def test_refuses_elementwise_neighbours() -> None:
    p = network(lambda b, x: b.op("tanh", x=b.op("sigmoid", x=x)), train=False, x=(4, 6))
    assert_refuses(ReductionFusion(), matches(ReductionFusion(), p)[0], "neither reduces; see MapFusion")


def test_sums_over_rows_that_are_read_along_columns() -> None:
    """Row i of the consumer needs all sums: the columns are the rows of the fused kernel."""
    p = network(lambda b, x: b.op("add", a=x, b=b.op("sum", {"dims": (1,)}, x=x)), train=False, x=(6, 6))
    apply_checked(ReductionFusion(), matches(ReductionFusion(), p)[0])
    (k,) = kernels(p)
    assert len(k.params) == 1


def test_refuses_a_consumer_that_reads_sums_of_other_rows() -> None:
    p = network(
        lambda b, x: b.op(
            "add", a=x, b=b.op("flip", {"dims": (0,)}, x=b.op("sum", {"dims": (1,), "keepdim": True}, x=x))
        ),
        train=False,
        x=(6, 6),
    )
    m = next(m for m in matches(ReductionFusion(), p, mid="sum"))
    assert_refuses(ReductionFusion(), m, "the consumer reads other rows")


def test_refuses_prefixes_from_row_to_row() -> None:
    p = network(lambda b, x: b.op("neg", x=b.op("cumsum", {"dim": 0}, x=x)), train=False, x=(4, 6))
    assert_refuses(ReductionFusion(), matches(ReductionFusion(), p)[0], "values are combined from row to row")


def test_refuses_large_sums_over_the_rows() -> None:
    """Every thread would need its own copy of the sums over rows."""

    def build(b: Any, x: Any) -> list[Any]:
        s = b.op("softmax", {"dim": -1}, x=x)
        return [s, b.op("sum", {"dims": (0,)}, x=s)]

    p = network(build, train=False, x=(4, 64))
    fuse(p, [ReductionFusion()])
    assert len(kernels(p)) == 1
    p = network(build, train=False, x=(4, 64))
    fuse(p, [ReductionFusion(row_bytes=1800)])
    refused = matches(ReductionFusion(row_bytes=1800), p)
    assert refused
    for m in refused:
        assert_refuses(ReductionFusion(row_bytes=1800), m, "bytes")


def test_a_local_that_is_written_in_parts_is_not_replaced_by_one_part() -> None:
    """The parts of a concatenation come from two statements: neither is the producer of all of it."""
    joined = Container("joined", float64, (8,), storage="register")

    def part(function: str, start: int) -> Map:
        (i,) = fresh_params((4,))
        code = {"y": apply(function, read("x", float64))}
        return Map((i,), (Tasklet(code, reads={"x": at("x", i)}, writes={"y": at("joined", i + start)}),))

    (j,) = fresh_params((8,))
    reader = Map((j,), (Tasklet({"y": read("x", float64)}, reads={"x": at("joined", j)}, writes={"y": at("y", j)}),))
    statements, _ = tidy([part("sin", 0), part("cos", 4), reader], {"joined": joined}, frozenset({"joined"}))
    assert len(statements) >= 2 and statements[-1].read_containers() == {"joined"}
