"""MergeEpilogue: maps over the results of a reduction stand behind it and are marked, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from shorthaul.analysis.movement import movement
from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map, Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import Match, Refusal, apply_everywhere
from shorthaul.transforms.level2_fusion.batch_kernels import BatchKernels
from shorthaul.transforms.level2_fusion.merge_epilogue import MergeEpilogue

ROWS, COLUMNS = 40, 6


def sums(*, between: bool = False) -> Program:
    """Sums of columns; two maps over them, of which the second reads the first one's result; one over rows, which reads them too.

    between: the first of the maps needs what the map over rows computes.
    """
    p = Program("sums")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x = edit.add_container(Container("x", float64, (ROWS, COLUMNS), role="input"))
        s, m, z = (edit.add_container(Container(n, float64, (COLUMNS,))) for n in ("s", "m", "z"))
        centred = edit.add_container(Container("centred", float64, (ROWS, COLUMNS)))
        y = edit.add_container(Container("y", float64, (ROWS, COLUMNS), role="output"))
        n, c = b.params((ROWS, COLUMNS))
        b.map((n, c), {"x": at(x, n, c)}, {"s": at(s, c, combine="sum")}, lambda x: {"s": x})
        n, c = b.params((ROWS, COLUMNS))
        b.map((n, c), {"x": at(x, n, c), "s": at(s, c)}, {"y": at(centred, n, c)}, lambda x, s: {"y": x - s})
        (c,) = b.params((COLUMNS,))
        more = {"t": at(centred, 0, 0)} if between else {"t": at(s, c)}
        b.map((c,), {"s": at(s, c), **more}, {"y": at(m, c)}, lambda s, t: {"y": s / ROWS + t * 0.0})
        (c,) = b.params((COLUMNS,))
        b.map((c,), {"s": at(s, c), "m": at(m, c)}, {"y": at(z, c)}, lambda s, m: {"y": m * m + s})
        n, c = b.params((ROWS, COLUMNS))
        b.map((n, c), {"x": at(centred, n, c), "z": at(z, c)}, {"y": at(y, n, c)}, lambda x, z: {"y": x * z})
        edit.add(*(k.with_(schedule=Schedule("parallel")) for k in b.nodes))
        edit.set_signature(Signature(("x",), ("y",)))
        edit.set_form(Form.SCHEDULED)
    verify(p)
    return p


def result(p: Program) -> np.ndarray:
    return interpret(p, {"x": np.random.default_rng(0).uniform(-1, 1, (ROWS, COLUMNS))})["y"].copy()


def marks(p: Program) -> list[object]:
    return [n.schedule.get("epilogue") for n in p.nodes if isinstance(n, Map)]


def test_maps_over_the_results_follow_the_reduction() -> None:
    p = sums()
    expected, moved, before = result(p), movement(p).bytes, fingerprint(p)
    assert apply_everywhere(p, [MergeEpilogue()]).applied == 2
    verify(p)
    assert marks(p) == [1, 1, 1, None, None]
    assert [next(iter(p.writes_of(n))) for n in p.nodes] == ["s", "m", "z", "centred", "y"]
    assert movement(p).bytes == moved
    np.testing.assert_array_equal(result(p), expected)
    while p.log[-1].name == "MergeEpilogue":
        p.undo()
    assert fingerprint(p) == before


def test_what_has_to_run_between_them_stays_between_them() -> None:
    p = sums(between=True)
    expected = result(p)
    refused = apply_everywhere(p, [MergeEpilogue()]).refused
    assert any("has to run between them" in r.reason for r in refused)
    assert marks(p) == [None] * 5
    np.testing.assert_array_equal(result(p), expected)


def test_a_target_is_asked_with_all_that_it_would_run() -> None:
    asked: list[list[str]] = []

    def joins(reduction: Map, epilogues: list[Map], program: Program) -> bool:
        asked.append([next(iter(program.writes_of(e))) for e in epilogues])
        return len(epilogues) < 2

    p = sums()
    apply_everywhere(p, [MergeEpilogue(joins)])
    assert ["m"] in asked and ["m", "z"] in asked
    assert marks(p).count(1) == 2


def test_such_maps_are_in_no_batch() -> None:
    p = sums()
    apply_everywhere(p, [MergeEpilogue(), BatchKernels()])
    assert all(n.schedule.get("batch") is None for n in p.nodes if isinstance(n, Map))


def test_one_element_of_a_result_may_not_be_there_yet() -> None:
    p = Program("broadcast")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x = edit.add_container(Container("x", float64, (ROWS, COLUMNS), role="input"))
        s = edit.add_container(Container("s", float64, (COLUMNS,)))
        y = edit.add_container(Container("y", float64, (COLUMNS,), role="output"))
        n, c = b.params((ROWS, COLUMNS))
        b.map((n, c), {"x": at(x, n, c)}, {"s": at(s, c, combine="sum")}, lambda x: {"s": x})
        (c,) = b.params((COLUMNS,))
        b.map((c,), {"s": at(s, c), "first": at(s, 0)}, {"y": at(y, c)}, lambda s, first: {"y": s / first})
        edit.add(*(k.with_(schedule=Schedule("parallel")) for k in b.nodes))
        edit.set_signature(Signature(("x",), ("y",)))
        edit.set_form(Form.SCHEDULED)
    assert [r.reason for r in apply_everywhere(p, [MergeEpilogue()]).refused] == [
        "all of it needs one element of a result, which may not be there yet"]  # fmt: skip


@pytest.mark.parametrize(("writes", "reason"), [("centred", "not elementwise over memory"), ("m", "runs with a reduction already")])
def test_refuses_with_the_reason(writes: str, reason: str) -> None:
    p = sums()
    if writes == "m":
        apply_everywhere(p, [MergeEpilogue()])
    (reduction,) = p.writers("s")
    (reader,) = p.writers(writes)
    before = fingerprint(p)
    with pytest.raises(Refusal, match=reason):
        MergeEpilogue().run(Match(p, {"reduction": reduction, "mid": "s", "epilogue": reader}))
    assert fingerprint(p) == before


def test_places_of_a_node() -> None:
    p = sums()
    for node, places in zip(p.nodes, (3, 1, 1, 1, 0), strict=True):
        found = [m.place() for m in MergeEpilogue().matches_from(p, node)]
        wanted = [m.place() for m in MergeEpilogue().matches(p) if node in m.nodes]
        assert len(found) == len(wanted) == places and all(f in wanted for f in found)
