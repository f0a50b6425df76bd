"""Targets: what scheduled programs are compiled for. Another package may add its own:

    class Mine(Target):
        base = "cpp"
        def compile(self, program, device, **limits):
            return compile_program(program, flags=("-O3",), **limits)

    [project.entry-points."shorthaul.targets"]
    mine = "my_package:Mine"

`sh.optimize(model, target="mine")` then compiles with it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from shorthaul.extension import Registry
from shorthaul.ir.program import Program

from .compile import Compiled, compile_program, compile_triton
from .gpu_launch import triton_version


class Target:
    """Base class. base: "cpp" or "triton", the target for which the stages of the pipeline prepare programs."""

    base: ClassVar[str] = "cpp"

    def expect(self, device: torch.device) -> None:
        """A program for this device will be compiled soon: begin what takes long. Raises DeviceError where it cannot be."""

    def compile(self, program: Program, device: torch.device, **limits: Any) -> Compiled:
        """Make a scheduled program callable on a device. limits: see `runtime.build.build` (timeout, progress, jobs); a target that builds
        nothing takes no notice of them. Raises RuntimeError naming what cannot be compiled."""
        raise NotImplementedError


TARGETS: Registry[type[Target]] = Registry("target", "shorthaul.targets")


@TARGETS.register("cpp")
class Cpp(Target):
    """C++ with OpenMP for this machine's CPU."""

    def compile(self, program: Program, device: torch.device, **limits: Any) -> Compiled:
        return compile_program(program, **limits)


@TARGETS.register("triton")
class Triton(Target):
    """Triton for a GPU; for a CPU its interpreter."""

    base = "triton"

    def expect(self, device: torch.device) -> None:
        triton_version()
        if device.type == "cuda":
            from . import compile_pool  # which needs Triton

            compile_pool.prepare()

    def compile(self, program: Program, device: torch.device, **limits: Any) -> Compiled:
        return compile_triton(program, device)
