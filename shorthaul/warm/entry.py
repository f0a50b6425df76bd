"""The entry of an optimized module: a compiled program from a capture record where one fits, Dynamo otherwise.

A call is answered by a record only when everything that its trace would depend on is as it was (`LiveState.unchanged`, arguments,
settings). Whatever else happens goes through Dynamo, whose compilations leave new records where one graph is the whole call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch

from shorthaul.config import Options
from shorthaul.runtime.report import Record

from . import calls, record
from .live_state import LiveState, NotRecordable
from .trace import Trace

Tracer = Callable[["Entry"], tuple[Callable[..., Any], CodeType]]


@dataclass
class _Ready:
    """A compiled graph with where its inputs come from and how the module's result is built from its outputs."""

    graph: Callable[..., list[Any]]
    inputs: list[tuple[bool, int]]  # (whether the module's own, place)
    build: calls.Build
    written: list[int]  # places of the module's tensors that the graph writes
    shapes: list[torch.Size]  # of the call's tensors

    def __call__(self, live: LiveState, leaves: list[torch.Tensor]) -> Any:
        own = live.tensors
        return self.build(self.graph(*[own[i] if of_module else leaves[i] for of_module, i in self.inputs]), live, leaves)

    def shares_memory(self, live: LiveState, leaves: list[torch.Tensor]) -> bool:
        """Whether an argument lies in a tensor that the graph writes: such a call is left to a trace."""
        if not self.written or not leaves:
            return False
        memory = {live.tensors[i].untyped_storage()._cdata for i in self.written}
        return any(t.untyped_storage()._cdata in memory for t in leaves)


@dataclass
class _State:
    """A live state that records were found for, and the graphs for the calls made in it."""

    live: LiveState
    graphs: dict[Any, _Ready] = field(default_factory=dict)


class Observation:
    """One call through Dynamo: what the backend saw, for a record. It is `open` until the call ended."""

    def __init__(self, args: tuple, kwargs: dict[str, Any], settings: Any, live: LiveState | None) -> None:
        self.args, self.kwargs, self.settings, self.live = args, kwargs, settings, live
        self.open = True
        self.compilations = 0
        self.reason = ""
        self.capture: record.Capture | None = None
        self.trace: Trace | None = None
        self.region: Any = None
        self.runs: list[tuple[tuple, list[Any]]] = []

    def close(self) -> None:
        """Let go of everything: compiled graphs keep a reference to this."""
        self.open = False
        self.args, self.kwargs, self.live, self.capture, self.trace, self.runs = (), {}, None, None, None, []


