"""The plot of a tuning run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .result import Tuned


def draw(tuned: Tuned, path: str | os.PathLike[str]) -> None:
    """Best so far over time; predicted against measured time of what was measured whole."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("the plot needs matplotlib; install it with: pip install 'shorthaul[demo]'") from e
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    whole = [t for t in tuned.measured if t.kind != "kernel" and t.ratio is not None]
    best, steps = 1.0, []
    for t in whole:
        best = min(best, t.ratio or 1.0) if t.status == "best" else best
        steps.append((t.at, best))
    left.step([0.0, *[x for x, _ in steps], tuned.seconds], [1.0, *[y for _, y in steps], steps[-1][1] if steps else 1.0], where="post")
    left.plot([t.at for t in whole], [t.ratio for t in whole], ".", alpha=0.6)
    left.set(xlabel="seconds", ylabel="time of a step, of the start's", title=tuned.name)
    pairs = [(t.predicted, t.seconds) for t in whole if t.predicted and t.seconds]
    right.plot([p * 1e3 for p, _ in pairs], [s * 1e3 for _, s in pairs], "o")
    right.set(xlabel="predicted, ms", ylabel="measured, ms", title="what the cost model said")
    figure.savefig(os.fspath(path))
