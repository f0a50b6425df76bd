"""Recompute: cheap forward values are evaluated again in the backward phase."""

from __future__ import annotations

from typing import Any

from transform_nets import apply_checked, assert_refuses, assert_same, matches, network, only, results, values

from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.ir.program import Program
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code
from shorthaul.transforms.level4_global.recompute import Recompute


def activation(b: Any, x: Any) -> Any:
    return b.op("square", x=b.op("sigmoid", x=x))


def saved(p: Program) -> list[str]:
    return [name for name, _ in liveness(p).saved]


def test_a_saved_value_is_computed_again_and_not_saved() -> None:
    p = network(activation, x=(4, 6))
    assert saved(p) == ["sigmoid"]
    apply_checked(Recompute(), only(matches(Recompute(), p, mid="sigmoid")))
    assert saved(p) == []


def test_its_cost_comes_back_with_the_fusions() -> None:
    """The claims of the log add up to what movement fell by, and the whole moves less than without it."""
    totals = {}
    for again in (True, False):
        p = network(activation, x=(4, 6))
        inputs = values(p)
        expected = results(p, inputs)
        start, before = len(p.log), movement(p).bytes
        if again:
            assert apply_everywhere(p, [Recompute()]).applied == 1
        fuse(p)
        verify(p)
        assert_same(p, inputs, expected)
        assert sum(r.notes["saves"] for r in p.log[start:]) == before - movement(p).bytes
        totals[again] = movement(p).bytes
    assert totals[True] < totals[False]


def test_refuses_a_reduction() -> None:
    p = network(lambda b, x: b.op("square", x=b.op("sum", {"dims": (1,)}, x=x)), x=(4, 6))
    assert_refuses(Recompute(), only(matches(Recompute(), p, mid="sum")), "the value comes from a reduction")


def test_recomputes_an_output_from_what_backward_reads_anyway() -> None:
    def chain(b, x, w):  # type: ignore[no-untyped-def]
        y, _, _ = b.op("layer_norm", {"normalized_shape": (64,)}, x=b.op("tanh", x=x), weight=w, bias=w)
        return b.op("softmax", {"dim": -1}, x=y)

    p = network(chain, x=(32, 64), w=(64,))
    (output,) = p.signature.outputs
    assert Recompute().try_apply(only(matches(Recompute(), p, mid=output)))
    assert not any(n.phase == "backward" for n in p.readers(output))



def test_a_chain_of_recomputations_can_be_bounded() -> None:
    def powers(b: Any, x: Any) -> Any:
        y = b.op("sigmoid", x=x)  # 10 operations, each square 1
        for _ in range(3):
            y = b.op("square", x=y)
        return y

    for limit, kept in ((None, []), (11, ["sigmoid"]), (12, [])):
        p = network(powers, x=(4, 6))
        apply_everywhere(p, [Recompute(max_chain=limit)])
        assert saved(p) == kept
    p = network(powers, x=(4, 6))
    bounded = Recompute(max_chain=11)
    apply_everywhere(p, [bounded])
    assert_refuses(bounded, only(matches(bounded, p, mid="sigmoid")), "a chain of recomputed values costs 12 operations")


def test_refuses_dear_code() -> None:
    p = network(activation, x=(4, 6))
    assert_refuses(Recompute(max_cost=1), only(matches(Recompute(max_cost=1), p)), "recomputing costs")


def test_refuses_to_save_more_than_it_frees() -> None:
    def build(b: Any, x: Any, y: Any) -> Any:
        t = b.op("sum", {"dims": (0,)}, x=b.op("reshape", {"shape": (2, 4, 6)}, x=x))
        u = b.op("sum", {"dims": (0,)}, x=b.op("reshape", {"shape": (2, 4, 6)}, x=y))
        return b.op("square", x=b.op("add", a=t, b=u))

    p = network(build, x=(8, 6), y=(8, 6))
    assert_refuses(Recompute(), only(matches(Recompute(), p, mid="add")), "bytes of operands instead of")


def test_refuses_parts() -> None:
    p = network(lambda b, x, y: b.op("square", x=b.op("cat", {"dim": 0}, x0=x, x1=y)), x=(4, 6), y=(2, 6))
    for m in matches(Recompute(), p, mid="cat"):
        assert_refuses(Recompute(), m, "several nodes write it")


def test_refuses_a_buffer_that_changes_between_the_phases() -> None:
    p = network(lambda b, x, r: [b.op("square", x=b.op("sigmoid", x=r)), b.op("add", a=x, b=r)], x=(4, 6), r=(4, 6))
    assert p.signature.outputs == ("square", "add")
    with p.edit("update") as edit:
        edit.set_signature(p.signature.with_(updates=(("r", "add"),)))
    assert_refuses(
        Recompute(), only(matches(Recompute(), p, mid="sigmoid")), "r has another value in the backward phase"
    )


def test_everything_that_pays_in_a_chain() -> None:
    def build(b: Any, x: Any, w: Any) -> Any:
        h = b.op("silu", x=b.op("mul", a=x, b=w))
        return b.op("softmax", {"dim": -1}, x=b.op("layer_norm", {"normalized_shape": (6,)}, x=h)[0])

    p = network(build, parameters={"w": (6,)}, x=(4, 6))
    inputs = values(p)
    expected = results(p, inputs)
    apply_everywhere(p, [Recompute()])
    eliminate_dead_code(p)
    verify(p)
    assert_same(p, inputs, expected)
    assert "mul" not in saved(p)


def stream(b: Any, x: Any, *added: Any) -> list[Any]:
    """A residual stream whose every state is squared, each square an output."""
    squares = []
    for f in added:
        x = b.op("add", a=x, b=f)
        squares.append(b.op("square", x=x))
    return squares


def chain(p: Program, node: Any) -> int:
    """How many recomputations lie behind one another before the node."""
    return max((1 + chain(p, n) for n in p.producers(node) if "_again" in str(p.writes_of(n)) and n.phase == "backward"), default=0)


def test_a_residual_stream_is_not_followed_to_its_beginning() -> None:
    """What is added is there anyway, so that memory alone would recompute every state from the first on, reading more and more."""
    shapes = {"x": (4, 6), **{f"f{i}": (4, 6) for i in range(8)}}
    moved = {}
    for again in (True, False):
        p = network(stream, **shapes)
        inputs = values(p)
        expected = results(p, inputs)
        if again:
            assert apply_everywhere(p, [Recompute()]).applied
            eliminate_dead_code(p)
            assert max(chain(p, n) for n in p.nodes if n.phase == "backward") <= 3
        fuse(p)
        verify(p)
        assert_same(p, inputs, expected)
        moved[again] = movement(p).bytes
    assert moved[True] <= moved[False]


def test_refuses_to_move_more() -> None:
    def build(b: Any, x: Any, y: Any, z: Any) -> list[Any]:
        total = b.op("add", a=b.op("add", a=x, b=y), b=z)
        return [b.op("reshape", {"shape": (24,)}, x=total), b.op("square", x=total)]

    p = network(build, x=(4, 6), y=(4, 6), z=(4, 6))
    (m,) = [m for m in matches(Recompute(), p) if "add" in m.mid]
    assert_refuses(Recompute(), m, "recomputing moves")
    assert Recompute(budget=0).try_apply(m), "a budget of memory comes first"
