"""The backend suite of onnx, run through `load_onnx`: cases by name, one run of a case, and what is known not to pass."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx.backend.test
import torch
from onnx import ModelProto, TypeProto
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test.loader import load_model_tests

import shorthaul as sh
from shorthaul.frontends.onnx_model.types import HELD, to_numpy, to_torch


def encode(v: Any, t: TypeProto) -> Any:
    """A value of the suite as the module takes it: tensors, lists for sequences, None, NumPy arrays of strings."""
    kind = t.WhichOneof("value")
    if v is None:
        return None
    if kind == "optional_type":
        return encode(v, t.optional_type.elem_type)
    if kind == "sequence_type":
        return [encode(x, t.sequence_type.elem_type) for x in v]
    elem = t.tensor_type.elem_type
    return to_torch(np.asarray(v), elem) if elem in HELD else np.asarray(v, dtype=object)


def decode(v: Any, t: TypeProto) -> Any:
    """The other way."""
    kind = t.WhichOneof("value")
    if kind == "optional_type":
        return None if v is None else decode(v, t.optional_type.elem_type)
    if kind == "sequence_type":
        return [decode(x, t.sequence_type.elem_type) for x in v]
    return to_numpy(v, t.tensor_type.elem_type) if isinstance(v, torch.Tensor) else v


def input_types(module: Any) -> list[TypeProto]:
    """Types of the inputs that the module takes."""
    code = module._code
    return [v.type for v in code.proto.graph.input if v.name not in code.places]


class Rep(BackendRep):
    """A prepared model."""

    compiled = False

    def __init__(self, model: ModelProto) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sh.FallbackWarning)  # nodes through onnx's reference implementation
            self.module = sh.load_onnx(model)
        self.call = sh.optimize(self.module) if self.compiled else self.module

    def run(self, inputs: Any, **_: Any) -> tuple:
        operands = [encode(v, t) for v, t in zip(inputs, input_types(self.module), strict=True)]
        with torch.no_grad():
            results = self.call(*operands)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(decode(v, o.type) for v, o in zip(results, self.module._code.proto.graph.output, strict=True))


class CompiledRep(Rep):
    compiled = True


def _backend(rep: type[Rep]) -> type[Backend]:
    class OurBackend(Backend):
        @classmethod
        def prepare(cls, model: ModelProto, device: str = "CPU", **_: Any) -> Rep:
            return rep(model)

        @classmethod
        def supports_device(cls, device: str) -> bool:
            return device == "CPU"

    return OurBackend


@functools.cache
def cases_of(compiled: bool) -> dict[str, Any]:
    """A function that runs a case, by the case's name; it raises what the suite's runner raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = onnx.backend.test.BackendTest(_backend(CompiledRep if compiled else Rep), __name__)
    found = {}
    for case in suite.test_cases.values():
        for name in dir(case):
            if name.startswith("test_") and name.endswith("_cpu"):
                found[name.removesuffix("_cpu")] = getattr(case(name), name)
    return found


@functools.cache
def node_cases() -> dict[str, Any]:
    """The cases of single nodes: model and data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {t.name: t for t in load_model_tests(kind="node")}
