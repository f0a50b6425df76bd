"""The bytes that one training step moves, before and after Shorthaul's transformations."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn


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


def measure_movement(network: nn.Module, images: torch.Tensor) -> Movement:
    """Capture and optimize a copy of `network`, and read its movement and its rewrite log."""
    import shorthaul as sh

    program = sh.capture(copy.deepcopy(network).train(), (images,), train=True)
    program.optimize(level=4)
    movement = program.movement()
    totals: dict[str, Saving] = {}
    for entry in program.log:
        saved = int(getattr(entry, "saves", 0) or 0)
        name = str(getattr(entry, "name", type(entry).__name__))
        total = totals.setdefault(name, Saving(name, 0, 0))
        total.count += 1
        total.bytes += saved
    savings = sorted((s for s in totals.values() if s.bytes > 0), key=lambda s: -s.bytes)
    return Movement(int(movement.eager_bytes), int(movement.bytes), savings)
