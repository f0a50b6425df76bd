"""A call of any ATen operator: what operators without a registry entry become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .table import LibraryError, Tensors, library


def overload(target: str) -> Any:
    """The operator overload of "aten.foo.default" (or of another namespace); raises LibraryError when it does not exist."""
    value: Any = torch.ops
    for part in target.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as e:
            raise LibraryError(f"PyTorch {torch.__version__} has no operator {target}") from e
    return value


def torch_constant(name: str) -> Any:
    """A dtype, device, layout or memory format from its text ("torch.float32", "cpu", "torch.channels_last")."""
    if name.startswith("torch."):
        return getattr(torch, name.removeprefix("torch."))
    return torch.device(name)


def filled(template: Any, reads: Tensors) -> Any:
    """A template of arguments with operands and constants put in: ("operand", name), ("torch", text), lists, numbers."""
    if isinstance(template, tuple) and len(template) == 2 and template[0] == "operand":
        return reads[template[1]]
    if isinstance(template, tuple) and len(template) == 2 and template[0] == "torch":
        return torch_constant(template[1])
    if isinstance(template, (list, tuple)):
        return [filled(t, reads) for t in template]
    if isinstance(template, Mapping):
        return {k: filled(t, reads) for k, t in template.items()}
    return template


@library("aten::call")
def call(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """The operator `target` on `arguments` and `keywords` (templates, see `filled`); its tensors are the results y0, y1, ..."""
    result = overload(attributes["target"])(
        *filled(attributes["arguments"], reads), **filled(attributes.get("keywords") or {}, reads)
    )
    values = list(result) if isinstance(result, (list, tuple)) else [result]
    if not attributes.get("allocates"):  # a view would outlive the planned memory of its operand
        operands = {t.untyped_storage()._cdata for t in reads.values()}
        values = [v.clone() if isinstance(v, torch.Tensor) and v.untyped_storage()._cdata in operands else v for v in values]
    return {f"y{i}": v for i, v in enumerate(values) if isinstance(v, torch.Tensor)}
