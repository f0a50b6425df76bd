"""SavedBits: where the backward phase asks a saved value only yes or no, a bit of each answer is saved, eight to a byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compiled import assert_compiled, compiled_results
from transform_nets import apply_checked, assert_refuses, kernels, matches, network, results, values

import shorthaul as sh
from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.config import Options
from shorthaul.ir.dtypes import bool_, float64, uint8
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, apply, read, where
from shorthaul.ops.expand import choose_default, expand
from shorthaul.pipeline import optimize
from shorthaul.symbolic import Symbol
from shorthaul.transforms.base import Match, apply_everywhere
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code
from shorthaul.transforms.level4_global.mask_from_result import MaskFromResult
from shorthaul.transforms.level4_global.saved_bits import SavedBits

TRAFFIC, MEMORY = SavedBits(least=1), SavedBits("memory", least=1)
ROWS = 16


def product(b: Any, x: Any, w: Any) -> Any:
    return b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w)


def relu(b: Any, x: Any, w: Any) -> Any:
    """The operand, which a library writes, is saved for its signs alone."""
    return b.op("neg", x=b.op("relu", x=product(b, x, w)))


def between(b: Any, x: Any, w: Any, v: Any) -> Any:
    """The result is the operand of another product by library, whose gradient needs it itself; the mask is taken from it, too."""
    return product(b, b.op("relu", x=product(b, x, w)), v)


def pointwise(b: Any, code: Scalar, **operands: Any) -> Any:
    return b.op("pointwise", {"code": code}, **operands)


def masked(b: Any, x: Any, w: Any) -> Any:
    """A mask that is computed once and saved, a byte an element."""
    h = product(b, x, w)
    mask = pointwise(b, apply("gt", apply("sin", read("x0", float64)), 0.25), x0=h)
    return pointwise(b, where(read("m", bool_), read("h", float64), 0.5), m=mask, h=h)


def program(build: Callable[..., Any] = relu, rows: Any = ROWS, **network_options: Any) -> Program:
    parameters: dict[str, Any] = {"w": (8, 5), "v": (4, 8)} if build is between else {"w": (8, 5)}
    p = network(build, maps=False, x=(rows, 5), parameters=parameters, **network_options)
    expand(p, choose_default)
    apply_everywhere(p, [MaskFromResult()])
    fuse(p)
    eliminate_dead_code(p)
    return p


def place(p: Program, t: SavedBits = TRAFFIC) -> Match:
    """The one place where it applies."""
    (found,) = [m for m in matches(t, p) if t.try_apply(m) and (p.undo() or True)]
    return next(m for m in matches(t, p) if m.mid == found.mid)


def test_of_a_relu_that_nothing_else_needs_a_bit_is_saved() -> None:
    p = program()
    inputs = values(p)
    inputs["x"][3] = np.nan  # a comparison with it is answered as before
    expected = results(p, inputs)
    before, saved, count = movement(p).bytes, liveness(p).saved_bytes, len(p.nodes)
    m = place(p)
    apply_checked(TRAFFIC, m)
    assert len(p.nodes) == count, "bits are stored and read in passing"
    elements = ROWS * 8
    assert before - movement(p).bytes == elements * 8 - 2 * elements // 8
    assert saved - liveness(p).saved_bytes == elements * 8 - elements // 8 == p.log[-1].notes["memory"]
    for k, v in results(p, inputs).items():
        np.testing.assert_array_equal(v, expected[k])
    fresh = values(p, 1)
    assert_compiled(p, fresh, results(p, fresh))


def test_beside_a_library_call_that_needs_the_value_kernels_read_the_bits() -> None:
    p = program(between)
    before = movement(p).bytes
    m = place(p)
    assert m.writer.label == "relu"
    assert_refuses(MEMORY, m, "the backward phase needs the value itself, too")
    apply_checked(TRAFFIC, m)
    assert m.mid in p.containers and p.log[-1].notes["memory"] == -ROWS
    assert before - movement(p).bytes == ROWS * 8 * 8 - 2 * ROWS
    inputs = values(p)
    assert_compiled(p, inputs, results(p, inputs))


def test_a_mask_is_packed() -> None:
    p = program(masked)
    m = place(p)
    assert p.containers[m.mid].dtype is bool_
    saved = liveness(p).saved_bytes
    apply_checked(TRAFFIC, m)
    assert m.mid not in p.containers
    assert saved - liveness(p).saved_bytes == ROWS * 8 - ROWS
    inputs = values(p)
    assert_compiled(p, inputs, results(p, inputs))


def test_for_the_memory_alone_a_kernel_packs() -> None:
    """No elementwise kernel of the forward phase sees the value: the only one that reads it sums."""

    def build(b: Any, x: Any, w: Any) -> Any:
        return b.op("sum", {"dims": (1,), "keepdim": False}, x=b.op("relu", x=product(b, x, w)))

    p = program(build)
    (m,) = [m for m in matches(MEMORY, p) if "contract" in m.writer.label]
    assert_refuses(TRAFFIC, m, "no elementwise kernel of the forward phase, of few operations, goes through it")
    count, saved = len(kernels(p, "forward")), liveness(p).saved_bytes
    apply_checked(MEMORY, m)
    assert len(kernels(p, "forward")) == count + 1
    assert saved - liveness(p).saved_bytes == p.log[-1].notes["memory"] == ROWS * 8 * 8 - ROWS
    inputs = values(p)
    assert_compiled(p, inputs, results(p, inputs))


def test_other_conditions_than_a_sign_are_packed_too() -> None:
    """Both bounds of a ReLU6, which its gradient asks in one condition."""
    x = read("x0", float64)
    inside = apply("gt", x, 0) & apply("lt", x, 1)
    p = program(lambda b, x, w: pointwise(b, where(inside, read("y0", float64) * 2, 3.0), x0=(h := product(b, x, w)), y0=h))
    apply_checked(TRAFFIC, place(p))


def test_eights_lie_along_the_fastest_dimension_but_the_innermost() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1)).double()
    p = sh.capture(model, (torch.randn(2, 3, 6, 16, dtype=torch.float64),), train=True)
    optimize(p, Options(3), check=True)  # channels-last; without memory planning
    found = [m for m in matches(TRAFFIC, p) if TRAFFIC.try_apply(m)]
    assert found
    (bits,) = [c for c in p.containers.values() if c.dtype is uint8]
    assert bits.shape == (2, 8, 6, 2) and bits.actual_strides == (96, 1, 16, 8)  # of images of six rows and sixteen columns
    inputs = values(p)
    assert_compiled(p, inputs, results(p, inputs))


def test_sizes_may_be_symbolic() -> None:
    n = Symbol("n", 1)
    p = network(lambda b, x: b.op("neg", x=b.op("relu", x=b.op("cumsum", {"dim": 0}, x=x))), x=(n, 8, 3), sizes=(n,))
    fuse(p)
    p.attributes["size_hints"] = {"n": 5}
    found = [m for m in matches(TRAFFIC, p) if TRAFFIC.try_apply(m) and (p.undo() or True)]
    m = next(x for x in matches(TRAFFIC, p) if x.mid == found[0].mid)
    apply_checked(TRAFFIC, m, sizes={n: 3})


REFUSED: dict[str, tuple[Callable[..., Any], int, SavedBits, str]] = {
    "rows": (relu, 6, TRAFFIC, "no dimension but the innermost is a multiple of 8"),
    "the value": (lambda b, x, w: b.op("sin", x=product(b, x, w)), ROWS, TRAFFIC, "the backward phase needs the value itself"),
    "small": (relu, ROWS, SavedBits(), "it has only 1024 bytes"),
    "the value beside": (lambda b, x, w: pointwise(b, where(apply("le", v := read("x0", float64), 0.0), 0.0, v * v), x0=product(b, x, w)),
                         ROWS, TRAFFIC, "the backward phase needs the value itself"),
    "two conditions": (lambda b, x, w: [b.op("neg", x=b.op("relu", x=(h := product(b, x, w)))),
                                        pointwise(b, where(apply("lt", read("x0", float64), 0.5), read("y0", float64), 1.0), x0=h,
                                                  y0=b.op("tanh", x=product(b, x, w)))], ROWS, TRAFFIC, "different conditions"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refuses_with_the_reason(why: str) -> None:
    build, rows, t, reason = REFUSED[why]
    p = program(build, rows)
    found = [m for m in matches(t, p) if "contract" in m.writer.label]
    assert_refuses(t, found[0], reason)


def test_the_pipeline_does_it_on_request_only() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    x = torch.randn(512, 16)
    p = sh.capture(model, (x,), train=True)
    plain, asked = p.clone(), p.clone()
    optimize(plain, Options(4), check=True)
    optimize(asked, Options(4, saved="bits"), check=True)
    assert not [r for r in plain.log if r.name == "SavedBits"]
    done = [r for r in asked.log if r.name == "SavedBits"]
    assert done and not any(r.notes.get("rounding") for r in asked.log)
    assert movement(plain).bytes - movement(asked).bytes == sum(r.notes["saves"] for r in done)
    inputs = values(asked)
    expected = compiled_results(plain, inputs)
    for k, v in compiled_results(asked, inputs).items():
        np.testing.assert_allclose(v, expected[k], rtol=1e-5, atol=1e-5 * np.abs(expected[k]).max(), err_msg=k)
