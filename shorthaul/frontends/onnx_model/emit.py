"""From an ONNX graph to Python source over PyTorch tensors: one line a node.

    def run(self, device, x):
        fc_weight = self.fc.weight
        h = MatMul(x, fc_weight)  # MatMul /fc/MatMul
        y = Reshape(h, (-1, 8))  # Reshape /Reshape

Dynamo traces it like code that the user wrote: control flow is Python's, sizes are Python's numbers, an error or a row of a report
shows the line. Functions, the model's own and those by which ONNX defines operators that the table lacks, are written out where they
are called. Bodies of control flow become functions, which take what they use from outside as their last arguments.
"""

from __future__ import annotations

import functools
import keyword
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    defs,
    helper,
    numpy_helper,
)

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import flow, host, table
from shorthaul.frontends.onnx_model.block import (
    MISSING,
    Block,
    Frame,
    Value,
    elem_of,
    is_number,
    plain,
    resolved,
    source,
    tensor_type,
)
from shorthaul.frontends.onnx_model.read import MOST_NODES
from shorthaul.frontends.onnx_model.reference import ReferenceNode
from shorthaul.frontends.onnx_model.types import HELD, sparse_tensor_of, tensor_of

HOST_TYPES = {TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL}
STATISTICS = {"BatchNormalization": (3, 4)}  # operands that are buffers, not parameters


@functools.cache
def _returns_tuple(entry: table.Entry) -> bool:
    """Whether the newest version of the operator that the entry is for can have several results (`MaxPool` has since version 8)."""
    later = [e.since for e in table.TABLE[entry.domain, entry.name] if e.since > entry.since]
    newest = defs.get_schema(entry.name, min(later) - 1, entry.domain) if later else defs.get_schema(entry.name, entry.domain)
    return newest.max_output > 1


@dataclass
class Source:
    """The generated code.

    text: of one line per node. lines: for each line number the node's name and operator. names: what the code refers to. data: the
    initializers that it reads as tensors, by their names in the model, with the Python variable; `constants` likewise for
    constants of the graph. statistics: initializers that are buffers though they are floating. fallbacks: nodes that run in onnx's
    reference implementation.
    """

    text: str
    lines: dict[int, tuple[str, str]]
    names: dict[str, Any]
    data: dict[str, str]
    constants: dict[str, torch.Tensor]
    statistics: set[str]
    fallbacks: list[str]
    text_inputs: bool = False


