"""Reading a model: from a file or a proto, with every check that can be made before anything is computed.

What the parts of onnx check well (structure, types, shapes) is theirs; sizes of data, external files and what a hostile file could do
to memory is checked here first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, defs

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.types import bits_of, check_size, elements, held

MOST_NODES = 200_000  # written out: functions that call functions grow exponentially
SMALL = 64  # an initializer of at most this many elements may become a constant of the generated code
DAMAGED = "The file is damaged or no ONNX model; export the model again."


@dataclass
class Read:
    """A model that passed the checks.

    proto: the model, large initializers without their data. types: what is known about every value, by name.
    """

    proto: ModelProto
    name: str
    types: dict[str, TypeProto]


def parse(source: Any) -> tuple[ModelProto, Path | None, str]:
    """The proto of a path, bytes or a proto, the folder of its external data, and a name for messages."""
    if isinstance(source, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(source)
        return copy, None, source.graph.name or "model"
    if isinstance(source, (bytes, bytearray)):
        return _decode(bytes(source), "model"), None, "model"
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"load_onnx takes a path, a ModelProto or its bytes, not {type(source).__name__}")
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise OnnxError(f"{path} cannot be read: {e.strerror or e}") from e
    return _decode(data, str(path)), path.parent, path.name


def _decode(data: bytes, where: str) -> ModelProto:
    if not data:
        raise OnnxError(f"{where} is empty", DAMAGED)
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, UnicodeDecodeError, ValueError) as e:
        raise OnnxError(f"{where} is no ONNX model: {e}", DAMAGED) from e
    if not proto.HasField("graph"):
        raise OnnxError(f"{where} holds no graph", DAMAGED)
    return proto


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for a in node.attribute:
            for g in ([a.g] if a.type == AttributeProto.GRAPH else a.graphs):
                yield from graphs_of(g)


def tensors_of(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in a model: initializers, sparse ones' parts, attributes."""
    nodes = [n for f in proto.functions for n in f.node]
    for g in graphs_of(proto.graph):
        yield from g.initializer
        for s in g.sparse_initializer:
            yield from (s.values, s.indices)
        nodes += g.node
    for node in nodes:
        for a in node.attribute:
            if a.type == AttributeProto.TENSOR:
                yield a.t
            elif a.type == AttributeProto.SPARSE_TENSOR:
                yield from (a.sparse_tensor.values, a.sparse_tensor.indices)
            yield from a.tensors


# --- external data --------------------------------------------------------------------------------------------


def read_external(t: TensorProto, folder: Path | None) -> None:
    """Bring a tensor's external data into it. Raises OnnxError for a place outside the folder of the model and for data that do not fit."""
    info = {e.key: e.value for e in t.external_data}
    where, location = f"tensor {t.name!r}", info.get("location", "")
    if folder is None:
        raise OnnxError(f"{where} has its data in the file {location!r}, and a model given as a proto has no folder", "Pass the path.")
    root = folder.resolve()
    if not location or "\0" in location or os.path.isabs(location) or Path(location).drive:
        raise OnnxError(f"{where} has its data in {location!r}, which is no path inside the folder of the model")
    try:
        file = (root / location).resolve()
        inside, regular = file.is_relative_to(root), file.is_file()
    except (OSError, RuntimeError, ValueError) as e:
        raise OnnxError(f"{where}: the file {location!r} cannot be read: {e}") from e
    if not inside:
        raise OnnxError(f"{where} has its data in {location!r}, which leads out of the folder of the model",
                        "External data must lie beside the model.")  # fmt: skip
    if not regular:
        raise OnnxError(f"{where} has its data in {location!r}, and there is no such file beside the model")
    held(t.data_type, where)
    if any(d < 0 for d in t.dims):
        raise OnnxError(f"{where} declares the dimensions {list(t.dims)}")
    wanted = (elements(t.dims) * bits_of(t.data_type) + 7) // 8
    try:
        offset, length = int(info.get("offset") or 0), int(info.get("length") or wanted)
    except ValueError as e:
        raise OnnxError(f"{where}: offset and length of its external data are no numbers: {info}") from e
    have = file.stat().st_size
    if length != wanted or offset < 0 or offset + length > have:
        raise OnnxError(f"{where} needs {wanted} bytes and takes {length} at {offset} of {location!r}, which has {have}",
                        "The file is damaged or cut short; export the model again.")  # fmt: skip
    with file.open("rb") as f:
        f.seek(offset)
        t.raw_data = f.read(length)
    del t.external_data[:]
    t.data_location = TensorProto.DEFAULT


# --- checks -----------------------------------------------------------------------------------------------------


def check_versions(proto: ModelProto, name: str) -> None:
    """Refuse operator sets that this release of onnx does not know, and those before opset 7."""
    if not proto.opset_import:
        raise OnnxError(f"{name} imports no operator set", DAMAGED)
    newest: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        newest[schema.domain] = max(newest.get(schema.domain, 0), schema.since_version)
    local = {f.domain for f in proto.functions}
    for o in proto.opset_import:
        domain = "" if o.domain == "ai.onnx" else o.domain
        known = newest.get(domain)
        if known is None:
            if domain not in local and any(n.domain == o.domain for g in graphs_of(proto.graph) for n in g.node):
                raise OnnxError(f"{name} uses operators of the domain {domain!r}, which is not one of ONNX's",
                                "Export without custom operators, or add them to the model as functions.")  # fmt: skip
            continue
        newest_known = defs.onnx_opset_version() if domain == "" else known
        if o.version > max(newest_known, known):
            raise OnnxError(f"{name} uses version {o.version} of the operator set {domain or 'ai.onnx'}; "
                            f"onnx {onnx.__version__} knows up to {newest_known}",
                            "Install a newer onnx, or export for an older operator set.")  # fmt: skip


