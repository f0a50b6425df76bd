"""Running a compiled program: pointer tables, arenas, kernels and library calls.

A phase runs on a table of addresses, one per container. What does not change between calls (offsets in arenas, views for library calls,
concrete sizes) is prepared once for each choice of sizes, in a `_Layout` with a `_Plan` for each phase. An executable may have several
forward runs in flight (the model called twice before backward): each has a `Run` that owns what its backward phase needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shorthaul.analysis.arena import plan_arena
from shorthaul.codegen.host import ControlStep, HostProgram, LibraryStep, Segment
from shorthaul.codegen.library import LIBRARY, writes_out
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.nodes import Defines, Loop
from shorthaul.ir.sizes import attribute_sizes, container_sizes
from shorthaul.symbolic import Expr, Symbol, evaluate

from .control import Control
from .memory import ARENAS, Arena

if TYPE_CHECKING:
    from .gpu_launch import KernelTarget

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip

WIDE = 2**31 - 65536  # elements of a container from which on a GPU's kernels need addresses of 64 bits
LAYOUTS = 256  # choices of sizes that are kept prepared
_serials = itertools.count()


class CallError(TypeError):
    """A compiled program was called with tensors that it was not compiled for; the message names input, expected and given."""


class SizeError(RuntimeError):
    """A size that depends on data is not what the program may assume; the message names the size and what computed it."""


def torch_dtype(d: DType) -> torch.dtype:
    return TORCH_DTYPES[d.name]


@dataclass
class _Call:
    """A library call, prepared: where its operands and results come from.

    An entry is (connector, container, source): source 0 for a tensor by name, 1 for a view of the phase's arena, 2 of the saved arena,
    3 for an alias of a tensor. owned: results whose memory the library allocates, with the strides that they need.
    """

    function: Callable[..., dict[str, torch.Tensor]]
    attributes: dict[str, Any]
    reads: list[tuple[str, str, int]]
    out: list[tuple[str, str, int]]
    owned: list[tuple[str, str, tuple[int, ...] | None]]
    origin: str
    defines: tuple[Defines, ...] = ()


@dataclass
class _Plan:
    """One phase for one choice of sizes. slots: for a container that is a tensor, the entries of the table to fill, with byte offsets.

    steps: C functions, prepared library calls, and steps that wait for sizes which earlier ones define. ends: containers whose memory is
    given back after a step, because it was allocated when their sizes were known. faults: where kernels report an index out of range.
    """

    table: Any
    addresses: memoryview
    address: int
    arena_slots: tuple[np.ndarray, np.ndarray]
    saved_slots: tuple[np.ndarray, np.ndarray]
    slots: dict[str, list[tuple[int, int]]]
    steps: list[Any]
    allocate: list[list[tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype]]]
    offsets: dict[str, int]
    ends: dict[int, list[str]]  # for each step the tensors that nothing needs after it
    faults: memoryview
    serial: int = field(default_factory=lambda: next(_serials))
    arena_base: int = 0
    saved_base: int = 0


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
    plans: dict[str, _Plan] = field(default_factory=dict)
    watch: Callable[[Layout], None] | None = None
    checks: Any = None  # the bridge keeps what it compares inputs with here
    known: dict[Symbol, int] = field(default_factory=dict)

    def own(self) -> Layout:
        """A copy for one call, which shares the plans."""
        return replace(self, shapes=dict(self.shapes), strides=dict(self.strides), sizes=self.sizes.copy(), known=dict(self.known))


class Run:
    """What one forward run leaves for its backward run: the arena of saved values, and saved tensors that a library allocated."""

    __slots__ = ("kept", "layout", "saved")

    def __init__(self, layout: Layout, saved: Arena | None, kept: dict[str, torch.Tensor]) -> None:
        self.layout = layout
        self.saved = saved
        self.kept = kept

    def release(self) -> None:
        """Give the memory back; no backward run may follow."""
        saved, self.saved, self.kept = self.saved, None, {}
        if saved is not None:
            ARENAS.release(saved)

    def __del__(self) -> None:
        self.release()


class Backward:
    """A backward run in progress: it has an arena of its own until its last part ran."""

    __slots__ = ("arena", "next", "run", "tensors")

    def __init__(self, run: Run, tensors: dict[str, torch.Tensor], arena: Arena) -> None:
        self.run = run
        self.tensors = tensors
        self.arena: Arena | None = arena
        self.next = 0

    def release(self) -> None:
        arena, self.arena = self.arena, None
        self.tensors = {}
        if arena is not None:
            ARENAS.release(arena)

    def __del__(self) -> None:
        self.release()


class Executable:
    """A compiled program. Build it with the host program and a function that gives a compiled C function by name, or with the target
    that runs its kernels, on whose device everything lives then."""

    def __init__(self, host: HostProgram, function: Callable[[str], Any] | None, target: KernelTarget | None = None) -> None:
        self.host = host
        self.target = target
        self.device = target.device if target is not None else torch.device("cpu")
        self.signature = host.signature
        self._lock = threading.RLock()
        self._layouts: OrderedDict[tuple[int, ...], Layout] = OrderedDict()
        self._constants = {k: _constant(v, host.containers[k]).to(self.device) for k, v in host.constants.items() if k in host.containers}
        self._checks: dict[int, tuple[str, ...]] = {}  # of kernels, by node: what the indices are for that they check
        self._functions: dict[str, Any] = {}
        self._controls: dict[int, Control] = {}
        for phase in host.phases.values():
            for step in phase.steps:
                if isinstance(step, Segment):
                    if function is None:
                        continue
                    f = function(step.function)
                    f.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
                    f.restype = None
                    self._functions[step.function] = f
                    self._checks.update({k.node: k.checks for k in step.kernels if k.checks})
                elif isinstance(step, ControlStep):
                    self._controls[step.control.id] = Control(step, [Executable(body, function) for body in step.bodies])
                elif step.function not in LIBRARY:
                    raise KeyError(f"library call {step.function} ({step.origin}) is not known")
        self._owned = {p: {c for s in ph.steps if not isinstance(s, Segment) for _, c in s.writes if self._owned_by_library(s, c)}
                       for p, ph in host.phases.items()}  # fmt: skip
        saved = [n for n, k in host.kinds.items() if k == "saved"]
        self._kept_names = [n for n in saved if n in self._owned["forward"] | host.dynamic]
        self._saved_names = [n for n in saved if n not in self._kept_names]
        # what is updated in place is no result: the caller has it already
        updates = {u for _, u in self.signature.updates if host.kinds.get(u) != "alias"}
        self._results = {"forward": {*self.signature.outputs, *updates},
                         "backward": {g for _, g in self.signature.gradients}}  # fmt: skip
        self._input_of = {g: i for i, g in self.signature.gradients}

    @property
    def parts(self) -> list[tuple[str, ...]]:
        """For each part of the backward phase the inputs whose gradients it completes."""
        return [tuple(self._input_of[g] for g in p.gradients) for p in self.host.phases["backward"].parts]

    # calling ----------------------------------------------------------------------------------------------------------
    def forward(self, layout: Layout, inputs: Mapping[str, torch.Tensor], keep: bool) -> tuple[dict[str, torch.Tensor], Run | None]:
        """Run the forward phase. inputs: tensors by container, laid out as the containers are. keep: whether a backward run may follow.

        Returns the results (outputs and updates) by container, and the Run for `backward`.
        """
        tensors = dict(inputs)
        arena = ARENAS.acquire(layout.arena_bytes["forward"], self.device)
        saved = ARENAS.acquire(layout.saved_bytes, self.device) if layout.saved_bytes else None
        try:
            self._execute(layout, "forward", 0, tensors, arena, saved)
        except BaseException:
            if saved is not None:
                ARENAS.release(saved)
            raise
        finally:
            ARENAS.release(arena)
        results = {}
        for n in self._results["forward"]:
            results[n] = tensors[n] if n in tensors else self._constants[n].clone()
        if keep:
            return results, Run(layout, saved, {n: tensors[n] for n in self._kept_names})
        if saved is not None:
            ARENAS.release(saved)
        return results, None

    def backward(self, run: Run, tensors: Mapping[str, torch.Tensor]) -> Backward:
        """Start the backward phase of a forward run; may be called again with the same run.

        tensors: the cotangents, and those inputs and results of the forward phase that the backward phase reads, by container.
        """
        return Backward(run, {**run.kept, **tensors}, ARENAS.acquire(run.layout.arena_bytes["backward"], self.device))

    def part(self, state: Backward) -> dict[str, torch.Tensor]:
        """Run the next part of a backward phase; returns the gradients that it completes, by input."""
        part = self.host.phases["backward"].parts[state.next]
        if state.arena is None:
            raise RuntimeError(f"the backward phase of {self.host.phases['backward'].name} was ended")
        try:
            self._execute(state.run.layout, "backward", state.next, state.tensors, state.arena, state.run.saved)
        except BaseException:
            state.release()
            raise
        state.next += 1
        gradients = {}
        for g in part.gradients:
            t = state.tensors.pop(g, None)
            gradients[self._input_of[g]] = t if t is not None else self._constants[g].clone()
        if state.next == len(self.host.phases["backward"].parts):
            state.release()
        return gradients

    # one phase --------------------------------------------------------------------------------------------------------
    def _execute(self, layout: Layout, phase: str, part: int, tensors: dict[str, torch.Tensor], arena: Arena, saved: Arena | None) -> None:
        with self._lock, torch.no_grad(), _current(self.device):
            plan = layout.plans.get(phase)
            if plan is None:
                plan = layout.plans[phase] = self._prepare(layout, phase)
            for name, shape, strides, dtype in plan.allocate[part]:
                if name in tensors:
                    continue  # the caller gave a place for the result
                tensors[name] = torch.empty_strided(shape, strides, dtype=dtype, device=self.device)
            table, slots = plan.addresses, plan.slots
            if plan.arena_base != arena.base:
                plan.table[plan.arena_slots[0]] = plan.arena_slots[1] + np.uint64(arena.base)
                plan.arena_base = arena.base
            if saved is not None and plan.saved_base != saved.base:
                plan.table[plan.saved_slots[0]] = plan.saved_slots[1] + np.uint64(saved.base)
                plan.saved_base = saved.base
            for name, t in tensors.items():
                for slot, offset in slots.get(name, ()):
                    table[slot] = t.data_ptr() + offset
            bounds = self.host.phases[phase].parts[part]
            sizes, address = layout.sizes.ctypes.data, plan.address
            if self.host.late:
                self._allocate(layout, plan, phase, tensors)
            profiled = torch.autograd.profiler._is_profiler_enabled
            for at in range(bounds.first, bounds.last):
                step = plan.steps[at]
                shown = torch.profiler.record_function(self.host.phases[phase].labels[at]).__enter__() if profiled else None
                if isinstance(step, (LibraryStep, ControlStep)):
                    step = self._prepared(step, layout, phase)
                if isinstance(step, _Call):
                    self._call(step, layout, plan, tensors, arena, saved)
                    if step.defines:
                        self._allocate(layout, plan, phase, tensors)
                else:
                    step(address, sizes)
                    if self._checks and plan.faults[0]:
                        raise self._out_of_range(plan.faults)
                if shown is not None:
                    shown.__exit__(None, None, None)
                for name in plan.ends.get(at, ()):
                    tensors.pop(name, None)

    def _out_of_range(self, faults: memoryview) -> IndexError:
        """What a kernel reported; its results are not used."""
        site, index, size, _, node = faults
        faults[0] = 0
        what, _, where = self._checks[node][site - 1].partition(", at ")
        return IndexError(f"index {index} is out of range for {what}, which has size {size}, at {where}")

    def _allocate(self, layout: Layout, plan: _Plan, phase: str, tensors: dict[str, torch.Tensor]) -> None:
        """Memory for the containers of this phase whose sizes have become known."""
        others = tensors.keys() | self._owned[phase]
        for name in self.host.phases[phase].lifetimes:
            if name in self.host.dynamic and name in layout.shapes and name not in others and self.host.kinds[name] != "external":
                t = torch.empty_strided(layout.shapes[name], layout.strides[name], dtype=torch_dtype(self.host.containers[name].dtype))
                tensors[name] = t
                for slot, offset in plan.slots.get(name, ()):
                    plan.addresses[slot] = t.data_ptr() + offset

    def _define(self, step: _Call, layout: Layout, values: Mapping[str, torch.Tensor]) -> None:
        """The sizes that a step's results define, and the shapes that follow from them."""
        for d in step.defines:
            value = values[d.connector]
            layout.known[d.symbol] = n = int(value) if d.dim is None else value.shape[d.dim]
            if problem := d.violated(layout.known):
                raise SizeError(f"{problem}, computed by {step.origin}")
            layout.sizes[self.host.symbols.index(d.symbol)] = n
        for name in sorted(self.host.dynamic - layout.shapes.keys()):
            c = self.host.containers[name]
            if container_sizes(c) <= layout.known.keys():
                layout.shapes[name] = tuple(_number(s, layout.known) for s in c.shape)
                layout.strides[name] = tuple(_number(s, layout.known) for s in c.actual_strides)
        if layout.watch is not None:
            layout.watch(layout)

    def _call(self, step: _Call, layout: Layout, plan: _Plan, tensors: dict[str, torch.Tensor], arena: Arena, saved: Arena | None) -> None:
        arenas = (None, arena, saved)

        def tensor(name: str, source: int) -> torch.Tensor:
            if source == 0:
                found = tensors.get(name)
                return found if found is not None else self._constants[name]
            if source == 3:
                base, offset = layout.alias[name]
                owner = tensors.get(base)
                owner = owner if owner is not None else self._constants[base]
                return torch.as_strided(owner, layout.shapes[name], layout.strides[name], owner.storage_offset() + offset)
            memory = arenas[source]
            assert memory is not None
            views = memory.views.setdefault(plan.serial, {})
            view = views.get(name)
            if view is None:
                view = views[name] = self._view(layout, plan, name, memory)
            return view

        reads = {k: tensor(c, source) for k, c, source in step.reads}
        out = {k: tensor(c, source) for k, c, source in step.out}
        try:
            values = step.function(reads, step.attributes, out)
        except RuntimeError as e:
            if "use_deterministic_algorithms" in str(e):  # PyTorch names its function and the remedy, and not where it is called
                e.add_note(f"It is called by {step.origin}.")
            raise
        if step.defines:
            self._define(step, layout, values)
        for k, destination in out.items():
            if values[k] is not destination:
                destination.copy_(values[k])
        for k, c, strides in step.owned:
            value = values[k]
            if strides is None:
                strides = layout.strides[c]
                if value.shape != layout.shapes[c]:
                    raise SizeError(f"{step.origin} gives {c} the shape {tuple(value.shape)} where the program needs {layout.shapes[c]}")
            if value.stride() != strides and not _same_strides(value, strides):
                value = with_strides(value, strides)
            tensors[c] = value
            for slot, offset in plan.slots.get(c, ()):
                plan.addresses[slot] = value.data_ptr() + offset

    def _view(self, layout: Layout, plan: _Plan, name: str, memory: Arena) -> torch.Tensor:
        c = self.host.containers[name]
        base, offset = layout.alias.get(name, (name, 0))
        at = plan.offsets[base] if base in plan.offsets else layout.saved[base]
        dtype = torch_dtype(c.dtype)
        end = memory.tensor.numel() // c.dtype.itemsize * c.dtype.itemsize
        return torch.as_strided(memory.tensor[:end].view(dtype), layout.shapes[name], layout.strides[name], at // c.dtype.itemsize + offset)

    def _owned_by_library(self, step: LibraryStep | ControlStep, name: str) -> bool:
        kind = self.host.kinds[name]
        if isinstance(step, ControlStep):
            fills = isinstance(step.control, Loop) and step.control.tile is not None
        else:
            fills = writes_out(step.function)
        return not fills and kind in ("transient", "saved", "result")

    # preparation ------------------------------------------------------------------------------------------------------
    def layout(self, sizes: Mapping[Symbol, int]) -> Layout:
        """Everything that follows from a choice of sizes; cached. Where steps define sizes it is for one call alone."""
        key = tuple([sizes[s] for s in self.host.symbols if s not in self.host.late])
        found = self._layouts.get(key)
        if found is None:
            with self._lock:
                found = self._layouts[key] = self._make_layout(sizes)
                while len(self._layouts) > LAYOUTS:
                    self._layouts.popitem(last=False)
        return found.own() if self.host.late else found

    def _make_layout(self, sizes: Mapping[Symbol, int]) -> Layout:
        host = self.host
        sizes = {s: sizes[s] for s in host.symbols if s not in host.late}

        def number(e: Any) -> int:
            return _number(e, sizes)

        static = {n: c for n, c in host.containers.items() if n not in host.dynamic}
        shapes = {n: tuple(number(s) for s in c.shape) for n, c in static.items()}
        strides = {n: tuple(number(s) for s in c.actual_strides) for n, c in static.items()}
        alias: dict[str, tuple[str, int]] = {}
        for n, c in host.containers.items():
            if c.alias is not None:
                base, offset = c.alias.base, number(c.alias.offset)
                while (further := host.containers[base].alias) is not None:
                    base, offset = further.base, offset + number(further.offset)
                alias[n] = (base, offset)
        bytes_ = {n: (1 + sum((d - 1) * s for d, s in zip(shapes[n], strides[n], strict=True)) if all(shapes[n]) else 0) * c.dtype.itemsize
                  for n, c in static.items()}  # fmt: skip
        offsets: dict[str, dict[str, int]] = {}
        arena_bytes: dict[str, int] = {}
        named = {s.name: int(n) for s, n in sizes.items()}
        wide = any(math.prod(shape) >= WIDE for shape in shapes.values())
        unaligned = frozenset(n for n, (_, offset) in alias.items() if offset * host.containers[n].dtype.itemsize % 16)
        if self.target is not None:
            segments = [s for phase in host.phases.values() for s in phase.steps if isinstance(s, Segment)]
            self.target.compile_all(segments, named, wide, unaligned)
        for name, phase in host.phases.items():
            blocks = [(n, bytes_[n], first, last) for n, (first, last) in phase.spans.items()
                      if host.kinds.get(n) == "transient" and n not in self._owned[name] and n in static]  # fmt: skip
            if self.target is not None:
                blocks += [(n, size, at, at) for at, s in enumerate(phase.steps) if isinstance(s, Segment)
                           for n, size in self.target.scratch(s, named)]  # fmt: skip
            offsets[name], arena_bytes[name] = plan_arena(blocks, host.memory_plan)
        saved, saved_bytes = plan_arena((n, bytes_[n], 0, 0) for n in self._saved_names)
        table = np.array([sizes.get(s, 0) for s in host.symbols] or [0], dtype=np.int64)
        binding = Binding(named, bytes_, wide, unaligned)
        return Layout(shapes, strides, alias, offsets, saved, saved_bytes, arena_bytes, table, binding, known=dict(sizes))

    def _prepare(self, layout: Layout, name: str) -> _Plan:
        host, phase = self.host, self.host.phases[name]
        arena_slots, saved_slots = [], []
        slots: dict[str, list[tuple[int, int]]] = {}
        for c, slot in host.pointers.items():
            base, offset = layout.alias.get(c, (c, 0))
            at = offset * host.containers[c].dtype.itemsize
            if base in layout.offsets[name]:
                arena_slots.append((slot, layout.offsets[name][base] + at))
            elif base in layout.saved:
                saved_slots.append((slot, layout.saved[base] + at))
            else:
                slots.setdefault(base, []).append((slot, at))
        faults = np.zeros(5, dtype=np.int64)
        places = dict(host.pointers)
        if self._checks:
            places[""] = len(places)  # behind the containers: where kernels report an index out of range
        for n, offset in layout.offsets[name].items():  # partial results of kernels
            if n not in places:
                places[n] = len(places)
                arena_slots.append((places[n], offset))
        table = np.zeros(max(1, len(places)), dtype=np.uint64)
        if self._checks:
            table[places[""]] = faults.ctypes.data
        for c, t in self._constants.items():
            for slot, at in slots.pop(c, ()):
                table[slot] = t.data_ptr() + at
        steps: list[Any] = []
        for s in phase.steps:
            if not isinstance(s, Segment):
                steps.append(s if self._waits(s) else self._prepared(s, layout, name))
            elif self.target is not None:
                steps.append(self.target.prepare(s, layout.binding, table, places))
            else:
                steps.append(self._functions[s.function])
        ends: dict[int, list[str]] = {}
        for c in (host.dynamic | self._owned[name]) & phase.lifetimes.keys():
            if host.kinds[c] == "transient":
                ends.setdefault(phase.lifetimes[c][1], []).append(c)
        allocate = []
        for part in phase.parts:
            rows = []
            for c in self._results[name]:
                first = phase.lifetimes.get(c, (-1, -1))[0]
                if host.kinds[c] == "result" and c not in host.dynamic and part.first <= first < part.last and c not in self._owned[name]:
                    rows.append((c, layout.shapes[c], layout.strides[c], torch_dtype(host.containers[c].dtype)))
            allocate.append(rows)
        return _Plan(table, table.data, table.ctypes.data, _columns(arena_slots), _columns(saved_slots), slots, steps, allocate,
                     layout.offsets[name], ends, faults.data)  # fmt: skip

    def _waits(self, step: LibraryStep | ControlStep) -> bool:
        """Whether a step can be prepared only when sizes are known that earlier steps define."""
        if not self.host.late:
            return False
        if isinstance(step, ControlStep):
            return True
        return not attribute_sizes(step.attributes).isdisjoint(self.host.late)

    def _prepared(self, step: LibraryStep | ControlStep, layout: Layout, phase: str) -> _Call:
        def concrete(value: Any) -> Any:
            if isinstance(value, Expr):
                return evaluate(value, layout.known)
            if isinstance(value, (list, tuple)):
                return type(value)(concrete(v) for v in value)
            return value

        def entry(k: str, c: str) -> tuple[str, str, int]:
            base = layout.alias.get(c, (c, 0))[0]
            if base in layout.offsets[phase]:
                return k, c, 1
            if base in layout.saved:
                return k, c, 2
            return k, c, 3 if c in layout.alias else 0

        owned = [(k, c) for k, c in step.writes if self._owned_by_library(step, c)]
        attributes: dict[str, Any]
        function: Callable[..., dict[str, torch.Tensor]]
        if isinstance(step, ControlStep):
            function, attributes = self._controls[step.control.id], {"sizes": layout.known}
        else:
            function, attributes = LIBRARY[step.function], {k: concrete(v) for k, v in step.attributes.items()}
        reads = [entry(k, c) for k, c in step.reads]
        writes = [entry(k, c) for k, c in step.writes if (k, c) not in owned]
        results = [(k, c, None if c in self.host.dynamic else layout.strides[c]) for k, c in owned]
        return _Call(function, attributes, reads, writes, results, step.origin, step.defines)


def _number(e: Any, sizes: Mapping[Symbol, int]) -> int:
    return e if isinstance(e, int) else evaluate(e, sizes)


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in pairs], dtype=np.int64), np.array([o for _, o in pairs], dtype=np.uint64)


def _same_strides(t: torch.Tensor, strides: Sequence[int]) -> bool:
    return all(n == 1 or a == b for n, a, b in zip(t.shape, t.stride(), strides, strict=True))


def with_strides(t: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The tensor, or a copy of it, with those strides (dimensions of size one may have any)."""
    if t.stride() == strides or _same_strides(t, strides):
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy many tensors, those of one type by one call: PyTorch copies lists of mixed types one by one."""
    if not targets:
        return
    if targets[0].device.type == "cpu":
        torch._foreach_copy_(targets, sources)  # type: ignore[arg-type]
        return
    groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for t, s in zip(targets, sources, strict=True):
        mine = groups.setdefault((t.dtype, s.dtype), ([], []))
        mine[0].append(t)
        mine[1].append(s)
    for ours, theirs in groups.values():
        torch._foreach_copy_(ours, theirs)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _constant(value: np.ndarray, c: Container) -> torch.Tensor:
    t = torch.from_numpy(np.asarray(value, order="C")).to(torch_dtype(c.dtype))
    return t if c.strides is None else torch.empty_strided(t.shape, c.strides, dtype=t.dtype).copy_(t)  # type: ignore[arg-type]
