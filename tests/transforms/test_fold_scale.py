"""FoldScale: constant factors next to matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from compiled import assert_compiled
from test_fold_transpose import net
from transform_nets import apply_checked, assert_refuses, matches, only, results, values

from shorthaul.analysis.movement import movement
from shorthaul.ir.dtypes import float64
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.scalar import Scalar, read
from shorthaul.transforms.level3_layout.fold_scale import FoldScale


def scaled(b: Any, x: Any, by: Callable[[Scalar], Scalar]) -> Any:
    return b.op("pointwise", {"code": by(read("x0", float64))}, x0=x)


def product(b: Any, x: Any, w: Any, **attributes: Any) -> Any:
    return b.op("contract", {"equation": "mk,nk->mn", **attributes}, a=x, b=w)


SCALED: dict[str, tuple[Callable[..., Any], float]] = {
    "result": (lambda b, x, w: scaled(b, product(b, x, w), lambda v: v / 8), 0.125),
    "operand": (lambda b, x, w: product(b, scaled(b, x, lambda v: v * 3), w, alpha=0.5), 1.5),
    "negated": (lambda b, x, w: b.op("neg", x=product(b, x, w)), -1.0),
    "negated and exchanged": (lambda b, x, w: b.op("permute", {"dims": (1, 0)}, x=b.op("neg", x=product(b, x, w))), -1.0),
}


@pytest.mark.parametrize("how", SCALED)
def test_the_factor_becomes_alpha(how: str) -> None:
    build, alpha = SCALED[how]
    p = net(build, train=False, x=(6, 4), w=(5, 4))
    inputs = values(p)
    expected = results(p, inputs)
    moved = movement(p).bytes
    apply_checked(FoldScale(), only(matches(FoldScale(), p)))
    (call, *_) = [n for n in p.nodes if isinstance(n, LibraryCall)]
    assert call.attributes["alpha"] == alpha
    assert len([n for n in p.nodes if isinstance(n, Map)]) == ("exchanged" in how)
    assert moved - movement(p).bytes == p.log[-1].notes["saves"] > 0
    assert_compiled(p, inputs, expected)


def test_gradients_too() -> None:
    p = net(SCALED["result"][0], x=(6, 4), parameters={"w": (5, 4)})
    inputs = values(p)
    expected = results(p, inputs)
    for _ in range(2):
        apply_checked(FoldScale(), next(m for m in matches(FoldScale(), p)))
    assert not [n for n in p.nodes if isinstance(n, Map)]
    assert_compiled(p, inputs, expected)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "no factor": (lambda b, x, w: b.op("permute", {"dims": (1, 0)}, x=product(b, x, w)), "it has no factor"),
    "zero": (lambda b, x, w: scaled(b, product(b, x, w), lambda v: v * 0), "it computes something"),
    "needed": (lambda b, x, w: [t := product(b, x, w), b.op("neg", x=t)], "the caller gets the product as it is"),
    "a sum": (lambda b, x, w: scaled(b, product(b, x, w), lambda v: v + 1), "it computes something"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_refuses_with_the_reason(how: str) -> None:
    build, reason = REFUSED[how]
    p = net(build, train=False, x=(6, 4), w=(5, 4))
    assert_refuses(FoldScale(), matches(FoldScale(), p)[0], reason)


def test_refuses_beside_a_bias() -> None:
    def build(b: Any, x: Any, w: Any, c: Any) -> Any:
        return b.op("neg", x=b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w, bias=c))

    p = net(build, train=False, x=(6, 4), w=(5, 4), c=(5,))
    assert_refuses(FoldScale(), only(matches(FoldScale(), p)), "the product adds a bias")
