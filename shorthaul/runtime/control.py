"""Branches and loops at run time: Python decides, compiled bodies compute.

A body is an executable of its own, with arenas of its own; what goes into it and comes out of it are tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from shorthaul.codegen.host import ControlStep
from shorthaul.ir.blocks import block, grid, place
from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Branch, Loop
from shorthaul.symbolic import Symbol, evaluate

if TYPE_CHECKING:
    from .executable import Executable

Tensors = Mapping[str, torch.Tensor]


class Control:
    """A callable like a library function: (reads, attributes with the sizes, planned results) -> results, all of them fresh tensors."""

    def __init__(self, step: ControlStep, bodies: Sequence[Executable]) -> None:
        self.control = step.control
        self.bodies = bodies

    def __call__(self, reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
        sizes: Mapping[Symbol, int] = attributes["sizes"]
        if isinstance(self.control, Branch):
            taken = self.bodies[0 if bool(reads["condition"]) else 1]
            return _call(taken, reads, sizes, self.control.writes)
        if self.control.tile is not None:
            return self._rows(self.control, reads, sizes, out)
        return self._loop(self.control, reads, sizes)

    def _rows(self, loop: Loop, reads: Tensors, sizes: Mapping[Symbol, int], out: Tensors) -> dict[str, torch.Tensor]:
        """Run the body over one part of the batch after the other, straight into the planned results."""
        (body,) = self.bodies
        assert loop.tile is not None
        layout = body.layout({s: sizes[s] for s in body.host.symbols})
        whole = {k: t for k, t in reads.items() if k not in loop.scanned}
        blocks = grid(loop.tile, [*(reads[k].shape for k in loop.scanned), *(out[k].shape for k in loop.stacked)])
        for i in range(math.prod(blocks)):
            at = place(i, blocks)
            rows = {k: reads[k][block(reads[k].shape, loop.tile, at)] for k in loop.scanned}
            targets = {k: out[k][block(out[k].shape, loop.tile, at)] for k in loop.stacked}
            if loop.index is not None:
                rows[loop.index] = torch.tensor(i)
            if i == 0:
                targets |= {k: out[k] for k in loop.summed}
            found, _ = body.forward(layout, {**whole, **rows, **targets}, False)
            for k, target in targets.items():
                if found[k] is not target:
                    target.copy_(found[k])
            if i:
                for k in loop.summed:
                    out[k].add_(found[k])
        return dict(out)

    def _loop(self, loop: Loop, reads: Tensors, sizes: Mapping[Symbol, int]) -> dict[str, torch.Tensor]:
        (body,) = self.bodies
        limit = None if loop.count is None else loop.count if isinstance(loop.count, int) else evaluate(loop.count, sizes)
        state = {k: t for k, t in reads.items() if k not in loop.scanned}
        wanted = {end for _, end in loop.carried} | set(loop.stacked)
        rows: dict[str, list[torch.Tensor]] = {k: [] for k in loop.stacked if k in loop.writes}
        results = {end: state[start].clone() for start, end in loop.carried if end in loop.writes}
        step = 0
        while (limit is None or step < limit) and (loop.condition is None or bool(state[loop.condition])):
            at = limit - 1 - step if loop.reverse and limit is not None else step
            given = {k: reads[k][at] for k in loop.scanned}
            if loop.index is not None:
                given[loop.index] = torch.tensor(at)
            found = _call(body, {**state, **given}, sizes, wanted)
            state.update({start: found[end] for start, end in loop.carried})
            results.update({k: found[k] for k in results})
            for k, row in rows.items():
                row.append(found[k])
            step += 1
        for k, row in rows.items():
            c = body.host.containers[k]
            results[k] = torch.stack(row[::-1] if loop.reverse else row) if row else _empty(body, c, sizes)
        return results


def _call(body: Executable, tensors: Tensors, sizes: Mapping[Symbol, int], wanted: Any) -> dict[str, torch.Tensor]:
    """Run a body once: its results by name, none of them an operand."""
    from .executable import with_strides

    layout = body.layout({s: sizes[s] for s in body.host.symbols if s not in body.host.late})
    inputs = {n: with_strides(tensors[n], layout.strides[n]) for n in body.signature.inputs if n in layout.strides}
    results, _ = body.forward(layout, inputs, False)
    found = {}
    for k in wanted:
        value = results[k] if k in results else tensors[k]
        found[k] = value.clone() if any(value is t for t in tensors.values()) else value
    return found


def _empty(body: Executable, c: Container, sizes: Mapping[Symbol, int]) -> torch.Tensor:
    """What no iteration stacks."""
    from .executable import torch_dtype

    return torch.empty((0, *(n if isinstance(n, int) else evaluate(n, sizes) for n in c.shape)), dtype=torch_dtype(c.dtype))
