"""Running a compiled program on the CPU: pointer table, arenas, kernels and library calls.

An `Executable` may have several forward runs in flight (the model called twice before backward): each has a `Run` of its own that owns what its
backward phase needs. Scratch memory is shared by all runs; a lock makes calls from several threads take turns.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shorthaul.codegen.host import HostProgram, LibraryStep, Segment
from shorthaul.codegen.library import LIBRARY, writes_out
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.symbolic import Expr, Symbol, evaluate

from .memory import plan_arena

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip


class CallError(TypeError):
    """A compiled program was called with tensors that it was not compiled for; the message names input, expected and given."""


def torch_dtype(d: DType) -> torch.dtype:
    return TORCH_DTYPES[d.name]


@dataclass
class _Layout:
    """Concrete shapes, strides and addresses for one choice of sizes."""

    shapes: dict[str, tuple[int, ...]]
    strides: dict[str, tuple[int, ...]]
    alias: dict[str, tuple[str, int]]
    arena: dict[str, dict[str, int]]
    saved: dict[str, int]
    arena_bytes: int
    saved_bytes: int
    attributes: dict[int, dict[str, Any]]
    sizes: Any = None
    pool: list[torch.Tensor] = field(default_factory=list)


class Run:
    """What one forward run leaves for its backward run: tensors by container and the arena of saved values."""

    def __init__(self, layout: _Layout, tensors: dict[str, torch.Tensor], saved: torch.Tensor | None, sizes: dict[Symbol, int]) -> None:
        self.layout = layout
        self.tensors = tensors
        self.saved = saved
        self.sizes = sizes
        if saved is not None:
            # the arena goes back when the last user of this run is gone (retain_graph keeps it)
            weakref.finalize(self, layout.pool.append, saved)


class Executable:
    """A compiled program. Build it with the host program and a function that gives a compiled C function by name."""

    def __init__(self, host: HostProgram, function: Callable[[str], Any]) -> None:
        self.host = host
        self.signature = host.signature
        self._lock = threading.RLock()
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._table = np.zeros(max(1, len(host.pointers)), dtype=np.uintp)
        self._table_address = ctypes.c_void_p(self._table.ctypes.data)
        self._constants = {k: _constant(v, host.containers[k]) for k, v in host.constants.items() if k in host.containers}
        self._functions: dict[str, Any] = {}
        for phase in host.phases.values():
            for step in phase.steps:
                if isinstance(step, Segment):
                    f = function(step.function)
                    f.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
                    f.restype = None
                    self._functions[step.function] = f
                elif step.function not in LIBRARY:
                    raise KeyError(f"library call {step.function} ({step.origin}) is not known")
        self._views: dict[tuple, torch.Tensor] = {}
        self._saved_names = [n for n, k in host.kinds.items() if k == "saved"]
        self._forward_results = set(self.signature.outputs) | {u for _, u in self.signature.updates}
        self._backward_results = {g for _, g in self.signature.gradients}

    # calling ----------------------------------------------------------------------------------------------------------
    def forward(self, inputs: Mapping[str, torch.Tensor], sizes: Mapping[Symbol, int], keep: bool) -> tuple[dict[str, torch.Tensor], Run]:
        """Run the forward phase. inputs: tensors by container. keep: whether a backward run may follow.

        Returns the results (outputs and updates) by container, and the Run for `backward`.
        """
        with self._lock:
            sizes = dict(sizes)
            layout = self._layout(sizes)
            tensors: dict[str, torch.Tensor] = dict(inputs)
            saved = None
            if layout.saved_bytes:
                saved = layout.pool.pop() if layout.pool else torch.empty(layout.saved_bytes, dtype=torch.uint8)
            run = Run(layout, tensors, saved, sizes)
            self._execute("forward", run, self._forward_results)
            results = {n: tensors[n] for n in self._forward_results if n in tensors}
            if not keep:
                run.tensors = {}
            return results, run

    def backward(self, run: Run, cotangents: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the backward phase of a forward run; gradients by input container. May be called again with the same run."""
        with self._lock:
            tensors = dict(run.tensors)
            tensors.update(cotangents)
            inner = Run.__new__(Run)
            inner.layout, inner.tensors, inner.saved, inner.sizes = run.layout, tensors, run.saved, run.sizes
            self._execute("backward", inner, self._backward_results)
            return {i: tensors[g] for i, g in self.signature.gradients}

    # one phase --------------------------------------------------------------------------------------------------------
    def _execute(self, phase_name: str, run: Run, results: set[str]) -> None:
        host, layout = self.host, run.layout
        phase = host.phases[phase_name]
        arena = self._arena_of(layout.arena_bytes)
        table, tensors = self._table, run.tensors
        base = arena.data_ptr()
        names = layout.arena[phase_name]
        for name, offset in names.items():
            table[host.pointers[name]] = base + offset
        if run.saved is not None:
            saved_base = run.saved.data_ptr()
            for name, offset in layout.saved.items():
                table[host.pointers[name]] = saved_base + offset
        for name in results:
            if host.kinds[name] == "result" and name in phase.lifetimes and not self._library_result(phase_name, name):
                tensors[name] = torch.empty_strided(layout.shapes[name], layout.strides[name], dtype=torch_dtype(host.containers[name].dtype))
        tensors.update(self._constants)
        for name, t in tensors.items():
            if name in host.pointers:
                table[host.pointers[name]] = t.data_ptr()
        self._set_aliases(layout, tensors, arena, run.saved)
        size_address = ctypes.c_void_p(layout.sizes.ctypes.data)
        for step in phase.steps:
            if isinstance(step, Segment):
                self._functions[step.function](self._table_address, size_address)
            else:
                self._library(step, phase_name, run, arena)

    def _library(self, step: LibraryStep, phase: str, run: Run, arena: torch.Tensor) -> None:
        layout, host = run.layout, self.host
        reads = {k: self._tensor(c, phase, run, arena) for k, c in step.reads}
        out = {k: self._tensor(c, phase, run, arena) for k, c in step.writes if not self._owned_by_library(step, c)}
        values = LIBRARY[step.function](reads, layout.attributes.get(step.node, step.attributes), out)  # type: ignore[operator]
        for k, c in step.writes:
            value = values[k]
            destination = out.get(k)
            if destination is not None:
                if value is not destination:
                    destination.copy_(value)
                continue
            if value.stride() != layout.strides[c] and not _same_strides(value, layout.strides[c]):
                target = torch.empty_strided(layout.shapes[c], layout.strides[c], dtype=value.dtype)
                value = target.copy_(value)
            run.tensors[c] = value
            self._table[host.pointers[c]] = value.data_ptr()
            for name, (base, offset) in layout.alias.items():
                if base == c and name in host.pointers:
                    self._table[host.pointers[name]] = value.data_ptr() + offset * value.element_size()

    def _tensor(self, name: str, phase: str, run: Run, arena: torch.Tensor) -> torch.Tensor:
        """A container as a tensor: the caller's, the library's, or a view of an arena."""
        found = run.tensors.get(name)
        if found is not None:
            return found
        layout = run.layout
        c = self.host.containers[name]
        base, offset = layout.alias.get(name, (name, 0))
        if base in run.tensors:
            owner = run.tensors[base]
            flat = torch.as_strided(owner, layout.shapes[name], layout.strides[name], owner.storage_offset() + offset)
            return flat
        memory, at = (arena, layout.arena[phase].get(base)) if base in layout.arena[phase] else (run.saved, layout.saved.get(base))
        if memory is None or at is None:
            raise RuntimeError(f"container {name} has no memory in the {phase} phase")
        key = (name, memory.data_ptr(), id(layout))
        view = self._views.get(key)
        if view is None:
            typed = memory.view(torch_dtype(c.dtype))
            view = torch.as_strided(typed, layout.shapes[name], layout.strides[name], at // c.dtype.itemsize + offset)
            if len(self._views) > 4096:
                self._views.clear()
            self._views[key] = view
        return view

    def _owned_by_library(self, step: LibraryStep, name: str) -> bool:
        kind = self.host.kinds[name]
        return not writes_out(step.function) and kind in ("transient", "saved", "result")

    def _library_result(self, phase: str, name: str) -> bool:
        return name in self._library_owned[phase]

    @property
    def _library_owned(self) -> dict[str, set[str]]:
        owned = self.__dict__.get("_owned")
        if owned is None:
            owned = {p: {c for s in ph.steps if isinstance(s, LibraryStep) for _, c in s.writes if self._owned_by_library(s, c)}
                     for p, ph in self.host.phases.items()}  # fmt: skip
            self._owned = owned
        return owned

    def _arena_of(self, size: int) -> torch.Tensor:
        if self._arena.numel() < size:
            # zeroed, so that every page is there before the first step
            self._arena = torch.zeros(size, dtype=torch.uint8)
            self._views.clear()
        return self._arena

    def _set_aliases(self, layout: _Layout, tensors: Mapping[str, torch.Tensor], arena: torch.Tensor, saved: torch.Tensor | None) -> None:
        for name, (base, offset) in layout.alias.items():
            at = self._table[self.host.pointers[base]] if base in self.host.pointers else 0
            if name not in tensors:
                self._table[self.host.pointers[name]] = int(at) + offset * self.host.containers[name].dtype.itemsize

    # sizes ------------------------------------------------------------------------------------------------------------
    def _layout(self, sizes: Mapping[Symbol, int]) -> _Layout:
        key = tuple(sizes[s] for s in self.host.symbols)
        found = self._layouts.get(key)
        if found is None:
            found = self._layouts[key] = self._make_layout(sizes)
        return found

    def _make_layout(self, sizes: Mapping[Symbol, int]) -> _Layout:
        host = self.host

        def number(e: Any) -> int:
            return e if isinstance(e, int) else evaluate(e, sizes)

        def concrete(value: Any) -> Any:
            if isinstance(value, Expr):
                return evaluate(value, sizes)
            if isinstance(value, (list, tuple)):
                return type(value)(concrete(v) for v in value)
            return value

        shapes = {n: tuple(number(s) for s in c.shape) for n, c in host.containers.items()}
        strides = {n: tuple(number(s) for s in c.actual_strides) for n, c in host.containers.items()}
        alias: dict[str, tuple[str, int]] = {}
        for n, c in host.containers.items():
            if c.alias is not None:
                base, offset = c.alias.base, number(c.alias.offset)
                while (further := host.containers[base].alias) is not None:
                    base, offset = further.base, offset + number(further.offset)
                alias[n] = (base, offset)
        bytes_ = {n: (1 + sum((d - 1) * s for d, s in zip(shapes[n], strides[n], strict=True)) if all(shapes[n]) else 0) * c.dtype.itemsize
                  for n, c in host.containers.items()}  # fmt: skip
        arena: dict[str, dict[str, int]] = {}
        total = 0
        for name, phase in host.phases.items():
            blocks = [(n, bytes_[n], first, last) for n, (first, last) in phase.lifetimes.items()
                      if host.kinds.get(n) == "transient" and n not in self._library_owned[name]]  # fmt: skip
            arena[name], size = plan_arena(blocks)
            total = max(total, size)
        owned = self._library_owned["forward"]
        saved, saved_bytes = plan_arena((n, bytes_[n], 0, 0) for n in self._saved_names if n not in owned)
        attributes = {}
        for phase in host.phases.values():
            for step in phase.steps:
                if isinstance(step, LibraryStep):
                    attributes[step.node] = {k: concrete(v) for k, v in step.attributes.items()}
        layout = _Layout(shapes, strides, alias, arena, saved, total, saved_bytes, attributes)
        layout.sizes = np.array([sizes[s] for s in host.symbols] or [0], dtype=np.int64)
        return layout


def _same_strides(t: torch.Tensor, strides: Sequence[int]) -> bool:
    return all(n == 1 or a == b for n, a, b in zip(t.shape, t.stride(), strides, strict=True))


def _constant(value: np.ndarray, c: Container) -> torch.Tensor:
    t = torch.from_numpy(np.ascontiguousarray(value)).to(torch_dtype(c.dtype))
    return t.as_strided(t.shape, t.stride()) if c.strides is None else torch.empty_strided(t.shape, c.strides, dtype=t.dtype).copy_(t)  # type: ignore[arg-type]
