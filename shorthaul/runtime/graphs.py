"""CUDA graphs around an executable: each phase is captured once and replayed, so that the host no longer matters.

A *slot* is one capture of a forward phase with its backward parts, in memory of its own. It serves one forward run at a time: from the
forward call until its backward phase is over. A second forward call before that gets another slot, further ones run ungraphed.

What the graph reads lies at fixed addresses: parameters and buffers in place (their addresses are compared before every replay; a slot
whose parameters moved is captured anew), everything else in copies that each call fills. What the caller gets is never changed by a later
replay: outputs and gradients are lent where the loop lets go of them before the next replay (see `lending`), else they are copies, and so
are outputs that the backward phase reads.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .compile import Compiled
from .executable import Backward, Executable, Run, copy_all
from .layout import AGAIN, Layout
from .lending import Lent, Watch
from .memory import ARENAS

WARM_UP = 2  # calls with the same sizes that run ungraphed first: libraries choose their algorithms
SLOTS = 2
RECAPTURES = 4  # captures of one program because its parameters moved
LAYOUTS = 4  # choices of sizes that are captured


@dataclasses.dataclass
class _Captured:
    """The backward phase of a capture: state of its run, and for each part its graph and its gradients."""

    state: Backward | None = None
    parts: list[tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], Lent]] = dataclasses.field(default_factory=list)


class _Slot:
    """One capture. busy: a forward run has it. backward: by whether the phase leaves saved values as they are, to run again."""

    def __init__(self, fixed: dict[str, torch.Tensor]) -> None:
        self.busy = False
        self.fixed = fixed  # inputs that are read in place
        self.addresses = [t.data_ptr() for t in fixed.values()]
        self.copied: dict[str, torch.Tensor] = {}
        self.forward: torch.cuda.CUDAGraph | None = None
        self.results: dict[str, torch.Tensor] = {}
        self.lent = Lent({})  # outputs
        self.run: Run | None = None
        self.cotangents: dict[str, torch.Tensor] = {}
        self.backward = {False: _Captured(), True: _Captured()}


class GraphedRun:
    """A forward run that a slot made; gives the slot back when it is released. spent: see `Run`."""

    __slots__ = ("layout", "slot", "spent")

    def __init__(self, slot: _Slot, layout: Layout) -> None:
        self.slot: _Slot | None = slot
        self.layout = layout
        self.spent = False

    def release(self) -> None:
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.busy = False

    def __del__(self) -> None:
        self.release()


class GraphedBackward:
    """A backward run in progress. again: the forward run may have another one."""

    __slots__ = ("again", "next", "run", "slot", "tensors")

    def __init__(self, run: GraphedRun, slot: _Slot, tensors: Mapping[str, torch.Tensor], again: bool) -> None:
        self.run, self.slot, self.tensors, self.again, self.next = run, slot, tensors, again, 0

    def release(self) -> None:
        self.tensors = {}


class GraphedExecutable:
    """An executable of a GPU, graphed; the interface is that of `Executable`.

    in_place: inputs that keep their address between calls and their values until the backward phase (parameters, buffers that are not
    written). status: what became of it, for the report.
    """

    def __init__(self, inner: Executable, in_place: frozenset[str]) -> None:
        self.inner = inner
        self.in_place = in_place
        self.host, self.device, self.signature = inner.host, inner.device, inner.signature
        self.status = "not captured yet"
        self._handed_out = [n for n in dict.fromkeys(inner.signature.outputs) if n not in dict.fromkeys(inner.signature.inputs)]
        self._slots: dict[int, list[_Slot]] = {}
        self._calls: dict[int, int] = {}
        self._captures = 0
        self._off = False
        self._keeps_gradients = False  # a gradient was still in use when the next backward phase began
        self._keeps_outputs = False  # and an output when the next forward phase did
        self._watch = Watch()
        self._pool: Any = None
        self._lock = threading.RLock()

    @property
    def parts(self) -> list[tuple[str, ...]]:
        return self.inner.parts

    def layout(self, sizes: Mapping[Any, int]) -> Layout:
        return self.inner.layout(sizes)

    # forward ----------------------------------------------------------------------------------------------------------
    def forward(self, layout: Layout, inputs: Mapping[str, torch.Tensor], keep: bool) -> tuple[dict[str, torch.Tensor], Any]:
        """See `Executable.forward`."""
        with self._lock:
            slot = self._slot(layout, inputs, keep)
            if slot is None:
                return self.inner.forward(layout, inputs, keep)
            slot.busy = True
        copy_all(list(slot.copied.values()), [inputs[n].detach() for n in slot.copied])
        assert slot.forward is not None
        used = {n: slot.lent.tensors[n] for n in slot.lent.in_use()}
        self._keeps_outputs |= bool(used)
        kept = _copies(used)
        slot.forward.replay()
        # updates are written back before anything else can replay; outputs are the caller's to keep
        lent = {n for n in self._handed_out if n in slot.lent and not self._keeps_outputs}
        results = {**slot.results, **_copies({n: slot.results[n] for n in self._handed_out if n not in lent})}
        results.update({n: slot.lent.out(n) for n in lent})
        copy_all(list(used.values()), [kept[n] for n in used])
        results.update({n: inputs[n] for n in self.signature.outputs if n in inputs})
        if not keep:
            slot.busy = False
            return results, None
        return results, GraphedRun(slot, layout)

    def _slot(self, layout: Layout, inputs: Mapping[str, torch.Tensor], keep: bool) -> _Slot | None:
        """A free slot that fits, captured now if need be; None: run ungraphed."""
        key = 2 * id(layout) + keep
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if self._off or calls <= WARM_UP or torch.cuda.is_current_stream_capturing():
            return None
        slots = self._slots.setdefault(key, [])
        if len(self._slots) > 2 * LAYOUTS:
            return None
        for slot in [s for s in slots if not s.busy]:
            if [inputs[n].data_ptr() for n in slot.fixed] == slot.addresses:
                return slot
            slots.remove(slot)  # parameters moved
            self._captures += 1
        if len(slots) >= SLOTS or self._captures > RECAPTURES:
            return None
        made = self._capture_forward(layout, inputs, keep)
        if made is not None:
            slots.append(made)
        return made

    def _capture_forward(self, layout: Layout, inputs: Mapping[str, torch.Tensor], keep: bool) -> _Slot | None:
        ARENAS.trim(self.device)  # of the calls before: the graph has an arena of its own
        slot = _Slot({n: t.detach() for n, t in inputs.items() if n in self.in_place})
        slot.copied = {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t.detach())
                       for n, t in inputs.items() if n not in self.in_place}  # fmt: skip
        graph = torch.cuda.CUDAGraph()
        try:
            with self._capturing(graph):
                slot.results, slot.run = self.inner.forward(layout, {**slot.fixed, **slot.copied}, keep)
        except RuntimeError as e:
            self._give_up(e)
            return None
        slot.forward = graph
        slot.lent = Lent({n: slot.results[n] for n in self._handed_out if n not in self.host.phases["backward"].lifetimes
                          and _is_alone(slot.results[n])})  # fmt: skip
        self.status = "forward and backward phase"
        return slot

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> Any:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")

    def _give_up(self, error: Exception) -> None:
        self._off = True
        self.status = f"none: a call could not be captured ({str(error).splitlines()[0][:160]})"
        torch.cuda.synchronize(self.device)

    # backward ---------------------------------------------------------------------------------------------------------
    def backward(self, run: Any, tensors: Mapping[str, torch.Tensor], again: bool = True) -> Any:
        """See `Executable.backward`."""
        if self._watch.in_use():
            self._keeps_gradients = True
        self._watch.forget()
        if not isinstance(run, GraphedRun):
            return self.inner.backward(run, tensors, again)
        slot = run.slot
        assert slot is not None
        known = {**slot.fixed, **slot.copied, **slot.results}
        for n, t in tensors.items():
            if n in known:
                continue
            if n not in slot.cotangents:
                slot.cotangents[n] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            slot.cotangents[n].copy_(t)
        again = again or not run.layout.shared
        run.spent = not again
        return GraphedBackward(run, slot, {n: known.get(n, slot.cotangents.get(n)) for n in tensors}, again)  # type: ignore[misc]

    def part(self, state: Any) -> dict[str, torch.Tensor]:
        """See `Executable.part`."""
        if not isinstance(state, GraphedBackward):
            found = self.inner.part(state)
            self._watch.give(found.values())
            return found
        captured = state.slot.backward[state.again]
        with self._lock:
            if state.next == len(captured.parts):
                self._capture_part(state.slot, captured, state)
        graph, gradients, lent = captured.parts[state.next]
        state.next += 1
        used = {n: lent.tensors[n] for n in lent.in_use()}
        if used:
            self._keeps_gradients = True
        kept = _copies(used)
        graph.replay()
        copied = _copies({n: t for n, t in gradients.items() if self._keeps_gradients or n not in lent})
        copy_all(list(used.values()), [kept[n] for n in used])
        return {n: copied[n] if n in copied else lent.out(n) for n in gradients}

    def _capture_part(self, slot: _Slot, captured: _Captured, state: GraphedBackward) -> None:
        """Gradients that are lent get memory that no graph uses for anything else: it is not from the graphs' pool."""
        graph, layout = torch.cuda.CUDAGraph(), state.run.layout
        names = self.inner.parts[len(captured.parts)]
        plan = self.inner.plan(layout, AGAIN if state.again and layout.shared else "backward")  # loads kernels, which a capture may not
        places = {}
        if not self._keeps_gradients:
            own = {g: i for i, g in self.signature.gradients if i in names}
            for g, shape, strides, dtype in plan.allocate[len(captured.parts)]:
                if g in own:
                    places[g] = torch.empty_strided(shape, strides, dtype=dtype, device=self.device)
        with self._capturing(graph):
            if captured.state is None:
                assert slot.run is not None
                captured.state = self.inner.backward(slot.run, state.tensors, state.again)
            captured.state.tensors.update(places)
            gradients = self.inner.part(captured.state)
        made = {t.data_ptr() for t in places.values()}
        captured.parts.append((graph, gradients, Lent({n: t for n, t in gradients.items() if t.data_ptr() in made})))


def _is_alone(t: torch.Tensor) -> bool:
    """Whether nothing else has memory of that tensor."""
    return torch._C._storage_Use_Count(t.untyped_storage()._cdata) <= 2  # the tensor's, and the one asked here


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of their own with the same values and strides."""
    found = {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for n, t in tensors.items()}
    copy_all(list(found.values()), list(tensors.values()))
    return found


def graphed(compiled: Compiled, in_place: frozenset[str] | None) -> Compiled:
    """With its phases as CUDA graphs that read those inputs where they are; as it is where None is given."""
    if in_place is None:
        return compiled
    executable: Any = GraphedExecutable(compiled.executable, in_place)
    return dataclasses.replace(compiled, executable=executable)


def in_place_inputs(names: Sequence[str], roles: Mapping[str, str], written: frozenset[str]) -> frozenset[str]:
    """Inputs that a graph may read where they are. roles: of each container in the program."""
    return frozenset(n for n in names if roles[n] in ("parameter", "buffer") and n not in written)
