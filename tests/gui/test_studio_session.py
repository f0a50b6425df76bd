"""A session without the page: states, questions, refusals, checks, overlays, exports, what cannot be opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from studio_networks import flat, small

import shorthaul as sh
from shorthaul.gui import Session, SessionError, overlay
from shorthaul.gui import overlays as registry
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.edit import Edit
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import apply as scalar
from shorthaul.ir.serialize import from_json
from shorthaul.transforms import catalog
from shorthaul.transforms.base import Match, Transformation
from shorthaul.transforms.recipe import parse
from shorthaul.workbench import check_numbers


@pytest.fixture(scope="module")
def captured() -> Any:
    return sh.capture(*small())


@pytest.fixture
def session(captured: Any) -> Iterator[Session]:
    made = Session.of(captured, checks=False)
    yield made
    made.close()


def test_a_body_does_not_depend_on_what_was_captured_before(session: Session) -> None:
    """Names of parameters grow with the process; the reader's are numbered anew in every kernel."""
    node = next(n["id"] for n in session.graph()["nodes"] if n["label"] == "silu")
    again = Session.of(sh.capture(*small()), checks=False)
    other = next(n["id"] for n in again.graph()["nodes"] if n["label"] == "silu")
    assert session.body(node) == again.body(other) and "i0 in 0:2, i1 in 0:32" in session.body(node)["ranges"]
    again.close()


def test_states_are_a_tree_in_which_nothing_is_lost(session: Session) -> None:
    first, version = session.current, session.version
    best, other = session.opportunities(limit=2)
    a = session.apply(best["transformation"], best["where"])
    assert first.totals["bytes"] - a["totals"]["bytes"] == best["saves"] > 0
    assert session.undo()["id"] == first.id and session.redo()["id"] == a["id"] and session.undo()["id"] == first.id
    b = session.apply(other["transformation"], other["where"])  # a branch
    assert (session.states[a["id"]].parent, session.states[b["id"]].parent) == (first, first)
    assert session.describe()["redo"] is None
    assert session.goto(a["id"])["totals"] == a["totals"] and session.reset()["id"] == first.id
    assert session.version == version + 7
    found = session.diff(first.id, a["id"])
    assert sum(r["before"] - r["after"] for r in found["modules"]) == best["saves"]
    assert best["transformation"] in found["recipe"]
    preview = session.preview(best["transformation"], best["where"])
    assert preview["after"] == a["totals"] and "agrees" in preview["check"] and len(session.states) == 4


def test_a_level_is_a_branch_from_the_operators_and_a_recipe_from_the_start(session: Session) -> None:
    lowered = session.current.totals["bytes"]
    assert session.run_level(2)["totals"]["bytes"] < lowered
    two = session.current
    assert two.parent is session.root
    recipe = session.export("recipe")
    session.undo()
    assert session.replay(recipe)["totals"] == two.totals
    assert fingerprint(session.current.program) == fingerprint(two.program)
    assert len(parse(recipe)) == len(session.current.program.recipe.steps)  # type: ignore[attr-defined]


def test_every_answer_is_json_and_says_what_the_program_says(session: Session) -> None:
    g, program = session.graph(), session.current.program
    assert [n["id"] for n in g["nodes"]] == [n.id for n in program.nodes]
    assert sum(n["bytes"] for n in g["nodes"]) == session.current.totals["bytes"] == program.movement().bytes  # type: ignore[attr-defined]
    assert all(a < b for a, b, *_ in g["edges"]) and any(saved for *_, saved in g["edges"])
    top = session.modules()
    assert {"stem", "blocks", "head"} <= {m["path"] for m in top} and sum(m["bytes"] for m in top) == session.current.totals["bytes"]
    assert {m["path"] for m in session.modules("blocks")} == {"blocks.0", "blocks.1"}
    assert session.module("blocks.0")["alike"] == ["blocks.1"]
    node = session.node("blocks.0.block.2: silu")
    assert {c["language"] for c in node["code"]} == {"C++", "Triton"}
    assert node["origins"][0]["file"] == "network.py" and any(n == node["origins"][0]["line"] for n, _ in node["origins"][0]["lines"])
    assert any(not p["reason"] for p in node["places"]) and any(p["reason"] for p in node["places"])
    assert sum(m["bytes"] for m in node["memlets"]) == node["bytes"]
    assert session.opportunities(refused=True, limit=3)[0]["reason"]
    assert {p["transformation"] for p in session.opportunities(inside="blocks.0", limit=5)}
    everything = [g, top, node, session.describe(), session.costliest(), session.roofline(), session.memory(), session.body(node["id"]),
                  *(session.overlay(n) for n in registry.overlays())]  # fmt: skip
    assert json.loads(json.dumps(everything)) == json.loads(json.dumps(everything, default=None))


