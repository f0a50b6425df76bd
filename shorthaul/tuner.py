"""`tune`: search for a faster plan for a model, measuring on the device that its tensors are on."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shorthaul import pipeline
from shorthaul.analysis.cost import COST_MODELS
from shorthaul.analysis.liveness import hints, value
from shorthaul.analysis.roofline import Machine
from shorthaul.api import CompiledGraph, compiled_interface, device_of, import_training
from shorthaul.codegen.cpp.emit import emit_kernel, emit_source
from shorthaul.config import Options
from shorthaul.frontends.dynamo import capture_graph
from shorthaul.frontends.functional import functionalize
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.runtime.artifact import tools
from shorthaul.runtime.build import BuildError
from shorthaul.runtime.cache import default_directory, make_key
from shorthaul.runtime.executable import torch_dtype
from shorthaul.runtime.library import build_library
from shorthaul.runtime.measured import described, machine_key
from shorthaul.runtime.target import TARGETS
from shorthaul.transforms.choices import Choices
from shorthaul.tuning.database import Database
from shorthaul.tuning.measure import Run
from shorthaul.tuning.progress import Progress
from shorthaul.tuning.result import Tuned
from shorthaul.tuning.search import SEARCHES, Search
from shorthaul.tuning.session import OutOfTime, Session


def tune(model: Callable[..., Any], inputs: tuple, *, budget: float = 60.0, kwargs: dict[str, Any] | None = None, train: bool = True,
         search: str | Search = "greedy", cost_model: str = "roofline", machine: Machine | str | None = None,
         database: str | os.PathLike[str] | bool = True, progress: bool | Callable[[Session], None] = True) -> Tuned:  # fmt: skip
    """Search for a faster plan for a model by measuring, and return it with all that was tried.

    inputs: a tuple of positional arguments, on the device to tune for; kwargs: keyword arguments. budget: seconds, capture and compilation
    included, kept within a tenth; only capturing and lowering the model once are never cut short. train: tune forward and backward (the
    default) or forward alone. search, cost_model: names of a strategy and a cost model (`tuning.search`, `analysis.cost`; other packages
    add theirs), or a Search. machine: for the cost model; default: this one, as `shorthaul doctor --measure` measured it.
    database: where results are kept (True: in the cache directory, False: nowhere, or a path): a second run goes on where the
    first ended. progress: show a line on the terminal, or a function that is called after everything that was
    tried. Ctrl-C (or KeyboardInterrupt raised by that function) ends the search and returns what was found.

    The model is not changed, nor its buffers or the state of random generators: `sh.optimize(model, recipe=tuned.recipe)` compiles by the
    result. It is never slower than what tuning started from: the winner is measured against it once more at the end. Raises Unsupported
    where the call is not one graph, TypeError or ValueError for wrong arguments.
    """
    began = time.perf_counter()
    if not isinstance(inputs, tuple):
        raise TypeError(f"inputs is a tuple of positional arguments, not {type(inputs).__name__}")
    if not isinstance(budget, (int, float)) or not budget > 0:
        raise ValueError(f"the budget is a number of seconds above 0, not {budget!r}")
    strategy = search if isinstance(search, Search) else SEARCHES.get(search)()
    model_of_cost = COST_MODELS.get(cost_model)
    subject = ModelSubject(model, inputs, kwargs, train)
    costs = model_of_cost(machine if machine is not None else described(subject.place))
    kept = Database(_path(database), machine_key(subject.place), make_key(*tools())[:16])
    shown = progress if callable(progress) else Progress() if progress else None
    try:
        with torch.random.fork_rng(devices=[subject.place] if subject.device == "cuda" else []):
            session = Session(subject, kept, costs, budget, report=shown, began=began)
            return session.run(strategy)
    finally:
        kept.close()
        if isinstance(shown, Progress):
            shown.end()


def _path(database: str | os.PathLike[str] | bool) -> Path | None:
    if isinstance(database, bool):
        return default_directory() / "tuning.sqlite" if database else None
    return Path(database)


class ModelSubject:
    """One call of a model, forward and, with `train`, backward: see `tuning.session.Subject`."""

    def __init__(self, model: Callable[..., Any], inputs: tuple, kwargs: dict[str, Any] | None, train: bool) -> None:
        gm, examples, real = capture_graph(model, inputs, kwargs)
        with torch.set_grad_enabled(train):
            graph = functionalize(gm, examples)
            self.name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "a function")
            imported = import_training(graph, train=train, strict=False, name=self.name)
        self.operators = imported.program
        self.train = train
        self.place = device_of(graph)
        self.device = self.place.type
        self.target = TARGETS.get("cpp" if self.device == "cpu" else "triton")()
        self.options = Options(target=self.target.base)
        self.interface = compiled_interface(graph, imported)
        # copies: buffers that the call updates stay the user's
        self.inputs = [_copy(t) for t in real]
        self._wanted = [t for t in self.inputs if isinstance(t, torch.Tensor) and t.requires_grad]

    def lower(self, choices: Choices) -> Program:
        program = self.operators.clone()
        pipeline.optimize(program, self.options, choices=choices)
        return program

    def build(self, program: Program, seconds: float) -> Run:
        units = len({n.id for n in program.nodes if isinstance(n, Map)})
        limits = _limits(seconds)
        if self.device == "cpu":
            limits["units"] = max(1, units)
        compiled = _in_time(lambda: self.target.compile(program, self.place, **limits), seconds)
        graph = CompiledGraph(program.name, program, self.interface, compiled.executable)
        cotangents: list[torch.Tensor] = []

        def step() -> None:
            with torch.set_grad_enabled(self.train):
                outputs = [o for o in graph(*self.inputs) if isinstance(o, torch.Tensor) and o.requires_grad]
                if outputs:
                    if not cotangents:
                        cotangents.extend(torch.rand_like(o) for o in outputs)
                    torch.autograd.grad(outputs, self._wanted, cotangents, allow_unused=True)
            if self.device == "cuda":
                torch.cuda.synchronize(self.place)

        return step

    def text(self, program: Program, kernel: Map) -> str:
        return self._emit(program, kernel).name

    def _emit(self, program: Program, kernel: Map) -> Any:
        return emit_kernel(kernel, program.containers, shared=[c for c in kernel.written_containers() if len(program.writers(c)) > 1])

    def kernels(self, program: Program, variants: Sequence[Map], seconds: float) -> list[Run]:
        emitted = [self._emit(program, v) for v in variants]
        distinct = {k.name: k for k in emitted}
        sources = emit_source(distinct.values(), units=len(distinct))
        library = _in_time(lambda: build_library(sources, symbols=list(distinct), **_limits(seconds)), seconds)
        sizes = hints(program)
        memory = _Operands(program, sizes)
        runs = {}
        for name, k in distinct.items():
            function = library.function(name, [ctypes.c_void_p, ctypes.c_void_p])
            addresses = [memory.address(a) for a in k.arguments] + [memory.faults.ctypes.data]
            pointers = (ctypes.c_void_p * len(addresses))(*addresses)
            numbers = (ctypes.c_int64 * max(1, len(k.sizes)))(*[sizes[s.name] for s in k.sizes])
            runs[name] = functools.partial(_call, function, pointers, numbers, memory)
        return [runs[k.name] for k in emitted]


def _call(function: Any, pointers: Any, numbers: Any, memory: Any) -> None:
    function(pointers, numbers)


def _copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch.no_grad():
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)


def _limits(seconds: float) -> dict[str, Any]:
    """Limits of a build that has to be over in so many seconds."""
    end = time.perf_counter() + seconds

    def check(done: int, total: int) -> None:
        if time.perf_counter() > end:
            raise OutOfTime

    return {"timeout": max(0.1, seconds), "progress": check}


def _in_time(build: Callable[[], Any], seconds: float) -> Any:
    end = time.perf_counter() + seconds
    try:
        return build()
    except BuildError as e:
        if time.perf_counter() >= end:
            raise OutOfTime from e
        raise


class _Operands:
    """Memory for the arguments of one kernel: floats are random, integers are 0, which is valid as an index."""

    def __init__(self, program: Program, sizes: Mapping[str, int]) -> None:
        self.program, self.sizes = program, sizes
        self.faults = np.zeros(5, np.int64)
        self._roots: dict[str, torch.Tensor] = {}

    def address(self, name: str) -> int:
        """Where a container begins."""
        c, offset = self.program.containers[name], 0
        itemsize = c.dtype.itemsize
        while c.alias is not None:
            offset += value(c.alias.offset, self.sizes)
            c = self.program.containers[c.alias.base]
        if c.name not in self._roots:
            shape = [value(n, self.sizes) for n in c.shape]
            strides = [value(n, self.sizes) for n in c.actual_strides]
            extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 1
            memory = torch.zeros(extent, dtype=torch_dtype(c.dtype))
            self._roots[c.name] = memory.uniform_(0.1, 1.0) if c.dtype.is_float else memory
        return self._roots[c.name].data_ptr() + offset * itemsize
