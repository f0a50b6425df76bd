"""The generated code of a model as a Python function, its places in a module, its inputs and results."""

from __future__ import annotations

import linecache
import traceback
import weakref
from typing import Any

from onnx import ModelProto, TypeProto, ValueInfoProto

from shorthaul.frontends.onnx_model import read
from shorthaul.frontends.onnx_model.block import describe
from shorthaul.frontends.onnx_model.emit import STATISTICS, Emitter, Source
from shorthaul.frontends.onnx_model.module import OnnxGraph, Port
from shorthaul.frontends.onnx_model.types import HELD
from shorthaul.frontends.origins import name_lines


class Code:
    """The generated code of a model, and the model without its large tensors. Copies of a module share it; it pickles as the model."""

    def __init__(self, proto: ModelProto, types_: dict[str, TypeProto], name: str) -> None:
        self.proto, self.types, self.name = proto, types_, name
        graph = proto.graph
        tensors = [(t.name, t.data_type) for t in [*graph.initializer, *(s.values for s in graph.sparse_initializer)]]
        self.elems = dict(tensors)
        self.places = assign_places([n for n, _ in tensors])
        emitter = Emitter(proto, types_, {n: expression(p) for n, p in self.places.items()})
        self.source: Source = emitter.emit()
        self.statistics = statistics_of(proto)
        initial = set(self.places)
        self.inputs = [port_of(v) for v in graph.input if v.name not in initial]
        self.outputs = [port_of(v) for v in graph.output]
        self.file = _register(self)
        code = compile(self.source.text, self.file, "exec")
        exec(code, self.source.names)
        self.run = self.source.names["run"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Code:
        return self

    def __reduce__(self) -> tuple:
        return _again, (self.proto.SerializeToString(), {n: t.SerializeToString() for n, t in self.types.items()}, self.name)

    def node_at(self, error: BaseException) -> str:
        """The node in whose line an error arose, or an empty string."""
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == self.file and frame.lineno in self.source.lines:
                name, op = self.source.lines[frame.lineno]
                return f"node {name!r} ({op})"
        return ""


def _again(proto: bytes, types_: dict[str, bytes], name: str) -> Code:
    model = ModelProto()
    model.ParseFromString(proto)
    return Code(model, {n: TypeProto.FromString(t) for n, t in types_.items()}, name)


_files: dict[str, int] = {}


def _register(code: Code) -> str:
    """A file name for the generated code, under which tracebacks and reports find its lines."""
    n = _files[code.name] = _files.get(code.name, 0) + 1
    file = f"<{code.name}>" if n == 1 else f"<{code.name} {n}>"
    lines = code.source.text.splitlines(keepends=True)
    linecache.cache[file] = (len(code.source.text), None, lines, file)
    name_lines(file, code.source.lines)
    weakref.finalize(code, linecache.cache.pop, file, None)
    weakref.finalize(code, name_lines, file, None)
    return file


# --- places of tensors in the module ----------------------------------------------------------------------------


def assign_places(names: list[str]) -> dict[str, tuple[str, ...]]:
    """For each initializer its path in the module: `layer.0.weight` becomes ("layer", "0", "weight"), so that keys of `state_dict` are
    the names of the model. A name that cannot be such a path, or is another's module, keeps to one attribute without dots."""
    taken: set[tuple[str, ...]] = set()
    modules: set[tuple[str, ...]] = set()
    reserved = {*dir(OnnxGraph(None)), "program", "report"}  # what the module itself is
    places: dict[str, tuple[str, ...]] = {}
    for name in names:
        path = tuple(name.split("."))
        above = {path[:i] for i in range(1, len(path))}
        usable = all(path) and not any(p in reserved for p in path) and not any(p.startswith("__") for p in path)
        if not usable or path in taken or path in modules or above & taken:
            flat, i = name.replace(".", "_") or "unnamed", 1
            path = (flat,)
            while path in taken or path in modules or path[0] in reserved:
                path, i = (f"{flat}_{i}",), i + 1
            above = set()
        taken.add(path)
        modules |= above
        places[name] = path
    return places


def expression(path: tuple[str, ...]) -> str:
    """The Python expression that reads a place of the module `self`."""
    text = "self"
    for part in path:
        text = f"{text}.{part}" if part.isidentifier() and part.isascii() else f"getattr({text}, {part!r})"
    return text


def statistics_of(proto: ModelProto) -> set[str]:
    """Initializers that hold running statistics: floating, but not trained."""
    nodes = [n for g in read.graphs_of(proto.graph) for n in g.node]
    return {node.input[i] for node in nodes for i in STATISTICS.get(node.op_type, ()) if i < len(node.input)}


def port_of(v: ValueInfoProto) -> Port:
    """What the graph declares about an input or result."""
    kind = (v.type.WhichOneof("value") or "").removesuffix("_type")
    if kind != "tensor":
        return Port(v.name, kind, None, None, describe(v.type))
    declared = v.type.tensor_type
    dims = None
    if declared.HasField("shape"):
        dims = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in declared.shape.dim)
    dtype = HELD.get(declared.elem_type)
    return Port(v.name, "tensor" if dtype is not None else "text", dtype, dims, describe(v.type))
