"""Each generated kernel by itself, on what the interpreter gives it, against what the interpreter makes of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shorthaul.ir.interpret_map import UNDEFINED
from shorthaul.ir.interpreter import Interpreter
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.runtime.compile import Compiled
from shorthaul.runtime.executable import Layout, torch_dtype
from shorthaul.runtime.library import build_library

from .reference import library, to_numpy, to_torch

POISON = 0xA5  # what fresh memory holds: kernels must not rely on zeros


@dataclass
class KernelError:
    """The largest error of one kernel: the container, and its distance from the interpreter, relative to the size of the values."""

    node: Map
    kernel: str
    container: str
    error: float
    limit: float


def limit_of(dtype: torch.dtype) -> float:
    """Rounding of long sums in another order stays below this; faults do not."""
    if dtype == torch.float64:
        return 1e-9
    return 1e-4 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative to the size of the expected values; infinite where NaN or infinity stand in other places."""
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    difference, size = np.linalg.norm(a[finite] - e[finite]), np.linalg.norm(e[finite])
    return float(difference / size) if size else float("inf") if difference else 0.0


def kernel_errors(
    program: Program, compiled: Compiled, layout: Layout, values: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> Iterator[KernelError]:
    """The error of every kernel of a scheduled program, in the order in which they run."""
    names = sorted({k.name for k in compiled.kernels.values()})
    entry = 'extern "C" void {0}(void* const*, const int64_t*);\n' + (
        'extern "C" __attribute__((visibility("default"))) void one_{0}(void* const* p, const int64_t* s) {{ {0}(p, s); }}\n'
    )
    sources = {k: v for k, v in compiled.sources.items() if k != "host.cpp"}
    sources["entries.cpp"] = "#include <stdint.h>\n" + "".join(entry.format(n) for n in names)
    built = build_library(sources, symbols=[f"one_{n}" for n in names])
    run = Interpreter(program, values, sizes, None, library(), None, False)
    for node in program.nodes:
        if not isinstance(node, Map):
            run.node(node)
            continue
        kernel = compiled.kernels[node.id]
        memory, views = _memory(program, layout, kernel.arguments, run)
        pointers = (ctypes.c_void_p * max(1, len(kernel.arguments)))(*[views[a].data_ptr() for a in kernel.arguments])
        numbers = (ctypes.c_int64 * max(1, len(kernel.sizes)))(*[int(sizes[s.name]) for s in kernel.sizes])
        built.function(f"one_{kernel.name}", [ctypes.c_void_p, ctypes.c_void_p])(pointers, numbers)
        run.node(node)
        worst = None
        for c in sorted(program.writes_of(node)):
            found, cell = to_numpy(views[c]), run.cells[c]
            written = ... if cell.state is None else cell.state != UNDEFINED  # later kernels write the other parts of a concatenation
            error, limit = distance(found[written], cell.array[written]), limit_of(views[c].dtype)
            if worst is None or error * worst.limit > worst.error * limit or (error > limit and worst.error <= worst.limit):
                worst = KernelError(node, kernel.name, c, error, limit)
        del memory
        if worst is not None:
            yield worst


def _memory(program: Program, layout: Layout, arguments: Any, run: Interpreter) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Memory for a kernel's arguments, laid out as in the compiled program, filled with what the interpreter holds."""
    roots: dict[str, torch.Tensor] = {}
    views: dict[str, torch.Tensor] = {}
    for name in arguments:
        root, offset = layout.alias.get(name, (name, 0))
        if root not in roots:
            dtype, shape, strides = torch_dtype(program.containers[root].dtype), layout.shapes[root], layout.strides[root]
            extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 1
            roots[root] = torch.full((extent * dtype.itemsize,), POISON, dtype=torch.uint8).view(dtype)
            if root in run.cells:
                _fill(torch.as_strided(roots[root], shape, strides), run.cells[root].array)
        views[name] = torch.as_strided(roots[root], layout.shapes[name], layout.strides[name], offset)
        if name != root and name in run.cells:
            _fill(views[name], run.cells[name].array)
    return list(roots.values()), views


def _fill(target: torch.Tensor, array: np.ndarray) -> None:
    target.copy_(to_torch(array))
