"""Scans: prefixes along an axis, one step after the other (many rows side by side) or a block at a time (long rows)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shorthaul.symbolic import Symbol

from .block_states import State
from .blocks import BlockAxis, Group
from .text import TRITON_TYPES

if TYPE_CHECKING:
    from .block_emit import BlockEmitter

LEAST = 64  # steps from which a block is scanned at a time


def scans_blocks(groups: Sequence[Group], step: Symbol, rest: int | None, lane: Symbol | None) -> bool:
    """Whether a scan along `step` goes a block at a time: where the steps lie next to each other in memory, or there are too few rows
    (`rest`, None: not known) to fill a GPU's lanes."""
    short = isinstance(step.size, int) and step.size < LEAST
    plain = all(g.combine not in ("any", "all") for g in groups)
    return plain and not short and (lane is step or (rest is not None and rest <= 32))


def scanned(s: State) -> BlockAxis | None:
    """The block axis along which a state's prefixes are kept, None where they are made step by step."""
    return next((x for x in s.axes if x.dim == 1 and s.group.scan in x.params), None) if s.group.scan is not None else None


def scan_step(e: BlockEmitter, s: State, elements: Sequence[str]) -> None:
    """Merge the next elements into the state, and store the prefixes."""
    g, axis = s.group, scanned(s)
    if axis is None:
        e.line(f"{', '.join(s.names)} = {e.merge_call(str(g.combine), s.dtypes, s.names, elements)}")
        store(e, s, s.names)
        return
    shape = e.block_shape({0, 1} if e.plan.a is not None else {1}, e.stage)
    inside = e.masks.get(axis.index)
    own = []
    for at, text in enumerate(elements):
        text = f"tl.broadcast_to({text}, {shape})"
        text = text if inside is None else f"tl.where({inside}, {text}, {e.neutral(s, at)})"
        own.append(e.named(f"{g.connectors[at]}_element", text))
    prefix = [e.fresh(f"{c}_prefix") for c in g.connectors]
    operand = own[0] if len(own) == 1 else f"({', '.join(own)})"
    e.line(f"{', '.join(prefix)} = tl.associative_scan({operand}, 1, {e.merge(str(g.combine), s.dtypes)})")
    whole = [e.fresh(f"{c}_scan") for c in g.connectors]
    e.line(f"{', '.join(whole)} = {e.merge_call(str(g.combine), s.dtypes, s.names, prefix)}")
    store(e, s, whole)
    last = f"tl.arange(0, {axis.block})[None, :] == {axis.block} - 1"
    for name, text, dtype in zip(s.names, whole, s.dtypes, strict=True):
        e.line(f"{name} = tl.sum(tl.where({last}, {text}, 0), axis=1, keep_dims=True).to({TRITON_TYPES[dtype.name]})")


def store(e: BlockEmitter, s: State, names: Sequence[str]) -> None:
    for at, connector in enumerate(s.group.connectors):
        m = s.tasklet.writes[connector]
        e.store(s.tasklet, m, *e.place(s.tasklet, m), e.result(s, at, names[at]))
