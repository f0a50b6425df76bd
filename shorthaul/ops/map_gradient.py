"""The operator whose meaning is a program of maps: what map reversal makes of an operator without a registered gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .builder import Expansion
from .registry import OperatorDefinition, TensorType, register


@register
class MapGradient(OperatorDefinition):
    """The gradient of an operator, derived from its maps.

    attribute body: a Program of maps whose inputs are the operands in order and whose outputs are the results in order; `of` names the
    operator that was differentiated. Its own gradient is map reversal again.
    """

    name = "map_gradient"
    operands = ("x*",)
    attributes: Mapping[str, Any] = {"body": None, "of": ""}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        body = attributes["body"]
        for (k, given), expected in zip(types.items(), body.signature.inputs, strict=True):
            c = body.containers[expected]
            same = given.dtype is c.dtype and len(given.shape) == len(c.shape)
            self.require(same, f"operand {k} is {given!r}, the program takes {c}")
        results = [body.containers[o] for o in body.signature.outputs]
        return {f"y{i}": TensorType(c.dtype, c.shape) for i, c in enumerate(results)}

    def maps(self, c: Expansion) -> None:
        c.program(c.attr("body"), hint="grad_")
