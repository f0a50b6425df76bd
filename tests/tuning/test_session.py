"""The search: what is found, what it costs, what is remembered. Nothing is compiled or timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, FakeSubject, operators, recomputes

from shorthaul.analysis.cost import Roofline
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Program
from shorthaul.transforms.choices import Choices
from shorthaul.tuning.database import Database
from shorthaul.tuning.result import Tuned
from shorthaul.tuning.search import SEARCHES, Greedy, Search
from shorthaul.tuning.session import Session, from_key
from shorthaul.tuning.space import alike, moves


def session(subject: FakeSubject, budget: float = 600.0, database: Database | None = None, **options: Any) -> Session:
    return Session(subject, database or Database(None, "m", "v"), Roofline("cpu"), budget, clock=subject.clock, **options)


def without_recompute(p: Program) -> float:
    return 0.5 if recomputes(p) else 0.4


def test_a_faster_plan_is_found_and_its_recipe_makes_that_program() -> None:
    subject = FakeSubject(FakeClock(), without_recompute)
    tuned = session(subject).run(Greedy())
    assert tuned.ratio == pytest.approx(0.8) and tuned.speedup == pytest.approx(1.25) and tuned.final
    again = operators().clone()
    again.replay(tuned.recipe)  # type: ignore[attr-defined]
    assert not recomputes(again) and fingerprint(again) == fingerprint(subject.lower(tuned.choices))
    text = str(tuned)
    assert "1.250 times as fast as the start" in text and "→ " in text and "Recompute" in text


def test_where_nothing_is_faster_the_start_is_returned() -> None:
    subject = FakeSubject(FakeClock(), lambda p: 0.4 + 0.01 * len(p.nodes))
    subject.speed = lambda p: 0.4 if len(p.log) == len(subject.built[0].log) else 0.5
    tuned = session(subject).run(Greedy())
    assert tuned.choices == Choices() and tuned.ratio == 1 and "nothing was faster" in str(tuned)
    assert fingerprint(subject.lower(tuned.choices)) == fingerprint(subject.built[0])


def test_what_was_faster_by_chance_is_not_returned() -> None:
    subject = FakeSubject(FakeClock(), lambda p: 0.5)
    lucky: set[int] = set()

    def speed(p: Program) -> float:  # the first calls of anything but the start are fast, later ones slow
        if p is subject.built[0]:
            return 0.5
        lucky.add(id(p))
        counts[id(p)] = counts.get(id(p), 0) + 1
        return 0.4 if counts[id(p)] < 12 else 0.7

    counts: dict[int, int] = {}
    subject.speed = speed
    tuned = session(subject).run(Greedy())
    assert lucky and tuned.ratio == 1 and tuned.choices == Choices()
    assert any("start stays" in n for n in tuned.notes)


@pytest.mark.parametrize("budget", [0.5, 3.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize("compile", [0.3, 2.0, 7.0])
def test_the_budget_is_kept_within_a_tenth(budget: float, compile: float) -> None:
    clock = FakeClock()
    subject = FakeSubject(clock, lambda p: 0.02 if recomputes(p) else 0.019, compile=compile, lowering=0.02)
    tuned = session(subject, budget).run(Greedy())
    assert clock.now <= 1.1 * budget and tuned.seconds == clock.now
    if compile > budget:
        assert "give more seconds" in str(tuned) and tuned.ratio == 1


def test_a_search_stops_when_it_knows_no_more() -> None:
    subject = FakeSubject(FakeClock(), lambda p: 0.01, compile=0.1, lowering=0.001)
    assert session(subject, 1e5).run(Greedy()).seconds < 1e4


def test_an_interrupt_keeps_what_was_found() -> None:
    subject = FakeSubject(FakeClock(), without_recompute)

    def interrupt(p: Program) -> None:
        if any(not recomputes(q) for q in subject.built):
            raise KeyboardInterrupt

    subject.hook = interrupt
    tuned = session(subject).run(Greedy())
    assert tuned.interrupted and tuned.ratio == pytest.approx(0.8) and ", interrupted:" in str(tuned)


def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    first = FakeSubject(FakeClock(), without_recompute)
    found = session(first, database=Database(path, "m", "v")).run(Greedy())
    second = FakeSubject(FakeClock(), without_recompute)
    again = session(second, database=Database(path, "m", "v")).run(Greedy())
    assert again.ratio == pytest.approx(found.ratio)
    assert [t.kind for t in again.trials[:2]] == ["start", "remembered"]
    assert any(t.status == "known" for t in again.trials)
    third = FakeSubject(FakeClock(), without_recompute)
    session(third, database=Database(path, "m", "v")).run(Greedy())
    assert len(third.built) == 2  # the start, and what was best
    # another machine, or other versions, begin anew
    other = FakeSubject(FakeClock(), without_recompute)
    session(other, database=Database(path, "m", "w")).run(Greedy())
    assert len(other.built) == len(first.built)


def test_a_candidate_that_does_not_compile_is_noted_and_the_search_goes_on() -> None:
    subject = FakeSubject(FakeClock(), without_recompute)

    def fail(p: Program) -> None:
        if len(subject.built) == 2:
            raise RuntimeError("the compiler failed\nsecond line")

    subject.hook = fail
    tuned = session(subject).run(Greedy())
    failed = [t for t in tuned.trials if t.status == "failed"]
    assert failed and failed[0].reason == "the compiler failed" and tuned.ratio == pytest.approx(0.8)


def test_equal_kernels_are_tuned_once_and_all_get_what_was_found() -> None:
    def kernel_speed(k: Any) -> float:
        return 0.005 if k.schedule.get("pieces") == 16 else 0.01

    def speed(p: Program) -> float:
        return 1.0 - 0.05 * sum(1 for n in p.nodes if getattr(n, "schedule", None) and n.schedule.get("pieces") == 16)

    subject = FakeSubject(FakeClock(), speed, kernel_speed=kernel_speed, program=operators(blocks=4))
    tuned = session(subject, 1000.0).run(Greedy())
    program = subject.lower(tuned.choices)
    maps = [n for n in program.nodes if hasattr(n, "schedule")]
    assert all(n.schedule.get("pieces") == 16 for n in maps)
    kinds = {t.what.split(" ScheduleChoice")[0] for t in tuned.trials if t.kind == "kernel"}
    assert len(kinds) < len(maps) and any("kernels)" in k for k in kinds)
    again = operators(blocks=4).clone()
    assert again.replay(tuned.recipe).applied == len(tuned.recipe) and fingerprint(again) == fingerprint(program)  # type: ignore[attr-defined]


def test_kernels_of_one_network_are_known_in_another(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"

    def kernel_speed(k: Any) -> float:
        return 0.005 if k.schedule.get("pieces") == 16 else 0.01

    calls: list[int] = []
    for blocks in (2, 3):
        subject = FakeSubject(FakeClock(), lambda p: 1.0, kernel_speed=kernel_speed, program=operators(blocks))
        tuned = session(subject, 1000.0, Database(path, "m", "v")).run(Greedy())
        calls.append(sum(1 for t in tuned.trials if t.kind == "kernel"))
    assert calls[1] < calls[0]


def test_moves_come_in_groups_of_blocks_that_are_alike() -> None:
    ops = operators(blocks=3)
    found = moves(ops, FakeSubject(FakeClock(), lambda p: 1.0, program=ops).lower(Choices()))
    assert {m.kind for m in found} == {"parameter", "fusion", "recompute", "expansion"}
    assert any("(3 places)" in m.what for m in found)
    assert len({m.what for m in found}) == len(found)


def test_places_that_are_alike() -> None:
    assert alike("blocks.3.norm: layer_norm → blocks.4: add #2") == "blocks.i.norm: layer_norm → blocks.j: add"
    assert alike("blocks.7.norm: layer_norm → blocks.8: add") == "blocks.i.norm: layer_norm → blocks.j: add"
    assert alike("conv1: relu") == "conv1: relu"


def test_choices_survive_the_database() -> None:
    subject = FakeSubject(FakeClock(), without_recompute)
    for m in moves(subject.operators, subject.lower(Choices())):
        choices = m.on(Choices())
        assert from_key(choices.key) == choices


def test_a_strategy_of_the_user() -> None:
    class Two(Search):
        def run(self, session: Session) -> None:
            for m in session.moves[:2]:
                session.measure(m.kind, m.what, m.on(session.best.choices))

    tuned = session(FakeSubject(FakeClock(), without_recompute)).run(Two())
    assert isinstance(tuned, Tuned) and len(tuned.trials) == 3
    with pytest.raises(KeyError, match="no search strategy is called 'greddy'; did you mean greedy"):
        SEARCHES.get("greddy")


def test_bad_budgets() -> None:
    with pytest.raises(ValueError, match="seconds above 0, not -1"):
        session(FakeSubject(FakeClock(), lambda p: 1.0), -1)


def test_progress_and_plot(tmp_path: Path) -> None:
    import io

    from shorthaul.tuning.progress import Progress

    text = io.StringIO()
    tuned = session(FakeSubject(FakeClock(), without_recompute), report=Progress(text)).run(Greedy())
    assert "best 1.250x" in text.getvalue()
    tuned.plot(tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
