"""What a captured region means, computed twice in float64: by ATen with PyTorch's autograd, and by the interpreter."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from shorthaul.codegen.library import LIBRARY
from shorthaul.frontends.functional import FunctionalGraph
from shorthaul.frontends.functional_record import ours
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import LibraryCall, Operator
from shorthaul.ir.program import Program
from shorthaul.ops.expand import choose_maps, expand

Values = dict[str, np.ndarray]


def to_numpy(t: Tensor) -> np.ndarray:
    """The values as the interpreter holds them (bfloat16 as float32)."""
    t = t.detach().cpu()
    return (t.float() if t.dtype is torch.bfloat16 else t).contiguous().numpy().copy()


def to_torch(a: np.ndarray) -> Tensor:
    """A tensor of its own with the values."""
    return torch.from_numpy(np.array(a, order="C"))


def library() -> dict[str, Callable[[LibraryCall, dict[str, np.ndarray]], Mapping[str, np.ndarray]]]:
    """The library functions for the interpreter."""

    def wrapped(name: str) -> Callable[[LibraryCall, dict[str, np.ndarray]], Mapping[str, np.ndarray]]:
        def call(node: LibraryCall, reads: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            found = LIBRARY[name]({k: to_torch(v) for k, v in reads.items()}, node.attributes, {})
            return {k: to_numpy(v) for k, v in found.items()}

        return call

    return {name: wrapped(name) for name in LIBRARY}


def meaning(program: Program, values: Mapping[str, Any], sizes: Mapping[str, int], *, wide: bool = True) -> Values:
    """All containers of a program, by the interpreter; operators by their maps."""
    if any(isinstance(n, Operator) for n in program.nodes):
        program = program.clone()
        expand(program, choose_maps)
    return interpret(program, values, sizes=sizes, library=library(), wide=wide)


class Aten(fx.Interpreter):
    """Runs a functional graph in float64 with autograd; `nodes` has the value of each node that is one tensor, by its name.

    random: values of random operators, by node name.
    """

    def __init__(self, graph: FunctionalGraph, random: Mapping[str, np.ndarray]) -> None:
        super().__init__(graph.module())
        self.random = random
        self.nodes: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.set_grad_enabled(bool(n.meta.get("grad_enabled", True))):
            result = super().run_node(n)
        if isinstance(result, Tensor) and n.op == "call_function":
            if result.requires_grad and n.meta.get("requires_grad") is False:
                result = result.detach()
            if result.requires_grad:
                result.retain_grad()
            self.nodes[n.name] = result
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = torch.utils._pytree.tree_map(_wide, (args, kwargs))
        if target is ours.with_value.default:
            return args[0] + (args[1] - args[0]).detach()
        if target is operator.getitem:
            return args[0][args[1]]
        return super().call_function(target, args, kwargs)


def _wide(value: Any) -> Any:
    """Casts to narrow floats are left out: the reference is exact."""
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def aten(graph: FunctionalGraph, inputs: list[Any], cotangents: list[Tensor | None]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values of the graph's nodes, and their gradients, by node name; gradients of inputs by placeholder name.

    inputs: one a placeholder, tensors already in float64. cotangents: of each result of the graph.
    """
    runner = Aten(graph, {})
    results = runner.run(*inputs)
    pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if g is not None and isinstance(r, Tensor) and r.requires_grad]
    if pairs:
        torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])
    values = {n: t.detach() for n, t in runner.nodes.items()}
    gradients = {n: t.grad for n, t in runner.nodes.items() if t.grad is not None}
    for node, t in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True):
        if isinstance(t, Tensor):
            values[node.name] = t.detach()
            if t.grad is not None:
                gradients[node.name] = t.grad
    return values, gradients
