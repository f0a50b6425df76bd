"""An ONNX model as an `nn.Module` that trains: its floating initializers are parameters, named as in the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shorthaul.errors import OnnxError


@dataclass(frozen=True)
class Port:
    """An input or result of the graph as declared.

    kind: tensor, text (a tensor of strings), sequence, optional, ... dims: sizes, None where any is allowed; None: of any rank.
    """

    name: str
    kind: str
    dtype: torch.dtype | None
    dims: tuple[int | None, ...] | None
    text: str

    def check(self, v: Any) -> None:
        """Refuse an operand of another type or shape. Raises OnnxError naming the input, what it takes and what was given."""
        if self.kind != "tensor":
            return
        if not isinstance(v, torch.Tensor):
            raise OnnxError(f"input {self.name!r} takes a tensor, {self.text}, not a {type(v).__name__}")
        if v.dtype is not self.dtype:
            raise OnnxError(f"input {self.name!r} takes {self.dtype}, not {v.dtype}", f"Convert it: x.to({self.dtype}).")
        if self.dims is not None:
            if len(self.dims) != v.dim() or any(d is not None and d != n for d, n in zip(self.dims, v.shape, strict=True)):
                raise OnnxError(f"input {self.name!r} takes {self.text}, not the shape {tuple(v.shape)}")


class Scope(nn.Module):
    """Holds the tensors of one prefix of names."""

    def extra_repr(self) -> str:
        """Names and shapes of its tensors."""
        return ", ".join(f"{n}: {tuple(t.shape)}" for n, t in [*self._parameters.items(), *self._buffers.items()] if t is not None)


class OnnxGraph(Scope):
    """A graph that runs. Call it with the graph's inputs, in order or by name; it returns the graph's result, a tuple of several."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self._code: Any = code

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The graph's result. Raises OnnxError for inputs that are missing or do not fit, and where a node fails, naming it."""
        code = self._code
        operands = self._bound(code.inputs, inputs, named)
        if torch.compiler.is_compiling():
            results = code.run(self, _device(operands, self), *operands)
        else:
            results = self._run_located(code, operands)
        return results[0] if len(results) == 1 else results

    def _run_located(self, code: Any, operands: list[Any]) -> tuple:
        """Run in eager mode; errors name the node."""
        try:
            return code.run(self, _device(operands, self), *operands)
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError) as e:
            where = code.node_at(e)
            if not where or (isinstance(e, OnnxError) and where in str(e)):
                raise
            raise OnnxError(f"{where}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e

    def _bound(self, wanted: Sequence[Port], inputs: tuple, named: dict[str, Any]) -> list[Any]:
        """The operands in the graph's order, checked against what it declares."""
        names = ", ".join(p.name for p in wanted) or "none"
        if len(inputs) > len(wanted):
            raise OnnxError(f"{len(inputs)} inputs are given where the model takes {len(wanted)}: {names}")
        operands = list(inputs)
        used = 0
        for port in wanted[len(inputs) :]:
            if port.name in named:
                operands.append(named[port.name])
                used += 1
            elif port.kind == "optional":
                operands.append(None)
            else:
                raise OnnxError(f"the input {port.name!r}, {port.text}, is missing; the model takes {names}")
        if used != len(named):
            left = [n for n in named if n not in [p.name for p in wanted[len(inputs) :]]]
            raise OnnxError(f"the model has no input {left[0]!r} left to give; it takes {names}")
        for port, v in zip(wanted, operands, strict=True):
            port.check(v)
        return operands

    def example_inputs(self, size: int = 4) -> tuple[torch.Tensor, ...]:
        """Inputs that fit what the graph declares: normal numbers, integers 0; sizes left open are `size`.

        Raises OnnxError where an input is no tensor of known rank.
        """
        made = []
        for port in self._code.inputs:
            if port.dtype is None or port.dims is None:
                raise OnnxError(f"no example can be made for the input {port.name!r}, {port.text}")
            shape = [size if d is None else d for d in port.dims]
            floating = port.dtype.is_floating_point and port.dtype.itemsize > 1
            made.append(torch.randn(shape, dtype=port.dtype) if floating else torch.zeros(shape, dtype=port.dtype))
        return tuple(made)

    @property
    def code(self) -> str:
        """The generated Python code."""
        return self._code.source.text

    def __repr__(self) -> str:
        code = self._code
        shown = [", ".join(f"{p.name}: {p.text}" for p in ports) for ports in (code.inputs, code.outputs)]
        count = sum(p.numel() for p in self.parameters())
        return f"{type(self).__name__}({code.name}: ({shown[0]}) -> ({shown[1]}), {len(code.source.lines)} nodes, {count} trained numbers)"


def _device(operands: Sequence[Any], module: nn.Module) -> torch.device:
    for v in operands:
        if isinstance(v, torch.Tensor):
            return v.device
    for t in module.parameters():
        return t.device
    return torch.device("cpu")


def place(module: nn.Module, path: tuple[str, ...], tensor: torch.Tensor) -> None:
    """Register a parameter or buffer, making the modules above it."""
    for part in path[:-1]:
        if part not in module._modules:
            module.add_module(part, Scope())
        module = module._modules[part]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(path[-1], tensor)
    else:
        module.register_buffer(path[-1], tensor)
