"""Nodes that are not about training (strings, images, trees) through onnx's own reference implementation, visibly.

Values that are no tensors of numbers are NumPy arrays here: strings have the type object.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.types import HELD, to_numpy, to_torch


class ReferenceNode:
    """A callable that computes one node. elems: element types of its operands, None where unknown."""

    def __init__(self, node: onnx.NodeProto, opsets: dict[str, int], elems: list[int | None], where: str) -> None:
        from onnx.reference import ReferenceEvaluator

        self.where = where
        self.elems = elems
        graph = helper.make_graph([node], "node", [helper.make_empty_tensor_value_info(n) for n in dict.fromkeys(node.input) if n],
                                  [helper.make_empty_tensor_value_info(n) for n in node.output if n])  # fmt: skip
        opset_imports = [helper.make_opsetid(d, v) for d, v in opsets.items()]
        model = helper.make_model(graph, opset_imports=opset_imports, ir_version=10)
        try:
            self.evaluator = ReferenceEvaluator(model)
        except Exception as e:
            raise OnnxError(f"{where}: onnx's reference implementation has no such operator ({e})") from e
        self.inputs = list(node.input)

    @torch.compiler.disable
    def __call__(self, *operands: Any) -> tuple:
        feeds = {n: _to_reference(v, e) for n, v, e in zip(self.inputs, operands, self.elems, strict=True) if n}
        try:
            results = self.evaluator.run(None, feeds)
        except Exception as e:
            raise OnnxError(f"{self.where}: onnx's reference implementation fails: {type(e).__name__}: {e}") from e
        return tuple(_from_reference(r) for r in results)  # type: ignore[union-attr]


def _to_reference(v: Any, elem: int | None) -> Any:
    if host.is_host(v):
        v = host.tensor(v)
    if isinstance(v, list):
        return [_to_reference(x, elem) for x in v]
    if isinstance(v, torch.Tensor):
        return to_numpy(v, elem) if elem in HELD else v.detach().cpu().numpy()
    return v


def _from_reference(v: Any) -> Any:
    if v is None or isinstance(v, (list, tuple)):
        return None if v is None else [_from_reference(x) for x in v]
    array = np.asarray(v)
    if array.dtype.kind in "OUS":
        return array.astype(object)
    elem = helper.np_dtype_to_tensor_dtype(array.dtype)
    return to_torch(array, elem) if elem in HELD and elem != TensorProto.STRING else array
