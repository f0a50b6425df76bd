"""Comparing two callables in turns, with a clock that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from fakes import FakeClock

from shorthaul.tuning.measure import Comparison, in_turns, sample


def compare(incumbent: Iterator[float], candidate: Iterator[float], **options: float) -> tuple[Comparison, FakeClock]:
    clock = FakeClock()

    def run(times: Iterator[float]) -> None:
        clock.now += next(times)

    return in_turns(lambda: run(incumbent), lambda: run(candidate), clock, **options), clock  # type: ignore[arg-type]


def test_outliers_are_set_aside() -> None:
    found = sample([1.0, 1.01, 0.99, 1.0, 50.0, 1.02, 70.0, 1.0, 0.98])
    assert found.outliers == 2 and found.kept == 7 and abs(found.median - 1.0) < 1e-9 and found.least == 0.98
    with pytest.raises(ValueError, match="nothing was measured"):
        sample([])


@pytest.mark.parametrize(
    ("candidate", "faster", "slower"), [(0.9, True, False), (1.1, False, True), (0.999, False, False), (1.0, False, False)]
)
def test_what_is_faster(candidate: float, faster: bool, slower: bool) -> None:
    found, _ = compare(itertools.repeat(1.0), itertools.repeat(candidate))
    assert (found.faster, found.slower) == (faster, slower) and found.ratio == pytest.approx(candidate)


def test_a_disturbance_of_some_calls_decides_nothing() -> None:
    noisy = itertools.cycle([1.0, 1.0, 9.0, 1.0, 12.0])
    found, _ = compare(noisy, itertools.repeat(1.0))
    assert not found.faster and not found.slower and found.ratio == pytest.approx(1.0)
    # even where most calls of the incumbent are disturbed: its shortest call is as short as the candidate's
    found, _ = compare(itertools.cycle([3.0, 1.0, 3.1]), itertools.repeat(1.0))
    assert not found.faster and found.ratio == pytest.approx(1.0)


def test_a_machine_that_slows_down_hits_both() -> None:
    clock = FakeClock()

    def run() -> None:
        clock.now += 1.0 + 0.2 * clock.now

    found = in_turns(run, run, clock)
    assert not found.faster and not found.slower


def test_it_ends_early_where_it_is_decided_hopeless_or_out_of_time() -> None:
    found, clock = compare(itertools.repeat(1.0), itertools.repeat(0.5))
    assert found.faster and found.candidate.kept < 12
    _, clock = compare(itertools.repeat(1.0), itertools.repeat(100.0))
    assert clock.now <= 202.0  # a warm call and a measured one of each
    found, clock = compare(itertools.repeat(1.0), itertools.repeat(1.0), seconds=10.0)
    assert clock.now < 25.0 and not found.faster


def test_short_calls_are_repeated() -> None:
    calls = 0
    clock = FakeClock()

    def run() -> None:
        nonlocal calls
        calls += 1
        clock.now += 1e-5

    in_turns(run, run, clock, rounds=7)
    assert calls > 2 * 7 * 100
