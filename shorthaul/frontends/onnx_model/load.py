"""`load_onnx`."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from shorthaul.errors import FallbackWarning
from shorthaul.frontends.onnx_model import read
from shorthaul.frontends.onnx_model.code import Code
from shorthaul.frontends.onnx_model.module import OnnxGraph, place
from shorthaul.frontends.onnx_model.types import is_float, sparse_tensor_of, tensor_of


def load_onnx(source: Any, kind: type[OnnxGraph] = OnnxGraph) -> OnnxGraph:
    """An ONNX model as a module that trains.

    source: a path, a ModelProto or its bytes. kind: the class of the module.
    Floating initializers that the graph computes with are parameters, named as in the model;
    integers and running statistics of normalizations are buffers; those that only say shapes are constants of the code. Nodes that
    can only run in onnx's reference implementation (strings, images, trees) are named by a FallbackWarning.
    Raises OnnxError for a model that is damaged, not valid, or uses what is not supported, naming node and reason.
    """
    proto, folder, name = read.parse(source)
    for t in read.tensors_of(proto):
        if t.data_location == t.EXTERNAL:
            read.read_external(t, folder)
    checked = read.check(proto, name)
    code = Code(read.without_large(proto), checked.types, name)
    module = kind(code)
    dense = {t.name: t for t in proto.graph.initializer}
    sparse = {s.values.name: s for s in proto.graph.sparse_initializer}
    for n in code.source.data:
        tensor = tensor_of(dense[n]) if n in dense else sparse_tensor_of(sparse[n])
        trained = is_float(code.elems[n]) and n not in code.statistics
        place(module, code.places[n], nn.Parameter(tensor) if trained else tensor)
    for key, tensor in code.source.constants.items():
        module.register_buffer(key, tensor, persistent=False)
    for text in code.source.fallbacks:
        warnings.warn(text, FallbackWarning, stacklevel=2)
    return module
