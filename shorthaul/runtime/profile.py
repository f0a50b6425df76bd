"""Measuring a scheduled program by itself: the whole step, and each kernel and library call.

    measured = profile(program, values)          # values: arrays by container, for everything that comes from outside
    print(measured.step.median, measured.kernels[node.id].median)

The step is timed as it runs in training (runs of kernels are one call); the kernels in a second build in which each is a call of its
own. Times are wall clock of the calling thread, in seconds.
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

from .compile import compile_program
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


def profile(program: Program, values: Mapping[str, np.ndarray], *, runs: int = 15, warmup: int = 3,
            progress: Progress | None = None) -> Profile:  # fmt: skip
    """Compile a scheduled program for this CPU and time it.

    values: an array for every input, parameter, buffer and cotangent, at the program's size hints. progress(what, part done) is called
    between runs; what it raises ends the measurement. Raises ValueError for another form, NoCompiler, BuildError.
    """
    if program.form is not Form.SCHEDULED:
        raise ValueError(f"program {program.name} has form {program.form.name}; only a scheduled one can be timed")
    say = progress or (lambda what, part: None)
    say("compiling", 0.0)
    whole, each = compile_program(program).executable, compile_program(program, apart=True).executable
    sizes = {s: program.attributes.get("size_hints", {}).get(s.name, 64) for s in program.symbols}
    step, times = _Step(program, whole, values, sizes), dict[int, list[float]]()
    seconds = []
    for i in range(warmup + runs):
        say("timing the step", 0.2 + 0.4 * i / (warmup + runs))
        began = time.perf_counter()
        step.run()
        if i >= warmup:
            seconds.append(time.perf_counter() - began)
    single = _Step(program, each, values, sizes)
    single.run()  # prepares the plans
    single.time_steps(times)
    for i in range(warmup + runs):
        say("timing kernels", 0.6 + 0.4 * i / (warmup + runs))
        if i == warmup:
            for found in times.values():
                found.clear()
        single.run()
    return Profile(Times.of(seconds), {n: Times.of(t) for n, t in times.items() if t}, torch.get_num_threads())


class _Step:
    """Forward and backward of one program on fixed values."""

    def __init__(self, program: Program, executable: Executable, values: Mapping[str, np.ndarray], sizes: Mapping[Any, int]) -> None:
        self.executable = executable
        self.layout: Layout = executable.layout(sizes)
        self.backward = any(n.phase == "backward" for n in program.nodes)
        self.cotangents = {c: self._tensor(program, c, values, sizes) for _, c in program.signature.cotangents}
        self.inputs = {n: self._tensor(program, n, values, sizes) for n in program.signature.inputs}

    def _tensor(self, program: Program, name: str, values: Mapping[str, np.ndarray], sizes: Mapping[Any, int]) -> torch.Tensor:
        c = program.containers[name]
        shape, strides = ([n if isinstance(n, int) else int(evaluate(n, sizes)) for n in dims] for dims in (c.shape, c.actual_strides))
        t = torch.empty_strided(shape, strides, dtype=torch_dtype(c.dtype))
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

    def time_steps(self, times: dict[int, list[float]]) -> None:
        """From now on note the seconds of every step of both phases by the id of its node."""
        for name, plan in self.layout.plans.items():
            for i, step in enumerate(self.executable.host.phases[name].steps):
                if isinstance(step, Segment):
                    (kernel,) = step.kernels
                    plan.steps[i] = _timed(plan.steps[i], times.setdefault(kernel.node, []))
                elif hasattr(plan.steps[i], "function"):
                    node = getattr(step, "node", None)
                    node = step.control.id if node is None else node  # type: ignore[union-attr]
                    plan.steps[i].function = _timed(plan.steps[i].function, times.setdefault(node, []))


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - began)
        return result

    return run
