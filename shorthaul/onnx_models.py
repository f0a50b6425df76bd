"""ONNX models that train: `load_onnx`, `save_onnx`. They need the package onnx, which `pip install 'shorthaul[onnx]'` brings."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from shorthaul.api import capture
from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.module import OnnxGraph
from shorthaul.ir.program import Program

__all__ = ["OnnxError", "OnnxModule", "load_onnx", "save_onnx"]


class OnnxModule(OnnxGraph):
    """What `load_onnx` gives: a module like any other. Its parameters are the model's floating initializers, under their names."""

    def program(self, inputs: Any, *, train: bool = True, strict: bool = False) -> Program:
        """The program of one call, as `sh.capture(self, inputs)`. inputs: a tensor, or a tuple in the graph's order."""
        return capture(self, inputs if isinstance(inputs, tuple) else (inputs,), train=train, strict=strict)


def load_onnx(source: Any) -> OnnxModule:
    """An ONNX model as a module that trains with any PyTorch optimizer.

    source: the path of a file, or a ModelProto, or its bytes. Parameters are the floating initializers that the graph computes with,
    named as in the model; integers and the running statistics of batch normalizations are buffers; initializers that only say shapes
    are constants of the code (`module.code` shows it). Operator sets 7 to the newest; If, Loop, Scan, functions, external data
    beside the model. Nodes that can only run in onnx's reference implementation (strings, images, trees) are named by a
    FallbackWarning.
    Raises OnnxError for a model that is damaged, not valid or uses what is not supported, naming the node and the reason.
    """
    _need_onnx()
    from shorthaul.frontends.onnx_model import load  # needs onnx

    module = load.load_onnx(source, OnnxModule)
    assert isinstance(module, OnnxModule)
    return module


def save_onnx(module: Any, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write a module that `load_onnx` gave to an ONNX file: the same graph and names, with the values that its tensors have now.

    external_data: put large tensors into `<path>.data`; None: only where the file would be larger than 2 GiB. An older file at
    that place stays whole when writing fails. Raises OnnxError where a tensor no longer fits what the graph declares.
    """
    _need_onnx()
    from shorthaul.frontends.onnx_model import save  # needs onnx

    save.save_onnx(module, path, external_data=external_data)


def _need_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise OnnxError("ONNX models need the package onnx, which is not installed", "pip install 'shorthaul[onnx]'")