def test_measuring_fills_what_was_empty(session: Session) -> None:
    assert session.overlay("measured")["values"] == {} and session.overlay("distance")["values"] == {}
    seen: list[str] = []
    session.listen(lambda e: seen.append(e["event"]))
    found = session.measure(runs=3)
    assert 0 < found["low"] <= found["median"] <= found["high"] and found["runs"] == 3
    assert "progress" in seen and "measured" in seen
    kernels = {n["id"] for n in session.graph()["nodes"]}
    assert {int(k) for k in session.overlay("measured")["values"]} == kernels
    assert json.loads(session.export("trace"))["traceEvents"][0]["args"]["duration"] == "measured"


def test_exports(session: Session, tmp_path: Path) -> None:
    for name in ("r.py", "p.json", "g.svg", "t.trace.json", "page.html"):
        assert session.save(tmp_path / name).stat().st_size > 100
    assert fingerprint(from_json((tmp_path / "p.json").read_text())) == fingerprint(session.current.program)
    assert "https://" not in (tmp_path / "page.html").read_text().replace("https://www.w3.org", "")
    with pytest.raises(SessionError, match=r"Names end in \.py"):
        session.save(tmp_path / "x.docx")
    with pytest.raises(SessionError, match="cannot write"):
        session.save(tmp_path / "missing" / "r.py")


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda s: s.apply("MapFushion", {}), "did you mean MapFusion"),
        (lambda s: s.apply("MapFusion", {"first": "nowhere: silu", "second": "x: y", "mid": "first>0"}), "there is no 'nowhere: silu'"),
        (lambda s: s.apply(**{k: s.opportunities(refused=True, limit=1)[0][k] for k in ("transformation", "where")}), "cannot be applied"),
        (lambda s: s.apply("MapFusion", {}, version=-1), "changed meanwhile"),
        (lambda s: s.run_level(7), "a level is 0, 1, 2, 3 or 4"),
        (lambda s: s.goto(99), "there is no state 99"),
        (lambda s: s.redo(), "nothing to redo"),
        (lambda s: s.node("blocks.0: slu"), "is called 'blocks.0: slu'"),
        (lambda s: s.module("nothing"), "no node of Small comes from"),
        (lambda s: s.overlay("nothing"), "there are bytes, predicted"),
        (lambda s: s.export("pdf"), "there is no export 'pdf'"),
        (lambda s: s.set_machine("abacus"), "known are cpu"),
        (lambda s: s.replay("recipe = 3"), "expected Recipe"),
        (lambda s: s.tune(), "opened on a program alone"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(session: Session, ask: Callable[[Session], Any], reason: str) -> None:
    before, version = len(session.states), session.version
    with pytest.raises(SessionError, match=reason):
        ask(session)
    assert (len(session.states), session.version) == (before, version)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    bad, model = tmp_path / "bad.json", tmp_path / "bad.onnx"
    bad.write_text("{}")
    model.write_text("not a model")
    for what, reason in ((bad, "not a program written by shorthaul"), (tmp_path / "no.json", "cannot open"), (str(model), "bad.onnx"),
                         ("no.module:f", "cannot import no.module"), ("nothing", "names no function"), (3, "cannot open a int"),
                         (small()[0], "needs example inputs")):  # fmt: skip
        with pytest.raises(SessionError, match=reason):
            Session.of(what)
    with pytest.raises(SessionError, match="cannot capture Small"):
        Session.of(small()[0], (3,))


def test_overlays_of_others(session: Session) -> None:
    @overlay("loops", title="Loops", aggregate="max")
    def loops(view: Any) -> dict[int, int]:
        """How many loops a kernel has."""
        return {n.id: len(getattr(n, "params", ())) for n in view.program.nodes}

    @overlay("broken")
    def broken(view: Any) -> dict[int, int]:
        raise ZeroDivisionError("on purpose")

    try:
        assert "loops" in {o["name"] for o in session.describe()["overlays"]} and max(session.overlay("loops")["values"].values()) > 2
        assert session.overlay("broken")["error"] == "overlay broken failed: ZeroDivisionError: on purpose"
        with pytest.raises(ValueError, match="registered already"):
            overlay("loops")(broken)
        with pytest.raises(ValueError, match="kind is heat or category"):
            overlay("third", kind="rainbow")
    finally:
        del registry._registered["loops"], registry._registered["broken"]


class Negates(Transformation):
    """Negates a result: the check must see it."""

    level = 2

    def matches(self, program: Program) -> Iterator[Match]:
        yield from (Match(program, {"node": n}) for n in program.nodes if n.label == "silu")

    def apply(self, m: Match, edit: Edit) -> None:
        t = m.node.tasklet
        edit.replace(m.node, m.node.with_(body=(t.with_(code={k: scalar("neg", v) for k, v in t.code.items()}),)))


def test_every_step_is_checked_and_a_wrong_one_has_a_badge(captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.of(captured)
    monkeypatch.setitem(catalog._registered, "Negates", Negates)
    for name in ("MapFusion", "Recompute", "ImageFusion", "AliasViews"):
        place = next(p for p in session.opportunities(limit=5000) if p["transformation"] == name)
        session.apply(name, place["where"])
    session.apply("Negates", {"node": "blocks.0.block.2: silu"})
    session.settle()
    badges = [s["check"] for s in session.describe()["states"][2:]]
    assert [b["ok"] for b in badges] == [True] * 4 + [False]
    assert "DIFFERS" in badges[-1]["text"]
    assert max(session.overlay("error")["values"].values()) > 1
    session.close()


def test_numbers_of_equal_programs_of_large_ones_and_of_levels(captured: Any) -> None:
    low = captured.clone()
    low.optimize(level=0)
    four = captured.clone()
    four.optimize(level=4)
    assert check_numbers(low, four).ok and check_numbers(low, four).whole
    assert check_numbers(low, low.clone()).ok
    assert "too many" in check_numbers(low, four, work=10).reason and check_numbers(low, four, work=10).ok is None
    assert check_numbers(captured, low).ok is None


def combined(code: Callable[[Any, Any], Any]) -> Program:
    """y = code(a, b), element by element."""
    containers = {n: Container(n, float32, (64,), role="output" if n == "y" else "input") for n in "aby"}
    (p,) = fresh_params((64,))
    node = make_map((p,), {n: at(containers[n], p) for n in "ab"}, {"y": at(containers["y"], p)}, lambda a, b: {"y": code(a, b)},
                    dict.fromkeys("ab", float32), name="combine", schedule=Schedule("parallel"))  # fmt: skip
    return Program("combined", Form.SCHEDULED, containers, [node], Signature(("a", "b"), ("y",)))


def test_a_result_that_is_rounding_alone_is_judged_in_float64() -> None:
    """As the gradient of a bias before a batch norm: it is zero, and what the sums leave of it depends on their order."""
    total = partial(scalar, "add")
    one = combined(lambda a, b: scalar("sub", scalar("sub", total(a, b), a), b))
    other = combined(lambda a, b: scalar("sub", scalar("sub", total(a, b), b), a))
    found = check_numbers(one, other)
    assert found.ok and found.wide and "in float64" in str(found)
    assert check_numbers(one, combined(lambda a, b: scalar("sub", a, b))).ok is False  # and what is wrong is not rounding
    assert not check_numbers(one, one.clone()).wide


def test_ten_thousand_nodes_are_counted_once() -> None:
    session = Session(flat(2000), checks=False)
    g = session.graph()
    assert len(g["nodes"]) == 2000 and len({n["ref"] for n in g["nodes"]}) == 2000
    assert session.graph()["nodes"] is g["nodes"]  # a state's graph is made once


class Unfit(Transformation):
    """Fails where it looks for places."""

    level = 2

    def matches(self, program: Program) -> Iterator[Match]:
        raise ZeroDivisionError("on purpose")
        yield

    def matches_from(self, program: Program, node: Any) -> Iterator[Match]:
        yield from self.matches(program)


class Unsure(Negates):
    """Fails where it is asked whether it applies."""

    def check(self, m: Match) -> None:
        raise KeyError("nowhere")


class Breaks(Negates):
    """Fails while it is applied."""

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.node)
        raise RuntimeError("half done")


def test_a_transformation_that_fails_is_said_and_leaves_the_rest_alone(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for t in (Unfit, Unsure, Breaks):
        monkeypatch.setitem(catalog._registered, t.__name__, t)
    told: list[Any] = []
    session.listen(told.append)
    state, before = session.current, fingerprint(session.current.program)
    assert session.opportunities() and "MapFusion" in {p["transformation"] for p in session.opportunities()}
    said = [e["what"] for e in told if e["event"] == "failed"]
    assert said == ["Unfit failed while it looked for places (ZeroDivisionError: on purpose); it is left out"]
    refused = {p["transformation"]: p["reason"] for p in session.node("blocks.0.block.2: silu")["places"] if p["reason"]}
    assert refused["Unsure"] == "Unsure failed while it was checked here (KeyError: 'nowhere')"
    for how in (session.apply, session.apply_alike, session.preview):
        with pytest.raises(SessionError, match=r"Breaks failed at silu of blocks\.0\.block\.2; it was taken back: half done"):
            how("Breaks", {"node": "blocks.0.block.2: silu"})
    assert session.current is state and fingerprint(state.program) == before and len(session.states) == 2


def test_a_fused_kernel_is_found_by_every_line_that_it_comes_from(session: Session) -> None:
    fused = next(n for n in session.graph(session.run_level(2)["id"])["nodes"] if len(n["ops"]) > 2)
    assert len(fused["lines"]) >= 1 and all(line.rpartition(":")[2].isdigit() for line in fused["lines"])
    assert any(len(n["lines"]) > 1 for n in session.graph()["nodes"])