class Emitter:
    """Writes the code of one model. paths: for each initializer the Python expression of its tensor in the module."""

    def __init__(self, proto: ModelProto, types: dict[str, TypeProto], paths: dict[str, str]) -> None:
        import shorthaul.frontends.onnx_model.operators  # noqa: F401  # fills the table

        self.proto, self.types, self.paths = proto, types, paths
        self.functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
        self.used: set[str] = {"self", "device", "torch", "flow", "host", "run", "inf", "nan"}
        self.names: dict[str, Any] = {"torch": torch, "flow": flow, "host": host, "inf": math.inf, "nan": math.nan}
        self.frames: list[Frame] = []
        self.data: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.statistics: set[str] = set()
        self.fallbacks: list[str] = []
        self.count = 0

    # names and lines --------------------------------------------------------------------------------------------------
    def fresh(self, hint: str) -> str:
        """A Python variable that nothing else in the code is called."""
        base = re.sub(r"\W+", "_", hint).strip("_") or "v"
        base = base if not base[0].isdigit() else f"v{base}"
        if not base.isascii() or len(base) > 80:
            base = re.sub(r"[^\x00-\x7f]", "_", base)[:80]
        if keyword.iskeyword(base) or base in dir(__builtins__):
            base += "_"
        name, i = base, 1
        while name in self.used:
            name, i = f"{base}_{i}", i + 1
        self.used.add(name)
        return name

    def line(self, block: Block, text: str, node: tuple[str, str] | None = None) -> None:
        self.count += 1
        if self.count > 2 * MOST_NODES:  # operators defined by functions count too
            raise OnnxError(f"the model's functions expand to more than {MOST_NODES} nodes")
        block.frame.lines.append((text, node))

    def opsets_of(self, imports: Iterable[Any]) -> dict[str, int]:
        return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in imports}

    # the model --------------------------------------------------------------------------------------------------------
    def emit(self) -> Source:
        """The code of the whole model; its function is called `run`."""
        graph = self.proto.graph
        frame = Frame("run")
        block = Block(frame, self.opsets_of(self.proto.opset_import))
        initial = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
        parameters = []
        for v in graph.input:
            if v.name not in initial:
                value = Value(self.fresh(v.name), v.type)
                block.values[v.name] = value
                parameters.append(value.name)
        self.initializers(block, graph, main=True)
        self.graph_body(block, graph)
        results = [self.data_of(block, v.name, "the graph") for v in graph.output]
        self.line(block, f"return ({', '.join(results)},)" if results else "return ()")
        self.frames.append(frame)
        text, lines = self.text_of(parameters)
        return Source(text, lines, self.names, self.data, self.constants, self.statistics, self.fallbacks)

    def text_of(self, parameters: list[str]) -> tuple[str, dict[int, tuple[str, str]]]:
        out: list[str] = []
        lines: dict[int, tuple[str, str]] = {}
        for frame in self.frames:
            head = parameters if frame.name == "run" else []
            if frame.name == "run":
                out.append(f"def run({', '.join(['self', 'device', *head])}):")
            else:
                out.append(f"def {frame.name}({', '.join(frame.parameters)}):")
            for text, node in frame.lines:
                comment = f"  # {' '.join(dict.fromkeys(x for x in (node[1], node[0]) if x))}" if node else ""
                out.append("    " + text + re.sub(r"[^\x20-\x7e]", "?", comment))
                if node:
                    lines[len(out)] = node
            out += ["", ""]
        return "\n".join(out), lines

    def initializers(self, block: Block, graph: GraphProto, main: bool) -> None:
        sparse = [(s.values.name, s.values.data_type, s) for s in graph.sparse_initializer]
        for name, elem, t in [(t.name, t.data_type, t) for t in graph.initializer] + sparse:
            if elem == TensorProto.STRING:
                variable = self.fresh(name)
                self.names[variable] = numpy_helper.to_array(t)
                block.values[name] = Value(variable, tensor_type(elem))
                continue
            literal = self.literal_of(t) if isinstance(t, TensorProto) else MISSING
            type_ = self.types.get(name) or tensor_type(elem)
            if main:
                self.enter(block, name, type_, literal, self.paths[name], name)
            else:
                tensor = tensor_of(t) if isinstance(t, TensorProto) else sparse_tensor_of(t)
                self.constant(block, name, tensor, type_, literal)

    def enter(self, block: Block, name: str, type_: TypeProto | None, literal: Any, path: str, initializer: str | None) -> None:
        """A value of the module: its variable is loaded at the first use as a tensor."""
        variable = self.fresh(name)
        loaded: list[Value] = []

        def load() -> Value:
            if not loaded:
                self.line(block, f"{variable} = {path}")
                loaded.append(Value(variable, type_))
                if initializer is not None:
                    self.data[initializer] = variable
            return loaded[0]

        block.data[name] = load
        block.values[name] = Value(variable, type_, literal=literal, scalar=initializer is None and not isinstance(literal, tuple))

    def constant(self, block: Block, name: str, tensor: torch.Tensor, type_: TypeProto | None, literal: Any) -> None:
        """A constant of the graph: a buffer that is not saved with the parameters."""
        key = self.fresh("constant_" + name)

        path = f"self._buffers[{key!r}]"
        self.enter(block, name, type_, literal, path, None)
        inner = block.data[name]

        def load() -> Value:
            self.constants[key] = tensor
            return inner()

        block.data[name] = load

    def literal_of(self, t: TensorProto) -> Any:
        if len(t.dims) > 1 or (t.dims and t.dims[0] > host.LONGEST) or t.data_type not in HELD or HELD[t.data_type].is_complex:
            return MISSING
        value = tensor_of(t)
        value = value.to(torch.float32) if value.is_floating_point() and value.dtype.itemsize < 4 else value
        return tuple(value.tolist()) if t.dims else value.tolist()

    # operands -----------------------------------------------------------------------------------------------------------
    def value_of(self, block: Block, name: str, where: str) -> Value:
        found = block.find(name)
        if found is None:
            raise OnnxError(f"{where} reads {name!r}, which nothing before it computes")
        return found

    def data_of(self, block: Block, name: str, where: str) -> str:
        """The operand as a tensor."""
        if not name:
            return "None"
        v = self.value_of(block, name, where)
        v = block.load(name) or v
        return f"host.tensor({v.name}, device)" if v.host else v.name

    def raw_of(self, block: Block, name: str, where: str) -> str:
        """The operand as a host value if it may be one, else as a tensor."""
        if not name:
            return "None"
        v = self.value_of(block, name, where)
        if v.literal is not MISSING and v.elem in HOST_TYPES:
            return source(v.literal)
        return v.name if v.host else self.data_of(block, name, where)

    def host_of(self, block: Block, name: str, where: str) -> str:
        """The operand as numbers."""
        if not name:
            return "None"
        v = self.value_of(block, name, where)
        if v.literal is not MISSING:
            return source(v.literal)
        return f"host.ints({v.name if v.host else self.data_of(block, name, where)})"

    def may_be_host(self, block: Block, name: str, where: str) -> bool:
        if not name:
            return True
        v = self.value_of(block, name, where)
        return v.host or (v.literal is not MISSING and v.elem in HOST_TYPES)

    # nodes --------------------------------------------------------------------------------------------------------------
    def graph_body(self, block: Block, graph: GraphProto) -> None:
        for i, node in enumerate(graph.node):
            self.node(block, node, graph, i)

    def where(self, block: Block, node: NodeProto) -> str:
        """The node in messages."""
        return f"node {self.label(block, node)[0]!r} ({node.op_type})"

    def label(self, block: Block, node: NodeProto) -> tuple[str, str]:
        name = node.name or next((o for o in node.output if o), "")
        return (f"{block.path}/{name}" if block.path else name), node.op_type

    def node(self, block: Block, node: NodeProto, graph: GraphProto | FunctionProto, index: int) -> None:
        from shorthaul.frontends.onnx_model import emit_flow, emit_functions

        where = self.where(block, node)
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            emit_functions.inline(self, block, node, function, where)
            return
        version = block.opsets.get(domain)
        if version is None:
            raise OnnxError(f"{where} is of the domain {node.domain or 'ai.onnx'!r}, whose operator set the model does not import")
        try:
            schema = defs.get_schema(node.op_type, version, domain)
        except defs.SchemaError as e:
            raise OnnxError(f"{where}: {domain or 'ai.onnx'} has no operator {node.op_type!r} in version {version}") from e
        if schema.deprecated:
            raise OnnxError(f"{where} is deprecated in version {version} of {domain or 'ai.onnx'}", "Export for a newer operator set.")
        attributes = self.attributes_of(block, node, schema)
        special = emit_flow.SPECIAL.get((domain, node.op_type))
        if special is not None:
            special(self, block, node, schema, attributes, graph, index)
            return
        entry = table.find(domain, node.op_type, schema.since_version)
        text = self.is_text(block, node, schema, attributes)
        if entry is not None and not text:
            self.call(block, node, schema, entry, attributes, where)
        elif not text and (body := emit_functions.body_of(block, node, schema, where)) is not None:
            emit_functions.inline(self, block, node, body, where, schema)
        else:
            self.reference(block, node, schema, where)

    def is_text(self, block: Block, node: NodeProto, schema: Any, attributes: dict[str, Any]) -> bool:
        """Whether a node computes with strings, which are no tensors here."""
        if schema.name in ("Identity", "Optional", "SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase",
                           "SequenceLength", "OptionalGetElement", "OptionalHasElement"):  # fmt: skip
            return False
        if schema.name == "Cast" and attributes.get("to") == TensorProto.STRING:
            return True
        return any((v := block.find(n)) is not None and v.elem == TensorProto.STRING for n in node.input if n)

    def attributes_of(self, block: Block, node: NodeProto, schema: Any) -> dict[str, Any]:
        """Attributes by name, with the schema's defaults; graphs stay protos."""
        given = {a.name: a for a in resolved(block, node).attribute}
        values: dict[str, Any] = {}
        for name, a in schema.attributes.items():
            proto = given.get(name) or (a.default_value if a.default_value.name else None)
            if proto is None and a.required:
                raise OnnxError(f"{self.where(block, node)} lacks the attribute {name!r}")
            values[name] = None if proto is None else plain(helper.get_attribute_value(proto))
        return values

    def call(self, block: Block, node: NodeProto, schema: Any, entry: table.Entry, attributes: dict[str, Any], where: str) -> None:
        """One line: the function of the table on the node's operands."""
        operands = list(node.input)
        while operands and not operands[-1]:
            operands.pop()
        kinds = self.kinds(entry, len(operands))
        on_host = entry.on_host is not None and all(
            self.may_be_host(block, n, where) for n, k in zip(operands, kinds, strict=True) if k not in entry.host
        )
        always = node.op_type in ("Shape", "Size")
        arguments = []
        types = [self.value_of(block, n, where).elem if n else None for n in operands]
        unsigned = _UNSIGNED & set(types) and node.op_type not in _AS_THEY_ARE
        for n, k in zip(operands, kinds, strict=True):
            if k in entry.host:
                arguments.append(self.host_of(block, n, where))
                continue
            if on_host or always:
                arguments.append(self.raw_of(block, n, where))
                continue
            v = self.value_of(block, n, where) if n else None
            if entry.scalars and v is not None and v.scalar and v.literal is not MISSING and v.elem in HOST_TYPES and len(operands) == 2:
                arguments.append(source(v.literal))
                continue
            data = self.data_of(block, n, where)
            divides = node.op_type in _DIVISION and TensorProto.UINT64 in types
            widen = "widen" if node.op_type in _SAME_BITS or divides else "widen_ordered" if node.op_type in _ORDERED else "widen_small"
            arguments.append(f"flow.{widen}({data})" if unsigned and data != "None" else data)
        if entry.scalars and len(arguments) == 2 and not on_host and all(is_number(a) for a in arguments):
            arguments[0] = self.data_of(block, operands[0], where)
        keywords = self.keywords(block, node, entry, attributes, types, operands, on_host, where)
        name = self.global_of(f"{node.op_type}", entry.function)
        call = f"{name}({', '.join(arguments + keywords)})"
        if node.op_type in _DIVISION and TensorProto.UINT64 in types and not on_host:
            call = f"flow.{_DIVISION[node.op_type]}({', '.join(arguments)})"
        if on_host and not always:
            assert entry.on_host is not None
            fast = self.global_of(f"{node.op_type}_on_host", entry.on_host)
            kept = tuple(i for i, k in enumerate(kinds) if k in entry.host)
            call = f"host.either({', '.join([fast, name, 'device', repr(kept), *arguments, *keywords])})"
        several = _returns_tuple(entry)
        found = self.result_types(node, schema, attributes, types)
        elems = [elem_of(t) for t in found]
        ordered = node.op_type in _ORDERED
        if unsigned and several:
            call = f"flow.narrow_each({call}, [{', '.join(str(HELD[e]) if e in _UNSIGNED else 'None' for e in elems)}], {ordered})"
        elif unsigned and elems[0] in _UNSIGNED:
            call = f"flow.{'narrow_ordered' if ordered else 'narrow'}({call}, {HELD[elems[0]]})"
        self.assign(block, node, call, found, bool(on_host or always or node.op_type in _HOST_RESULTS), several)

    def kinds(self, entry: table.Entry, n: int) -> list[str]:
        """The parameter's name for each operand."""
        names = list(entry.operands[:n])
        return names + [""] * (n - len(names)) if entry.variadic else names + [f"operand {i}" for i in range(len(names), n)]

    def keywords(self, block: Block, node: NodeProto, entry: table.Entry, attributes: dict[str, Any], types: list, operands: list[str],
                 on_host: bool, where: str) -> list[str]:  # fmt: skip
        given = {k for n, k in zip(operands, self.kinds(entry, len(operands)), strict=True) if n}
        found = []
        for name, v in sorted(attributes.items()):
            if name in entry.keywords and name not in given:
                if isinstance(v, TensorProto):
                    text = self.filled(v, where)
                elif isinstance(v, (GraphProto, TypeProto)):
                    continue
                else:
                    text = source(v)
                found.append(f"{name}={text}")
        for name in table.FILLED_IN:
            if name in entry.keywords and name not in attributes:
                value = {"count": len(node.output), "device": "device", "types": (*types, *[None] * (len(entry.operands) - len(types))),
                         "result": None}[name]  # fmt: skip
                found.append(f"{name}={value}")
        return found

    def filled(self, t: TensorProto, where: str) -> str:
        """A tensor of one element in an attribute, as the number and its type."""
        tensor = tensor_of(t)
        if tensor.numel() != 1:
            raise OnnxError(f"{where} takes a tensor of one element, not of {tensor.numel()}")
        wide = tensor.to(torch.float32) if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor
        return f"({source(wide.reshape(()).item())}, {tensor.dtype})"

    def global_of(self, hint: str, value: Any) -> str:
        """A name in the code for a function or object; the same for the same one."""
        key = id(value)
        cache: dict[int, str] = self.__dict__.setdefault("_globals", {})
        if key not in cache:
            cache[key] = self.fresh(hint)
            self.names[cache[key]] = value
        return cache[key]

    def assign(self, block: Block, node: NodeProto, call: str, types: list[TypeProto | None], may_be_host: bool, several: bool) -> None:
        targets = []
        for name, type_ in zip(node.output, types, strict=True):
            if not name:
                targets.append("_")
                continue
            if name in block.values:
                raise OnnxError(f"{self.where(block, node)} computes {name!r}, which exists already")
            value = Value(self.fresh(name), self.types.get(name, type_) if not block.path else type_, may_be_host)
            block.values[name] = value
            targets.append(value.name)
        left = ", ".join(targets) + ("," if several and len(targets) == 1 else "")
        self.line(block, f"{left or '_'} = {call}{f'[:{len(targets)}]' if several else ''}", self.label(block, node))

    def result_types(self, node: NodeProto, schema: Any, attributes: dict[str, Any], elems: list[int | None]) -> list[TypeProto | None]:
        """Element types of results by the schema: those bound by operands, and those that attributes say."""
        bound: dict[str, int | None] = {}
        for i, e in enumerate(elems):
            formal = schema.inputs[min(i, len(schema.inputs) - 1)]
            if e is not None:
                bound.setdefault(formal.type_str, e)
        found: list[TypeProto | None] = []
        for i in range(len(node.output)):
            formal = schema.outputs[min(i, len(schema.outputs) - 1)]
            elem = bound.get(formal.type_str)
            if elem is None:
                named = re.fullmatch(r"tensor\((\w+)\)", formal.type_str)
                only = [c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == formal.type_str]
                if only and len(only[0]) == 1:
                    named = re.fullmatch(r"tensor\((\w+)\)", only[0][0])
                if named:
                    elem = getattr(TensorProto, named.group(1).upper(), None)
            if node.op_type in ("Cast", "CastLike", "BitCast"):
                elem = attributes.get("to") or (elems[1] if len(elems) > 1 else None)
            for key in ("dtype", "output_dtype", "output_datatype"):
                if elem is None and attributes.get(key):
                    elem = attributes[key]
            if node.op_type == "ConstantOfShape":
                elem = attributes["value"].data_type if attributes.get("value") is not None else TensorProto.FLOAT
            found.append(tensor_type(elem if isinstance(elem, int) else None))
        return found

    def reference(self, block: Block, node: NodeProto, schema: Any, where: str) -> None:
        """The node through onnx's reference implementation, noted."""
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise OnnxError(f"{where} has no entry in the table of operators")
        elems = [self.value_of(block, n, where).elem if n else None for n in node.input]
        domain = "" if node.domain == "ai.onnx" else node.domain
        alone = resolved(block, node)
        known = {d: v for d, v in block.opsets.items() if d in ("", domain)}
        function = ReferenceNode(alone, known, elems, where)
        self.fallbacks.append(f"{where} runs in onnx's reference implementation")
        name = self.fresh(f"reference_{node.op_type}")
        self.names[name] = function
        arguments = ", ".join(self.data_of(block, n, where) for n in node.input)
        types = self.result_types(node, schema, self.attributes_of(block, node, schema), elems)
        self.assign(block, node, f"{name}({arguments})", types, False, True)


_AS_THEY_ARE = {"Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Expand", "Concat", "Shape",
                "Size", "QuantizeLinear", "DequantizeLinear", "BitCast", "If", "Loop", "ConstantOfShape", "EyeLike"}  # fmt: skip
_HOST_RESULTS = {"SequenceLength", "OptionalHasElement", "SequenceAt", "OptionalGetElement", "Identity", "Optional"}
# right on int64 with the bits of uint64
_SAME_BITS = {"Add", "Sub", "Mul", "Sum", "Neg", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Equal", "Gather", "GatherElements",
              "GatherND", "Where", "Slice", "Pad", "Tile", "Split", "Compress", "ReverseSequence", "MatMul", "MatMulInteger", "Gemm",
              "ReduceSum", "CumSum", "SpaceToDepth", "DepthToSpace", "Trilu"}  # fmt: skip
_ORDERED = {"Max", "Min", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK"}
_DIVISION = {"Div": "quotient", "Mod": "remainder"}  # of 64 bits: functions of `flow`
_UNSIGNED = {TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
