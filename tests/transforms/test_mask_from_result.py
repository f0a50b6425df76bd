"""MaskFromResult: the gradient of a ReLU takes its mask from the result, which is saved anyway, and not from the operand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled
from transform_nets import apply_checked, assert_refuses, matches, network, only, results, values

from shorthaul.analysis.liveness import liveness
from shorthaul.ir.program import Program
from shorthaul.ops.expand import choose_default, expand
from shorthaul.transforms.fuse import default_fusions, fuse
from shorthaul.transforms.level4_global.mask_from_result import MaskFromResult


def hidden(b: Any, x: Any, w: Any, bias: Any, v: Any) -> Any:
    """Two layers with a ReLU between them: its result is saved for the gradient of the second one's weights."""
    h = b.op("add", a=b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w), b=bias)
    return b.op("contract", {"equation": "mk,nk->mn"}, a=b.op("relu", x=h), b=v)


def last(b: Any, x: Any, w: Any, bias: Any, v: Any) -> Any:
    """The operand has another use in the backward phase."""
    h = b.op("add", a=b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w), b=bias)
    y = b.op("contract", {"equation": "mk,nk->mn"}, a=b.op("relu", x=h), b=v)
    return [y, b.op("square", x=h)]


def unsaved(b: Any, x: Any, w: Any, bias: Any, v: Any) -> Any:
    h = b.op("add", a=b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w), b=bias)
    return b.op("sum", {"dims": (1,), "keepdim": False}, x=b.op("relu", x=h))


def program(build: Any) -> Program:
    p = network(build, maps=False, x=(6, 5), parameters={"w": (8, 5), "bias": (8,), "v": (4, 8)})
    expand(p, choose_default)
    return p


def test_the_operand_is_not_saved_any_more() -> None:
    p = program(hidden)
    inputs = values(p)
    inputs["bias"][2] = np.nan
    expected = results(p, inputs)
    m = only(matches(MaskFromResult(), p))
    saved = {n for n, _ in liveness(p).saved}
    assert m.mid in saved
    apply_checked(MaskFromResult(), m)
    assert {n for n, _ in liveness(p).saved} == saved - {m.mid}
    fuse(p, default_fusions())
    assert m.mid not in p.containers, "nobody stores it"
    for k, v in results(p, inputs).items():
        np.testing.assert_allclose(v, expected[k], rtol=1e-12, err_msg=k)
    del inputs["bias"]
    fresh = values(p, 1)
    assert_compiled(p, fresh, results(p, fresh))


@pytest.mark.parametrize(("build", "reason"), [(last, "uses the operand itself"), (unsaved, "the result is not kept in memory")])
def test_refuses_with_the_reason(build: Any, reason: str) -> None:
    p = program(build)
    assert_refuses(MaskFromResult(), only(matches(MaskFromResult(), p)), reason)
