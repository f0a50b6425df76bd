"""Flat maps that run in the kernel which merges the parts of a split reduction (`transforms.level2_fusion.merge_epilogue`).

The merged results are in registers when they are written; what reads them next, element by element, needs no launch of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from shorthaul.ir.flat import Flat
from shorthaul.ir.memlet import Condition, Memlet
from shorthaul.ir.nodes import Tasklet
from shorthaul.symbolic import prove_eq

from .block_emit import BlockEmitter
from .block_states import Deps
from .blocks import BlockPlan, Stage, write_groups
from .plan import NotSchedulable
from .text import TRITON_TYPES


class EpilogueEmitter(BlockEmitter):
    """Writes a merging kernel, and behind it the maps that read its results."""

    def __init__(self, plan: BlockPlan, epilogues: Sequence[Flat]) -> None:
        super().__init__(plan)
        self.epilogues = epilogues

    def kernel(self) -> None:
        (stage,) = self.plan.stages
        b = stage.b
        if b is None or b.mode != "tile" or any(prove_eq(f.elements, b.size) is not True for f in self.epilogues):
            raise NotSchedulable(f"map {self.plan.map.label}: what reads its results does not run over them alone")
        super().kernel()
        made = {m.container for m in stage.tasklet.writes.values()}
        for f in self.epilogues:
            t = f.tree.tasklet
            assert t is not None
            if f.single & (made | set(f.names[-len(t.writes) :])) or len(set(f.names)) < len(f.names):
                raise NotSchedulable(f"map {self.plan.map.label}: {f.tree.label} needs one element of a result, or one operand twice")
            made |= set(f.names[-len(t.writes) :])
            (i,) = f.tree.params
            named = {f"c{k}": name for k, name in enumerate(f.names)}
            # the same memory as in the program, as rows without gaps
            flat = {name: dataclasses.replace(f.containers[own], name=name) for own, name in named.items()}
            self.plan.containers = {**self.plan.containers, **flat}
            self.plan.bind(i, b.index)
            reads, writes = ({c: dataclasses.replace(m, container=named[m.container]) for c, m in side.items()}
                             for side in (t.reads, t.writes))  # fmt: skip
            own = Tasklet(t.code, reads=reads, writes=writes, origins=f.tree.origins)
            groups = write_groups(own, frozenset([i]), {}, self.plan.containers)
            self.stage = Stage(own, b, (), tuple(groups))
            for o in f.tree.origins:
                self.line(f"# {o}"[:114])
            for g in groups:
                self.write(self.stage, g.connectors[0])
            self.stage = None

    def store(self, t: Tasklet, m: Memlet, place: str, deps: Deps, value: str, guard: Sequence[Condition] | None = None) -> None:
        """What is stored is known: a read of the same element gets the register. (From memory another thread might read it too early.)"""
        (stage,) = self.plan.stages
        assert stage.b is not None
        if self.plan.address(m)[0] != stage.b.index or (m.guard if guard is None else guard):
            raise NotSchedulable(f"map {self.plan.map.label}: its results lie otherwise than it runs over them")
        computed = next(t.code[k].dtype for k, x in t.writes.items() if x is m)
        stored = self.plan.containers[m.container].dtype
        value = self.named(m.container, value if computed is stored else f"{value}.to({TRITON_TYPES[stored.name]})")
        texts, full = self.conditions(t, m.guard if guard is None else guard, deps)
        self.memo[-1]["load", self.pointer(m.container), place, tuple(texts), None] = value, full
        super().store(t, m, place, deps, value, guard)
