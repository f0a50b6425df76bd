"""The bytes that one training step moves, before and after Shorthaul's transformations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Saving:
    """What all applications of one transformation saved together, in bytes."""

    name: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Movement:
    """Bytes of one forward and backward pass, one kernel an operator (`before`) and transformed (`after`)."""

    before: int
    after: int
    savings: list[Saving]


def measure_movement(module: Any) -> Movement:
    """The movement of the programs that an optimized module has run, and what their rewrite logs claim to have saved.

    Raises `RuntimeError` where nothing was compiled.
    """
    programs = [region.program for region in module.report().regions if region.program is not None]
    if not programs:
        raise RuntimeError("nothing of the network was compiled; model.report() says why")
    totals: dict[str, Saving] = {}
    for program in programs:
        for rewrite in program.log:
            saved = rewrite.notes.get("saves")
            if saved is not None:
                total = totals.setdefault(rewrite.name, Saving(rewrite.name, 0, 0))
                total.count += 1
                total.bytes += int(saved)
    movements = [program.movement() for program in programs]
    return Movement(
        sum(int(m.eager_bytes) for m in movements),
        sum(int(m.bytes) for m in movements),
        sorted((s for s in totals.values() if s.bytes > 0), key=lambda s: -s.bytes),
    )
