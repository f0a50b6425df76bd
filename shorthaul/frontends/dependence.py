"""Which inputs eager's autograd reaches from which outputs: there a gradient is a tensor, zeros where every derivative is zero.

A gradient that is missing instead of zero is not the same to an optimizer: weight decay and momentum pass the parameter by.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from shorthaul.frontends.functional import CustomFunction, FunctionalGraph
from shorthaul.frontends.functional_record import ours

_NORMS = (torch.ops.aten.linalg_vector_norm.default, torch.ops.aten.norm.Scalar, torch.ops.aten.norm.ScalarOpt_dim)


def dependences(graph: FunctionalGraph) -> tuple[frozenset[int], ...]:
    """For each result of the graph the inputs (by index) that require grad and that its autograd graph leads to."""
    reached: dict[fx.Node, int] = {}  # bit i: input i
    specs = iter(enumerate(graph.inputs))
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            i, spec = next(specs)
            reached[node] = 1 << i if spec.requires_grad else 0
        elif node.op == "call_function":
            flags = node.meta.get("requires_grad", False)
            carries = any(flags) if isinstance(flags, (tuple, list)) else flags
            reached[node] = _union(reached, _operands(node, graph.attributes)) if carries else 0
    found = [reached.get(r, 0) if isinstance(r, fx.Node) else 0 for r in graph.results]
    return tuple(frozenset(i for i in range(len(graph.inputs)) if mask >> i & 1) for mask in found)


def _union(reached: Mapping[fx.Node, int], nodes: list[fx.Node]) -> int:
    total = 0
    for n in nodes:
        total |= reached.get(n, 0)
    return total


def _operands(node: fx.Node, attributes: Mapping[str, object]) -> list[fx.Node]:
    """What the autograd node of a call leads to."""
    if node.target is ours.with_value.default:
        return [node.args[0]]  # type: ignore[list-item]
    if node.target is operator.getitem:
        return [node.args[0]]  # type: ignore[list-item]
    if node.target in _NORMS and len(node.args) > 1 and node.args[1] == 0:
        return []  # PyTorch has no derivative of the number of elements that are not zero: none, not zeros
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and first.op == "get_attr" and isinstance(function := attributes[str(first.target)], CustomFunction):
        taking = [a for a, takes in zip(node.args[1:], function.takes_gradient, strict=True) if takes]
        given = function.backward.results  # None where the function's backward returns None
        return [a for a, r in zip(taking, given, strict=True) if isinstance(a, fx.Node) and isinstance(r, fx.Node)]
    return node.all_input_nodes
