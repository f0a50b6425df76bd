"""Bytes moved a training step by level of transformation, for several networks: a table in which nothing is executed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shorthaul.analysis.movement import human, movement
from shorthaul.api import capture
from shorthaul.config import Options
from shorthaul.ir.program import Program
from shorthaul.pipeline import optimize
from shorthaul.transforms.base import hint_value

LEVELS = range(5)


@dataclass(frozen=True)
class LevelRow:
    """One network. eager_bytes: what eager PyTorch moves in a step; bytes: what each level moves, by level, at the sizes captured."""

    name: str
    eager_bytes: int
    bytes: Mapping[int, int]

    def ratio(self, level: int) -> float:
        """Bytes at a level, as a part of eager PyTorch's."""
        return self.bytes[level] / self.eager_bytes if self.eager_bytes else float("nan")

    @property
    def rises(self) -> list[int]:
        """Levels that move more than a level before them."""
        known = sorted(self.bytes)
        return [n for i, n in enumerate(known) if any(self.bytes[n] > self.bytes[m] for m in known[:i])]


def level_row(name: str, program: Program, levels: Iterable[int] = LEVELS) -> LevelRow:
    """Bytes by level of a captured program of operators, which stays as it is."""
    moved: dict[int, int] = {}
    eager = 0
    for level in levels:
        lowered = program.clone()
        optimize(lowered, Options(level))
        found = movement(lowered).at()
        moved[level], eager = hint_value(lowered, found.bytes), hint_value(lowered, found.eager_bytes or 0)
    return LevelRow(name, eager, moved)


def level_rows(networks: Iterable[tuple[str, Any, tuple[Any, ...]]], levels: Iterable[int] = LEVELS) -> Iterator[LevelRow]:
    """Rows of (name, module, inputs), captured for training; modules and inputs may be on the device "meta"."""
    levels = list(levels)
    for name, module, inputs in networks:
        yield level_row(name, capture(module, inputs, train=True), levels)


def header(width: int, levels: Iterable[int] = LEVELS) -> str:
    """The table's first line."""
    return f"{'bytes moved a training step':{width}}  {'eager':>10}" + "".join(f"  {f'level {n}':>16}" for n in levels)


def line(row: LevelRow, width: int) -> str:
    """A row as text: bytes and, in parentheses, their part of eager's; a level that moves more than one before it is marked."""
    cells = [f"{human(n):>10} ({row.ratio(level):.2f}){'!' if level in row.rises else ''}" for level, n in sorted(row.bytes.items())]
    return f"{row.name:{width}}  {human(row.eager_bytes):>10}" + "".join(f"  {c:>16}" for c in cells)
