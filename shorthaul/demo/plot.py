"""Curves as text (in Braille dots) and as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

# The dots of a Braille character, by row and column, as bits above U+2800.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
COLOURS = ("cyan", "magenta", "yellow", "green")


def smoothed(values: Sequence[float], span: int = 10) -> list[float]:
    """The mean of every value and the up to `span - 1` before it."""
    return [
        math.fsum(values[max(0, i - span + 1) : i + 1]) / len(values[max(0, i - span + 1) : i + 1])
        for i in range(len(values))
    ]


def text_plot(curves: Mapping[str, Sequence[float]], width: int = 68, height: int = 12, log: bool = True) -> str:
    """Curves over a common axis, one colour each, as text with rich markup; where curves meet, the later one shows.

    Values that are not finite, and with `log` those not positive, are left out.
    """
    points = {
        name: [
            (i, math.log10(v) if log else v) for i, v in enumerate(values) if math.isfinite(v) and (v > 0 or not log)
        ]
        for name, values in curves.items()
    }
    every = [v for line in points.values() for _, v in line]
    if not every:
        return "(nothing to plot)"
    low, high = min(every), max(every)
    high = high if high > low else low + 1
    longest = max(max((i for i, _ in line), default=0) for line in points.values()) or 1
    bits = [[0] * width for _ in range(height)]
    colour = [[""] * width for _ in range(height)]
    for index, line in enumerate(points.values()):
        for x, y in _joined(line, 2 * width):
            column = round(x / longest * (2 * width - 1))
            row = round((high - y) / (high - low) * (4 * height - 1))
            bits[row // 4][column // 2] |= DOTS[row % 4][column % 2]
            colour[row // 4][column // 2] = COLOURS[index % len(COLOURS)]
    lines = []
    for r in range(height):
        value = high - (high - low) * r / (height - 1)
        label = f"{10**value if log else value:8.3g}" if r % 3 == 0 or r == height - 1 else " " * 8
        cells = (f"[{c}]{chr(0x2800 + b)}[/]" if b else " " for b, c in zip(bits[r], colour[r]))
        lines.append(f"{label} │{''.join(cells)}")
    lines.append(" " * 9 + "└" + "─" * width)
    lines.append(" " * 10 + "1" + f"step {longest + 1}".rjust(width - 1))
    return "\n".join(lines)


def _joined(line: list[tuple[int, float]], count: int) -> list[tuple[float, float]]:
    """The points, and points between neighbours so that at least `count` lie along the line."""
    between = max(1, math.ceil(count / max(1, len(line) - 1)))
    joined: list[tuple[float, float]] = [(x, y) for x, y in line]
    for (x, y), (u, v) in pairwise(line):
        joined += [(x + (u - x) * k / between, y + (v - y) * k / between) for k in range(1, between)]
    return joined


def save_png(curves: Mapping[str, Sequence[float]], path: Path, title: str) -> Path:
    """Two panels: the loss curves, and how far each lies from the first one's (relative, logarithmic)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    names = list(curves)
    for i, name in enumerate(names):
        left.plot(curves[name], label=name, lw=2.4 if i == 0 else 1.2, ls="-" if i == 0 else "--")
    left.set(xlabel="training step", ylabel="loss", yscale="log", title=title)
    left.legend()
    for name in names[1:]:
        gap = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(curves[name], curves[names[0]])]
        right.plot([max(g, 1e-9) for g in gap], label=name, lw=1.2)
    right.set(
        xlabel="training step",
        ylabel=f"relative difference from {names[0]}",
        yscale="log",
        title="how the losses differ",
    )
    if len(names) > 1:
        right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
