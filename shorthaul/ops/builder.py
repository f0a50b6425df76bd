"""What operator definitions build with: `Expansion` (an operator into maps or a library call) and `Gradient` (more operators)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import LibraryCall, Node, Operator, Origin
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import inline
from shorthaul.ir.scalar import Scalar, cast, read
from shorthaul.symbolic import Expr

from .registry import TensorType, definition

IntLike = Union[int, Expr]


class Expansion(MapBuilder):
    """The lowering of one operator: its operands and results as containers, and a place to build nodes."""

    def __init__(self, edit: Edit, node: Operator) -> None:
        super().__init__(edit, node.phase, node.origins, hint=node.op)
        self.node = node

    def input(self, name: str = "x") -> Container:
        """The container of an operand; KeyError when an optional one is absent (see `has`)."""
        return self.containers[self.node.reads[name].container]

    def has(self, name: str) -> bool:
        return name in self.node.reads

    def inputs(self) -> list[Container]:
        """All operands in order."""
        return [self.containers[m.container] for m in self.node.reads.values()]

    def output(self, name: str = "y") -> Container:
        return self.containers[self.node.writes[name].container]

    def wants(self, name: str) -> bool:
        """Whether the result is used (results nobody reads may be absent)."""
        return name in self.node.writes

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def wide(self, y: Container) -> Container:
        """Where a sum into y accumulates: y itself, or a temporary in its compute dtype (`narrow` casts it to y)."""
        return y if y.dtype.compute is y.dtype else self.temp(y.shape, y.dtype.compute)

    def narrow(self, total: Container, y: Container) -> None:
        """y = total, cast, where `wide` made a temporary."""
        if total is not y:
            p = self.params(y.shape)
            self.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})

    def library(self, function: str, attributes: Mapping[str, Any] | None = None) -> LibraryCall:
        """Lower to one library call with the operator's own operands and results."""
        call = LibraryCall(function, attributes if attributes is not None else self.node.attributes, reads=self.node.reads,
                           writes=self.node.writes, origins=self.origins, phase=self.phase, defines=self.node.defines)  # fmt: skip
        self.nodes.append(call)
        return call

    def program(self, body: Program, hint: str = "") -> None:
        """Lower to the nodes of a program whose inputs and outputs are the operator's operands and results, in order."""
        bindings = dict(zip(body.signature.inputs, [m.container for m in self.node.reads.values()], strict=True))
        bindings.update(zip(body.signature.outputs, [m.container for m in self.node.writes.values()], strict=True))
        nodes, _ = inline(body, self.edit, bindings, phase=self.phase, origins=self.origins, hint=hint)
        self.nodes += nodes


class OpBuilder:
    """Appends operators to a program inside an edit: `y = b.op("matmul", a=a, b=w)`. Types are inferred, results declared."""

    def __init__(self, edit: Edit, phase: str = "backward", origins: tuple[Origin, ...] = (), hint: str = "t") -> None:
        self.edit = edit
        self.phase = phase
        self.origins = origins
        self.hint = hint
        self.nodes: list[Node] = []

    def op(self, name: str, attributes: Mapping[str, Any] | None = None, /, **operands: Container | None) -> Any:
        """Add an operator; returns its result container, or a tuple of them for several results. Operands that are None are left out."""
        d = definition(name)
        given = {k: v for k, v in operands.items() if v is not None}
        attrs = {**d.attributes, **(attributes or {})}
        types = d.infer({k: TensorType(v.dtype, v.shape) for k, v in given.items()}, attrs)
        results = {}
        for k, t in types.items():
            c = Container(self.edit.program.fresh(f"{self.hint}_{name}" if self.hint else name), t.dtype, t.shape)
            results[k] = self.edit.add_container(c)
        self.nodes.append(Operator(name, attrs, reads={k: full(v) for k, v in given.items()},
                                   writes={k: full(v) for k, v in results.items()}, origins=self.origins, phase=self.phase))  # fmt: skip
        values = tuple(results.values())
        return values[0] if len(values) == 1 else values

    def pointwise(self, code: Callable[..., Scalar], *xs: Container, dtype: DType | None = None) -> Container:
        """An elementwise operator from a function of scalars (broadcasting the containers). The scalars arrive in their compute dtype
        (16-bit floats as float32); the result is cast to `dtype` (default: that of the first container of the result's kind)."""
        names = [f"x{i}" for i in range(len(xs))]
        value = code(*(cast(read(n, x.dtype), x.dtype.compute) for n, x in zip(names, xs, strict=True)))
        if dtype is None:
            dtype = next((x.dtype for x in xs if x.dtype.compute is value.dtype), value.dtype)
        return self.op("pointwise", {"code": cast(value, dtype)}, **dict(zip(names, xs, strict=True)))

    def sum_to(self, x: Container, shape: Sequence[IntLike]) -> Container:
        """Sum over the dimensions that broadcasting had added, giving `shape`."""
        return x if tuple(x.shape) == tuple(shape) else self.op("sum_to", {"shape": tuple(shape)}, x=x)

    def reshape(self, x: Container, shape: Sequence[IntLike]) -> Container:
        return x if tuple(x.shape) == tuple(shape) else self.op("reshape", {"shape": tuple(shape)}, x=x)

    def permute(self, x: Container, dims: Sequence[int]) -> Container:
        return x if list(dims) == list(range(len(x.shape))) else self.op("permute", {"dims": tuple(dims)}, x=x)

    def cast(self, x: Container, dtype: DType) -> Container:
        return x if x.dtype is dtype else self.pointwise(lambda v: v, x, dtype=dtype)

    def full(self, shape: Sequence[IntLike], value: float | int | bool, dtype: DType) -> Container:
        """A container filled with one number."""
        return self.op("full", {"shape": tuple(shape), "value": value, "dtype": dtype})


class Gradient(OpBuilder):
    """What a registered gradient sees: operands, results, incoming gradients; it returns {operand: gradient container or None}."""

    def __init__(self, edit: Edit, node: Operator, cotangents: Mapping[str, Container], needed: frozenset[str]) -> None:
        super().__init__(edit, "backward", node.origins, hint="grad")
        self.node = node
        self._cotangents = cotangents
        self._needed = needed

    def input(self, name: str = "x") -> Container:
        return self.edit.program.containers[self.node.reads[name].container]

    def has(self, name: str) -> bool:
        return name in self.node.reads

    def inputs(self) -> dict[str, Container]:
        return {k: self.edit.program.containers[m.container] for k, m in self.node.reads.items()}

    def output(self, name: str = "y") -> Container:
        return self.edit.program.containers[self.node.writes[name].container]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def grad(self, name: str = "y") -> Container | None:
        """The incoming gradient of a result, None where it is zero."""
        return self._cotangents.get(name)

    def needs(self, name: str) -> bool:
        """Whether the operand's gradient is asked for."""
        return name in self._needed
