"""MapFusion: a producer is substituted into its consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from compiled import assert_compiled
from transform_nets import apply_checked, assert_refuses, assert_same, kernels, matches, network, only, results, values

from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.ir.dtypes import int64
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import walk
from shorthaul.pipeline import STAGES
from shorthaul.symbolic import Symbol
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.map_fusion import MapFusion

N = Symbol("N", 1)


def forward(build: Callable[..., Any], **shapes: Any) -> Program:
    return network(build, train=False, **shapes)


READS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "same point": (lambda b, t: b.op("sigmoid", x=t), (4, 6)),
    "transposed": (lambda b, t: b.op("sigmoid", x=b.op("permute", {"dims": (1, 0)}, x=t)), (4, 6)),
    "merged dimensions": (lambda b, t: b.op("reshape", {"shape": (24,)}, x=t), (4, 6)),
    "split dimension": (lambda b, t: b.op("reshape", {"shape": (4, 2, 3)}, x=t), (4, 6)),
    "part": (lambda b, t: b.op("slice", {"dim": 1, "start": 1, "stop": 5, "step": 2}, x=t), (4, 6)),
    "backwards": (lambda b, t: b.op("flip", {"dims": (1,)}, x=t), (4, 6)),
    "one row": (lambda b, t: b.op("select", {"dim": 0, "index": 2}, x=t), (4, 6)),
    "padded": (lambda b, t: b.op("pad", {"pad": (1, 2), "value": 0.5}, x=t), (4, 6)),
    "summed": (lambda b, t: b.op("sum", {"dims": (1,)}, x=t), (4, 6)),
    "twice at two places": (lambda b, t: b.pointwise(lambda u, v: u * v, t, b.op("flip", {"dims": (0,)}, x=t)), (4, 6)),
    "symbolic size": (lambda b, t: b.op("sigmoid", x=b.op("reshape", {"shape": (N * 6,)}, x=t)), (N, 6)),
}


@pytest.mark.parametrize("how", READS)
def test_substitutes_through_the_memlet_of_the_consumer(how: str) -> None:
    build, shape = READS[how]
    sizes = {N: 3} if N in shape else {}
    p = forward(lambda b, x: build(b, b.op("neg", x=x)), sizes=list(sizes), x=shape)
    count = len(kernels(p))
    for _ in range(count):
        found = matches(MapFusion("refuse"), p)
        if not found or (how == "twice at two places" and len(kernels(p)) == 2):
            break
        apply_checked(MapFusion("refuse"), found[-1], sizes=sizes)
    if how != "twice at two places":
        assert len(kernels(p)) == 1
        assert not [c for c in p.containers.values() if c.role == "transient"]


def test_a_padded_read_keeps_its_fill() -> None:
    p = forward(lambda b, x: b.op("pad", {"pad": (1, 1), "value": 7.0}, x=b.op("exp", x=x)), x=(3, 4))
    apply_checked(MapFusion("refuse"), only(matches(MapFusion("refuse"), p)))
    (k,) = kernels(p)
    assert any(s.op == "const" and s.attr == 7.0 for s in walk(*k.tasklet.code.values()))  # type: ignore[union-attr]


def test_a_fill_costs_its_readers_nothing() -> None:
    """`full` and `arange` become numbers and indices in the code of their readers."""

    def build(b, x):
        numbers = b.op("arange", {"shape": (6,), "dtype": x.dtype})
        return b.op("add", a=x, b=b.op("mul", a=b.full((4, 6), 2.0, x.dtype), b=numbers))

    p = forward(build, x=(4, 6))
    fuse(p)
    (k,) = kernels(p)
    assert k.read_containers() == {"x"}


# something else needs the intermediate -----------------------------------------------------------------------------------------
def two_readers(b: Any, x: Any) -> list[Any]:
    t = b.op("sigmoid", x=x)
    return [b.op("neg", x=t), b.op("square", x=t)]


def test_refuse_leaves_a_value_that_others_read() -> None:
    p = forward(two_readers, x=(4, 6))
    for m in matches(MapFusion("refuse"), p):
        assert_refuses(MapFusion("refuse"), m, "something else needs the intermediate")


def test_recompute_evaluates_again_and_leaves_the_producer_to_the_others() -> None:
    p = forward(two_readers, x=(4, 6))
    t = MapFusion("recompute")
    apply_checked(t, only(matches(t, p, second="neg")))
    assert [k.label for k in kernels(p)] == ["sigmoid", "sigmoid+neg", "square"]
    apply_checked(t, only(matches(t, p, second="square")))
    assert [k.label for k in kernels(p)] == ["sigmoid+neg", "sigmoid+square"]


def test_keep_writes_the_intermediate_beside_the_result() -> None:
    p = forward(two_readers, x=(4, 6))
    t = MapFusion("keep")
    apply_checked(t, only(matches(t, p, second="neg")))
    first, _ = kernels(p)
    assert first.written_containers() == {"sigmoid", "neg"}


def test_refuses_scans_along_two_dimensions() -> None:
    def build(b: Any, x: Any) -> list[Any]:
        t = b.op("neg", x=x)
        return [b.op("cumsum", {"dim": 0}, x=t), b.op("cumprod", {"dim": 1}, x=t)]

    p = forward(build, x=(4, 6))
    apply_checked(MapFusion("keep"), only(matches(MapFusion("keep"), p, second="cumsum")))
    assert_refuses(MapFusion("keep"), only(matches(MapFusion("keep"), p, second="cumprod")), "along different dimensions")


def test_keep_of_an_output_that_is_read_transposed_and_reshaped() -> None:
    def build(b: Any, x: Any) -> list[Any]:
        t = b.op("sigmoid", x=x)
        return [t, b.op("neg", x=b.op("reshape", {"shape": (24,)}, x=b.op("permute", {"dims": (1, 0)}, x=t)))]

    p = forward(build, x=(4, 6))
    for _ in range(3):
        apply_checked(MapFusion("keep"), matches(MapFusion("keep"), p)[-1])
    (k,) = kernels(p)
    assert k.written_containers() == {"sigmoid", "neg"}


KEPT: dict[str, tuple[Callable[..., Any], str]] = {
    "part": (
        lambda b, t: b.op("slice", {"dim": 1, "start": 1, "stop": 5, "step": 1}, x=t),
        "does not visit its elements once each",
    ),
    "broadcast": (
        lambda b, t: b.op("add", a=b.op("expand", {"shape": (3, 4, 6)}, x=t), b=t),
        "does not visit its elements once each",
    ),
    "padded": (lambda b, t: b.op("pad", {"pad": (1, 2), "value": 0.5}, x=t), "reads it under a condition"),
    "two places": (
        lambda b, t: b.pointwise(lambda u, v: u * v, t, b.op("flip", {"dims": (0,)}, x=t)),
        "reads it at several places",
    ),
}


@pytest.mark.parametrize("how", KEPT)
def test_keep_refuses_where_the_consumer_does_not_visit_each_element_once(how: str) -> None:
    build, reason = KEPT[how]

    def both(b: Any, x: Any) -> list[Any]:
        t = b.op("sigmoid", x=x)
        return [t, build(b, t)]

    p = forward(both, x=(4, 6))
    refuse = MapFusion("refuse")
    for m in matches(refuse, p):
        refuse.try_apply(m)
    m = next(m for m in matches(MapFusion("keep"), p, mid="sigmoid"))
    assert_refuses(MapFusion("keep"), m, reason)


def test_a_producer_of_several_results_that_the_consumer_reads_all() -> None:
    """Siblings make one map of two; its two results then go into one consumer."""
    from shorthaul.transforms.level2_fusion.sibling_fusion import SiblingFusion

    p = forward(lambda b, x: b.op("mul", a=b.op("sigmoid", x=x), b=b.op("tanh", x=x)), x=(4, 6))
    apply_checked(SiblingFusion(), matches(SiblingFusion(), p)[0])
    m = matches(MapFusion("refuse"), p)[0]
    apply_checked(MapFusion("refuse"), m)
    assert len(kernels(p)) == 1


def test_a_producer_of_several_results_of_which_one_is_kept() -> None:
    from shorthaul.transforms.level2_fusion.sibling_fusion import SiblingFusion

    def build(b: Any, x: Any) -> list[Any]:
        t, u = b.op("sigmoid", x=x), b.op("tanh", x=x)
        return [u, b.op("mul", a=t, b=u)]

    p = forward(build, x=(4, 6))
    apply_checked(SiblingFusion(), matches(SiblingFusion(), p)[0])
    assert_refuses(MapFusion("refuse"), matches(MapFusion("refuse"), p)[0], "something else needs the intermediate")
    m = next(m for m in matches(MapFusion("recompute"), p) if m.mid == "sigmoid")
    apply_checked(MapFusion("recompute"), m)  # as a clone would: undone below
    p.undo()
    apply_checked(MapFusion("keep"), matches(MapFusion("keep"), p)[0])
    (k,) = kernels(p)
    assert k.written_containers() == {"tanh", "mul"}


# refusals ----------------------------------------------------------------------------------------------------------------------
def test_refuses_a_producer_that_combines() -> None:
    p = forward(lambda b, x: b.op("neg", x=b.op("sum", {"dims": (1,)}, x=x)), x=(4, 6))
    assert_refuses(
        MapFusion(), only(matches(MapFusion(), p)), "combines values into the intermediate; see ReductionFusion"
    )


def test_refuses_an_intermediate_of_several_writers() -> None:
    p = forward(lambda b, x, y: b.op("neg", x=b.op("cat", {"dim": 0}, x0=x, x1=y)), x=(2, 3), y=(4, 3))
    for m in matches(MapFusion(), p, second="neg"):
        assert_refuses(MapFusion(), m, "written by several nodes")


def test_reads_by_indices_that_are_data_go_through() -> None:
    """The producer is evaluated where the indices point: a loss picks one of the logarithms of a row."""

    def picked(b: Any, x: Any, i: Any) -> Any:
        return b.op("embedding", weight=b.op("sigmoid", x=b.op("mul", a=x, b=x)), indices=i)

    p = forward(picked, dtypes={"i": int64}, x=(6, 3), i=(5,))
    for first in ("mul", "sigmoid"):
        apply_checked(MapFusion(), only(matches(MapFusion(), p, first=first)))
    (fused,) = kernels(p)
    assert movement(p).bytes == 5 * 8 + 2 * 5 * 3 * 8 and fused.tasklet is not None

    def loss(b: Any, x: Any, t: Any) -> Any:
        return b.op("nll_loss", x=b.op("log_softmax", {"dim": 1}, x=x), target=t)[0]

    p = forward(loss, dtypes={"t": int64}, x=(6, 4), t=(6,))
    before = {n: p.containers[n].shape for n in p.containers}
    inputs = values(p)
    expected = results(p, inputs)
    fuse(p, [MapFusion("refuse")])
    assert (6, 4) in before.values() and not any(c.shape == (6, 4) and not c.is_external for c in p.containers.values())
    assert_same(p, inputs, expected)
    assert_compiled(p, inputs, expected)


def test_refuses_indices_that_are_data_where_the_producer_computes_with_them() -> None:
    def gathers(b: Any, x: Any, i: Any) -> Any:
        return b.op("embedding", weight=b.op("triu", {"diagonal": 0}, x=x), indices=i)

    p = forward(gathers, dtypes={"i": int64}, x=(6, 3), i=(5,))
    assert_refuses(MapFusion(), only(matches(MapFusion(), p, first="triu")), "computes with what the consumer's indices")


def test_refuses_indices_that_are_data_where_they_repeat_costly_work() -> None:
    def gathers(b: Any, x: Any, i: Any) -> Any:
        return b.op("embedding", weight=b.op("sigmoid", x=x), indices=i)

    p = forward(gathers, dtypes={"i": int64}, x=(2, 3), i=(5,))
    assert_refuses(MapFusion(), only(matches(MapFusion(), p, first="sigmoid")), "recomputing costs 10 operations")


def test_refuses_to_make_indices_on_the_way() -> None:
    def gathers(b: Any, x: Any, i: Any) -> Any:
        return b.op("embedding", weight=x, indices=b.op("abs", x=i))

    p = forward(gathers, dtypes={"i": int64}, x=(2, 3), i=(5,))
    assert_refuses(
        MapFusion(), only(matches(MapFusion(), p, first="abs")), "holds indices by which the consumer addresses memory"
    )


def test_refuses_dear_code_that_the_consumer_would_repeat() -> None:
    """A matrix product reads each element of its operands many times."""
    p = forward(
        lambda b, x, w: b.op("contract", {"equation": "ik,kj->ij"}, a=b.op("gelu", x=x), b=w), x=(4, 6), w=(6, 5)
    )
    m = only(matches(MapFusion(), p, first="gelu"))
    assert_refuses(MapFusion(), m, "reads each element several times, and recomputing costs")
    apply_checked(MapFusion(max_repeat=1000), m)


def test_repeats_code_that_is_next_to_free() -> None:
    p = forward(
        lambda b, x, w: b.op("contract", {"equation": "ik,kj->ij"}, a=b.op("neg", x=x), b=w), x=(4, 6), w=(6, 5)
    )
    apply_checked(MapFusion("refuse"), only(matches(MapFusion("refuse"), p, first="neg")))


def test_recompute_refuses_what_reads_more_than_it_saves() -> None:
    def build(b: Any, x: Any, y: Any, z: Any) -> list[Any]:
        t = b.op("add", a=b.op("add", a=x, b=y), b=z)
        return [b.op("neg", x=t), b.op("square", x=t)]

    p = forward(build, x=(4, 6), y=(4, 6), z=(4, 6))
    fuse(p, [MapFusion("refuse")])
    m = only(matches(MapFusion("recompute"), p, second="neg"))
    assert_refuses(MapFusion("recompute"), m, "bytes more to save")
    assert_refuses(MapFusion("recompute", max_recompute=0), m, "recomputing costs")


def test_backward_maps_do_not_take_in_forward_ones() -> None:
    p = network(lambda b, x: b.op("square", x=b.op("sigmoid", x=x)), x=(4, 6))
    assert not [m for m in matches(MapFusion(), p) if m.first.phase != m.second.phase]


def test_16_bit_values_that_stay_in_a_kernel_keep_their_precision() -> None:
    from shorthaul.ir.dtypes import bfloat16

    p = forward(lambda b, x: b.op("sigmoid", x=b.op("tanh", x=x)), dtypes={"x": bfloat16}, x=(4, 6))
    fuse(p)
    (k,) = kernels(p)
    (code,) = k.tasklet.code.values()  # type: ignore[union-attr]
    assert [s.dtype.name for s in walk(code) if s.op == "cast"] == ["float32", "bfloat16"]


def test_refuses_a_cycle_through_a_third_node() -> None:
    """The consumer needs a sum over what the producer makes, too: by hand as in the fusion stage the check says so."""

    def build(b: Any, x: Any) -> Any:
        t = b.op("tanh", x=x)
        return b.op("mul", a=t, b=b.op("sum", {"dims": (1,), "keepdim": True}, x=t))

    p = network(build, train=False, x=(4, 6))
    assert_refuses(MapFusion("keep"), only(matches(MapFusion("keep"), p, first="tanh", second="mul")), "through a node between them")


@pytest.mark.parametrize("most", [4, 100])
def test_results_of_many_layers_do_not_wait_for_their_sum(most: int) -> None:
    """Each layer's result is added to what there is; a sum of all of them would keep every one in memory until the last is there."""

    def build(b: Any, x: Any, w: Any) -> Any:
        total = None
        for _ in range(12):
            x = b.op("contract", {"equation": "ij,jk->ik"}, a=x, b=w)
            total = x if total is None else b.op("add", a=total, b=x)
        return b.op("tanh", x=total)

    p = network(build, train=False, maps=False, x=(64, 16), parameters={"w": (16, 16)})
    inputs = values(p)
    expected = results(p, inputs)
    STAGES["Expand"](p)
    fuse(p, [MapFusion("keep", max_held=most)])
    reads = sorted(len(p.reads_of(k)) for k in kernels(p))
    assert sum(reads) == 12 + len(reads) - 1 and reads[-1] == min(most + 1, 12)
    assert liveness(p).peak["forward"] <= (min(most, 11) + 3) * 64 * 16 * 8
    assert_same(p, inputs, expected)
    if most == 4:
        for m in matches(MapFusion("keep"), p):
            assert_refuses(MapFusion("keep"), m, "bytes would wait in memory for it while library calls run")
