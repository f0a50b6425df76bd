"""Streams for the kernels of a segment: what conflicts stays in order, what does not runs side by side."""

from __future__ import annotations

import random

import pytest

from shorthaul.runtime.streams import Placed, place


def ordered_pairs(placed: list[Placed]) -> set[tuple[int, int]]:
    """(j, i): step i begins when step j is over."""
    behind: list[set[int]] = []
    for i, p in enumerate(placed):
        direct = {*p.waits, *(j for j in range(i) if placed[j].stream == p.stream)}
        behind.append(direct.union(*(behind[j] for j in direct)))
    return {(j, i) for i, before in enumerate(behind) for j in before}


@pytest.mark.parametrize("seed", range(30))
def test_conflicting_steps_stay_in_order(seed: int) -> None:
    rng = random.Random(seed)
    touched, written = [], []
    for _ in range(rng.randint(2, 25)):
        blocks = [(a := rng.randrange(0, 400, 8), a + rng.choice([0, 8, 16, 64])) for _ in range(rng.randint(1, 4))]
        touched.append(blocks)
        written.append(blocks[: rng.randint(0, len(blocks))])
    placed = place(touched, written, rng.randint(1, 5))
    order = ordered_pairs(placed)
    for i in range(len(touched)):
        for j in range(i):
            bytes_of = [({x for a, b in r[k] for x in range(a, b)}) for r in (touched, written) for k in (j, i)]
            if bytes_of[2] & bytes_of[1] or bytes_of[0] & bytes_of[3]:
                assert (j, i) in order, (seed, j, i, placed)


def test_independent_steps_take_different_streams() -> None:
    ranges = [[(100 * i, 100 * i + 50)] for i in range(4)]
    assert {p.stream for p in place(ranges, ranges, 4)} == {0, 1, 2, 3}
    assert all(not p.waits for p in place(ranges, ranges, 4))


def test_a_chain_stays_on_its_stream() -> None:
    touched = [[(0, 10)], [(0, 20)], [(10, 30)], [(20, 40)]]
    written = [[(0, 10)], [(10, 20)], [(20, 30)], [(30, 40)]]
    assert place(touched, written) == [Placed(0, ())] * 4


def test_what_was_waited_for_is_not_waited_for_again() -> None:
    touched = [[(0, 10)], [(10, 20)], [(0, 30)], [(0, 40)]]
    written = [[(0, 10)], [(10, 20)], [(20, 30)], [(30, 40)]]
    assert [len(p.waits) for p in place(touched, written)] == [0, 0, 1, 0]
