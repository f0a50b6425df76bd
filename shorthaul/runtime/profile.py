"""Measuring a scheduled program by itself: the whole step, and each kernel and library call.

    measured = profile(program, values)          # values: arrays by container, for everything that comes from outside
    print(measured.step.median, measured.kernels[node.id].median)

The step is timed as it runs in training (runs of kernels are one call); the kernels in a second build in which each is a call of its
own. On a CPU times are wall clock of the calling thread. On a GPU the step is wall clock from an idle device to an idle device, and
a kernel's time lies between two events of its stream. Seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shorthaul.codegen.host import Segment
from shorthaul.ir.program import Form, Program
from shorthaul.symbolic import evaluate

from .compile import compile_program, compile_triton
from .executable import Executable, Layout, torch_dtype

Progress = Callable[[str, float], None]


class Stopped(RuntimeError):
    """The measurement was asked to stop (`progress` raised it)."""


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs: median, quartiles, extremes, number of runs."""

    median: float
    low: float
    high: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        s = sorted(seconds)
        low, _, high = statistics.quantiles(s, n=4, method="inclusive") if len(s) > 1 else (s[0], s[0], s[0])
        return cls(statistics.median(s), low, high, s[0], s[-1], len(s))


@dataclass
class Profile:
    """step: forward and backward together. kernels: by node id. threads: that the kernels used. device: what it ran on."""

    step: Times
    kernels: dict[int, Times] = field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"


def devices() -> dict[str, str]:
    """What a program can be timed on here, "cpu" first: device -> its name."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {"cpu": "this CPU", **{f"cuda:{i}": torch.cuda.get_device_name(i) for i in gpus}}


def threads() -> int:
    """How many threads kernels use in this process."""
    return torch.get_num_threads()


def profile(program: Program, values: Mapping[str, np.ndarray], *, runs: int = 15, warmup: int = 3,
            progress: Progress | None = None, device: str = "cpu", target: str = "") -> Profile:  # fmt: skip
    """Compile a scheduled program for a device ("cpu", "cuda:0") and time it.

    values: an array for every input, parameter, buffer and cotangent, at the program's size hints. progress(what, part done) is called
    between runs; what it raises ends the measurement. target: "cpp" or "triton", by default what serves the device. Raises ValueError for
    another form, NoCompiler, BuildError, DeviceError.
    """
    if program.form is not Form.SCHEDULED:
        raise ValueError(f"program {program.name} has form {program.form.name}; only a scheduled one can be timed")
    say = progress or (lambda what, part: None)
    place = torch.device(device)
    clock = _EventClock(place) if place.type == "cuda" else _WallClock()
    say("compiling", 0.0)
    if (target or ("triton" if place.type == "cuda" else "cpp")) == "triton":
        whole = each = compile_triton(program, place).executable  # kernels are launched one by one in any case
    else:
        whole, each = compile_program(program).executable, compile_program(program, apart=True).executable
    sizes = {s: program.attributes.get("size_hints", {}).get(s.name, 64) for s in program.symbols}
    step, times = _Step(program, whole, values, sizes, place), dict[int, list[float]]()
    seconds = []
    for i in range(warmup + runs):
        say("timing the step", 0.2 + 0.4 * i / (warmup + runs))
        clock.wait()
        began = time.perf_counter()
        step.run()
        clock.wait()
        if i >= warmup:
            seconds.append(time.perf_counter() - began)
    single = _Step(program, each, values, sizes, place)
    single.run()  # prepares the plans
    single.time_steps(times, clock)
    for i in range(warmup + runs):
        say("timing kernels", 0.6 + 0.4 * i / (warmup + runs))
        if i == warmup:
            for found in times.values():
                found.clear()
        single.run()
        clock.collect()
    name = "cpu" if place.type == "cpu" else devices()[str(place)]
    return Profile(Times.of(seconds), {n: Times.of(t) for n, t in times.items() if t}, threads(), name)


class _WallClock:
    """Times what runs in the calling thread."""

    def wait(self) -> None:
        """Until the device has nothing to do."""

    def collect(self) -> None:
        """Write down what was timed since the last time."""

    def timed(self, function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        """The same function, which notes how long each call took."""

        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            seconds.append(time.perf_counter() - began)
            return result

        return run


class _EventClock(_WallClock):
    """Times what a GPU does between two events of its current stream; they are read once it has done everything."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.open: list[tuple[Any, Any, list[float]]] = []

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def collect(self) -> None:
        self.wait()
        for first, last, seconds in self.open:
            seconds.append(first.elapsed_time(last) / 1e3)
        self.open.clear()

    def timed(self, function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            result = function(*arguments)
            last.record()
            self.open.append((first, last, seconds))
            return result

        return run


class _Step:
    """Forward and backward of one program on fixed values."""

    def __init__(self, program: Program, executable: Executable, values: Mapping[str, np.ndarray], sizes: Mapping[Any, int],
                 device: torch.device) -> None:  # fmt: skip
        self.device = device
        self.executable = executable
        self.layout: Layout = executable.layout(sizes)
        self.backward = any(n.phase == "backward" for n in program.nodes)
        self.cotangents = {c: self._tensor(program, c, values, sizes) for _, c in program.signature.cotangents}
        self.inputs = {n: self._tensor(program, n, values, sizes) for n in program.signature.inputs}

    def _tensor(self, program: Program, name: str, values: Mapping[str, np.ndarray], sizes: Mapping[Any, int]) -> torch.Tensor:
        c = program.containers[name]
        shape, strides = ([n if isinstance(n, int) else int(evaluate(n, sizes)) for n in dims] for dims in (c.shape, c.actual_strides))
        t = torch.empty_strided(shape, strides, dtype=torch_dtype(c.dtype), device=self.device)
        given = np.asarray(values[name], dtype=np.float64 if c.dtype.is_float else None, order="C")
        return t.copy_(torch.from_numpy(given))

    def run(self) -> None:
        results, run = self.executable.forward(self.layout, self.inputs, self.backward)
        if run is None:
            return
        try:
            state = self.executable.backward(run, {**self.inputs, **results, **self.cotangents})
            for _ in self.executable.parts:
                self.executable.part(state)
        finally:
            run.release()

    def time_steps(self, times: dict[int, list[float]], clock: _WallClock) -> None:
        """From now on note the seconds of every step of both phases by the id of its node."""
        for name, plan in self.layout.plans.items():
            for i, step in enumerate(self.executable.host.phases[name].steps):
                if isinstance(step, Segment):
                    # kernels that are launched together are timed together, under the first one's name
                    plan.steps[i] = clock.timed(plan.steps[i], times.setdefault(step.kernels[0].node, []))
                elif hasattr(plan.steps[i], "function"):
                    node = getattr(step, "node", None)
                    node = step.control.id if node is None else node  # type: ignore[union-attr]
                    plan.steps[i].function = clock.timed(plan.steps[i].function, times.setdefault(node, []))
