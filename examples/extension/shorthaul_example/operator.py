"""An operator: squareplus(x) = (x + sqrt(x² + b)) / 2, a smooth ReLU, first for eager PyTorch, then for Shorthaul."""

import torch

from shorthaul.ir.builder import at
from shorthaul.ir.scalar import apply
from shorthaul.ops.registry import ExpansionRule, OperatorDefinition, Sample, register


@torch.library.custom_op("example::squareplus", mutates_args=())
def squareplus(x: torch.Tensor, b: float = 4.0) -> torch.Tensor:
    return (x + torch.sqrt(x * x + b)) / 2


@squareplus.register_fake
def _(x, b=4.0):
    return torch.empty_like(x)


def _backward(ctx, gy):
    return gy * (1 + ctx.x * torch.rsqrt(ctx.x * ctx.x + ctx.b)) / 2, None


def _setup(ctx, inputs, output):
    ctx.x, ctx.b = inputs


squareplus.register_autograd(_backward, setup_context=_setup)


@register
class SquarePlus(OperatorDefinition):
    name = "squareplus"
    operands = ("x",)
    attributes = {"b": 4.0}
    aten = ("example.squareplus.default",)  # calls of this overload mean this operator

    def infer(self, types, attributes):
        self.require(types["x"].dtype.is_float, f"x is {types['x'].dtype}, which is not a floating type")
        return {"y": types["x"]}

    def maps(self, c):
        """The meaning, one line of scalar code; everything else (kernels, fusion, bytes, the interpreter) follows from it."""
        self._elementwise(c, lambda x, root: (x + root) * 0.5)

    def more_expansions(self):
        return {"stable": ExpansionRule(self._stable)}  # another way to compute it, chosen by ExpansionChoice(to="stable")

    def _stable(self, c):
        """Without cancellation where x is far below zero: b / (2 (root - x))."""
        b = c.attr("b")
        self._elementwise(c, lambda x, root: apply("where", x < 0, (root * 0 + 0.5 * b) / (root - x), (x + root) * 0.5))

    def _elementwise(self, c, code):
        x, y, b = c.input(), c.output(), c.attr("b")
        p = c.params(y.shape)
        c.map(p, {"x": at(x, *p)}, {"y": at(y, *p)}, lambda x: {"y": code(x, apply("sqrt", x * x + b))})

    def gradient(self, g):
        """Optional: without it the maps are differentiated."""
        b = g.attr("b")
        return {"x": g.pointwise(lambda gy, x: gy * (x * apply("rsqrt", x * x + b) + 1.0) * 0.5, g.grad(), g.input())}

    def samples(self):
        yield Sample({"x": ("float32", (3, 4))}, {"b": 1.0})
