"""Functions, the model's own and those by which ONNX defines operators: written out where they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnx import FunctionProto, NodeProto, TypeProto

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.block import Block, Value, resolved, without

if TYPE_CHECKING:
    from shorthaul.frontends.onnx_model.emit import Emitter

DEEPEST = 60  # nested calls of functions
_NONE = Value("")


def body_of(block: Block, node: NodeProto, schema: Any, where: str) -> FunctionProto | None:
    """The function by which ONNX defines the operator, or None."""
    version = block.opsets["" if node.domain == "ai.onnx" else node.domain]
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
    if not versions:
        return None
    types = []
    for n in node.input:
        v = block.find(n) if n else None
        types.append((v.type if v is not None and v.type is not None else TypeProto()).SerializeToString())
    body = schema.get_context_dependent_function_with_opset_version(max(versions), resolved(block, node).SerializeToString(), types)
    if not body:
        return None
    function = FunctionProto()
    function.ParseFromString(body)
    return function


def _loader(e: Emitter, block: Block, name: str, where: str) -> Callable[[], Value]:
    return lambda: block.load(name) or e.value_of(block, name, where)


def inline(e: Emitter, block: Block, node: NodeProto, function: FunctionProto, where: str, schema: Any = None) -> None:
    """Write a function's nodes out where it is called."""
    if block.depth >= DEEPEST:
        raise OnnxError(f"{where}: functions call each other more than {DEEPEST} deep; recursion is not possible")
    attributes = {a.name: a for a in function.attribute_proto}
    if schema is not None:
        attributes |= {n: a.default_value for n, a in schema.attributes.items() if a.default_value.name}
    attributes |= {a.name: a for a in resolved(block, node).attribute}
    opsets = e.opsets_of(function.opset_import)
    inner = Block(block.frame, {**block.opsets, **opsets}, None, attributes, e.label(block, node)[0], block.depth + 1)
    if len(node.input) > len(function.input) or len(node.output) > len(function.output):
        raise OnnxError(f"{where} has more operands or results than its function ({len(function.input)}, {len(function.output)})")
    for formal, actual in zip(function.input, list(node.input) + [""] * len(function.input), strict=False):
        if not actual:
            inner.values[formal] = Value("None")
            continue
        inner.values[formal] = e.value_of(block, actual, where)
        inner.data[formal] = _loader(e, block, actual, where)
    for i, n in enumerate(function.node):
        # an operand that the caller left out is left out inside too
        if any(inner.values.get(x, _NONE).name == "None" for x in n.input):
            n = without(n, {x for x in n.input if inner.values.get(x, _NONE).name == "None"})
        e.node(inner, n, function, i)
    for formal, actual in zip(function.output, node.output, strict=False):
        if not actual:
            continue
        value = inner.values.get(formal)
        if value is None:
            raise OnnxError(f"{where}: its function does not compute its result {formal!r}")
        if formal in inner.data:  # the function returns an operand or constant
            value = e.value_of(inner, formal, where)
            block.data[actual] = inner.data[formal]
        type_ = (e.types.get(actual) if not block.path else None) or value.type
        block.values[actual] = replace(value, type=type_)
