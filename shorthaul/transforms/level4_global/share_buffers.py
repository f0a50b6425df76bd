"""ShareBuffers: what is never needed at the same time lies in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

from shorthaul.analysis.arena import PLANS, arena_bytes
from shorthaul.analysis.liveness import hints
from shorthaul.ir.edit import Edit
from shorthaul.ir.program import Form, Program
from shorthaul.ir.sizes import runtime_sizes

from ..base import Match, Transformation, require

ATTRIBUTE = "memory_plan"


class ShareBuffers(Transformation):
    """Plan the memory of each phase so that buffers share it as tightly as their lifetimes allow.

    before:  a[4 MiB] | b[2 MiB] | a freed | c[6 MiB]   12 MiB: c fits into no free block
    after:   c and a, b in the same 6 MiB

    Bytes moved stay the same; the peak of memory falls by what the rewrite's note "memory" says, at the program's size hints. The plan
    "soon", which programs have otherwise, goes by time and reuses a free block at once; "tight" (the default here) places the largest
    buffers first, and is used where it needs less; values between the phases are kept apart. "step" (the pipeline's choice for GPUs,
    whose caches hold little of either) has one arena for the forward phase, the backward phase and what is saved between them: the
    backward phase writes where saved values were that nothing needs any more. A backward phase that may run again (`retain_graph`)
    gets memory of its own instead. Values in place of an operand are `InPlace`'s business.
    """

    level = 4
    allowed = {"plan": PLANS}

    def __init__(self, plan: str = "tight") -> None:
        self.plan = plan

    def matches(self, program: Program) -> Iterator[Match]:
        """One place: the program."""
        yield Match(program, {})

    def check(self, m: Match) -> None:
        p = m.program
        require(p.form is Form.SCHEDULED, "the program is not scheduled yet, so its buffers are not known")
        now = p.attributes.get(ATTRIBUTE, "soon")
        require(now != self.plan, f"memory is planned {self.plan!r} already")
        unknown = [s.name for s in p.symbols if s not in runtime_sizes(p) and s.name not in hints(p)]
        require(not unknown, f"sizes have no hint: {', '.join(unknown)}")
        before, after = (arena_bytes(p, plan) for plan in (now, self.plan))
        m.derived["memory"] = sum(before.values()) - sum(after.values())
        require(self.plan == "soon" or m.memory > 0, "buffers share memory as tightly already")

    def apply(self, m: Match, edit: Edit) -> None:
        edit.set_attribute(ATTRIBUTE, self.plan)
        edit.rewrite.notes["memory"] = m.memory
