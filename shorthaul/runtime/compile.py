"""From a scheduled program to an Executable: emit the kernels, lay out the host program, build and load the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shorthaul.codegen.cpp.emit import Kernel, emit_kernel, emit_source
from shorthaul.codegen.host import build_host
from shorthaul.errors import DeviceError
from shorthaul.ir.launches import launched_together
from shorthaul.ir.nodes import Branch, Loop, Map
from shorthaul.ir.program import Program

from .executable import Executable
from .library import CompiledLibrary, build_library


@dataclass
class Compiled:
    """An executable program with what it was made of: kernels by node id and the C++ sources by file name."""

    executable: Executable
    kernels: Mapping[int, Any]
    sources: dict[str, str]
    library: CompiledLibrary | None


def emit(program: Program) -> dict[int, Kernel]:
    """The C++ kernel of every top-level map, also of bodies, by node id (ids are unique in all of them)."""
    kernels = {}
    for node in program.nodes:
        if isinstance(node, Map):
            shared = [c for c in program.writes_of(node) if len(program.writers(c)) > 1]
            kernels[node.id] = emit_kernel(node, program.containers, shared=shared)
        elif isinstance(node, (Branch, Loop)):
            for body in node.bodies:
                kernels.update(emit(body))
    return kernels


def compile_triton(program: Program, device: torch.device) -> Compiled:
    """Compile for a GPU, or for Triton's interpreter where the device is a CPU. Kernels of programs without symbolic sizes are compiled
    now, others at the first call with new sizes. Raises DeviceError where the device, or Triton, does not serve."""
    from shorthaul.codegen.triton.emit_map import MapKernels, emit_joined, emit_map
    from shorthaul.codegen.triton.plan import NotSchedulable
    from shorthaul.codegen.triton.text import NoTritonText

    from .triton_target import TritonTarget

    for n in program.nodes:
        if isinstance(n, (Branch, Loop)) or n.defines:
            what = "a size that is data" if n.defines else f"a {n.kind}"
            raise DeviceError(f"{what} ({n.origin}) is not supported on a GPU yet; leave that part to eager mode with shorthaul.disable")
    kernels: dict[int, Any] = {}
    for n in program.nodes:
        if isinstance(n, Map):
            try:
                kernels[n.id] = emit_map(n, program)
            except (NoTritonText, NotSchedulable) as e:
                raise DeviceError(f"{n.label} ({n.origin}) has no kernel on a GPU yet: {e}") from e
    for reduction, epilogues in _epilogues(program).items():
        joined = emit_joined(reduction, epilogues, program)
        if joined is not None:
            kernels[reduction.id] = joined
            kernels |= {e.id: MapKernels((), kernels[e.id].arguments, kernels[e.id].sizes) for e in epilogues}
    host = build_host(program, kernels, single=True)
    executable = Executable(host, None, TritonTarget(kernels, device))
    if not program.symbols:
        executable.layout({})
    return Compiled(executable, kernels, {k.name: k.source for m in kernels.values() for k in m.kernels}, None)


def _epilogues(program: Program) -> dict[Map, list[Map]]:
    """Reductions with the maps behind them that belong to their last kernel (`MergeEpilogue`)."""
    found: dict[Map, list[Map]] = {}
    first: Map | None = None
    for n in program.nodes:
        if not isinstance(n, Map):
            first = None
        elif first is not None and launched_together(first, n, "epilogue"):
            found.setdefault(first, []).append(n)
        else:
            first = n
    return found


def compile_program(program: Program, *, units: int | None = None, apart: bool = False, **options: Any) -> Compiled:
    """Compile for this machine's CPU. Raises NoCompiler without a compiler, BuildError when the generated code does not compile.

    units: translation units (default: by the number of kernels); with as many as kernels, a program that shares kernels with one compiled
    before compiles only the others. apart: each kernel as a step of its own, to be timed. options: of `build`.
    """
    kernels = emit(program)
    host = build_host(program, kernels, apart=apart)
    distinct = len({k.name for k in kernels.values()})
    sources = emit_source(kernels.values(), units=units or max(1, min(16, distinct // 4)))
    sources = {**sources, "host.cpp": host.source}
    library = build_library(sources, symbols=host.functions, **options)
    return Compiled(Executable(host, library.function), kernels, sources, library)
