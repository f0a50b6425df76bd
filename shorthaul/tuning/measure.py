"""Measuring two callables against each other, in turns, so that a change of the machine's speed hits both alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
Run = Callable[[], object]

OUTLIER = 5.0  # median absolute deviations above the median from which on a sample is set aside: something else ran
MARGIN = 0.01  # what has to be gained at least, whatever the noise
HOPELESS = 2.0  # a candidate that takes so many times the incumbent's time is not measured further, if a call takes LONG seconds
LONG = 0.05
SHORT = 1e-3  # seconds that a turn takes at least: shorter calls are repeated


@dataclass(frozen=True)
class Sample:
    """Seconds a call: the median without outliers, its standard error, the least, and how many samples were kept and set aside."""

    median: float
    error: float
    least: float
    kept: int
    outliers: int = 0


def sample(times: Sequence[float]) -> Sample:
    """The robust summary of measured times. Raises ValueError where there are none."""
    if not times:
        raise ValueError("nothing was measured")
    median = statistics.median(times)
    spread = statistics.median(abs(t - median) for t in times)
    kept = [t for t in times if t <= median + OUTLIER * max(spread, 0.01 * median)]
    median = statistics.median(kept)
    spread = statistics.median(abs(t - median) for t in kept)
    # 1.4826 * MAD estimates the standard deviation, 1.2533 of it over sqrt(n) the error of a median
    return Sample(median, 1.4826 * 1.2533 * spread / math.sqrt(len(kept)), min(times), len(kept), len(times) - len(kept))


@dataclass(frozen=True)
class Comparison:
    """An incumbent and a candidate that were measured in turns."""

    incumbent: Sample
    candidate: Sample

    @property
    def ratio(self) -> float:
        """The candidate's time over the incumbent's, below 1 is faster: of the medians or of the shortest calls, whichever says less; 1
        where one says faster and the other slower."""
        if (self._of_median - 1) * (self._of_least - 1) < 0:
            return 1.0
        return min(self._of_median, self._of_least, key=lambda r: abs(math.log(r)) if 0 < r < math.inf else math.inf)

    @property
    def _of_median(self) -> float:
        return self.candidate.median / self.incumbent.median if self.incumbent.median else math.inf

    @property
    def noise(self) -> float:
        """Twice the error of the ratio of the medians."""
        a, b = self.incumbent, self.candidate
        return 2 * math.hypot(a.error / a.median, b.error / b.median) * self._of_median if a.median and b.median else math.inf

    @property
    def _of_least(self) -> float:
        """The same of the shortest calls: what else runs on the machine can only make calls longer, so both ratios have to agree."""
        return self.candidate.least / self.incumbent.least if self.incumbent.least else math.inf

    @property
    def faster(self) -> bool:
        """Whether the candidate gains more than the margin and the noise, by its median and by its shortest call."""
        return self._of_median < 1 - max(MARGIN, self.noise) and self._of_least < 1 - MARGIN / 2

    @property
    def slower(self) -> bool:
        """Whether the candidate loses more than the margin and the noise, by its median and by its shortest call."""
        return self._of_median > 1 + max(MARGIN, self.noise) and self._of_least > 1 + MARGIN / 2


def in_turns(incumbent: Run, candidate: Run, clock: Clock, *, rounds: int = 21, least: int = 7, seconds: float = math.inf) -> Comparison:
    """Measure both in turns, in alternating order, after a call of each that does not count.

    rounds: turns each gets at most. It ends sooner, but not before `least` turns, where it is decided or `seconds` are over, and at once
    where the candidate is hopelessly slow or the time is over before anything can be compared.
    """
    began = clock()

    def once(run: Run, times: int = 1) -> float:
        start = clock()
        for _ in range(times):
            run()
        return (clock() - start) / times

    warm = [once(incumbent), once(candidate)]
    first = [once(incumbent), once(candidate)]
    times: tuple[list[float], list[float]] = ([first[0]], [first[1]])
    hopeless = min(warm[1], first[1]) > max(LONG, HOPELESS * max(warm[0], first[0]))
    if hopeless or clock() - began > seconds:
        return Comparison(sample(times[0]), sample(times[1]))
    repeat = max(1, math.ceil(SHORT / max(1e-9, min(*warm, *first))))
    if repeat > 1:
        times = ([], [])  # a single short call says little
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(once((incumbent, candidate)[which], repeat))
        if len(times[0]) >= least:
            found = Comparison(sample(times[0]), sample(times[1]))
            if clock() - began > seconds or ((found.faster or found.slower) and abs(found.ratio - 1) > 2 * max(MARGIN, found.noise)):
                return found
        elif clock() - began > 2 * seconds:
            break
    return Comparison(sample(times[0]), sample(times[1]))
