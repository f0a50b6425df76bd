"""From the interpreter's results to `FunctionalGraph`: aliasing, mutations, and a clean graph."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from shorthaul.frontends.functional import (
    FunctionalGraph,
    GraphRef,
    InputSpec,
    MutationSpec,
    OutputSpec,
    Unsupported,
    ViewSpec,
)
from shorthaul.frontends.functional_record import ours

if TYPE_CHECKING:
    from shorthaul.frontends.functional_interpret import Interpreter

aten = torch.ops.aten

# Operators with several results of which only the first is read: the single-result operator that says the same.
_FIRST_RESULT = {
    aten.native_layer_norm.default: (aten.layer_norm.default, (0, 1, 2, 3, 4)),
    aten.native_group_norm.default: (aten.group_norm.default, (0, 6, 1, 2, 7)),
    aten.max_pool2d_with_indices.default: (aten.max_pool2d.default, None),
    aten.max_pool3d_with_indices.default: (aten.max_pool3d.default, None),
    aten.log_sigmoid_forward.default: (aten.log_sigmoid.default, None),
    aten.nll_loss_forward.default: (aten.nll_loss.default, None),
    aten.nll_loss2d_forward.default: (aten.nll_loss2d.default, None),
}
if hasattr(aten, "_fused_rms_norm"):
    _FIRST_RESULT[aten._fused_rms_norm.default] = (aten.rms_norm.default, None)


class _Results:
    """The results of the graph under construction; each node once."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._index: dict[fx.Node, int] = {}

    def add(self, node: Any) -> int:
        if node not in self._index:
            self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return self._index[node]


def finish(
    interpreter: Interpreter, specs: list[InputSpec], inputs: list[Any], fakes: list[Any], outputs: Any
) -> FunctionalGraph:
    """Describe outputs and mutations of the outermost graph and close it."""
    recorder = interpreter.recorder
    recorder.origin = type(recorder.origin)()
    results = _Results()
    mutated: dict[int, fx.Node] = {}
    for index, (spec, tensor) in enumerate(zip(specs, inputs, strict=True)):
        if not isinstance(tensor, torch.Tensor) or spec.duplicate_of is not None:
            continue
        node = interpreter.node_of(tensor)
        if node.op == "placeholder" and node.meta["val"] is fakes[index]:
            continue
        if tuple(tensor.shape) != tuple(fakes[index].shape) or torch._functionalize_has_metadata_mutation(tensor):
            raise Unsupported(
                f"input {spec.name} changes its shape or strides in place",
                node.meta["origin"],
                "Return the view instead of changing the input (for example x.t() for x.t_()).",
            )
        if node.op in ("placeholder", "get_attr"):
            node = _clone(interpreter, tensor)
        mutated[index] = node
    _refuse_overlaps(specs, fakes, mutated)
    flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    descriptions = _describe(interpreter, specs, inputs, mutated, flat, results)
    mutations = [MutationSpec(index, results.add(node), _written_by_autograd(node)) for index, node in mutated.items()]
    return _close(interpreter, specs, descriptions, mutations, results.nodes)


def flat_graph(interpreter: Interpreter, specs: list[InputSpec], inputs: list[Any], outputs: Any, what: str) -> FunctionalGraph:
    """Close a sub graph: its results are simply all leaves of `outputs`; writes to inputs are refused."""
    for spec, tensor in zip(specs, inputs, strict=True):
        if isinstance(tensor, torch.Tensor) and interpreter.node_of(tensor).op != "placeholder":
            raise Unsupported(
                f"{spec.name} is written inside {what}",
                interpreter.node_of(tensor).meta["origin"],
                "Compute a new tensor instead.",
            )
    nodes = []
    for leaf in tree_leaves(outputs, is_leaf=lambda value: value is None):
        if isinstance(leaf, torch.Tensor):
            nodes.append(interpreter.node_of(leaf))
        else:
            nodes.append(interpreter.recorder.argument(leaf))
    descriptions = [
        OutputSpec("tensor" if isinstance(node.meta["val"], torch.Tensor) else "size", graph_output=index)
        if isinstance(node, fx.Node)
        else OutputSpec("constant", graph_output=index, value=node)
        for index, node in enumerate(nodes)
    ]
    return _close(interpreter, specs, descriptions, [], nodes)


