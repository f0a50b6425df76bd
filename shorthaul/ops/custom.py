"""Operators whose meaning is a program: custom autograd functions, and the identity that stops gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Operator
from shorthaul.ir.rewrite import inline

from .builder import Expansion, Gradient
from .elementwise import Elementwise
from .registry import OperatorDefinition, Sample, TensorType, register


class Detach(Elementwise):
    """The identity through which no gradient flows."""

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {}


@register
class WithValue(OperatorDefinition):
    """The value of `new`, the gradient of `old`: a write under no_grad into a tensor that requires grad."""

    name = "with_value"
    operands = ("old", "new")
    aten = ("shorthaul.with_value.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": types["new"]}

    def maps(self, c: Expansion) -> None:
        y = c.output()
        params = c.params(y.shape)
        c.map(params, {"x": at(c.input("new"), *params)}, {"y": at(y, *params)}, lambda x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        return {"old": g.grad()}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"old": TensorType(float32, (3, 4)), "new": TensorType(float32, (3, 4))})


register(Detach("detach", lambda x: x, ("detach.default",), (), None, ()))


@register
class CustomFunction(OperatorDefinition):
    """A custom autograd.Function: `forward` is a program from operands x0.. to results and saved values; `backward` one from
    (a gradient for every result, saved values) to the operands' gradients.

    results: number of results that the user sees; the remaining results are saved. gradients: for each output of
    `backward`, the index of the operand that it belongs to.
    """

    name = "custom_function"
    operands = ("x*",)
    attributes: Mapping[str, Any] = {"forward": None, "backward": None, "results": 1, "gradients": ()}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        body = attributes["forward"]
        out = [body.containers[o] for o in body.signature.outputs]
        return {f"y{i}": TensorType(c.dtype, c.shape) for i, c in enumerate(out)}

    def maps(self, c: Expansion) -> None:
        raise NotImplementedError("a custom function is inlined before expansion")

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        body = g.attr("backward")
        count = g.attr("results")
        saved = [g.output(f"y{i}") for i in range(count, len(g.node.writes))]
        incoming = []
        for i in range(count):
            grad, y = g.grad(f"y{i}"), g.output(f"y{i}")
            incoming.append(grad if grad is not None else g.full(y.shape, 0, y.dtype))
        bindings = dict(zip(body.signature.inputs, [c.name for c in incoming + saved], strict=True))
        nodes, outputs = inline(body, g.edit, bindings, phase="backward", origins=g.origins, hint="grad_")
        g.nodes += nodes
        containers = g.edit.program.containers
        return {f"x{i}": containers[o] for i, o in zip(g.attr("gradients"), outputs, strict=True)}


def inline_custom_functions(program: Any) -> None:
    """Replace every custom function by its forward program (after differentiation)."""
    for node in [n for n in program.nodes if isinstance(n, Operator) and n.op == "custom_function"]:
        with program.edit("InlineCustomFunction") as edit:
            body = node.attributes["forward"]
            bindings = dict(zip(body.signature.inputs, [m.container for m in node.reads.values()], strict=True))
            nodes, outputs = inline(body, edit, bindings, phase=node.phase, origins=node.origins)
            copies = []
            for m, o in zip(node.writes.values(), outputs, strict=True):
                copies.append(Operator("cast", {"dtype": program.containers[o].dtype}, reads={"x": full(program.containers[o])},
                                       writes={"y": m}, origins=node.origins, phase=node.phase))  # fmt: skip
            edit.replace(node, *nodes, *copies)


@register
class ParameterUpdate(OperatorDefinition):
    """What an optimizer does to parameters and their state: `body` is a program of maps from operands x0.. to the new values y0.."""

    name = "parameter_update"
    operands = ("x*",)
    attributes: Mapping[str, Any] = {"body": None}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        body = attributes["body"]
        out = [body.containers[o] for o in body.signature.outputs]
        return {f"y{i}": TensorType(c.dtype, c.shape) for i, c in enumerate(out)}

    def maps(self, c: Expansion) -> None:
        c.program(c.attr("body"), hint="update_")