class Entry:
    """What `Module.__call__` goes to. trace: makes the function that goes through Dynamo, and gives the code object that it traces."""

    def __init__(self, module: torch.nn.Module, options: Options, report: Record, trace: Tracer) -> None:
        self.module = module
        self.options = options
        self.report = report
        self._trace = trace
        self._lock = threading.RLock()
        self._states: list[_State] = []
        self._traced: Callable[..., Any] | None = None
        self._code: CodeType | None = None
        self._local = threading.local()
        self._why = ""  # why the first call was traced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # inside a compiled caller: a part of its graph
            return self.module._call_impl(*args, **kwargs)
        settings = calls.settings() if self._states or self._traced is None else None
        live = None
        if settings is not None:
            ready, live, leaves = self._find(args, kwargs, settings)
            if ready is not None:
                return ready(live, leaves)  # type: ignore[arg-type]
        return self._through_dynamo(args, kwargs, live)

    # from records -----------------------------------------------------------------------------------------------------
    def _find(self, args: tuple, kwargs: dict[str, Any], settings: Any) -> tuple[_Ready | None, LiveState | None, list[torch.Tensor]]:
        """The graph for this call with the live state and the tensors among the arguments. Without a graph: a fresh live state or None."""
        try:
            for state in self._states:
                if state.live.unchanged():
                    key, leaves = calls.arguments(args, kwargs, state.live)
                    ready = state.graphs.get((key, settings))
                    if ready is not None and not ready.shares_memory(state.live, leaves):
                        return ready, state.live, leaves
                    break
            if self._traced is not None:
                return None, None, []
            return self._look_up(args, kwargs, settings)
        except NotRecordable as e:
            self._why = str(e)
        return None, None, []

    def _look_up(self, args: tuple, kwargs: dict[str, Any], settings: Any) -> tuple[_Ready | None, LiveState | None, list[torch.Tensor]]:
        begin = time.perf_counter()
        if not calls.tracer_is_default():
            raise NotRecordable("Dynamo's configuration was changed")
        if os.environ.get("SHORTHAUL_WARM_START") == "0":
            raise NotRecordable("SHORTHAUL_WARM_START is 0")
        if self.options.trace:
            raise NotRecordable("the option `trace` compiles anew")
        with self._lock:
            live = LiveState(self.module)
            key, leaves = calls.arguments(args, kwargs, live)
            state = next((s for s in self._states if s.live.digest == live.digest), None)
            if state is not None:
                state.live = live
                self._states.remove(state)
                self._states.insert(0, state)
                ready = state.graphs.get((key, settings))
                if ready is not None:
                    return (None, live, leaves) if ready.shares_memory(live, leaves) else (ready, live, leaves)
            found = record.find(record.record_key(live, leaves, key, settings, self.options))
            if found is None:
                self._why = "no capture record for this module, this code and these arguments"
                return None, live, leaves
            written = [found.inputs[i] for i, _ in found.graph.interface.mutations]
            ready = _Ready(found.graph, [(kind == "own", i) for kind, i in found.inputs], calls.builder(found.form),
                           [i for kind, i in written if kind == "own"], [t.shape for t in leaves])  # fmt: skip
            if ready.shares_memory(live, leaves):
                return None, live, leaves
            reason = self._difference(live, key, settings)
            if state is None:
                state = _State(live)
                self._states.insert(0, state)
            state.graphs[key, settings] = ready
            region = self.report.region(reason, start="from its capture record; nothing was traced")
            region.captured_before(found.operators, found.fallbacks)
            region.finished(found.program, found.compiled)
            region.seconds["compile"] = time.perf_counter() - begin
            self.report.uses(t for kind, i in found.inputs if kind == "own" and isinstance(t := live.tensors[i], torch.nn.Parameter))
            return ready, live, leaves

    def _difference(self, live: LiveState, key: calls.Key, settings: calls.Key) -> str:
        """Why another record is needed than the last one; empty for the first."""
        for state in self._states:
            for known, before in state.graphs:
                if state.live.digest != live.digest:
                    return "the module changed"
                return "the arguments changed" if known != key else calls.changed_setting(before, settings)
        return ""

    # through Dynamo ---------------------------------------------------------------------------------------------------
    def _through_dynamo(self, args: tuple, kwargs: dict[str, Any], live: LiveState | None) -> Any:
        first = self._traced is None
        if first:
            with self._lock:
                if self._traced is None:
                    traced, self._code = self._trace(self)
                    self._traced = traced
        assert self._traced is not None
        outer = getattr(self._local, "observation", None)
        observation = self._local.observation = Observation(args, kwargs, calls.settings(), live)
        try:
            with self._changed_sizes(args, kwargs) if first else contextlib.nullcontext():
                result = self._traced(*args, **kwargs)
            if observation.compilations:
                self._record(observation, result)
            return result
        finally:
            self._local.observation = outer
            observation.close()

    @contextlib.contextmanager
    def _changed_sizes(self, args: tuple, kwargs: dict[str, Any]) -> Iterator[None]:
        """Sizes that differ from those of a record are symbolic at the first trace, as they are where Dynamo saw both."""
        marked: list[torch.Tensor] = []
        try:
            with contextlib.suppress(NotRecordable):
                for state in self._states:
                    _, leaves = calls.arguments(args, kwargs, state.live)
                    for ready in state.graphs.values():
                        if [t.dim() for t in leaves] != [len(s) for s in ready.shapes]:
                            continue
                        for t, shape in zip(leaves, ready.shapes, strict=True):
                            changed = [d for d, (a, b) in enumerate(zip(t.shape, shape, strict=True)) if a != b]
                            if changed:
                                marked.append(t)
                                sys.modules["torch._dynamo"].maybe_mark_dynamic(t, changed)
                        break
            yield
        finally:
            for t in marked:
                for name in [n for n in vars(t) if n.startswith("_dynamo_")]:
                    delattr(t, name)

    def compiled(self, gm: Any, region: Any, capture: record.Capture | None) -> Callable[..., list[Any]] | None:
        """Called by the backend when a graph was compiled. Returns what to run instead of the graph, or None."""
        observation: Observation | None = getattr(self._local, "observation", None)
        if observation is None:
            return None
        observation.compilations += 1
        observation.region = region
        try:
            if observation.compilations > 1:
                raise NotRecordable("the call became several graphs")
            if observation.settings is None:
                raise NotRecordable("a mode, a function transform or another tracer is active")
            if capture is None:
                raise NotRecordable("a part runs in eager mode")
            if not calls.tracer_is_default():
                raise NotRecordable("Dynamo's configuration was changed")
            assert self._code is not None
            observation.trace = Trace(gm, self._code)
            if observation.live is None:
                observation.live = LiveState(self.module)
        except NotRecordable as e:
            observation.reason = str(e)
            observation.capture = None
            return None
        observation.capture = capture
        graph = capture.graph

        def first(*inputs: Any) -> list[Any]:
            outputs = graph(*inputs)
            if observation.open:
                observation.runs.append((inputs, outputs))
            return outputs

        return first

    def _record(self, o: Observation, result: Any) -> None:
        """Write a capture record of a call, or note in the report why not."""
        why = f" ({self._why})" if self._why and not self._states and len(self.report.regions) == 1 else ""
        try:
            if o.reason or self.options.trace:
                raise NotRecordable(o.reason or "the option `trace` compiles anew")
            if o.capture is None or o.trace is None or o.live is None or len(o.runs) != 1:
                raise NotRecordable("the call did not run one graph")
            o.trace.check(o.live)
            if not o.live.unchanged():
                raise NotRecordable("the call changed the module, or what its code reads")
            key, leaves = calls.arguments(o.args, o.kwargs, o.live)
            inputs, outputs = o.runs[0]
            places = calls.places(inputs, o.live, leaves)
            form = calls.template(result, outputs, o.live, leaves)
            record.store(record.record_key(o.live, leaves, key, o.settings, self.options), o.capture, places, form)
            o.region.start = f"traced{why}; a later start finds its capture record"
        except NotRecordable as e:
            o.region.start = f"traced{why}; no capture record: {e}"
        except Exception as e:  # a defect here must not stop training
            o.region.start = f"traced; no capture record, because of an error inside Shorthaul: {type(e).__name__}: {e}"