def check_texts(proto: ModelProto, name: str) -> None:
    """Refuse names that are no text (protobuf hands those over as bytes)."""
    texts = [x for o in proto.opset_import for x in (o.domain,)]
    for f in proto.functions:
        texts += [f.name, f.domain, *f.input, *f.output, *f.attribute, *(a.name for a in f.attribute_proto)]
    for g in graphs_of(proto.graph):
        texts += [g.name, *(v.name for v in (*g.input, *g.output, *g.value_info)), *(t.name for t in g.initializer)]
        texts += [d.dim_param for v in (*g.input, *g.output, *g.value_info) for d in v.type.tensor_type.shape.dim]
    for node in (n for nodes in (*(g.node for g in graphs_of(proto.graph)), *(f.node for f in proto.functions)) for n in nodes):
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [x for a in node.attribute for x in (a.name, a.ref_attr_name)]
    for text in texts:
        if not isinstance(text, str):
            raise OnnxError(f"{name} has a name that is no text: {text!r}", DAMAGED)


def check_functions(proto: ModelProto, name: str) -> None:
    """Refuse functions that call themselves, and those that expand to more nodes than can be written out."""
    functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
    sizes: dict[Any, int] = {}

    def size_of(nodes: Iterable[onnx.NodeProto], calls: tuple) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, getattr(node, "overload", ""))
            total += 1 + sum(size_of(g.node, calls) for a in node.attribute for g in (a.g, *a.graphs))
            if key in functions:
                if key in calls:
                    raise OnnxError(f"{name}: the function {node.op_type!r} of the domain {node.domain!r} calls itself")
                if key not in sizes:
                    sizes[key] = size_of(functions[key].node, (*calls, key))
                total += sizes[key]
        if total > MOST_NODES:
            raise OnnxError(f"{name}: its functions expand to more than {MOST_NODES} nodes")
        return total

    size_of(proto.graph.node, ())


def check(proto: ModelProto, name: str) -> Read:
    """Check a model whose data are all inside it; what `Read` says."""
    check_versions(proto, name)
    check_texts(proto, name)
    check_functions(proto, name)
    for t in tensors_of(proto):
        check_size(t)
    skeleton = _without_data(proto)
    try:
        onnx.checker.check_model(skeleton)
    except (onnx.checker.ValidationError, RuntimeError, ValueError, UnicodeDecodeError) as e:
        raise OnnxError(f"{name} is not valid: {_first_lines(e)}") from e
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, UnicodeDecodeError) as e:
        if not _inside_a_definition(e):
            raise OnnxError(f"{name} has types or shapes that do not fit together: {_first_lines(e)}") from e
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, data_prop=True)
    types: dict[str, TypeProto] = {}
    for g in graphs_of(inferred.graph):
        types.update((v.name, v.type) for v in [*g.value_info, *g.output, *g.input])
    return Read(proto, name, types)


def _inside_a_definition(e: Exception) -> bool:
    """Whether inference failed in the body by which ONNX defines an operator, not at the model's own node (a body of an older version
    that inference misjudges is no fault of the model)."""
    op = re.search(r"op_type:(\w+)", str(e))
    if op is None or str(e).count("Inference error(s)") < 2:
        return False
    schemas: Any = defs.get_all_schemas_with_history()
    return any(s.name == op.group(1) and (s.has_function or s.has_context_dependent_function) for s in schemas)


def _first_lines(e: Exception, count: int = 4) -> str:
    return " ".join(line.strip() for line in str(e).splitlines() if line.strip())[: 200 * count]


def is_large(t: TensorProto) -> bool:
    """Whether an initializer is kept apart from the graph: it cannot matter to shapes."""
    return elements(t.dims) > SMALL and t.data_type != TensorProto.STRING


def without_large(proto: ModelProto) -> ModelProto:
    """A copy whose large initializers have type and dimensions, and no data."""
    copy = ModelProto()
    copy.CopyFrom(proto) if sum(is_large(t) for t in proto.graph.initializer) == 0 else _copy_lightly(proto, copy)
    return copy


def _copy_lightly(proto: ModelProto, copy: ModelProto) -> None:
    """Copies without ever holding the data twice."""
    kept = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    try:
        copy.CopyFrom(proto)
    finally:
        proto.graph.initializer.extend(kept)
    for t in kept:
        if is_large(t):
            copy.graph.initializer.append(TensorProto(name=t.name, data_type=t.data_type, dims=t.dims))
        else:
            copy.graph.initializer.append(t)


def _without_data(proto: ModelProto) -> ModelProto:
    """A valid model for the checks of onnx: large initializers become inputs of their type."""
    copy = without_large(proto)
    large = [t for t in copy.graph.initializer if is_large(t)]
    small = [t for t in copy.graph.initializer if not is_large(t)]
    sparse = list(copy.graph.sparse_initializer)
    del copy.graph.initializer[:]
    del copy.graph.sparse_initializer[:]
    copy.graph.initializer.extend(small)
    known = {v.name for v in copy.graph.input}
    for name, t in [(t.name, t) for t in large] + [(s.values.name, s) for s in sparse]:
        if name in known:
            continue
        elem = t.data_type if isinstance(t, TensorProto) else t.values.data_type
        copy.graph.input.append(onnx.helper.make_tensor_value_info(name, elem, list(t.dims)))
    return copy
