"""Liveness: when each transient exists, what is saved between the phases, and the peak of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, Symbol, evaluate

IntLike = Union[int, Expr]


@dataclass(frozen=True)
class Lifetime:
    """A container exists from node `first` (which writes it) to node `last` (its last use), positions in the program."""

    container: Container
    first: int
    last: int
    is_saved: bool


@dataclass
class Liveness:
    """peak: bytes of transients (results included) that exist at once, by phase; saved tensors count in both. saved: the tensors that
    are written forward and read backward with their bytes, largest first. at: bytes at each node."""

    lifetimes: dict[str, Lifetime]
    peak: dict[str, int] = field(default_factory=dict)
    saved: list[tuple[str, int]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)

    @property
    def saved_bytes(self) -> int:
        return sum(b for _, b in self.saved)


def lifetimes(program: Program) -> dict[str, Lifetime]:
    """First and last use of every container that the program writes; results of a phase live to its end, aliases extend their base."""
    phases = [n.phase for n in program.nodes]
    ends = {p: max(i for i, q in enumerate(phases) if q == p) for p in set(phases)}
    span: dict[str, list[int]] = {}
    for i, n in enumerate(program.nodes):
        for name in (*program.reads_of(n), *program.writes_of(n)):
            base = _base(program, name)
            if base in program.containers and not program.containers[base].is_external:
                span.setdefault(base, [i, i])[1] = i
    forward = set(program.signature.outputs) | {u for _, u in program.signature.updates}
    for name in program.results:
        base = _base(program, name)
        if base in span:
            phase = "forward" if name in forward else phases[span[base][0]]
            span[base][1] = max(span[base][1], ends.get(phase, span[base][1]))
    return {name: Lifetime(program.containers[name], a, b, phases[a] == "forward" and phases[b] != "forward")
            for name, (a, b) in span.items()}  # fmt: skip


def _base(program: Program, name: str) -> str:
    seen = program.containers.get(name)
    while seen is not None and seen.alias is not None:
        name, seen = seen.alias.base, program.containers.get(seen.alias.base)
    return name


def liveness(program: Program, sizes: Mapping[Any, int] | None = None) -> Liveness:
    """Liveness at given sizes (by Symbol or name; default the program's size hints). KeyError names a size that is missing."""
    known = hints(program, sizes)
    found = lifetimes(program)
    count = len(program.nodes)
    change = [0] * (count + 1)
    for life in found.values():
        size = value(life.container.bytes, known)
        change[life.first] += size
        change[life.last + 1] -= size
    at, total = [], 0
    for i in range(count):
        total += change[i]
        at.append(total)
    peak: dict[str, int] = {}
    for n, b in zip(program.nodes, at, strict=True):
        peak[n.phase] = max(peak.get(n.phase, 0), b)
    saved = [(name, value(life.container.bytes, known)) for name, life in found.items() if life.is_saved]
    return Liveness(found, peak, sorted(saved, key=lambda s: -s[1]), at)


def hints(program: Program, sizes: Mapping[Any, int] | None = None) -> dict[str, int]:
    """Sizes by name: the program's size hints, overridden by the given ones."""
    known = {str(getattr(k, "name", k)): int(v) for k, v in program.attributes.get("size_hints", {}).items()}
    known.update({str(k.name if isinstance(k, Symbol) else k): int(v) for k, v in (sizes or {}).items()})
    return known


def value(e: IntLike, sizes: Mapping[str, int]) -> int:
    """An expression in the program's sizes as a number; KeyError names a size that is missing."""
    return e if isinstance(e, int) else evaluate(e, sizes)
