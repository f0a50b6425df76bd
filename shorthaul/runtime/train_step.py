"""Running the program of a whole training step: parameters, buffers and optimizer state are written where they are.

The calling convention is that of a captured graph, with what the optimizer brings behind the graph's own inputs. It runs without autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shorthaul.analysis.movement import IN_PLACE
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program

from . import pages
from .bridge import CompiledGraph, Interface
from .executable import Executable

SPACING = 2  # doubles between scalars: kernels of a GPU want addresses that 16 bytes divide


class Scalars:
    """Numbers that a step reads from memory, as tensors of one double each; every call sets them by one copy."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._host = torch.zeros(max(count, 1) * SPACING, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._numbers = self._host.numpy()[::SPACING]
        self._device = self._host if device.type == "cpu" else torch.zeros_like(self._host, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self.tensors = [self._device[i * SPACING] for i in range(count)]

    def set(self, values: Sequence[float]) -> None:
        """Give all of them their values of this call."""
        if not self.tensors:
            return
        if self._copied is not None:
            self._copied.synchronize()  # the last call's copy has left the pinned memory
        self._numbers[: len(values)] = values
        if self._copied is not None:
            self._device.copy_(self._host, non_blocking=True)
            self._copied.record()


class StepGraph(CompiledGraph):
    """A compiled whole step. written: places among the inputs of tensors that it changes: their versions advance, as by an operation of
    PyTorch, so that autograd notices. Of those the ones of which it touches single rows, large tables, get huge pages on a CPU."""

    def __init__(self, name: str, program: Program, interface: Interface, executable: Executable, written: Sequence[int]) -> None:
        super().__init__(name, program, interface, executable)
        self.written = list(written)
        tables = rows_touched(program) if executable.device.type == "cpu" else frozenset()
        self._tables = {i: 0 for i in self.written if interface.inputs[i] in tables}

    def __call__(self, *inputs: Any) -> list[Any]:
        for i, address in self._tables.items():
            if inputs[i].data_ptr() != address:
                self._tables[i] = inputs[i].data_ptr()
                pages.gather(inputs[i], f"table {self.interface.inputs[i]}")
        # casts are in the program; an autocast region around the call must not cast operands of its library calls again
        with torch.no_grad(), torch._C._DisableAutocast():
            results = super().__call__(*inputs)
            torch.autograd.graph.increment_version([inputs[i] for i in self.written])
        return results


def rows_touched(program: Program) -> frozenset[str]:
    """Inputs that are only read and written at addresses which are data."""
    found: set[str] = set()
    elsewhere: set[str] = set()
    for node in program.nodes:
        if not isinstance(node, Map) and not (isinstance(node, LibraryCall) and node.function in IN_PLACE):
            elsewhere |= program.roots(program.reads_of(node) | program.writes_of(node))
        for a in node.accesses() if isinstance(node, Map) else ():
            if not a.is_local:
                (root,) = program.roots(frozenset([a.memlet.container]))
                (found if a.memlet.is_indirect else elsewhere).add(root)
    return frozenset(n for n in program.signature.inputs if n in found - elsewhere)


def in_place_updates(program: Program) -> frozenset[str]:
    """Inputs whose new values the program writes into their own memory."""
    return frozenset(old for old, new in program.signature.updates if (a := program.containers[new].alias) is not None and a.base == old)
