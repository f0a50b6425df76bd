"""Running a compiled program: pointer tables, arenas, kernels and library calls.

A phase runs on a table of addresses, one per container. What does not change between calls (offsets in arenas, views for library calls,
concrete sizes) is prepared once for each choice of sizes, in a `Layout` with a `_Plan` for each phase. An executable may have several
forward runs in flight (the model called twice before backward): each has a `Run` that owns what its backward phase needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shorthaul.codegen.host import ControlStep, HostProgram, LibraryStep, Segment
from shorthaul.codegen.library import LIBRARY, writes_out
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.nodes import Defines, Loop
from shorthaul.ir.sizes import attribute_sizes, container_sizes
from shorthaul.symbolic import Expr, Symbol, evaluate

from .control import Control
from .layout import AGAIN, Layout, make_layout, number
from .memory import ARENAS, Arena

if TYPE_CHECKING:
    from .gpu_launch import KernelTarget

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip

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


class Run:
    """What one forward run leaves for its backward run: the arena of saved values, and saved tensors that a library allocated.

    spent: a backward run wrote over the saved values.
    """

    __slots__ = ("kept", "layout", "saved", "spent")

    def __init__(self, layout: Layout, saved: Arena | None, kept: dict[str, torch.Tensor]) -> None:
        self.layout = layout
        self.saved = saved
        self.kept = kept
        self.spent = False

    def release(self) -> None:
        """Give the memory back; no backward run may follow."""
        saved, self.saved, self.kept = self.saved, None, {}
        if saved is not None:
            ARENAS.release(saved)

    def __del__(self) -> None:
        self.release()


class Backward:
    """A backward run in progress: it has its arena until its last part ran. entry: that of the layout, which places its values."""

    __slots__ = ("arena", "entry", "next", "run", "tensors")

    def __init__(self, run: Run, tensors: dict[str, torch.Tensor], arena: Arena, entry: str) -> None:
        self.run = run
        self.tensors = tensors
        self.arena: Arena | None = arena
        self.entry = entry
        self.next = 0

    def release(self) -> None:
        arena, self.arena = self.arena, None
        self.tensors = {}
        if arena is not None and arena is not self.run.saved:
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
        saved = ARENAS.acquire(layout.saved_bytes, self.device) if layout.saved_bytes else None
        arena = saved if saved is not None and layout.shared else ARENAS.acquire(layout.arena_bytes["forward"], self.device)
        try:
            self._execute(layout, "forward", 0, tensors, arena, saved)
        except BaseException:
            if saved is not None:
                ARENAS.release(saved)
            raise
        finally:
            if arena is not saved:
                ARENAS.release(arena)
        results = {}
        for n in self._results["forward"]:
            results[n] = tensors[n] if n in tensors else self._constants[n].clone()
        if keep:
            return results, Run(layout, saved, {n: tensors[n] for n in self._kept_names})
        if saved is not None:
            ARENAS.release(saved)
        return results, None

    def backward(self, run: Run, tensors: Mapping[str, torch.Tensor], again: bool = True) -> Backward:
        """Start the backward phase of a forward run.

        tensors: the cotangents, and those inputs and results of the forward phase that the backward phase reads, by container. again:
        whether it may be called again with the same run; otherwise saved values may be written over (`run.spent`).
        """
        given = {**run.kept, **tensors}
        if run.layout.shared and not again:
            assert run.saved is not None
            run.spent = True
            return Backward(run, given, run.saved, "backward")
        entry = AGAIN if run.layout.shared else "backward"
        return Backward(run, given, ARENAS.acquire(run.layout.arena_bytes[entry], self.device), entry)

    def part(self, state: Backward) -> dict[str, torch.Tensor]:
        """Run the next part of a backward phase; returns the gradients that it completes, by input."""
        part = self.host.phases["backward"].parts[state.next]
        if state.arena is None:
            raise RuntimeError(f"the backward phase of {self.host.phases['backward'].name} was ended")
        try:
            self._execute(state.run.layout, state.entry, state.next, state.tensors, state.arena, state.run.saved)
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
    def plan(self, layout: Layout, entry: str) -> _Plan:
        """A phase as that entry of the layout places it, prepared at the first call."""
        found = layout.plans.get(entry)
        if found is None:
            found = layout.plans[entry] = self._prepare(layout, entry)
        return found

    def _execute(self, layout: Layout, entry: str, part: int, tensors: dict[str, torch.Tensor], arena: Arena, saved: Arena | None) -> None:
        """One part of a phase, placed as that entry of the layout says."""
        phase = "backward" if entry == AGAIN else entry
        with self._lock, torch.no_grad(), _current(self.device):
            plan = self.plan(layout, entry)
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
                    step = self._prepared(step, layout, entry)
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
                layout.shapes[name] = tuple(number(s, layout.known) for s in c.shape)
                layout.strides[name] = tuple(number(s, layout.known) for s in c.actual_strides)
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
            around = {k: self.host.containers[c] for k, c in (*step.reads, *step.writes) if c in self.host.containers}
            fills = writes_out(step.function, self.device, step.attributes, around)
        return not fills and kind in ("transient", "saved", "result")

    # preparation ------------------------------------------------------------------------------------------------------
    def layout(self, sizes: Mapping[Symbol, int]) -> Layout:
        """Everything that follows from a choice of sizes; cached. Where steps define sizes it is for one call alone."""
        key = tuple([sizes[s] for s in self.host.symbols if s not in self.host.late])
        found = self._layouts.get(key)
        if found is None:
            with self._lock:
                found = self._layouts[key] = make_layout(self.host, sizes, self._owned, self._saved_names, self.target)
                while len(self._layouts) > LAYOUTS:
                    self._layouts.popitem(last=False)
        return found.own() if self.host.late else found

    def _prepare(self, layout: Layout, entry: str) -> _Plan:
        host, name = self.host, "backward" if entry == AGAIN else entry
        phase = host.phases[name]
        arena_slots, saved_slots = [], []
        slots: dict[str, list[tuple[int, int]]] = {}
        for c, slot in host.pointers.items():
            base, offset = layout.alias.get(c, (c, 0))
            at = offset * host.containers[c].dtype.itemsize
            if base in layout.offsets[entry]:
                arena_slots.append((slot, layout.offsets[entry][base] + at))
            elif base in layout.saved:
                saved_slots.append((slot, layout.saved[base] + at))
            else:
                slots.setdefault(base, []).append((slot, at))
        faults = np.zeros(5, dtype=np.int64)
        places = dict(host.pointers)
        if self._checks:
            places[""] = len(places)  # behind the containers: where kernels report an index out of range
        for n, offset in layout.offsets[entry].items():  # partial results of kernels
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
                steps.append(s if self._waits(s) else self._prepared(s, layout, entry))
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
                     layout.offsets[entry], ends, faults.data)  # fmt: skip

    def _waits(self, step: LibraryStep | ControlStep) -> bool:
        """Whether a step can be prepared only when sizes are known that earlier steps define."""
        if not self.host.late:
            return False
        if isinstance(step, ControlStep):
            return True
        return not attribute_sizes(step.attributes).isdisjoint(self.host.late)

    def _prepared(self, step: LibraryStep | ControlStep, layout: Layout, place: str) -> _Call:
        def concrete(value: Any) -> Any:
            if isinstance(value, Expr):
                return evaluate(value, layout.known)
            if isinstance(value, (list, tuple)):
                return type(value)(concrete(v) for v in value)
            return value

        def entry(k: str, c: str) -> tuple[str, str, int]:
            base = layout.alias.get(c, (c, 0))[0]
            if base in layout.offsets[place]:
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
        attributes["strides"] = {k: strides for k, _, strides in results if strides is not None}
        return _Call(function, attributes, reads, writes, results, step.origin, step.defines)


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
