"""NarrowStorage: what every reader rounds is stored rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled
from transform_nets import apply_checked, assert_refuses, kernels, matches, network, only, results, values

from shorthaul.ir.dtypes import float16, float32, float64
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, cast, read
from shorthaul.ir.verify import verify
from shorthaul.transforms.level3_layout.narrow_storage import NarrowStorage


def pointwise(b: Any, x: Any, code: Callable[[Scalar], Scalar]) -> Any:
    return b.op("pointwise", {"code": code(read("x0", x.dtype))}, x0=x)


def total(b: Any, x: Any) -> Any:
    return b.op("sum", {"dims": (1,), "keepdim": False}, x=x)


def narrow(x: Scalar) -> Scalar:
    return cast(x, float32)


def rounded_by_all(b: Any, x: Any) -> Any:
    s = total(b, x)
    return [pointwise(b, s, lambda v: narrow(v) * 2), pointwise(b, s, lambda v: cast(narrow(v) + 1, float64))]


def rounded_once(b: Any, x: Any) -> Any:
    y = pointwise(b, total(b, x), narrow)
    return [pointwise(b, y, lambda v: v * 2), pointwise(b, y, lambda v: v + 1)]


def rounded_and_not(b: Any, x: Any) -> Any:
    s = total(b, x)
    return [pointwise(b, pointwise(b, s, narrow), lambda v: v * 2), pointwise(b, s, lambda v: v * 3)]


def elementwise(b: Any, x: Any) -> Any:
    s = pointwise(b, x, lambda v: v * v)
    return [pointwise(b, s, lambda v: narrow(v) * 2), pointwise(b, s, lambda v: narrow(v) + 1)]


def program(build: Callable[..., Any], shape: tuple[int, ...] = (6, 5, 4)) -> Program:
    return network(build, train=False, x=shape)


@pytest.mark.parametrize("build", [rounded_by_all, rounded_once, elementwise])
def test_readers_move_narrow_elements(build: Callable[..., Any]) -> None:
    p = program(build)
    inputs = values(p)
    expected = results(p, inputs)
    before = len(kernels(p))
    apply_checked(NarrowStorage(), next(m for m in matches(NarrowStorage(), p) if not p.containers[m.mid].is_external))
    assert len(kernels(p)) == before - (build is rounded_once)  # the kernel that only rounded is gone
    assert not [c for c in p.containers.values() if c.dtype is float64 and c.role == "transient"]
    assert_compiled(p, inputs, expected)


def test_the_sum_itself_stays_wide() -> None:
    """A sum of a thousand to which each term adds less than the narrow type can say."""
    p = network(lambda b, x: [pointwise(b, pointwise(b, total(b, x), narrow), lambda v: v * 1)], train=False, x=(2, 40))
    x = np.concatenate([np.full((2, 1), 1e3), np.full((2, 39), 2e-5)], 1)
    assert NarrowStorage().try_apply(next(m for m in matches(NarrowStorage(), p) if not p.containers[m.mid].is_external))
    (found,) = results(p, {"x": x}).values()
    np.testing.assert_array_equal(found, np.float32(1e3 + 39 * 2e-5))


def test_beside_a_stored_rounding_other_readers_take_it_too() -> None:
    p = program(rounded_and_not)
    x = values(p)["x"]
    s = x.sum(1).astype(np.float32).astype(np.float64)
    assert NarrowStorage().try_apply(next(m for m in matches(NarrowStorage(), p) if not p.containers[m.mid].is_external))
    verify(p)
    first, second = (results(p, {"x": x})[n] for n in p.signature.outputs)
    np.testing.assert_array_equal(first, (s * 2).astype(np.float32))
    np.testing.assert_array_equal(second, s * 3)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "the caller's": (lambda b, x: [s := total(b, x), pointwise(b, s, narrow)], "the caller gets it as it is"),
    "as it is": (lambda b, x: [pointwise(b, s := total(b, x), lambda v: v * 3), pointwise(b, s, lambda v: narrow(v) * 2)],
                 "a reader uses it as it is"),
    "wide": (lambda b, x: [pointwise(b, pointwise(b, total(b, x), narrow), lambda v: cast(v, float64))], "do not round it"),
    "two types": (lambda b, x: [pointwise(b, s := total(b, x), lambda v: narrow(v) * 2),
                                pointwise(b, s, lambda v: cast(v, float16) * 2)], "different types"),
    "a library": (lambda b, x: [b.op("contract", {"equation": "mk,nk->mn"}, a=(s := total(b, x)), b=s)], "a library reads it"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refuses_with_the_reason(why: str) -> None:
    build, reason = REFUSED[why]
    p = network(build, train=False, maps=why != "a library", x=(6, 5, 4))
    if why == "a library":
        from shorthaul.ops.expand import expand

        expand(p)
    found = [m for m in matches(NarrowStorage(), p) if "sum" in m.writer.label]
    m = found[0] if why != "wide" else next(m for m in matches(NarrowStorage(), p) if p.containers[m.mid].dtype is float32)
    assert_refuses(NarrowStorage(), m, reason)


def test_refuses_long_sums() -> None:
    p = network(lambda b, x: [pointwise(b, pointwise(b, total(b, x), narrow), lambda v: v * 2)], train=False, x=(3, 65))
    assert_refuses(NarrowStorage(), only(m for m in matches(NarrowStorage(), p) if "sum" in m.writer.label), "a long sum")
