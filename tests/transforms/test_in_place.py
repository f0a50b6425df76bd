"""InPlace: results over operands that die."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transform_nets import assert_refuses, assert_same, kernels, matches, network, only, results, values

from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Program
from shorthaul.ir.verify import verify
from shorthaul.pipeline import _schedule
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.map_fusion import MapFusion
from shorthaul.transforms.level2_fusion.sibling_fusion import SiblingFusion
from shorthaul.transforms.level4_global.in_place import InPlace


def chain(b: Any, x: Any) -> Any:
    return b.op("neg", x=b.op("sigmoid", x=b.op("tanh", x=x)))


def scheduled(build: Callable[..., Any], train: bool = False, **shapes: Any) -> Program:
    p = network(build, train=train, **shapes)
    _schedule(p)
    return p


def test_a_result_takes_the_place_of_an_operand_that_dies() -> None:
    p = scheduled(chain, x=(4, 6))
    inputs = values(p)
    expected, before = results(p, inputs), fingerprint(p)
    peak, moved = liveness(p).peak["forward"], movement(p).bytes
    m = only(matches(InPlace(), p, mid="sigmoid"))
    InPlace().check(m)
    assert InPlace().saves(m) == 0
    assert InPlace().try_apply(m)
    verify(p)
    assert_same(p, inputs, expected)
    assert movement(p).bytes == moved
    assert liveness(p).peak["forward"] == peak and p.containers["sigmoid"].alias.base == "tanh"  # type: ignore[union-attr]
    p.undo()
    assert fingerprint(p) == before


def test_a_chain_runs_in_one_buffer() -> None:
    p = scheduled(lambda b, x: b.op("exp", x=chain(b, x)), x=(4, 6))
    inputs = values(p)
    expected = results(p, inputs)
    peak = liveness(p).peak["forward"]
    assert apply_everywhere(p, [InPlace()]).applied == 2
    verify(p)
    assert_same(p, inputs, expected)
    assert liveness(p).peak["forward"] <= peak
    assert len({c.name for c in p.containers.values() if c.role == "transient" and c.alias is None}) == 1


def read_twice(b: Any, x: Any) -> Any:
    t = b.op("tanh", x=x)
    return b.op("mul", a=b.op("neg", x=b.op("sigmoid", x=t)), b=t)


REFUSED: dict[str, tuple[Callable[..., Any], str, str]] = {
    "needed later": (read_twice, "sigmoid", "tanh is needed later"),
    "an input": (lambda b, x: b.op("neg", x=b.op("sigmoid", x=x)), "sigmoid", "the operand's memory is the caller's"),
    "an output": (lambda b, x: b.op("sigmoid", x=b.op("tanh", x=x)), "sigmoid", "the caller gets its result"),
    "other elements": (lambda b, x: b.op("neg", x=b.op("flip", {"dims": (1,)}, x=b.op("tanh", x=x))), "flip",
                       "reads other elements of the operand"),
    "a reduction": (lambda b, x: b.op("neg", x=b.op("sum", {"dims": (1,)}, x=b.op("tanh", x=x))), "sum",
                    "more than one elementwise result"),
    "another shape": (lambda b, x: b.op("neg", x=b.op("reshape", {"shape": (24,)}, x=b.op("tanh", x=x))), "reshape",
                      "another type or layout"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refuses(why: str) -> None:
    build, mid, reason = REFUSED[why]
    p = scheduled(build, x=(4, 6))
    assert_refuses(InPlace(), only(matches(InPlace(), p, mid=mid)), reason)


def test_refuses_what_the_backward_phase_reads() -> None:
    p = scheduled(lambda b, x: b.op("square", x=b.op("sigmoid", x=b.op("tanh", x=x))), train=True, x=(4, 6))
    assert_refuses(
        InPlace(), next(m for m in matches(InPlace(), p, mid="sigmoid") if m.operand == "tanh"), "tanh is needed later"
    )
    inputs = values(p)
    expected = results(p, inputs)
    apply_everywhere(p, [InPlace()])
    verify(p)
    assert_same(p, inputs, expected)
    assert kernels(p)


def test_refuses_a_map_that_writes_two_parts_of_its_result() -> None:
    def build(b: Any, x: Any) -> Any:
        return b.op("neg", x=b.op("cat", {"dim": 1}, x0=b.op("sin", x=x), x1=b.op("cos", x=x)))

    p = network(build, train=False, x=(4, 6))
    fuse(p, [MapFusion("refuse"), SiblingFusion()])
    _schedule(p)
    found = [m for m in matches(InPlace(), p, mid="cat") if len(m.node.tasklet.writes) == 2]
    assert_refuses(InPlace(), only(found), "more than one elementwise result")
