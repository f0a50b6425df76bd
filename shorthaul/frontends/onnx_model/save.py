"""A module back to an ONNX file: the graph it was read from, with the tensors it has now."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.module import OnnxGraph
from shorthaul.frontends.onnx_model.types import HELD, to_numpy, type_name

LARGEST = 2**31 - 2**20  # bytes of a proto; larger models have their tensors in a file beside


def to_proto(module: OnnxGraph) -> ModelProto:
    """The model with the tensors that the module has now; names and nodes as they were read."""
    code = module._code
    proto = ModelProto()
    proto.CopyFrom(code.proto)
    state = module.state_dict(keep_vars=True)
    read = code.source.data
    graph = proto.graph
    for t in graph.initializer:
        if t.name in read:
            _fill(t, _tensor(state, ".".join(code.places[t.name]), t.name))
        elif read_lacks_data(t):
            raise OnnxError(f"tensor {t.name!r} is read by no node and was not kept")
    for s in list(graph.sparse_initializer):
        name = s.values.name
        if name in read:  # trained values are dense
            graph.sparse_initializer.remove(s)
            dense = graph.initializer.add(name=name, data_type=s.values.data_type, dims=s.dims)
            _fill(dense, _tensor(state, ".".join(code.places[name]), name))
    return proto


def read_lacks_data(t: TensorProto) -> bool:
    """Whether a tensor was stripped of its data."""
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    return all(d != 0 for d in t.dims) and not any(len(getattr(t, f)) for f in fields)


def _tensor(state: dict[str, Any], key: str, name: str) -> torch.Tensor:
    found = state.get(key)
    if found is None:
        raise OnnxError(f"the module has no {key!r} for the tensor {name!r} of the model",
                        "Parametrizations must be removed before saving (torch.nn.utils.parametrize.remove_parametrizations).")  # fmt: skip
    return found


def _fill(t: TensorProto, tensor: torch.Tensor) -> None:
    declared = HELD[t.data_type]
    if tuple(tensor.shape) != tuple(t.dims) or tensor.dtype is not declared:
        now, then = f"{tensor.dtype}{tuple(tensor.shape)}", f"{type_name(t.data_type)}{tuple(t.dims)}"
        raise OnnxError(f"tensor {t.name!r} is {now} now; the graph declares {then}",
                        "Bring the module back to the types it was loaded with, for example module.float().")  # fmt: skip
    kept = onnx.numpy_helper.from_array(to_numpy(tensor, t.data_type), t.name)
    t.CopyFrom(kept)


def save_onnx(module: Any, path: str | os.PathLike, *, external_data: bool | None = None) -> None:
    """Write a module that `load_onnx` gave to an ONNX file: the same graph and names, the tensors it has now.

    external_data: put tensors into `<path>.data`; None: only where the file would be larger than a proto can be (2 GiB). The file
    is written beside its place and renamed, so that a failure leaves an older one whole.
    """
    inner = module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module
    if not isinstance(inner, OnnxGraph):
        raise TypeError(f"save_onnx takes a module that load_onnx gave, not {type(module).__name__}; for others use torch.onnx.export")
    path = Path(path)
    proto = to_proto(inner)
    size = sum(len(t.raw_data) for t in proto.graph.initializer)
    temporary = path.with_name(path.name + ".part")
    data = path.with_name(path.name + ".data")
    try:
        if external_data or (external_data is None and size > LARGEST):
            partial = data.with_name(data.name + ".part")
            partial.unlink(missing_ok=True)
            onnx.save_model(proto, temporary, save_as_external_data=True, location=partial.name, size_threshold=1024)
            kept = onnx.load_model(temporary, load_external_data=False)
            for t in kept.graph.initializer:
                for e in t.external_data:
                    if e.key == "location":
                        e.value = data.name
            temporary.write_bytes(kept.SerializeToString())
            if partial.exists():
                os.replace(partial, data)
        else:
            temporary.write_bytes(proto.SerializeToString())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise OnnxError(f"{path} cannot be written: {e.strerror or e}") from e


__all__ = ["save_onnx", "to_proto"]
