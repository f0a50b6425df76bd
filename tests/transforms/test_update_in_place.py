"""UpdateInPlace: new values are written where the old ones were, where nothing reads an old value after it is overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import Refusal
from shorthaul.transforms.level4_global.update_in_place import UpdateInPlace, merge_phases


def update(*, late_reader: bool = False, shifted: bool = False, whole: bool = True) -> Program:
    """w <- w - g, and a second result that reads w before or after."""
    p = Program("update")
    with p.edit("Build") as edit:
        w, g = (edit.add_container(Container(n, float64, (6,), role="parameter")) for n in "wg")
        new = edit.add_container(Container("new", float64, (6,), role="output"))
        y = edit.add_container(Container("y", float64, (6,), role="output"))
        b = MapBuilder(edit)
        (i,) = b.params((6,))
        reader = b.map((i,), {"w": at(w, i)}, {"y": at(y, i)}, lambda w: {"y": w * 2.0})
        (j,) = b.params((6,))
        read = at(w, 5 - j) if shifted else at(w, j)
        writer = b.map((j,), {"w": read, "g": at(g, j)}, {"new": at(new, j)}, lambda w, g: {"new": w - g})
        nodes = [writer, reader] if late_reader else [reader, writer]
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in nodes))
        edit.set_signature(Signature(("w", "g"), ("y",), updates=(("w", "new"),)))
        edit.set_form(Form.SCHEDULED)
    if whole:
        p.attributes["whole_step"] = True
    verify(p)
    return p


def only(p: Program):  # type: ignore[no-untyped-def]
    (match,) = list(UpdateInPlace().matches(p))
    return match


def test_the_new_value_takes_the_memory_of_the_old_one_and_numbers_stay() -> None:
    p = update()
    given = {"w": np.arange(6.0), "g": np.full(6, 0.5)}
    before = interpret(p, {k: v.copy() for k, v in given.items()})
    t, m = UpdateInPlace(), only(p)
    t.check(m)
    assert t.saves(m) == 2 * 6 * 8
    with p.edit("UpdateInPlace") as edit:
        t.apply(m, edit)
    verify(p)
    alias = p.containers["new"].alias
    assert alias is not None and alias.base == "w"
    after = interpret(p, {k: v.copy() for k, v in given.items()})
    for name in ("y", "new"):
        np.testing.assert_array_equal(after[name], before[name])
    with pytest.raises(Refusal, match="shares memory already"):
        t.check(only(p))


@pytest.mark.parametrize(
    ("build", "why"),
    [({"late_reader": True}, "w is read later"), ({"shifted": True}, "other elements of the old value than it overwrites")],
)
def test_refuses_where_an_old_value_is_still_needed(build: dict[str, bool], why: str) -> None:
    with pytest.raises(Refusal, match=why):
        UpdateInPlace().check(only(update(**build)))


def test_only_programs_of_a_whole_step_write_into_their_inputs() -> None:
    assert not list(UpdateInPlace().matches(update(whole=False)))


def test_phases_are_merged() -> None:
    p = update()
    with p.edit("Later") as edit:
        n = p.nodes[1]
        edit.replace(n, n.with_(phase="backward"))
    merge_phases(p)
    assert {n.phase for n in p.nodes} == {"forward"}
    verify(p)