def _describe(
    interpreter: Interpreter,
    specs: list[InputSpec],
    inputs: list[Any],
    mutated: dict[int, fx.Node],
    outputs: list[Any],
    results: _Results,
) -> list[OutputSpec]:
    recorder = interpreter.recorder
    input_of_storage: dict[int, int] = {}
    for index, tensor in enumerate(inputs):
        if isinstance(tensor, torch.Tensor) and specs[index].duplicate_of is None and specs[index].layout == "strided":
            input_of_storage.setdefault(_storage(tensor), index)
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(outputs):
        if isinstance(value, torch.Tensor) and _storage(value) not in input_of_storage:
            groups.setdefault(_storage(value), []).append(index)

    descriptions: list[OutputSpec] = []
    seen: dict[int, int] = {}
    base_of_group: dict[int, tuple[int | None, fx.Node]] = {}
    for index, value in enumerate(outputs):
        if not isinstance(value, torch.Tensor):
            size = recorder.argument(value) if isinstance(value, (torch.SymInt, torch.SymFloat)) else value
            if isinstance(size, fx.Node):
                descriptions.append(OutputSpec("size", graph_output=results.add(size)))
            else:
                descriptions.append(OutputSpec("constant", value=size))
            continue
        if id(value) in seen:
            first = descriptions[seen[id(value)]]
            descriptions.append(OutputSpec("same", output=seen[id(value)], differentiable=first.differentiable))
            continue
        seen[id(value)] = index
        node = interpreter.node_of(value)
        differentiable = node.meta["requires_grad"] is True
        storage = _storage(value)
        if storage in input_of_storage:
            source = input_of_storage[storage]
            if value is inputs[source]:
                descriptions.append(OutputSpec("input", input=source, differentiable=differentiable))
                continue
            base = mutated.get(source)
            if base is None:
                base = interpreter.node_of(inputs[source])
            view = _view(interpreter, value, node, base, results)
            descriptions.append(OutputSpec("view", input=source, view=view, differentiable=differentiable))
            continue
        group = groups[storage]
        if len(group) == 1 or torch._is_functional_tensor_base(value):
            if node.op != "call_function":
                node = _clone(interpreter, value)
            descriptions.append(OutputSpec("tensor", graph_output=results.add(node), differentiable=differentiable))
            continue
        if storage not in base_of_group:
            base_of_group[storage] = _group_base(interpreter, outputs, group, node)
        output, base = base_of_group[storage]
        view = _view(interpreter, value, node, base, results)
        place = {"output": output} if output is not None else {"graph_output": results.add(base)}
        descriptions.append(OutputSpec("view", view=view, differentiable=differentiable, **place))
    return descriptions


def _written_by_autograd(node: fx.Node) -> bool:
    """Whether eager's input gets a grad_fn: some write to it was differentiable (those under no_grad are not)."""
    while node.target is ours.with_value.default:
        node = node.args[0]  # type: ignore[assignment]
    return node.op != "placeholder" and node.meta["requires_grad"] is True


def _group_base(
    interpreter: Interpreter, outputs: list[Any], group: list[int], node: fx.Node
) -> tuple[int | None, fx.Node]:
    """The base of outputs that share storage: one of them, or else the node at the root of their view chains."""
    for index in group:
        if torch._is_functional_tensor_base(outputs[index]):
            return index, interpreter.node_of(outputs[index])
    while (parent := _view_parent(node)) is not None:
        node = parent
    return None, node


