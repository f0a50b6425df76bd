"""What follows from a choice of sizes: shapes, strides, and where each value lives in which arena."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shorthaul.analysis.arena import Block, plan_arena
from shorthaul.codegen.host import HostProgram, Segment
from shorthaul.symbolic import Expr, Symbol, evaluate

if TYPE_CHECKING:
    from .gpu_launch import KernelTarget

WIDE = 2**31 - 65536  # elements of a container from which on a GPU's kernels need addresses of 64 bits
AGAIN = "again"  # the backward phase with an arena of its own, where it may run once more


@dataclass
class Binding:
    """What kernels of a GPU are bound by: sizes by name, bytes of every container, whether one needs addresses of 64 bits, and which
    begin where 16 bytes do not divide the address."""

    sizes: dict[str, int]
    bytes: dict[str, int]
    wide: bool
    unaligned: frozenset[str]


@dataclass
class Layout:
    """Concrete shapes and strides for one choice of sizes.

    offsets, arena_bytes: of what lives in one phase, by phase; saved, saved_bytes: of what lives from the forward to the backward phase.
    With the memory plan "step" all of it is in one arena (`shared`), of `saved_bytes`: the backward phase then writes over saved values
    that it has used, and the entry `AGAIN` places its own values apart, for a run that another one of the same forward run follows.

    known: the sizes by symbol; `sizes` has them in the order of the program. Where steps define sizes, each call has a layout of its own,
    into which `shapes` and `strides` of containers go as their sizes become known. watch: called whenever that happens.
    """

    shapes: dict[str, tuple[int, ...]]
    strides: dict[str, tuple[int, ...]]
    alias: dict[str, tuple[str, int]]
    offsets: dict[str, dict[str, int]]
    saved: dict[str, int]
    saved_bytes: int
    arena_bytes: dict[str, int]
    sizes: Any
    binding: Binding
    plans: dict[str, Any] = field(default_factory=dict)
    watch: Callable[[Layout], None] | None = None
    checks: Any = None  # the bridge keeps what it compares inputs with here
    known: dict[Symbol, int] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether all phases live in one arena."""
        return AGAIN in self.offsets

    def own(self) -> Layout:
        """A copy for one call, which shares the plans."""
        return replace(self, shapes=dict(self.shapes), strides=dict(self.strides), sizes=self.sizes.copy(), known=dict(self.known))


def number(e: int | Expr, sizes: Mapping[Symbol, int]) -> int:
    """A size as a number."""
    return e if isinstance(e, int) else evaluate(e, sizes)


def make_layout(host: HostProgram, sizes: Mapping[Symbol, int], owned: Mapping[str, set[str]], saved_names: Sequence[str],
                target: KernelTarget | None) -> Layout:  # fmt: skip
    """Lay out everything whose sizes are known. owned: by phase, what library calls allocate themselves."""
    sizes = {s: sizes[s] for s in host.symbols if s not in host.late}
    static = {n: c for n, c in host.containers.items() if n not in host.dynamic}
    shapes = {n: tuple(number(s, sizes) for s in c.shape) for n, c in static.items()}
    strides = {n: tuple(number(s, sizes) for s in c.actual_strides) for n, c in static.items()}
    alias: dict[str, tuple[str, int]] = {}
    for n, c in host.containers.items():
        if c.alias is not None:
            base, offset = c.alias.base, number(c.alias.offset, sizes)
            while (further := host.containers[base].alias) is not None:
                base, offset = further.base, offset + number(further.offset, sizes)
            alias[n] = (base, offset)
    bytes_ = {n: (1 + sum((d - 1) * s for d, s in zip(shapes[n], strides[n], strict=True)) if all(shapes[n]) else 0) * c.dtype.itemsize
              for n, c in static.items()}  # fmt: skip
    named = {s.name: int(n) for s, n in sizes.items()}
    wide = any(math.prod(shape) >= WIDE for shape in shapes.values())
    unaligned = frozenset(n for n, (_, offset) in alias.items() if offset * host.containers[n].dtype.itemsize % 16)
    if target is not None:
        segments = [s for phase in host.phases.values() for s in phase.steps if isinstance(s, Segment)]
        target.compile_all(segments, named, wide, unaligned)
    blocks: dict[str, list[Block]] = {}
    for name, phase in host.phases.items():
        blocks[name] = [(n, bytes_[n], first, last) for n, (first, last) in phase.spans.items()
                        if host.kinds.get(n) == "transient" and n not in owned[name] and n in static]  # fmt: skip
        if target is not None:
            blocks[name] += [(n, size, at, at) for at, s in enumerate(phase.steps) if isinstance(s, Segment)
                             for n, size in target.scratch(s, named)]  # fmt: skip
    offsets, arena_bytes, saved, saved_bytes = _places(host, blocks, {n: bytes_[n] for n in saved_names})
    table = np.array([sizes.get(s, 0) for s in host.symbols] or [0], dtype=np.int64)
    binding = Binding(named, bytes_, wide, unaligned)
    return Layout(shapes, strides, alias, offsets, saved, saved_bytes, arena_bytes, table, binding, known=dict(sizes))


def _places(
    host: HostProgram, blocks: Mapping[str, list[Block]], saved: Mapping[str, int]
) -> tuple[dict[str, dict[str, int]], dict[str, int], dict[str, int], int]:
    """By the memory plan of the program: offsets and bytes of each phase, offsets and bytes of saved values."""
    if host.memory_plan != "step" or not saved:
        planned = {phase: plan_arena(listed, host.memory_plan) for phase, listed in blocks.items()}
        kept, top = plan_arena((n, size, 0, 0) for n, size in saved.items())
        return {p: o for p, (o, _) in planned.items()}, {p: size for p, (_, size) in planned.items()}, kept, top
    forward, backward = (host.phases[p].spans for p in ("forward", "backward"))
    begin = 1 + max([len(host.phases["forward"].steps), *(last for _, last in forward.values())])
    together: list[Block] = [(n, size, forward[n][0], begin + backward[n][1]) for n, size in saved.items()]
    together += blocks["forward"]
    together += [(n, size, begin + first, begin + last) for n, size, first, last in blocks["backward"]]
    found, top = plan_arena(together, "tight")
    again, size = plan_arena(blocks["backward"], "tight")
    offsets = {p: {n: found[n] for n, *_ in listed} for p, listed in blocks.items()}
    return {**offsets, AGAIN: again}, {"forward": 0, "backward": 0, AGAIN: size}, {n: found[n] for n in saved}, top
