"""BatchKernels: small maps of one form stand side by side and are marked, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from shorthaul.analysis.arena import arena_bytes
from shorthaul.analysis.movement import movement
from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map, Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import Refusal, apply_everywhere
from shorthaul.transforms.level2_fusion.batch_kernels import BatchKernels

SIZES = (6, 4, 10)


def updates(*, chained: bool = False) -> Program:
    """Parameters of several sizes with an update each, and a map of another kind between them.

    chained: the map between them reads the first new value, and the last gradient is what it computes.
    """
    p = Program("step")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        lr = edit.add_container(Container("lr", float64, (), role="input"))
        ws = [edit.add_container(Container(f"w{k}", float64, (n, 1), role="parameter")) for k, n in enumerate(SIZES)]
        gs = [edit.add_container(Container(f"g{k}", float64, (n,), role="input")) for k, n in enumerate(SIZES)]
        news = [edit.add_container(Container(f"new{k}", float64, (n, 1), role="output")) for k, n in enumerate(SIZES)]
        y = edit.add_container(Container("y", float64, (SIZES[-1],), role="output"))

        def update(k: int, g: Container) -> None:
            i, j = b.params((SIZES[k], 1))
            b.map((i, j), {"w": at(ws[k], i, j), "g": at(g, i), "lr": at(lr)}, {"y": at(news[k], i, j)}, lambda w, g, lr: {"y": w - lr * g})

        update(0, gs[0])
        update(1, gs[1])
        (i,) = b.params((SIZES[-1],))
        reads = {"g": at(gs[2], i), "f": at(news[0], 0, 0) if chained else at(gs[2], 0)}
        b.map((i,), reads, {"y": at(y, i)}, lambda g, f: {"y": g * f})
        update(2, y if chained else gs[2])
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in b.nodes))
        names = (*(w.name for w in ws), *(g.name for g in gs), "lr")
        edit.set_signature(Signature(names, ("y",), updates=tuple((f"w{k}", f"new{k}") for k in range(len(SIZES)))))
        edit.set_form(Form.SCHEDULED)
    verify(p)
    return p


def results(p: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = interpret(p, {n: rng.uniform(0.5, 1.5, [int(d) for d in p.containers[n].shape]) for n in p.signature.inputs})
    return {n: found[n].copy() for n in (*p.signature.outputs, *(u for _, u in p.signature.updates))}


def batches(p: Program) -> list[object]:
    return [n.schedule.get("batch") for n in p.nodes if isinstance(n, Map)]


def test_small_maps_of_one_form_are_marked() -> None:
    p = updates()
    expected, moved, before = results(p), movement(p).bytes, fingerprint(p)
    assert apply_everywhere(p, [BatchKernels()]).applied == 1
    verify(p)
    assert batches(p) == [None, 1, 1, 1] and movement(p).bytes == moved
    for n, v in results(p).items():
        np.testing.assert_array_equal(v, expected[n])
    p.undo()
    assert fingerprint(p) == before


def test_what_needs_a_result_runs_behind_and_is_no_member() -> None:
    p = updates(chained=True)
    expected = results(p)
    apply_everywhere(p, [BatchKernels()])
    verify(p)
    assert batches(p) == [1, 1, None, None]
    for n, v in results(p).items():
        np.testing.assert_array_equal(v, expected[n])


def test_memory_is_not_written_before_it_was_read() -> None:
    """What overwrites an operand of the first member runs behind the batch, although it needs nothing that a member makes."""
    p = Program("overwritten")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x, z = (edit.add_container(Container(n, float64, (8,), role="input")) for n in ("x", "z"))
        t = edit.add_container(Container("t", float64, (8,)))
        u = edit.add_container(Container("u", float64, (8,), alias=Alias("t")))
        outs = [edit.add_container(Container(n, float64, (8,), role="output")) for n in ("first", "second", "third")]
        for a, c, factor in ((x, t, 2.0), (t, outs[0], 3.0), (z, u, 5.0), (z, outs[1], 3.0), (u, outs[2], 7.0)):
            (i,) = b.params((8,))
            b.map((i,), {"a": at(a, i)}, {"y": at(c, i)}, lambda a, f=factor: {"y": a * f})
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in b.nodes))
        edit.set_signature(Signature(("x", "z"), ("first", "second", "third")))
        edit.set_form(Form.SCHEDULED)
    verify(p)
    expected = results(p)
    assert apply_everywhere(p, [BatchKernels()]).applied == 1
    verify(p)
    assert [next(iter(p.writes_of(n))) for n in p.nodes] == ["t", "first", "second", "u", "third"]
    for n, v in results(p).items():
        np.testing.assert_array_equal(v, expected[n])


def test_members_have_their_memory_at_the_same_time() -> None:
    """What the second member writes may not lie where the first one's operand was: they run at once."""
    p = Program("temporaries")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x = edit.add_container(Container("x", float64, (64,), role="input"))
        ts = [edit.add_container(Container(f"t{k}", float64, (64,))) for k in range(4)]
        y = edit.add_container(Container("y", float64, (64,), role="output"))
        for k, (a, c) in enumerate(((x, ts[0]), (x, ts[1]), (ts[0], ts[2]), (ts[1], ts[3]))):
            (i,) = b.params((64,))
            b.map((i,), {"a": at(a, i)}, {"y": at(c, i)}, lambda a, k=k: {"y": a * (2.0 if k < 2 else 3.0)})
        (i,) = b.params((64,))
        b.map((i,), {"a": at(ts[2], i), "b": at(ts[3], i)}, {"y": at(y, i)}, lambda a, b: {"y": a + b})
        edit.add(*(n.with_(schedule=Schedule("parallel")) for n in b.nodes))
        edit.set_signature(Signature(("x",), ("y",)))
        edit.set_form(Form.SCHEDULED)
    one = 64 * 8
    assert arena_bytes(p, "soon") == {"forward": 3 * one}
    assert apply_everywhere(p, [BatchKernels()]).applied == 2
    assert arena_bytes(p, "soon") == {"forward": 4 * one}


def test_no_more_than_fit_into_one_launch() -> None:
    p = updates()
    apply_everywhere(p, [BatchKernels(most=2)])
    assert sorted(batches(p), key=str) == [1, 1, None, None]


REFUSED = {
    "different": ((0, 3), "they compute different things"),
    "dependent": ((0, 2), "one of them needs another one"),
    "large": ((0, 1), "fills the machine by itself"),
    "marked": ((0, 1), "launched together with others already"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refuses_with_the_reason(why: str) -> None:
    from shorthaul.transforms.base import Match

    places, reason = REFUSED[why]
    p = updates(chained=why == "dependent")
    maps = [n for n in p.nodes if len(p.reads_of(n)) == 3] + [n for n in p.nodes if len(p.reads_of(n)) < 3]
    t = BatchKernels(largest=8) if why == "large" else BatchKernels()
    if why == "marked":
        apply_everywhere(p, [t])
        maps = [n for n in p.nodes if len(p.reads_of(n)) == 3]
    before = fingerprint(p)
    with pytest.raises(Refusal, match=reason):
        t.run(Match(p, {f"kernel_{i}": maps[k] for i, k in enumerate(places)}))
    assert fingerprint(p) == before


def test_places_of_a_node() -> None:
    p = updates()
    (whole,) = BatchKernels().matches(p)
    for node in p.nodes:
        found = [m.place() for m in BatchKernels().matches_from(p, node)]
        assert found == ([whole.place()] if node in whole.nodes else [])
