"""What a target that launches kernels starts together: the marks in the schedules of neighbouring maps.

"batch" (`BatchKernels`): small maps of one form; "epilogue" (`MergeEpilogue`): a reduction, and maps behind it over its results. Maps
side by side with an equal mark are one launch. Targets that call kernels as functions take no notice.
"""

from __future__ import annotations

from .nodes import Map, Node
from .program import Program

MARKS = ("batch", "epilogue")


def launched_together(a: Node, b: Node, *kinds: str) -> bool:
    """Whether two maps have an equal mark, of one of these kinds (default: of any)."""
    if not (isinstance(a, Map) and isinstance(b, Map)):
        return False
    return any(a.schedule.get(k) is not None and a.schedule.get(k) == b.schedule.get(k) for k in kinds or MARKS)


def fresh_mark(program: Program, kind: str) -> int:
    """A mark that no map of the program has."""
    taken = {n.schedule.get(kind) for n in program.nodes if isinstance(n, Map)}
    return next(i for i in range(1, len(taken) + 2) if i not in taken)
