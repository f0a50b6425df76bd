"""LinearReductionFusion: one pass for two sums over the same data, the second of which needs the first's result."""

from __future__ import annotations

from typing import Any

from transform_nets import apply_checked, assert_refuses, kernels, matches, network

from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol
from shorthaul.transforms.base import Match
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.linear_reduction_fusion import LinearReductionFusion
from shorthaul.transforms.level2_fusion.map_fusion import MapFusion

N = Symbol("N", 1)
T = LinearReductionFusion


def sums(summand: Any, *, between: str = "exp", sizes: Any = (), rows: Any = 3, dims: tuple[int, ...] = (0, 2), width: int = 64) -> Program:
    """s[n, c] = sum_i x * y; t = between(s); r = sum over `dims` of summand(b, x, y, t[n, c, 0])."""

    def build(b: Any, x: Any, y: Any) -> Any:
        t = b.op(between, x=b.op("sum", {"dims": (2,), "keepdim": True}, x=b.op("mul", a=x, b=y)))
        return [t, b.op("sum", {"dims": dims}, x=summand(b, x, y, t))]

    p = network(build, train=False, sizes=sizes, x=(rows, 4, width), y=(rows, 4, width))
    fuse(p, [MapFusion("refuse"), MapFusion("recompute")])
    return p


def pair(p: Program) -> Match:
    """The two sums, on the data that both read."""
    (m,) = [m for m in matches(T(), p) if not m.first.is_elementwise and not m.second.is_elementwise and m.mid in "xy"]
    return m


def product_of_sum(b: Any, x: Any, y: Any, t: Any) -> Any:
    return b.op("mul", a=b.op("add", a=x, b=t), b=b.op("sigmoid", x=y))


def test_a_sum_that_needs_the_first_linearly_joins_its_pass() -> None:
    p = sums(product_of_sum)
    before = len(kernels(p))
    apply_checked(T(), pair(p))
    assert len(kernels(p)) == before  # one pass over the data, and one over the partial sums
    assert sum("x" in p.reads_of(k) for k in kernels(p)) == 1


def test_symbolic_sizes() -> None:
    p = sums(product_of_sum, sizes=[N], rows=N)
    apply_checked(T(), pair(p), sizes={N: 5})


def test_rows_that_stay_need_no_second_sum() -> None:
    p = sums(product_of_sum, dims=(2,))
    apply_checked(T(), pair(p))
    assert sum(any(m.combine for m in k.tasklet.writes.values()) for k in kernels(p)) == 1


def test_differences_quotients_and_signs_are_linear() -> None:
    def summand(b: Any, x: Any, y: Any, t: Any) -> Any:
        value = b.op("neg", x=b.op("sub", a=b.op("mul", a=x, b=t), b=b.op("mul", a=t, b=t)))
        return b.op("div", a=value, b=b.op("exp", x=y))

    apply_checked(T(), pair(sums(summand)))


def test_refuses_what_is_not_linear() -> None:
    p = sums(lambda b, x, y, t: b.op("mul", a=y, b=b.op("sigmoid", x=b.op("add", a=x, b=t))))
    assert_refuses(T(), pair(p), "not linear in what depends on the first: sigmoid")


def test_refuses_an_independent_sum() -> None:
    p = sums(lambda b, x, y, t: b.op("mul", a=x, b=b.op("exp", x=y)))
    assert_refuses(T(), pair(p), "does not depend on the first; see SiblingFusion")


def test_refuses_partial_sums_that_are_not_small() -> None:
    p = sums(product_of_sum, width=16)
    assert_refuses(T(), pair(p), "not small beside the shared data")


def test_refuses_other_combiners() -> None:
    def build(b: Any, x: Any, y: Any) -> Any:
        t = b.op("sum", {"dims": (2,), "keepdim": True}, x=b.op("mul", a=x, b=y))
        return [t, b.op("amax", {"dims": (0, 2)}, x=product_of_sum(b, x, y, t))]

    p = network(build, train=False, x=(3, 4, 64), y=(3, 4, 64))
    fuse(p, [MapFusion("refuse"), MapFusion("recompute")])
    assert_refuses(T(), pair(p), "not a plain sum")


def test_the_gradient_of_a_gate_behind_a_norm_takes_one_pass() -> None:
    """Squeeze-excite between a batch norm and a convolution: the sums of the norm's gradient and of the gate's read the data once."""

    def build(b: Any, x: Any, w: Any, bias: Any) -> Any:
        h = b.op("sigmoid", x=b.op("add", a=b.op("mul", a=x, b=w), b=bias))
        gate = b.op("tanh", x=b.op("mean", {"dims": (2,), "keepdim": True}, x=h))
        return b.op("mul", a=h, b=gate)

    p = network(build, x=(3, 4, 64), parameters={"w": (1, 4, 1), "bias": (1, 4, 1)})
    fuse(p)
    cotangent = p.signature.cotangents[0][1]
    passes = [k for k in kernels(p, "backward") if cotangent in p.reads_of(k)]
    reductions = [k for k in passes if any(x.is_write and x.memlet.combine for x in k.accesses())]
    assert len(reductions) == 1, [k.label for k in reductions]
