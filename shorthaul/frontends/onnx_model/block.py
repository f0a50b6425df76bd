"""Values, names and functions of generated code while it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

from shorthaul.frontends.onnx_model.types import type_name

MISSING: Any = object()


@dataclass(frozen=True)
class Value:
    """A value of the graph in generated code.

    name: the Python variable. host: whether it may be a host value. literal: the numbers of a small constant. scalar: a constant of
    the graph (not an initializer) of rank 0.
    """

    name: str
    type: TypeProto | None = None
    host: bool = False
    literal: Any = MISSING
    scalar: bool = False

    @property
    def elem(self) -> int | None:
        """The element type, also of a sequence or optional; None where it is not known."""
        return elem_of(self.type)


def elem_of(t: TypeProto | None) -> int | None:
    """The element type of a tensor, or of the tensors in a sequence or optional; None where it is not known."""
    if t is None:
        return None
    kind = t.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        return getattr(t, kind).elem_type or None
    return elem_of(getattr(t, kind).elem_type) if kind in ("sequence_type", "optional_type") else None


def tensor_type(elem: int | None) -> TypeProto | None:
    """The type of a tensor of unknown rank."""
    return None if not elem else TypeProto(tensor_type=TypeProto.Tensor(elem_type=elem))


@dataclass
class Frame:
    """One generated function."""

    name: str
    parameters: list[str] = field(default_factory=list)
    lines: list[tuple[str, tuple[str, str] | None]] = field(default_factory=list)
    captured: dict[str, None] = field(default_factory=dict)  # Python variables from outside


class Block:
    """Names of one graph or function while it is written; `outer` is what a body of control flow may read besides."""

    def __init__(
        self, frame: Frame, opsets: dict[str, int], outer: Block | None = None, attributes: dict[str, AttributeProto] | None = None,
        path: str = "", depth: int = 0,
    ) -> None:  # fmt: skip
        self.frame, self.opsets, self.outer = frame, opsets, outer
        self.attributes, self.path, self.depth = attributes, path, depth
        self.values: dict[str, Value] = {}
        self.data: dict[str, Callable[[], Value]] = {}  # writes the line that loads an initializer or constant

    def find(self, name: str) -> Value | None:
        found = self.values.get(name)
        if found is None and self.outer is not None:
            found = self.outer.find(name)
            if found is not None and found.literal is MISSING:
                self._capture(found)
        return found

    def load(self, name: str) -> Value | None:
        """The value of a small constant as a tensor: its variable is loaded where the constant belongs."""
        if name in self.data:
            return self.data[name]()
        if name not in self.values and self.outer is not None:
            found = self.outer.load(name)
            if found is not None:
                self._capture(found)
            return found
        return None

    def _capture(self, v: Value) -> None:
        assert self.outer is not None
        if self.frame is not self.outer.frame:
            self.frame.captured[v.name] = None


def without(node: NodeProto, names: set[str]) -> NodeProto:
    """A copy of the node that leaves these operands out."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend("" if n in names else n for n in node.input)
    return copy


def plain(v: Any) -> Any:
    """An attribute's value as Python's: texts decoded, lists as tuples."""
    if isinstance(v, bytes):
        return v.decode("utf-8", "replace")
    if isinstance(v, (str, int, float, TensorProto, GraphProto, TypeProto, onnx.SparseTensorProto)) or v is None:
        return v
    return tuple(plain(x) for x in v)


def source(v: Any) -> str:
    """Source text of numbers, texts and tuples of them."""
    if isinstance(v, tuple):
        return "(" + "".join(source(x) + ", " for x in v).strip() + ")"
    if isinstance(v, (np.generic,)):
        v = v.item()
    return repr(v)


def is_number(text: str) -> bool:
    """Whether source text is a number."""
    return bool(re.fullmatch(r"-?(\d[\d.e+-]*|inf|nan)|True|False", text))


def describe(t: TypeProto | None) -> str:
    """A type in messages."""
    if t is None:
        return "?"
    if t.HasField("tensor_type"):
        dims = [d.dim_param or str(d.dim_value) if d.WhichOneof("value") else "?" for d in t.tensor_type.shape.dim]
        return f"{type_name(t.tensor_type.elem_type)}[{', '.join(dims)}]"
    return str(t.WhichOneof("value") or "?").removesuffix("_type")


def resolved(block: Block, node: NodeProto) -> NodeProto:
    """The node with references to attributes of the function around it replaced by what the caller gave."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for a in node.attribute:
        if not a.ref_attr_name:
            copy.attribute.append(a)
        elif block.attributes is not None and a.ref_attr_name in block.attributes:
            copy.attribute.append(block.attributes[a.ref_attr_name])
            copy.attribute[-1].name = a.name
    return copy
