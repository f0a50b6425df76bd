"""What a tuning run found: what was tried, what won, as a table, a plot and a recipe."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from shorthaul.analysis.movement import human
from shorthaul.transforms.choices import Choices
from shorthaul.transforms.recipe import Recipe

SHOWN = 20


@dataclass
class Trial:
    """One thing that was tried.

    kind: "start", "parameter", "expansion", "fusion", "recompute", "kernel", "schedule". predicted: seconds by the cost model, bytes:
    moved; of the whole step, None where it was not lowered. seconds: measured, a call. ratio: to the start's time (a kernel's: to its own).
    status: "best" (at its time), "faster", "not faster", "slower", "known" (from the database), "same", "predicted slower", "refused",
    "failed", "out of time". at: seconds since the run began.
    """

    kind: str
    what: str
    status: str
    choices: Choices | None = None
    predicted: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    ratio: float | None = None
    reason: str = ""
    at: float = 0.0


@dataclass
class Tuned:
    """The result of `tune`. `recipe` is the plan that won, for `sh.optimize(model, recipe=...)`; `str()` is the table.

    ratio: the tuned step's time over the start's, 1 where nothing was faster. final: whether both were measured once more at the end.
    seconds: that the run took. budget: that it was given.
    """

    name: str
    recipe: Recipe
    choices: Choices
    trials: list[Trial] = field(default_factory=list)
    ratio: float = 1.0
    seconds: float = 0.0
    budget: float = 0.0
    interrupted: bool = False
    final: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        """How many times faster the step is than the one that tuning started from."""
        return 1 / self.ratio

    @property
    def start(self) -> Trial | None:
        return next((t for t in self.trials if t.kind == "start"), None)

    @property
    def measured(self) -> list[Trial]:
        """Trials that were measured in this run."""
        return [t for t in self.trials if t.seconds is not None and t.status != "known"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe."""
        self.recipe.save(path)

    def table(self, limit: int = SHOWN) -> str:
        """What was tried, the best first, and what won."""
        head = f"tuned {self.name} in {self.seconds:.1f} s of {self.budget:g} s{', interrupted' if self.interrupted else ''}"
        won = f"{self.speedup:.3f} times as fast as the start" if self.ratio < 1 else "nothing was faster than the start"
        lines = [f"{head}: {len(self.measured)} measured, {len(self.trials) - len(self.measured)} not; {won}"]
        lines += [f"  {n}" for n in self.notes]
        lines.append(f"{'':2}{'time':>10} {'of start':>8} {'predicted':>10} {'moves':>10}  {'result':16} what")
        order = sorted(self.trials, key=lambda t: (t.kind != "start", t.ratio is None, t.ratio if t.ratio is not None else math.inf))
        winning = next((t for t in reversed(self.trials) if t.choices == self.choices and t.kind != "kernel"), None)
        for t in order[:limit]:
            mark = "→ " if t is winning else "  "
            reason = f" ({t.reason})" if t.reason else ""
            lines.append(f"{mark}{_time(t.seconds):>10} {_number(t.ratio):>8} {_time(t.predicted):>10} "
                         f"{human(t.bytes) if t.bytes is not None else '':>10}  {t.status:16} {t.kind}: {t.what}{reason}")  # fmt: skip
        if len(order) > limit:
            lines.append(f"  ... and {len(order) - limit} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the best so far over time, and predicted against measured time, into a file (PNG, SVG or PDF by its suffix).

        Raises ImportError where matplotlib is missing.
        """
        from .plot import draw

        draw(self, path)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"
