"""Windows in registers: neighbouring results of a window are computed together, so that what they share is loaded once.

A depthwise convolution of 3 x 3 reads every input nine times if each thread computes one result. Computed 2 x 4 at a time, the eight
results read 4 x 6 inputs instead of 72 (unroll and jam). The gradient of the weights is the same window the other way round: its taps are
results, one accumulator each, and what is summed are the positions; of neighbouring positions each input is loaded once.

Nothing here knows convolutions: a *position* and a *tap* are parameters that meet in one subscript of a read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Memlet
from shorthaul.symbolic import Expr, Symbol, evaluate, index, substitute

from .plan import address, free

IntLike = Union[int, Expr]
TAPS = 256  # reduced points up to which a window's taps are taken one by one
MOST_COPIES = 8  # results that a thread computes together, each with an accumulator
MOST_POSITIONS = 8  # positions whose terms a thread adds together, where the taps have the accumulators
MOST_TAPS = 32  # accumulators of a window whose taps are the results
MOST_LOADS = 80  # blocks that are loaded for them; with more, registers overflow into memory
WIDEST = 11  # values of one tap that are written out
SOME = 64  # stands for a size that is not known when the kernel is planned, only to compare choices


@dataclass(frozen=True)
class Split:
    """A parameter as outer * factor + inner; the inner part is written out. outer: None where that is all of it."""

    param: Symbol
    outer: Symbol | None
    factor: int
    inner: Symbol

    @property
    def expr(self) -> IntLike:
        return (self.param.lower or 0) + self.inner + (0 if self.outer is None else self.outer * self.factor)


@dataclass(frozen=True)
class Window:
    """What is written out of a map. copies: results side by side; taps: what is summed for each of them."""

    copies: tuple[Split, ...]
    taps: tuple[Split, ...]


def choose_window(
    reads: Iterable[Memlet], containers: Mapping[str, Container], kept: Sequence[Symbol], summed: Sequence[Symbol], lane: Symbol,
    few: bool,
) -> Window | None:
    """How to write out a map that keeps some parameters and sums over others; None where that saves no loads.

    reads: what its tasklet reads. lane: the parameter along which a block's neighbours lie; it is never written out. few: the taps are
    what is summed, one value at a time; otherwise they are results, and long sums run over the positions.
    """
    reads = [r for r in reads if not r.is_indirect and r.container in containers]
    pairs = {(p, q) for r in reads for s in r.subset for p in free(s) for q in free(s) if p is not q}
    positions, taps = (kept, summed) if few else (summed, kept)
    taps = [t for t in taps if t is not lane and 0 < _known(t) <= WIDEST]
    taps = [t for t in taps if any((p, t) in pairs for p in positions if p is not lane)]
    positions = [p for p in positions if p is not lane and _known(p) and any((p, t) in pairs for t in taps)]
    written = math.prod(_known(t) for t in taps)
    if not taps or not positions or (few and len(taps) != len(summed)) or (not few and written > MOST_TAPS):
        return None
    most = MOST_COPIES if few else MOST_POSITIONS
    options = [[f for f in range(1, most + 1) if _known(p) % f == 0] for p in positions]
    whole = [_split(t, _known(t), f"t{i}") for i, t in enumerate(taps)]
    choices = []
    for factors in itertools.product(*options):
        if math.prod(factors) <= most:
            splits = [_split(p, f, f"u{i}") for i, (p, f) in enumerate(zip(positions, factors, strict=True)) if f > 1]
            loads = _loads(reads, containers, splits, whole)
            if loads <= MOST_LOADS or not splits:
                choices.append((loads / math.prod(factors), splits))
    one = next(each for each, splits in choices if not splits)
    least, splits = min(choices, key=lambda c: c[0])
    if few:
        return Window(tuple(splits), tuple(whole)) if least <= 0.8 * one else None
    return Window(tuple(whole), tuple(splits))


def is_window(reads: Iterable[Memlet], kept: Sequence[Symbol], summed: Sequence[Symbol]) -> bool:
    """Whether everything that is summed meets what is kept in a subscript, as the taps of a window do."""
    met = {q for r in reads if not r.is_indirect for s in r.subset if free(s) & set(kept) for q in free(s)}
    return met >= set(summed)


def _known(p: Symbol) -> int:
    """The size of a parameter; 0 where it is not known."""
    return p.size if isinstance(p.size, int) else 0


def _split(p: Symbol, factor: int, name: str) -> Split:
    outer = None if _known(p) == factor else index(f"{p.name}.", _known(p) // factor)
    return Split(p, outer, factor, index(name, factor))


def points(splits: Iterable[Split]) -> Iterator[dict[Symbol, int]]:
    """Every combination of the written out values."""
    splits = list(splits)
    for values in itertools.product(*(range(s.factor) for s in splits)):
        yield {s.inner: v for s, v in zip(splits, values, strict=True)}


def _loads(reads: Sequence[Memlet], containers: Mapping[str, Container], positions: Sequence[Split], taps: Sequence[Split]) -> int:
    """Loads of a block for all points that are written out."""
    values = {s.param: s.expr for s in (*positions, *taps)}
    count = 0
    for r in reads:
        base = substitute(address(r, containers[r.container])[0], values)
        never = [substitute(c.expr, values) for c in r.guard if c.relation == "eq"]
        inner = [s for s in (*positions, *taps) if any(s.inner in free(e) for e in (base, *never))]
        outside = {s for e in (base, *never) for s in free(e)}
        found = set()
        for at in points(inner):
            here, next_to_it = ({**{s: _middle(s) + k for s in outside}, **at} for k in (0, 1))
            if all(evaluate(e, here) == 0 or evaluate(e, next_to_it) == 0 for e in never):
                found.add(evaluate(base, here))
        count += len(found)
    return count


def _middle(s: Symbol) -> int:
    """A value within the symbol's range, even: a guard that holds neither here nor one further is one that a stride never meets."""
    size = s.size if isinstance(s.size, int) else SOME
    return size // 4 * 2
