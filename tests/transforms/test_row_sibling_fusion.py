"""RowSiblingFusion: a kernel over rows takes in an independent map that reads the same rows."""

from __future__ import annotations

from typing import Any

from transform_nets import apply_checked, assert_refuses, kernels, matches, network

from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.map_fusion import MapFusion
from shorthaul.transforms.level2_fusion.reduction_fusion import ReductionFusion
from shorthaul.transforms.level2_fusion.row_sibling_fusion import RowSiblingFusion

N = Symbol("N", 1)
T = RowSiblingFusion


def rows_and(other: Any, *, sizes: Any = (), rows: Any = 4, width: int = 6) -> Program:
    """The softmax of x, one kernel over rows, and `other(b, x)`."""
    p = network(lambda b, x: [b.op("softmax", {"dim": -1}, x=x), other(b, x)], train=False, sizes=sizes, x=(rows, width))
    fuse(p, [MapFusion("refuse"), ReductionFusion()])
    return p


def pair(p: Program, second: str) -> Any:
    (m,) = matches(T(), p, mid="x", second=second)
    return m


def test_a_sum_over_the_rows_joins_the_kernel_over_rows() -> None:
    p = rows_and(lambda b, x: b.op("sum", {"dims": (0,)}, x=x))
    apply_checked(T(), pair(p, "sum"))
    (k,) = kernels(p)
    assert k.tasklet is None


def test_an_elementwise_map_joins() -> None:
    p = rows_and(lambda b, x: b.op("tanh", x=x))
    apply_checked(T(), pair(p, "tanh"))
    assert len(kernels(p)) == 1


def test_two_kernels_over_the_same_rows_become_one() -> None:
    p = rows_and(lambda b, x: b.op("softmax", {"dim": -1}, x=b.op("neg", x=x)))
    (m,) = matches(T(), p, mid="x")
    apply_checked(T(), m)
    assert len(kernels(p)) == 1


def test_symbolic_sizes() -> None:
    p = rows_and(lambda b, x: b.op("sum", {"dims": (0,)}, x=x), sizes=[N], rows=N)
    apply_checked(T(), pair(p, "sum"), sizes={N: 5})


def test_a_scan_inside_rows_joins_and_one_from_row_to_row_is_refused() -> None:
    p = rows_and(lambda b, x: b.op("cumsum", {"dim": 1}, x=x))
    apply_checked(T(), pair(p, "cumsum"))
    p = rows_and(lambda b, x: b.op("cumsum", {"dim": 0}, x=x))
    assert_refuses(T(), pair(p, "cumsum"), "values are combined from row to row")


def test_refuses_a_consumer() -> None:
    p = rows_and(lambda b, x: b.op("mul", a=x, b=b.op("flip", {"dims": (0,)}, x=b.op("softmax", {"dim": -1}, x=x))))
    (m, *_) = [m for m in matches(T(), p, mid="x") if p.writes_of(m.first) & p.reads_of(m.second)]
    assert_refuses(T(), m, "one reads what the other writes")


def test_refuses_other_rows() -> None:
    p = rows_and(lambda b, x: b.op("tanh", x=b.op("permute", {"dims": (1, 0)}, x=b.op("flip", {"dims": (0,)}, x=x))))
    fuse(p, [MapFusion("refuse")])
    (m,) = matches(T(), p, mid="x")
    assert_refuses(T(), m, "does not follow the rows of the first")


def test_refuses_sums_too_large_for_a_copy_in_every_thread() -> None:
    p = rows_and(lambda b, x: b.op("sum", {"dims": (0,)}, x=x), width=64)
    (m,) = matches(T(row_bytes=1024), p, mid="x")
    assert_refuses(T(row_bytes=1024), m, "too many for a copy in every thread")
