"""Which cases of a large test suite run: a fixed sample by default, all of them under `make test-all`."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SAMPLE_SEED = 20220628


def full() -> bool:
    """Whether whole suites run: the environment variable `SHORTHAUL_TESTS` is `full` (set by pytest's `--full`)."""
    return os.environ.get("SHORTHAUL_TESTS") == "full"


def sample(cases: Sequence[T], count: int, *, seed: int = SAMPLE_SEED) -> list[T]:
    """`count` of `cases`, the same in every run and in their order; all of them when `full()`.

    For `@pytest.mark.parametrize("case", sample(CASES, 200))`.
    """
    if count < 1:
        raise ValueError(f"a sample needs at least one case, not {count}")
    if full() or len(cases) <= count:
        return list(cases)
    chosen = random.Random(seed).sample(range(len(cases)), count)
    return [cases[i] for i in sorted(chosen)]
