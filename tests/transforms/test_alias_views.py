"""AliasViews: copies that strides can express are not made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transform_nets import assert_refuses, assert_same, kernels, matches, network, only, results, values

from shorthaul.analysis.movement import movement
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Form, Program
from shorthaul.ir.verify import verify
from shorthaul.pipeline import _schedule
from shorthaul.transforms.base import Match
from shorthaul.transforms.level4_global.alias_views import AliasViews

VIEWS: dict[str, Callable[..., Any]] = {
    "transposition": lambda b, t: b.op("permute", {"dims": (2, 0, 1)}, x=t),
    "merged dimensions": lambda b, t: b.op("reshape", {"shape": (2, 12)}, x=t),
    "split dimension": lambda b, t: b.op("reshape", {"shape": (2, 3, 2, 2)}, x=t),
    "slice": lambda b, t: b.op("slice", {"dim": 2, "start": 1, "stop": 4, "step": 2}, x=t),
    "select": lambda b, t: b.op("select", {"dim": 1, "index": 2}, x=t),
    "flip": lambda b, t: b.op("flip", {"dims": (2,)}, x=t),
    "expand": lambda b, t: b.op("expand", {"shape": (5, 2, 3, 4)}, x=t),
}


def viewed(view: Callable[..., Any], after: str = "sigmoid") -> Program:
    return network(lambda b, x: b.op(after, x=view(b, b.op("tanh", x=x))), train=False, x=(2, 3, 4))


def copy_of(p: Program) -> Match:
    return only(
        m
        for m in matches(AliasViews(), p)
        if len(m.copy.tasklet.reads) == 1 and m.copy.label not in ("tanh", "sigmoid")
    )


@pytest.mark.parametrize("how", VIEWS)
def test_a_copy_becomes_a_view(how: str) -> None:
    p = viewed(VIEWS[how])
    inputs = values(p)
    expected = results(p, inputs)
    m, before, moved = copy_of(p), fingerprint(p), movement(p).bytes
    AliasViews().check(m)
    claim = AliasViews().saves(m)
    assert AliasViews().try_apply(m)
    _schedule(p)
    assert p.form is Form.SCHEDULED
    verify(p)
    assert_same(p, inputs, expected)
    assert len(kernels(p)) == 2
    assert claim > 0
    if how in (
        "transposition",
        "merged dimensions",
        "split dimension",
    ):  # the others are bounded by names, not by memory
        assert moved - movement(p).bytes == claim
    p.undo(2)
    assert fingerprint(p) == before
    verify(p)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "computes": (lambda b, t: b.op("neg", x=t), "it computes something"),
    "pads": (lambda b, t: b.op("pad", {"pad": (1, 1), "value": 0.0}, x=t), "it pads"),
    "no strides": (
        lambda b, t: b.op("reshape", {"shape": (4, 6)}, x=b.op("permute", {"dims": (2, 1, 0)}, x=t)),
        "no strides express it",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_refuses_what_is_no_view(how: str) -> None:
    build, reason = REFUSED[how]
    p = viewed(build)
    if how == "no strides":
        from shorthaul.transforms.level2_fusion.map_fusion import MapFusion

        m = only(m for m in matches(MapFusion("refuse"), p) if m.first.label == "permute")
        assert MapFusion("refuse").try_apply(m)
    assert_refuses(AliasViews(), copy_of(p), reason)


def test_refuses_an_output() -> None:
    p = network(lambda b, x: b.op("permute", {"dims": (1, 0)}, x=x), train=False, x=(2, 3))
    assert_refuses(AliasViews(), only(matches(AliasViews(), p)), "the caller needs it as a tensor of its own")


def test_refuses_a_source_that_the_caller_gets() -> None:
    p = network(
        lambda b, x: [t := b.op("tanh", x=x), b.op("sigmoid", x=b.op("permute", {"dims": (1, 0)}, x=t))],
        train=False,
        x=(2, 3),
    )
    assert_refuses(AliasViews(), copy_of(p), "its source is handed to the caller")


def test_refuses_conversions_and_parts() -> None:
    from shorthaul.ir.dtypes import float32

    p = network(lambda b, x: b.op("tanh", x=b.op("cast", {"dtype": float32}, x=x)), train=False, x=(2, 3))
    assert_refuses(AliasViews(), matches(AliasViews(), p, copy="cast")[0], "it")
    p = network(lambda b, x, y: b.op("tanh", x=b.op("cat", {"dim": 0}, x0=x, x1=y)), train=False, x=(2, 3), y=(1, 3))
    for m in matches(AliasViews(), p, copy="cat"):
        assert_refuses(AliasViews(), m, "several nodes write it")


def test_refuses_a_view_of_a_buffer_that_changes_before_the_backward_phase() -> None:
    def build(b: Any, x: Any, r: Any) -> list[Any]:
        return [b.op("square", x=b.op("mul", a=x, b=b.op("permute", {"dims": (1, 0)}, x=r))), b.op("neg", x=r)]

    p = network(build, x=(2, 3), r=(3, 2))
    with p.edit("update") as edit:
        edit.set_signature(p.signature.with_(updates=(("r", "neg"),)))
    m = next(m for m in matches(AliasViews(), p, copy="permute") if m.copy.phase == "forward")
    assert_refuses(AliasViews(), m, "its source changes before the backward phase reads it")
