"""The bridge to PyTorch's autograd: a compiled program behaves like the graph that it was captured from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol, evaluate

from .executable import CallError, Executable, Run, torch_dtype

HIGHER_ORDER = (
    "gradients of gradients (create_graph=True) are not supported by the compiled backward of {name}; "
    "run that part of the model in eager mode with shorthaul.disable(module)"
)


@dataclass
class Interface:
    """How a program meets the graph it came from.

    inputs: for every input of the graph its container, None for a size or a repeated input. sizes: (input index, dimension or None) that gives
    each symbol. results: for every result of the graph its container, None for a constant. size_results: expressions of results that are sizes.
    outputs: builds one caller's output from (results as tensors or numbers, inputs, outputs so far). mutations: (input, result) written back.
    """

    inputs: list[str | None]
    sizes: dict[Symbol, tuple[int, int | None]]
    results: list[str | None]
    size_results: dict[int, Any]
    rebuild: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    mutations: list[tuple[int, int]]
    random: tuple[str, ...] = ()


class CompiledGraph:
    """A callable with the calling convention of the captured graph: tensors and sizes in, the list of outputs out."""

    def __init__(self, name: str, program: Program, interface: Interface, executable: Executable) -> None:
        self.name = name
        self.program = program
        self.interface = interface
        self.executable = executable
        signature = program.signature
        self._gradient_of = dict(signature.gradients)
        self._cotangents = dict(signature.cotangents)
        self._first = {n: i for i, n in reversed(list(enumerate(interface.inputs))) if n is not None}
        self._tensors = [n for n in signature.inputs if n in self._first]
        self._outputs = list(signature.outputs)
        backward_reads = {c for node in program.nodes if node.phase == "backward" for c in program.reads_of(node)}
        self._saved_inputs = [n for n in self._tensors if n in backward_reads]
        self._saved_outputs = [n for n in self._outputs if n in backward_reads and n not in self._first]
        self._layout_checks = [(n, self._first[n], program.containers[n]) for n in self._tensors]

    def __call__(self, *inputs: Any) -> list[Any]:
        sizes = self._sizes(inputs)
        tensors = [inputs[self._first[n]] for n in self._tensors]
        self._check(tensors, sizes)
        if self._cotangents and torch.is_grad_enabled():
            flat = _Apply.apply(self, sizes, *tensors)
        else:
            flat, _ = self._forward(tensors, sizes, keep=False)
        by_name = dict(zip(self._outputs, flat, strict=True))
        results: list[Any] = []
        for i, n in enumerate(self.interface.results):
            if n is None:
                e = self.interface.size_results.get(i)
                results.append(evaluate(e, sizes) if e is not None and not isinstance(e, (int, float, bool)) else e)
            else:
                results.append(by_name[n])
        with torch.no_grad():
            for i, r in self.interface.mutations:
                inputs[i].copy_(results[r])
        return self.interface.rebuild(results, inputs)

    def _sizes(self, inputs: Sequence[Any]) -> dict[Symbol, int]:
        sizes: dict[Symbol, int] = {}
        for s, (i, d) in self.interface.sizes.items():
            sizes[s] = int(inputs[i]) if d is None else int(inputs[i].shape[d])
        return sizes

    def _check(self, tensors: Sequence[torch.Tensor], sizes: Mapping[Symbol, int]) -> None:
        for t, (name, _, c) in zip(tensors, self._layout_checks, strict=True):
            if t.dtype is not torch_dtype(c.dtype):
                raise CallError(f"{self.name}: input {name} has dtype {t.dtype}, compiled for {c.dtype}")
            if t.dim() != len(c.shape) or any((evaluate(n, sizes) if not isinstance(n, int) else n) != k for n, k in zip(c.shape, t.shape, strict=True)):
                raise CallError(f"{self.name}: input {name} has shape {tuple(t.shape)}, compiled for {c.shape}")

    def _forward(self, tensors: Sequence[torch.Tensor], sizes: dict[Symbol, int], keep: bool) -> tuple[list[torch.Tensor], Run]:
        named: dict[str, torch.Tensor] = {}
        for t, (name, _, c) in zip(tensors, self._layout_checks, strict=True):
            strides = tuple(n if isinstance(n, int) else evaluate(n, sizes) for n in c.actual_strides)
            named[name] = _with_strides(t.detach(), strides)
        if self.interface.random:
            seed, offset = self.interface.random
            # one draw a forward from PyTorch's generator: manual_seed and set_rng_state reproduce it
            named[seed] = torch.empty((), dtype=torch.int64).random_()
            named[offset] = torch.zeros((), dtype=torch.int64)
        results, run = self.executable.forward(named, sizes, keep)
        return [results[n] if n in results else named[n] for n in self._outputs], run


def _with_strides(t: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    if t.stride() == strides or all(n == 1 or a == b for n, a, b in zip(t.shape, t.stride(), strides, strict=True)):
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype).copy_(t)


class _Apply(torch.autograd.Function):
    """One call of a compiled graph as a node of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, graph: CompiledGraph, sizes: dict[Symbol, int], *tensors: torch.Tensor) -> Any:
        outputs, run = graph._forward(tensors, sizes, keep=True)
        by_name = dict(zip(graph._outputs, outputs, strict=True))
        # inputs and outputs are saved through autograd, which notices when they are changed before backward; outputs held by the run
        # besides would keep themselves alive
        kept = [tensors[graph._tensors.index(n)] for n in graph._saved_inputs]
        ctx.save_for_backward(*kept, *(by_name[n] for n in graph._saved_outputs))
        for n in (*graph._saved_outputs, *graph._saved_inputs, *graph._outputs):
            run.tensors.pop(n, None)
        for n in graph._tensors:
            run.tensors.pop(n, None)
        ctx.run, ctx.graph = run, graph
        ctx.mark_non_differentiable(*(t for n, t in by_name.items() if n not in graph._cotangents))
        return tuple(t.view_as(t) if any(t is u for u in tensors) else t for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        graph: CompiledGraph = ctx.graph
        if torch.is_grad_enabled():
            raise RuntimeError(HIGHER_ORDER.format(name=graph.name))
        run: Run = ctx.run
        containers = graph.program.containers
        cotangents: dict[str, torch.Tensor] = {}
        for n, g in zip(graph._outputs, grads, strict=True):
            if n in graph._cotangents:
                name = graph._cotangents[n]
                strides = tuple(k if isinstance(k, int) else evaluate(k, run.sizes) for k in containers[name].actual_strides)
                cotangents[name] = _with_strides(g, strides)
        saved = dict(zip([*graph._saved_inputs, *graph._saved_outputs], ctx.saved_tensors, strict=True))
        for n, t in saved.items():
            strides = tuple(k if isinstance(k, int) else evaluate(k, run.sizes) for k in containers[n].actual_strides)
            cotangents[n] = _with_strides(t.detach(), strides)
        gradients = graph.executable.backward(run, cotangents)
        return (None, None, *(gradients.get(n) for n in graph._tensors))
