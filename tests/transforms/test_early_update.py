"""EarlyUpdate: updates run where their gradients are complete, and the peak of memory falls."""

from __future__ import annotations

import numpy as np
import pytest

from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import Refusal, apply_everywhere
from shorthaul.transforms.level4_global.early_update import EarlyUpdate
from shorthaul.transforms.level4_global.update_in_place import UpdateInPlace

N, LAYERS = 6, 4


def chain(*, late_reader: bool = False, whole: bool = True, in_place: bool = True) -> Program:
    """A backward pass: each gradient is made of the one before it and a weight, and the updates stand at the end."""
    p = Program("step")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        g = edit.add_container(Container("g0", float64, (N,), role="input"))
        ws = [edit.add_container(Container(f"w{k}", float64, (N,), role="parameter")) for k in range(LAYERS)]
        gradients = []
        for k, w in enumerate(ws):
            nxt = edit.add_container(Container(f"g{k + 1}", float64, (N,)))
            (i,) = b.params((N,))
            b.map((i,), {"g": at(g, i), "w": at(w, i)}, {"y": at(nxt, i)}, lambda g, w: {"y": g * w + 1.0})
            gradients.append(nxt)
            g = nxt
        y = edit.add_container(Container("y", float64, (N,), role="output"))
        (i,) = b.params((N,))
        last = {"g": at(g, i), "w": at(ws[0], i)} if late_reader else {"g": at(g, i)}
        b.map((i,), last, {"y": at(y, i)}, lambda g, w=1.0: {"y": g * w})
        for k, (w, gw) in enumerate(zip(ws, gradients, strict=True)):
            new = edit.add_container(Container(f"new{k}", float64, (N,), role="output"))
            (i,) = b.params((N,))
            b.map((i,), {"w": at(w, i), "g": at(gw, i)}, {"y": at(new, i)}, lambda w, g: {"y": w - g})
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in b.nodes))
        edit.set_signature(Signature(("g0", *(w.name for w in ws)), ("y",), updates=tuple((w.name, f"new{k}") for k, w in enumerate(ws))))
        edit.set_form(Form.SCHEDULED)
    if whole:
        p.attributes["whole_step"] = True
    if in_place:
        apply_everywhere(p, [UpdateInPlace()])
    verify(p)
    return p


def results(p: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = interpret(p, {n: rng.uniform(0.5, 1.5, N) for n in p.signature.inputs})
    return {n: found[n].copy() for n in (*p.signature.outputs, *(u for _, u in p.signature.updates))}


def test_updates_follow_their_gradients_and_memory_falls() -> None:
    p = chain()
    expected, moved, before = results(p), movement(p).bytes, fingerprint(p)
    assert liveness(p).peak["forward"] == (LAYERS + 1) * N * 8  # every gradient, and the result
    t = EarlyUpdate()
    for m in list(t.matches(p)):
        t.try_apply(m)
    verify(p)
    order = [next(iter(p.writes_of(n))) for n in p.nodes]
    assert order == ["g1", "new0", "g2", "new1", "g3", "new2", "g4", "new3", "y"]
    assert liveness(p).peak["forward"] == 2 * N * 8
    assert movement(p).bytes == moved and t.saves(next(iter(t.matches(p)))) == 0
    for n, v in results(p).items():
        np.testing.assert_array_equal(v, expected[n])
    while p.log[-1].name == "EarlyUpdate":
        p.undo()
    assert fingerprint(p) == before


def test_waits_for_every_reader_of_the_old_value() -> None:
    p = chain(late_reader=True)
    apply_everywhere(p, [EarlyUpdate()])
    verify(p)
    order = [next(iter(p.writes_of(n))) for n in p.nodes]
    assert order.index("new0") > order.index("y")


def test_refuses_where_new_values_take_as_much_as_it_frees() -> None:
    p = chain(in_place=False)
    m = next(iter(EarlyUpdate().matches(p)))
    with pytest.raises(Refusal, match=f"frees {N * 8} bytes, and its new values would take {N * 8} earlier"):
        EarlyUpdate().check(m)


def test_refuses_where_it_stands_already() -> None:
    p = chain()
    apply_everywhere(p, [EarlyUpdate()])
    for m in EarlyUpdate().matches(p):
        with pytest.raises(Refusal, match="it follows what it waits for already"):
            EarlyUpdate().check(m)


def test_only_whole_steps() -> None:
    assert not list(EarlyUpdate().matches(chain(whole=False, in_place=False)))


def test_several_updates_may_wait_for_the_same_node() -> None:
    """They stand behind it in any order, and stay there."""
    p = Program("step")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x = edit.add_container(Container("x", float64, (N,), role="input"))
        ws = [edit.add_container(Container(f"w{k}", float64, (N,), role="parameter")) for k in range(3)]
        g = edit.add_container(Container("g", float64, (N,)))
        y = edit.add_container(Container("y", float64, (N,), role="output"))
        for source, result in ((x, g), (x, y)):
            (i,) = b.params((N,))
            b.map((i,), {"x": at(source, i)}, {"y": at(result, i)}, lambda x: {"y": x * 2.0})
        for k, w in enumerate(ws):
            new = edit.add_container(Container(f"new{k}", float64, (N,), role="output"))
            (i,) = b.params((N,))
            b.map((i,), {"w": at(w, i), "g": at(g, i)}, {"y": at(new, i)}, lambda w, g: {"y": w - g})
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in b.nodes))
        edit.set_signature(Signature(("x", "w0", "w1", "w2"), ("y",), updates=tuple((f"w{k}", f"new{k}") for k in range(3))))
        edit.set_form(Form.SCHEDULED)
    p.attributes["whole_step"] = True
    apply_everywhere(p, [UpdateInPlace(), EarlyUpdate()])
    verify(p)
    order = [next(iter(p.writes_of(n))) for n in p.nodes]
    assert order[0] == "g" and order[-1] == "y"


def test_numbers_of_the_caller_are_computed_first() -> None:
    """The learning rate as another type, computed right before the updates, holds none of them back."""
    p = Program("step")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x, w = (edit.add_container(Container(n, float64, (N,), role="input")) for n in "xw")
        lr = edit.add_container(Container("lr", float64, (), role="input"))
        rate = edit.add_container(Container("rate", float64, ()))
        g = edit.add_container(Container("g", float64, (N,)))
        y, new = (edit.add_container(Container(n, float64, (N,), role="output")) for n in ("y", "new"))
        for result in (g, y):
            (i,) = b.params((N,))
            b.map((i,), {"x": at(x, i)}, {"y": at(result, i)}, lambda x: {"y": x * 2.0})
        b.map((), {"r": at(lr)}, {"y": at(rate)}, lambda r: {"y": r * 0.5})
        (i,) = b.params((N,))
        b.map((i,), {"w": at(w, i), "g": at(g, i), "r": at(rate)}, {"y": at(new, i)}, lambda w, g, r: {"y": w - g * r})
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in b.nodes))
        edit.set_signature(Signature(("x", "w", "lr"), ("y",), updates=(("w", "new"),)))
        edit.set_form(Form.SCHEDULED)
    p.attributes["whole_step"] = True
    apply_everywhere(p, [UpdateInPlace(), EarlyUpdate()])
    verify(p)
    assert [next(iter(p.writes_of(n))) for n in p.nodes] == ["rate", "g", "new", "y"]
