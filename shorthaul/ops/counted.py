"""Operators whose results have sizes that depend on data.

Such a size is a symbol that the node defines (`ir.nodes.Defines`). The front end declares it from what PyTorch's tracing says, with the
bound that `most` gives, and hands it to the definition as a size of `call.results`; the definition keeps it as an attribute, `infer` gives
it back, and every expansion lets one of its nodes define it (`Expansion.library` passes the definition on). To register another such
operator, set `defines_sizes = True` and write `most`. Their kernels are library calls: a map's iterations do not depend on data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int64
from shorthaul.symbolic import product

from .builder import Expansion, Gradient
from .registry import AtenCall, ExpansionRule, IntLike, OperatorDefinition, OperatorError, TensorType, register


class Counted(OperatorDefinition):
    """Base: one result, the leading size of which is the attribute `count`."""

    defines_sizes = True
    attributes: Mapping[str, Any] = {"count": 0}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands, attributes = super().from_aten(call)
        assert call.results[0] is not None
        return operands, {**attributes, "count": call.results[0].shape[0]}

    def maps(self, c: Expansion) -> None:
        raise OperatorError(f"{self.name} has no maps: how many elements it gives depends on data; it is a library call")

    def more_expansions(self) -> dict[str, ExpansionRule]:
        return {"library": ExpansionRule(self.call)}

    def call(self, c: Expansion) -> None:
        """Lower to the library call of the operator's name."""
        c.library(self.name, {})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


@register
class Nonzero(Counted):
    """The positions of the elements that are not zero, in order: one row of indices each. What indexing by a mask is made of."""

    name = "nonzero"
    aten = ("aten.nonzero.default",)

    def most(self, call: AtenCall) -> IntLike:
        return product(call["self"].shape)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(int64, (attributes["count"], len(types["x"].shape)))}


@register
class RepeatedPositions(Counted):
    """i, x[i] times, for every i: what `repeat_interleave` by a tensor of repeats indexes with."""

    name = "repeated_positions"
    aten = ("aten.repeat_interleave.Tensor",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(len(types["x"].shape) == 1, f"repeats of shape {list(types['x'].shape)} are not a list")
        return {"y": TensorType(int64, (attributes["count"],))}
