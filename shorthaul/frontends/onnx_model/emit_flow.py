"""Code for the nodes that are more than a call: constants, control flow, `Gradient`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.block import Block, Frame, Value, source, tensor_type
from shorthaul.frontends.onnx_model.types import HELD, sparse_tensor_of, tensor_of

if TYPE_CHECKING:
    from shorthaul.frontends.onnx_model.emit import Emitter

Handler = Callable[..., None]
SPECIAL: dict[tuple[str, str], Handler] = {}


def special(name: str, domain: str = "") -> Callable[[Handler], Handler]:
    def enter(function: Handler) -> Handler:
        SPECIAL[(domain, name)] = function
        return function

    return enter


@special("Constant")
def constant(e: Emitter, block: Block, node: NodeProto, schema: Any, attributes: dict[str, Any], graph: Any, index: int) -> None:
    where = e.where(block, node)
    name = node.output[0]
    given = {k: v for k, v in attributes.items() if v is not None}
    if len(given) != 1:
        raise OnnxError(f"{where} has the attributes {sorted(given)}; one is needed")
    ((kind, v),) = given.items()
    if kind in ("value_string", "value_strings") or (kind == "value" and v.data_type == TensorProto.STRING):
        array = numpy_helper.to_array(v) if kind == "value" else np.array(list(v) if kind == "value_strings" else v, dtype=object)
        variable = e.fresh(name)
        e.names[variable] = array
        block.values[name] = Value(variable, tensor_type(TensorProto.STRING))
        return
    if kind == "value":
        tensor, elem = tensor_of(v), v.data_type
    elif kind == "sparse_value":
        tensor, elem = sparse_tensor_of(v), v.values.data_type
    elif kind in ("value_int", "value_ints"):
        tensor, elem = torch.tensor(v, dtype=torch.int64), TensorProto.INT64
    else:
        tensor, elem = torch.tensor(v, dtype=torch.float32), TensorProto.FLOAT
    if name in block.values:
        raise OnnxError(f"{where} computes {name!r}, which exists already")
    proto = numpy_helper.from_array(tensor.numpy(), name) if kind != "value" else v
    type_ = tensor_type(elem)
    e.constant(block, name, tensor, type_, e.literal_of(proto))


# --- bodies -----------------------------------------------------------------------------------------------------


def body(e: Emitter, block: Block, graph: GraphProto, hint: str, inputs: list[Value | None]) -> tuple[str, list[str]]:
    """Write a graph as a function; returns its name and the variables from outside that it takes last.

    inputs: what is known of the values that it is called with; they bring type and whether they may be host values.
    """
    frame = Frame(e.fresh(hint))
    inner = Block(frame, block.opsets, block, block.attributes, block.path, block.depth)
    parameters = []
    for formal, known in zip(graph.input, inputs, strict=True):
        declared = formal.type if formal.HasField("type") and formal.type.WhichOneof("value") else None
        value = Value(e.fresh(formal.name), declared or (known.type if known else None), known.host if known else False)
        inner.values[formal.name] = value
        parameters.append(value.name)
    e.initializers(inner, graph, main=False)
    e.graph_body(inner, graph)
    results = [e.raw_of(inner, v.name, f"the body {hint}") for v in graph.output]
    e.line(inner, f"return ({', '.join(results)}{',' if results else ''})")
    captured = list(frame.captured)
    frame.parameters = ["self", "device", *parameters, *captured]
    e.frames.append(frame)
    return frame.name, captured


def _tuple(items: list[str]) -> str:
    return f"({', '.join(items)}{',' if items else ''})"


def _check_results(e: Emitter, block: Block, node: NodeProto, graph: GraphProto, wanted: int) -> None:
    if len(graph.output) != wanted:
        raise OnnxError(f"{e.where(block, node)}: its body has {len(graph.output)} results where {wanted} are needed")


def _types(e: Emitter, block: Block, node: NodeProto, graph: GraphProto, skip: int = 0) -> list[TypeProto | None]:
    formal = list(graph.output)[skip:]
    known = [v.type if v.HasField("type") else None for v in formal]
    return [e.types.get(n, None) if not block.path and n in e.types else tensor_type(_only_elem(k)) or k
            for n, k in zip(node.output, known, strict=False)]  # fmt: skip


def _only_elem(t: TypeProto | None) -> int | None:
    return t.tensor_type.elem_type if t is not None and t.HasField("tensor_type") else None


@special("If")
def if_(e: Emitter, block: Block, node: NodeProto, schema: Any, attributes: dict[str, Any], graph: Any, index: int) -> None:
    where = e.where(block, node)
    condition = e.raw_of(block, node.input[0], where)
    parts = []
    for key in ("then_branch", "else_branch"):
        branch = attributes[key]
        _check_results(e, block, node, branch, len(node.output))
        if branch.input:
            raise OnnxError(f"{where}: a branch takes no operands")
        name, captured = body(e, block, branch, key.removesuffix("_branch"), [])
        parts += [name, _tuple(["self", "device", *captured])]
    e.assign(block, node, f"flow.branch({', '.join([condition, *parts])})", _types(e, block, node, attributes["then_branch"]), True, True)


def _empty(graph: GraphProto, first: int) -> str:
    """Types and sizes of elements of scanned results, for loops that never run."""
    found = []
    for v in list(graph.output)[first:]:
        t = v.type.tensor_type
        sizes = [d.dim_value for d in t.shape.dim]
        found.append(f"({HELD.get(t.elem_type, torch.float32)}, {_tuple([str(s) for s in sizes])})")
    return _tuple(found)


@special("Loop")
def loop(e: Emitter, block: Block, node: NodeProto, schema: Any, attributes: dict[str, Any], graph: Any, index: int) -> None:
    where = e.where(block, node)
    inner = attributes["body"]
    operands = [*node.input, "", ""][: max(len(node.input), 2)]
    trip = e.host_of(block, operands[0], where)
    condition = e.raw_of(block, operands[1], where)
    carried = [e.raw_of(block, n, where) for n in operands[2:]]
    _check_results(e, block, node, inner, 1 + len(node.output))
    if len(inner.input) != 2 + len(carried):
        raise OnnxError(f"{where}: its body takes {len(inner.input)} operands where {2 + len(carried)} are given")
    number, truth = Value("", tensor_type(TensorProto.INT64), True), Value("", tensor_type(TensorProto.BOOL), True)
    known = [Value("", e.value_of(block, n, where).type if n else None, True) for n in operands[2:]]
    name, captured = body(e, block, inner, "loop_body", [number, truth, *known])
    call = (f"flow.loop({name}, {trip}, {condition}, {_tuple(carried)}, {_empty(inner, 1 + len(carried))}, (self, device), "
            f"{_tuple(captured)}, device)")  # fmt: skip
    e.assign(block, node, call, _types(e, block, node, inner, 1), True, True)


@special("Scan")
def scan(e: Emitter, block: Block, node: NodeProto, schema: Any, attributes: dict[str, Any], graph: Any, index: int) -> None:
    where = e.where(block, node)
    inner, count = attributes["body"], attributes["num_scan_inputs"]
    batched = schema.since_version == 8
    operands = list(node.input)[1:] if batched else list(node.input)
    if not 0 < count <= len(operands) or len(inner.input) != len(operands):
        raise OnnxError(f"{where}: its body takes {len(inner.input)} operands where {len(operands)} are given, {count} of them scanned")
    _check_results(e, block, node, inner, len(node.output))
    states, inputs = operands[: len(operands) - count], operands[len(operands) - count :]
    outputs = len(node.output) - len(states)
    known: list[Value | None] = []
    for i, n in enumerate(operands):
        v = block.find(n)
        known.append(Value("", tensor_type(v.elem if v else None), i < len(states)))
    name, captured = body(e, block, inner, "scan_body", known)
    parts = [_tuple([e.data_of(block, n, where) for n in part]) for part in (states, inputs)]
    empty = _empty(inner, len(states))
    end = f"{empty}, (self, device), {_tuple(captured)}, device"

    def ints(key: str, n: int) -> str:
        return source(tuple(attributes.get(key) or (0,) * n))

    if batched:
        lengths = e.host_of(block, node.input[0], where)
        call = f"flow.scan_of_batch({name}, {lengths}, {', '.join(parts)}, {ints('directions', count)}, {end})"
    else:
        call = (f"flow.scan({name}, {', '.join(parts)}, {ints('scan_input_axes', count)}, {ints('scan_input_directions', count)}, "
                f"{ints('scan_output_axes', outputs)}, {ints('scan_output_directions', outputs)}, {end})")  # fmt: skip
    types = [e.types.get(n) if not block.path else t for n, t in zip(node.output, _types(e, block, node, inner), strict=True)]
    e.assign(block, node, call, types, True, True)


@special("Gradient", "ai.onnx.preview.training")
def gradient(e: Emitter, block: Block, node: NodeProto, schema: Any, attributes: dict[str, Any], graph: Any, index: int) -> None:
    """The nodes between `xs` and `y` become a function again, which is differentiated at the node's operands."""
    where = e.where(block, node)
    xs, zs, y = attributes["xs"], attributes["zs"] or (), attributes["y"]
    if len(node.input) != len(xs) + len(zs) or len(node.output) > len(xs):
        raise OnnxError(f"{where} has {len(node.input)} operands for {len(xs)} xs and {len(zs)} zs")
    if isinstance(graph, FunctionProto):
        raise OnnxError(f"{where}: Gradient inside a function is not supported")
    chosen, wanted = [], {y}
    for other in reversed(list(graph.node)[:index]):
        if wanted & set(other.output) and not set(other.output) <= set(xs) | set(zs):
            chosen.append(other)
            wanted |= set(other.input)
    part = GraphProto(name="gradient")
    part.node.extend(reversed(chosen))
    for n in (*xs, *zs):
        part.input.append(_typed(n, e.value_of(block, n, where)))
    part.output.add().name = y
    name, captured = body(e, block, part, "differentiated", [None] * len(part.input))
    points = [e.data_of(block, n, where) for n in node.input]
    call = f"flow.gradient({name}, (self, device), {_tuple(points[: len(xs)])}, {_tuple(points[len(xs) :])}, {_tuple(captured)})"
    e.assign(block, node, call, [tensor_type(e.value_of(block, n, where).elem) for n in xs[: len(node.output)]], False, True)


def _typed(name: str, v: Value) -> Any:
    from onnx import ValueInfoProto

    return ValueInfoProto(name=name, type=v.type)
