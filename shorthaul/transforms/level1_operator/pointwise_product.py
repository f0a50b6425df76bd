"""PointwiseProduct: a convolution with a kernel of one element is a matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Union

from shorthaul.analysis.reorders import CONVOLUTIONS, channels_last_strides
from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, product

from ..base import Match, Transformation, hint_value, require

IntLike = Union[int, Expr]

# what the product's operands a and b are, and its equation: @ stands for the positions, # for the kernel's single elements
_PRODUCTS = {
    "aten::convolution": ("x", "weight", "nc@,kc#->nk@"),
    "aten::conv_grad_input": ("g", "weight", "nk@,kc#->nc@"),
    "aten::conv_grad_weight": ("g", "x", "nk@,nc@->kc#"),
}
_POSITIONS = "hwd"
# A sum over so many positions for each element of the result is a product that libraries of narrow types do not share between cores.
LONG = 0.125


class PointwiseProduct(Transformation):
    """Compute a 1×1 convolution of channels-last images, or one of its gradients, as a matrix product.

    before:  y[n, k, h, w] = aten::convolution(x, weight[k, c, 1, 1])            (N, C, H, W, the channels innermost)
    after:   y[n, k, h, w] = contract("nchw,kc11->nkhw", x, weight)              one product of [N*H*W, C] and [C, K]

    In channels-last an image is a matrix of positions and channels as it lies in memory. A convolution library packs weights and searches
    for an algorithm at every call; the product does not, and fills planned memory. On 2 cores with AVX-512 (float32, the shapes of
    EfficientNet-B0 at 128×128, batch 8) products take 0.66 of the convolutions' time, forward and backward; with AVX2 0.76 forward.

    types: "16-bit" for GPUs, on which PyTorch has one precision for convolutions in float32 and another one for products. In bfloat16 on
    an H100, the layers of ResNet-50 and EfficientNet-B0 take the same time by both (the gradients of weights 3 % less by products).
    """

    level = 1
    allowed = {"types": ("all", "16-bit")}

    def __init__(self, types: str = "all") -> None:
        self.types = types

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, LibraryCall) and node.function in CONVOLUTIONS and program.node_is_current(node):
                yield Match(program, {"call": node})

    def check(self, m: Match) -> None:
        p, call = m.program, m.call
        gradient = call.function == "aten::conv_grad_weight"
        a, b, equation = _PRODUCTS[call.function]
        images = [p.containers[call.reads[k].container] for k in (a, b) if k != "weight"]
        result = p.containers[call.writes["y"].container]
        weight = result if gradient else p.containers[call.reads["weight"].container]
        images += [] if gradient else [result]
        _require_pointwise(call.attributes, weight)
        require(self.types == "all" or result.dtype.itemsize == 2, f"{result.name} is of {result.dtype}, not of 16 bits")
        for c in images:
            require(_is_matrix(c), f"{c.name} is not in channels-last, so its positions and channels are no matrix")
        if gradient and result.dtype.itemsize < 4 and self.types == "all":
            positions = hint_value(p, product(images[0].shape)) / max(hint_value(p, images[0].shape[1]), 1)
            reason = f"each element of {result.name} sums over many positions in a narrow type, in which the library's gradient is faster"
            require(positions <= LONG * hint_value(p, product(result.shape)), reason)
        rank = len(weight.shape) - 2
        single = all(isinstance(n, int) and n == 1 for c in images for n in c.shape[2:])
        require("bias" not in call.reads or single, "it adds a bias, which the convolution does on the way and a product in another pass")
        places = "1" * rank if single else _POSITIONS[:rank]
        m.derived["reads"] = {"a": call.reads[a], "b": call.reads[b]}
        written_out = equation.replace("@", places).replace("#", "1" * rank)
        m.derived["attributes"] = {"equation": written_out, "alpha": 1, "beta": 1, "sums": "float32"}
        if "bias" in call.reads:
            m.derived["reads"]["bias"] = call.reads["bias"]
            m.derived["attributes"]["along"] = 1

    def saves(self, m: Match) -> IntLike:
        """No traffic: the same operands and results. What it saves is time."""
        return 0

    def apply(self, m: Match, edit: Edit) -> None:
        edit.replace(m.call, LibraryCall("contract", m.attributes, reads=m.reads, writes=dict(m.call.writes), origins=m.call.origins,
                                         phase=m.call.phase))  # fmt: skip


def _require_pointwise(attributes: Mapping[str, Any], weight: Container) -> None:
    def all_are(key: str, value: int) -> bool:
        given = attributes[key]
        return all(v == value for v in (given if isinstance(given, (tuple, list)) else (given,)))

    single = 3 <= len(weight.shape) <= 5 and all(isinstance(n, int) and n == 1 for n in weight.shape[2:])
    require(single, "its kernel has more than one element")
    require(not attributes["transposed"], "it is transposed")
    require(attributes["groups"] == 1, "its channels are in groups")
    require(all_are("stride", 1) and all_are("padding", 0), "it has a stride or padding")


def _is_matrix(c: Container) -> bool:
    """Whether an image is, in memory, a dense matrix of positions and channels. Dimensions of size one may have any stride."""
    wanted = channels_last_strides(c.shape)
    return all((isinstance(n, int) and n == 1) or s is w or s == w for n, s, w in zip(c.shape, c.actual_strides, wanted, strict=True))
