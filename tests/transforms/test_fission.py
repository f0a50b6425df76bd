"""Fission: nested kernels taken apart."""

from __future__ import annotations

from typing import Any

import pytest
from transform_nets import assert_refuses, assert_same, matches, network, results, values

from shorthaul.analysis.movement import movement
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.ir.verify import verify
from shorthaul.pipeline import _schedule
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level1_operator.fission import Fission


def softmax(b: Any, x: Any) -> Any:
    return b.op("softmax", {"dim": -1}, x=x)


def nested(train: bool) -> Program:
    p = network(softmax, train=train, x=(6, 5))
    fuse(p)
    _schedule(p)
    assert any(isinstance(n, Map) and n.tasklet is None for n in p.nodes)
    return p


@pytest.mark.parametrize("train", [False, True])
def test_parts_become_kernels_with_the_same_numbers_and_bytes_as_stated(train: bool) -> None:
    p = nested(train)
    inputs = values(p)
    expected, before = results(p, inputs), fingerprint(p)
    applied = 0
    while found := [m for m in matches(Fission(), p) if m.node.tasklet is None]:
        moved, claimed = movement(p).bytes, Fission().saves(found[0])
        assert Fission().try_apply(found[0])
        verify(p)
        assert movement(p).bytes == moved - claimed
        applied += 1
    assert all(n.tasklet is not None for n in p.nodes if isinstance(n, Map))
    assert_same(p, inputs, expected)
    p.undo(applied)
    assert fingerprint(p) == before


def test_flat_kernels_stay() -> None:
    p = network(lambda b, x: b.op("exp", x=x), x=(4, 3))
    _schedule(p)
    assert_refuses(Fission(), matches(Fission(), p)[0], "flat")
