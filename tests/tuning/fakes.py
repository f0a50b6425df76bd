"""A subject of which nothing is compiled or timed: programs are real, time is a number that goes up when something "runs"."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

import shorthaul as sh
from shorthaul import pipeline
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.transforms.choices import Choices
from shorthaul.tuning.session import OutOfTime


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@functools.cache
def operators(blocks: int = 2) -> Program:
    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.LayerNorm(8)) for _ in range(blocks)]
    return sh.capture(torch.nn.Sequential(*layers), (torch.randn(4, 8, requires_grad=True),))


class FakeSubject:
    """speed: seconds that a step of a program takes; kernel_speed: of a kernel. Compiling takes `compile` seconds, lowering `lowering`."""

    name = "fake"
    device = "cpu"

    def __init__(self, clock: FakeClock, speed: Callable[[Program], float], *, kernel_speed: Callable[[Map], float] = lambda k: 0.01,
                 compile: float = 1.0, lowering: float = 0.01, program: Program | None = None) -> None:  # fmt: skip
        self.clock, self.speed, self.kernel_speed, self.compile, self.lowering = clock, speed, kernel_speed, compile, lowering
        self.operators = program or operators()
        self.built: list[Program] = []
        self.hook: Callable[[Program], None] = lambda p: None

    def lower(self, choices: Choices) -> Program:
        self.clock.now += self.lowering
        return _lowered(self.operators, choices)

    def build(self, program: Program, seconds: float) -> Any:
        if self.compile > seconds:
            self.clock.now += seconds
            raise OutOfTime
        self.clock.now += self.compile
        self.hook(program)
        self.built.append(program)
        return lambda: self._pass(self.speed(program))

    def _pass(self, seconds: float) -> None:
        self.clock.now += seconds

    def text(self, program: Program, kernel: Map) -> str:
        return f"{kernel.id} {kernel.schedule.options}"

    def kernels(self, program: Program, variants: Sequence[Map], seconds: float) -> list[Any]:
        self.clock.now += 0.1 * self.compile
        return [lambda v=v: self._pass(self.kernel_speed(v)) for v in variants]


@functools.cache
def _lowered(operators: Program, choices: Choices) -> Program:
    program = operators.clone()
    pipeline.optimize(program, choices=choices)
    return program


def recomputes(p: Program) -> bool:
    """Whether a program recomputes as much as the defaults do."""
    return _recomputed(p) == _recomputed(_lowered(operators(), Choices()))


def _recomputed(p: Program) -> int:
    return sum(1 for r in p.log if r.name == "Recompute")
