"""ShareBuffers: the plan of memory, and that buffers which live at the same time never share it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compiled import assert_compiled
from transform_nets import network, results, values

from shorthaul.analysis.arena import arena_bytes, plan_arena
from shorthaul.analysis.movement import movement
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Program
from shorthaul.pipeline import STAGES
from shorthaul.runtime.compile import compile_program
from shorthaul.transforms.base import Refusal
from shorthaul.workbench import apply


@pytest.mark.parametrize("plan", ["soon", "tight", "step"])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_that_live_at_the_same_time_lie_apart(plan: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [(f"b{i}", int(rng.integers(0, 900)), a := int(rng.integers(0, 30)), a + int(rng.integers(0, 9))) for i in range(60)]
    offsets, top = plan_arena(blocks, plan)
    assert top <= plan_arena(blocks, "soon")[1]
    for i, (a, size_a, first_a, last_a) in enumerate(blocks):
        assert offsets[a] % 64 == 0 and offsets[a] + size_a <= top
        for b, size_b, first_b, last_b in blocks[:i]:
            if first_a <= last_b and first_b <= last_a:
                assert offsets[a] + size_a <= offsets[b] or offsets[b] + size_b <= offsets[a]


def growing() -> Program:
    """Values that grow, so that none fits where an earlier one was."""

    def build(b: Any, x: Any) -> Any:
        t = x
        for n in (2, 3, 4, 5):
            t = b.op("cumsum", {"dim": 0}, x=b.op("cat", {"dim": 0}, **{f"x{k}": x if k else t for k in range(n - 1)}))
        return b.op("sum", {"dims": (0,), "keepdim": False}, x=t)

    p = network(build, train=False, x=(8, 16))
    STAGES["Schedule"](p)
    return p


def test_the_arena_shrinks_as_claimed_and_the_numbers_stay() -> None:
    p = growing()
    inputs = values(p)
    expected = results(p, inputs)
    before, moved = fingerprint(p), movement(p).bytes
    sizes = compile_program(p).executable.layout({}).arena_bytes
    assert sizes["forward"] == arena_bytes(p, "soon")["forward"]
    apply(p, "ShareBuffers")
    assert p.log[-1].notes["saves"] == 0 and movement(p).bytes == moved
    after = compile_program(p).executable.layout({}).arena_bytes
    assert sizes["forward"] - after["forward"] == p.log[-1].notes["memory"] > 0
    assert_compiled(p, inputs, expected)
    p.undo()
    assert fingerprint(p) == before and "memory_plan" not in p.attributes
    apply(p, "ShareBuffers")
    apply(p, "ShareBuffers", plan="soon")  # and by hand back
    assert p.attributes["memory_plan"] == "soon" and p.log[-1].notes["memory"] < 0


def test_refusals() -> None:
    p = growing()
    with pytest.raises(ValueError, match="plan is one of 'soon', 'tight'"):
        apply(p, "ShareBuffers", plan="loose")
    with pytest.raises(Refusal, match="memory is planned 'soon' already"):
        apply(p, "ShareBuffers", plan="soon")
    q = network(lambda b, x: b.op("tanh", x=x), train=False, x=(3, 4))
    with pytest.raises(Refusal, match="not scheduled yet"):
        apply(q, "ShareBuffers")
    STAGES["Schedule"](q)
    with pytest.raises(Refusal, match="share memory as tightly already"):
        apply(q, "ShareBuffers")
    assert not q.attributes.get("memory_plan")


def test_kernels_that_run_one_after_the_other_share_memory() -> None:
    """A run of kernels is one call; memory is planned by kernel all the same."""

    def build(b: Any, x: Any) -> Any:
        for _ in range(6):
            x = b.op("cumsum", {"dim": 0}, x=x)
        return x

    p = network(build, train=False, x=(64, 16))
    STAGES["Schedule"](p)
    compiled = compile_program(p).executable
    assert len(compiled.host.phases["forward"].steps) == 1
    assert compiled.layout({}).arena_bytes["forward"] == 2 * 64 * 16 * torch.float64.itemsize


def chain(b: Any, x: Any) -> Any:
    for _ in range(5):
        x = b.op("cumsum", {"dim": 0}, x=b.op("tanh", x=x))
    return b.op("mul", a=x, b=x)


def test_the_backward_phase_writes_over_saved_values() -> None:
    """Its gradients are those of a backward phase with memory of its own (`assert_compiled` runs both)."""
    p = network(chain, x=(64, 16))
    STAGES["Schedule"](p)
    inputs = values(p)
    expected = results(p, inputs)
    apart = arena_bytes(p, "tight")
    apply(p, "ShareBuffers", plan="step")
    assert sum(apart.values()) > arena_bytes(p, "step")["saved"] >= apart["saved"]
    layout = compile_program(p).executable.layout({})
    assert layout.shared and layout.saved_bytes == arena_bytes(p, "step")["saved"]
    assert_compiled(p, inputs, expected)
    p.undo()
    assert not compile_program(p).executable.layout({}).shared