def _view(interpreter: Interpreter, value: torch.Tensor, node: fx.Node, base: fx.Node, results: _Results) -> ViewSpec:
    def reference(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return GraphRef(results.add(item))
        if isinstance(item, (list, tuple)):
            return [reference(entry) for entry in item]
        return item

    symbolic = interpreter.recorder.argument
    size, stride = reference(symbolic(list(value.shape))), reference(symbolic(list(value.stride())))
    offset = reference(symbolic(value.storage_offset()))
    chain: list[fx.Node] = []
    while node is not base:
        parent = _view_parent(node)
        if parent is None:
            return ViewSpec(tuple(size), tuple(stride), offset)
        chain.append(node)
        node = parent
    ops = [
        (n.target, tuple(reference(arg) for arg in n.args[1:]), {key: reference(arg) for key, arg in n.kwargs.items()})
        for n in reversed(chain)
    ]
    return ViewSpec(tuple(size), tuple(stride), offset, ops)


def _view_parent(node: fx.Node) -> fx.Node | None:
    """What `node` is a view of, or None when it is no view."""
    if node.target is operator.getitem:
        parent = node.args[0]
        return parent if isinstance(parent, fx.Node) and _view_parent(parent) is not None else None
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    if not schema.arguments or schema.arguments[0].alias_info is None or not schema.returns:
        return None
    if schema.returns[0].alias_info is None:
        return None
    parent = node.args[0]
    return parent if isinstance(parent, fx.Node) else None


def _clone(interpreter: Interpreter, tensor: torch.Tensor) -> fx.Node:
    source = interpreter.node_of(tensor)
    node = interpreter.node_of(aten.clone.default(tensor))
    node.meta.update(origin=source.meta["origin"], requires_grad=source.meta["requires_grad"], grad_enabled=True)
    return node


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _refuse_overlaps(specs: list[InputSpec], fakes: list[Any], mutated: dict[int, fx.Node]) -> None:
    """Inputs that share memory cannot be values of their own when one of them is written."""
    by_storage: dict[int, list[int]] = {}
    for index, (spec, fake) in enumerate(zip(specs, fakes, strict=True)):
        if isinstance(fake, torch.Tensor) and spec.duplicate_of is None and spec.layout in ("strided", "complex"):
            by_storage.setdefault(_storage(fake), []).append(index)
    for members in by_storage.values():
        for index in members:
            if index not in mutated:
                continue
            for other in members:
                if other != index and not _disjoint(fakes[index], fakes[other]):
                    raise Unsupported(
                        f"inputs {specs[index].name} and {specs[other].name} share memory and the first is written",
                        mutated[index].meta["origin"],
                        "Pass a clone of one of them.",
                    )


def _disjoint(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two views of one storage surely have no element in common (by ranges, else by enumeration)."""
    try:
        sizes = [[int(s) for s in t.shape] for t in (first, second)]
        strides = [[int(s) for s in t.stride()] for t in (first, second)]
        offsets = [int(first.storage_offset()), int(second.storage_offset())]
    except Exception:  # a data-dependent size
        return False
    if any(0 in size for size in sizes):
        return True
    ends = [o + sum((n - 1) * s for n, s in zip(*pair)) for o, *pair in zip(offsets, sizes, strides)]
    if ends[0] < offsets[1] or ends[1] < offsets[0]:
        return True
    if max(first.numel(), second.numel()) > 1 << 20:
        return False
    cells = []
    for offset, size, stride in zip(offsets, sizes, strides, strict=True):
        found = {offset}
        for n, step in zip(size, stride, strict=True):
            found = {cell + k * step for cell in found for k in range(n)}
        cells.append(found)
    return cells[0].isdisjoint(cells[1])


def _close(
    interpreter: Interpreter,
    specs: list[InputSpec],
    outputs: list[OutputSpec],
    mutations: list[MutationSpec],
    results: list[Any],
) -> FunctionalGraph:
    recorder = interpreter.recorder
    graph = recorder.graph
    graph.output(tuple(results))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr") and not _has_effect(node):
            graph.erase_node(node)
    _single_results(graph)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    attributes = {key: value for key, value in recorder.attributes.items() if key in used}
    return FunctionalGraph(graph, specs, outputs, mutations, attributes, recorder.fake_mode)


def _has_effect(node: fx.Node) -> bool:
    return node.target in fx.node._side_effectful_functions


def _single_results(graph: fx.Graph) -> None:
    """native_layer_norm(...)[0] becomes layer_norm(...), and so on, where nothing reads the other results."""
    for node in list(graph.nodes):
        rule = _FIRST_RESULT.get(node.target) if node.op == "call_function" else None
        if rule is None:
            continue
        users = list(node.users)
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
            continue
        node.target, order = rule
        if order is not None:
            node.args = tuple(node.args[index] for index in order)
        node.meta["val"] = node.meta["val"][0]
        node.meta["requires_grad"] = node.meta["requires_grad"][0]
        for user in users:
            user.replace_all_uses_with(node)
            graph.erase_node(user)
