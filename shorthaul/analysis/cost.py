"""Cost models: how long a program is expected to take. What the tuner asks before it measures; another package may add its own.

    class Mine(CostModel):
        def kernels(self, program): ...          # a KernelTime for every kernel

    [project.entry-points."shorthaul.cost_models"]
    mine = "my_package:Mine"
"""

from __future__ import annotations

from shorthaul.extension import Registry
from shorthaul.ir.program import Program

from .roofline import Machine
from .roofline import machine as machine_called
from .times import KernelTime, roofline


class CostModel:
    """Base class. machine: the described machine (or its name) that times are for."""

    def __init__(self, machine: Machine | str | None = None) -> None:
        self.machine = machine_called(machine)

    def kernels(self, program: Program) -> list[KernelTime]:
        """The expected time of every kernel, in program order, at the program's size hints."""
        raise NotImplementedError

    def seconds(self, program: Program) -> float:
        """The expected time of the whole program."""
        return sum(k.seconds for k in self.kernels(program))


COST_MODELS: Registry[type[CostModel]] = Registry("cost model", "shorthaul.cost_models")


@COST_MODELS.register("roofline")
class Roofline(CostModel):
    """A kernel takes the time to move its bytes or the time to compute, whichever is longer, and what starting it costs."""

    def kernels(self, program: Program) -> list[KernelTime]:
        return roofline(program, self.machine)
