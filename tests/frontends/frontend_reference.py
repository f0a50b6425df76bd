"""Executes a `FunctionalGraph` eagerly: the plainest runtime that keeps its contract, as a Dynamo backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from shorthaul.frontends.functional import FunctionalGraph, functionalize

aten = torch.ops.aten


def _functional_batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    """PyTorch has no derivative of the functional operator; the writing one on copies has."""
    mean, var = mean.clone(), var.clone()
    return (*torch.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps), mean, var)


class _Executor(fx.Interpreter):
    """Runs every node under the grad mode that it was captured under."""

    def run_node(self, node: fx.Node) -> Any:
        if node.op in ("placeholder", "output"):
            return super().run_node(node)
        with torch.set_grad_enabled(node.meta["grad_enabled"]):
            result = super().run_node(node)
        if isinstance(result, torch.Tensor) and node.op == "call_function":
            if node.meta["grad_enabled"]:  # eager claims requires_grad of views made under no_grad; no gradient flows
                assert result.requires_grad == node.meta["requires_grad"], f"requires_grad: {node.format_node()}"
            self.env[node] = result
            assert result.dtype == node.meta["val"].dtype, node.format_node()
            assert [int(s) for s in result.shape] == _sizes(node, self.env), f"shape: {node.format_node()}"
        return result

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if target is aten._native_batch_norm_legit_functional.default:
            return _functional_batch_norm(*args, **kwargs)
        if target is aten.copy.default:  # PyTorch has a derivative of the in-place form only
            return args[0].clone().copy_(args[1])
        if target is aten._native_batch_norm_legit_no_training.default:
            return torch.native_batch_norm(*args[:5], False, *args[5:])
        return super().call_function(target, args, kwargs)


def _sizes(node: fx.Node, env: dict) -> list[int]:
    """The shape in `node.meta["val"]`, its symbols bound to the values at hand."""
    bound: dict[Any, int] = {}
    for other, value in env.items():
        fake = other.meta.get("val")
        if isinstance(fake, torch.SymInt):
            bound[fake.node.expr] = value
        elif isinstance(fake, torch.Tensor) and isinstance(value, torch.Tensor):
            symbols = [(s, n) for s, n in zip(fake.shape, value.shape) if isinstance(s, torch.SymInt)]
            bound.update((s.node.expr, int(n)) for s, n in symbols if s.node.expr.is_symbol)
    return [int(s.node.expr.subs(bound)) if isinstance(s, torch.SymInt) else s for s in node.meta["val"].shape]


def execute(graph: FunctionalGraph, inputs: Sequence[Any]) -> list[Any]:
    """Results for the caller: graph, then mutations written back, then aliases rebuilt."""
    results = _Executor(graph.module(), garbage_collect_values=False).run(*inputs)
    for mutation in graph.mutations:
        with torch.set_grad_enabled(mutation.differentiable):
            inputs[mutation.input].copy_(results[mutation.graph_output])
    outputs: list[Any] = [None] * len(graph.outputs)
    pending = []
    for index, spec in enumerate(graph.outputs):
        if spec.kind in ("tensor", "size"):
            outputs[index] = results[spec.graph_output]
        elif spec.kind == "constant":
            outputs[index] = spec.value
        elif spec.kind == "input":
            outputs[index] = inputs[spec.input]
        else:
            pending.append(index)
    for index in pending:
        spec = graph.outputs[index]
        if spec.kind == "view":
            if spec.input is not None:
                base = inputs[spec.input]
            else:
                base = outputs[spec.output] if spec.output is not None else results[spec.graph_output]
            outputs[index] = spec.view.apply(base, results)
            strided = torch.as_strided(base, *_strided(spec.view, results))
            assert torch.equal(outputs[index], strided), "the two forms of the view disagree"
    for index in pending:
        if graph.outputs[index].kind == "same":
            outputs[index] = outputs[graph.outputs[index].output]
    return outputs


def _strided(view: Any, results: Sequence[Any]) -> tuple:
    value = lambda item: results[item.index] if hasattr(item, "index") and not isinstance(item, int) else item  # noqa: E731
    return [value(s) for s in view.size], [value(s) for s in view.stride], value(view.offset)


class ReferenceBackend:
    """A backend for `torch.compile` that keeps the graphs it was given."""

    def __init__(self) -> None:
        self.graphs: list[FunctionalGraph] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable:
        graph = functionalize(gm, example_inputs)
        self.graphs.append(graph)
        check_invariants(graph)
        return lambda *inputs: execute(graph, inputs)


def check_invariants(graph: FunctionalGraph) -> None:
    """What every functional graph promises."""
    assert len([n for n in graph.graph.nodes if n.op == "placeholder"]) == len(graph.inputs)
    graph.module().graph.lint()
    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        assert {"val", "origin", "grad_enabled", "requires_grad", "checkpoint"} <= set(node.meta), node
        assert node.op in ("placeholder", "call_function", "get_attr"), node.op
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable, f"{node.target} mutates"
            assert node.target.namespace in ("aten", "shorthaul"), node.target
        if not node.meta["grad_enabled"] and node.op == "call_function":
            if node.target is not torch.ops.shorthaul.with_value.default:
                assert not _any(node.meta["requires_grad"]), f"{node} is differentiable under no_grad"


def _any(flag: Any) -> bool:
    return any(flag) if isinstance(flag, tuple) else bool(flag)
