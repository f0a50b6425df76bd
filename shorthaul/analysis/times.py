"""Roofline times of a program's kernels on a described machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program

from .flops import is_contraction, map_flops, node_flops
from .liveness import hints, value
from .movement import kernel_name, movement
from .roofline import Machine
from .roofline import machine as machine_called


@dataclass(frozen=True)
class KernelTime:
    """The least time of one kernel: `bound` says whether "memory" or "arithmetic" sets it. flops is None where it is not known.

    Time counts an operation by what it costs beside an add (`scalar_ops`), flops counts each once.
    """

    node: int
    name: str
    bytes: int
    flops: int | None
    seconds: float
    bound: str


def roofline(program: Program, machine: Machine | str | None = None, sizes: Mapping[Any, int] | None = None) -> list[KernelTime]:
    """The roofline time of every kernel, in program order, at given sizes (default: the program's size hints)."""
    target = machine_called(machine)
    known = hints(program, sizes)
    report = movement(program, known, target)
    rows = {r.node: r for r in report.rows("kernel")}
    times = []
    for node in program.nodes:
        row = rows.get(node.id)
        if row is None:
            continue
        count = node_flops(node, program.containers)
        flops = None if count is None else value(count, known)
        dtypes = [program.containers[c].dtype for c in program.writes_of(node) if program.containers[c].dtype.is_float]
        dtype = min(dtypes, key=lambda d: d.bits).name if dtypes else "float32"
        contraction = (isinstance(node, Map) and is_contraction(node)) or (isinstance(node, LibraryCall) and flops is not None)
        number = value(row.bytes, known)
        work = flops or 0
        if isinstance(node, Map) and not contraction:
            work = value(map_flops(node, weighted=True), known)  # an exponential takes as long as several adds
        seconds = target.time(number, work, dtype, contraction)
        bound = "memory" if seconds <= target.time(number) else "arithmetic"
        times.append(KernelTime(node.id, kernel_name(node), number, flops, seconds, bound))
    return times
