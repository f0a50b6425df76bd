"""PadContraction: sizes of large matrix products that tensor cores cannot take whole are filled up with zeros."""

from __future__ import annotations

from typing import Any

import pytest
from compiled import assert_compiled
from transform_nets import apply_checked, assert_refuses, matches, network, results, values

from shorthaul.ir.dtypes import float64
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import apply, read
from shorthaul.ops.expand import choose_default, expand
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.fuse import default_fusions, fuse
from shorthaul.transforms.level3_layout.pad_contraction import PadContraction
from shorthaul.transforms.level4_global.alias_views import AliasViews
from shorthaul.transforms.level4_global.common_subexpressions import eliminate_common_subexpressions

ALWAYS = PadContraction(granule=64, least_size=5, least_flops=1, least_flops_a_byte=0)  # float64: steps of 8 elements


def square(b: Any, x: Any) -> Any:
    return b.op("pointwise", {"code": read("x0", float64) * read("x0", float64)}, x0=x)


def head(b: Any, x: Any, w: Any, bias: Any) -> Any:
    """A vocabulary of 11 words, log of softmax: the loss of a language model."""
    y = b.op("contract", {"equation": "abk,nk->abn"}, a=square(b, x), b=square(b, w), bias=bias)
    return b.op("log_softmax", {"dim": 2}, x=b.op("pointwise", {"code": apply("tanh", read("x0", float64))}, x0=y))


def direct(b: Any, x: Any, w: Any, bias: Any) -> Any:
    """The operands and the result belong to the caller."""
    return b.op("contract", {"equation": "abk,nk->abn", "alpha": 0.5, "beta": 2.0}, a=x, b=w, bias=bias)


def program(build: Any, words: int = 11, width: int = 8) -> Program:
    return network(build, maps=False, x=(2, 3, width), parameters={"w": (words, width), "bias": (words,)})


def assert_lowered(p: Program, inputs: Any, expected: Any) -> None:
    """Fused, interpreted and compiled, the program computes what it did."""
    expand(p, choose_default)
    eliminate_common_subexpressions(p)
    fuse(p, default_fusions())
    apply_everywhere(p, [AliasViews()])
    for k, v in results(p, inputs).items():
        assert abs(v - expected[k]).max() < 1e-12 * max(1, abs(expected[k]).max())
    assert_compiled(p, inputs, expected)


@pytest.mark.parametrize("build", [head, direct])
@pytest.mark.parametrize(("words", "width"), [(11, 8), (11, 7), (16, 5)])
def test_sizes_are_filled_up(build: Any, words: int, width: int) -> None:
    p = program(build, words, width)
    inputs = values(p)
    expected = results(p, inputs)
    for n in [m.node.id for m in matches(ALWAYS, p)]:
        apply_checked(ALWAYS, next(m for m in matches(ALWAYS, p) if m.node.id == n))
    assert len([r for r in p.log if r.name == "PadContraction"]) == 3
    sizes = {c for n in p.nodes if getattr(n, "op", "") == "contract" for m in (*n.reads.values(), *n.writes.values())
             for c in p.containers[m.container].shape[-2:]}  # fmt: skip
    assert sizes <= {3, 8, 16}
    assert_lowered(p, inputs, expected)


def test_gradients_share_what_is_filled() -> None:
    p = program(head)
    apply_everywhere(p, [ALWAYS])
    filled = [n for n in p.nodes if getattr(n, "op", "") == "slice_backward"]
    assert len(filled) == 3, "the weights, the bias, and the gradient of the result"


def test_rows_that_are_one_dimension_together_stay() -> None:
    p = network(lambda b, x, w: b.op("contract", {"equation": "abk,nk->abn"}, a=x, b=w), maps=False, train=False, x=(8, 11, 16), w=(8, 16))
    assert_refuses(ALWAYS, matches(ALWAYS, p)[0], "are multiples of 8")


REFUSED = {
    "even": (ALWAYS, (16, 8), "are multiples of 8"),
    "small": (PadContraction(granule=64, least_size=12, least_flops=1, least_flops_a_byte=0), (11, 8), "or small"),
    "wide type": (PadContraction(least_size=5, least_flops=1, least_flops_a_byte=0), (11, 8), "only products in 16-bit types"),
    "little work": (PadContraction(64, least_size=5, least_flops=10_000, least_flops_a_byte=0), (11, 8), "1056 operations do not pay"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refuses_with_the_reason(why: str) -> None:
    transformation, (words, width), reason = REFUSED[why]
    p = program(direct, words, width)
    assert_refuses(transformation, matches(transformation, p)[0], reason)


def stem(b: Any, x: Any, w: Any, bias: Any) -> Any:
    """An image of three channels, computed with before: its gradient is wanted, too."""
    y = b.op("convolution", {"stride": (2, 2), "padding": (1, 1)}, x=square(b, x), weight=w, bias=bias)
    return b.op("pointwise", {"code": apply("tanh", read("x0", float64))}, x0=y)


def image(channels: int = 3, out: int = 48, groups: int = 1) -> Program:
    def build(b: Any, x: Any, w: Any, bias: Any) -> Any:
        return b.op("convolution", {"groups": groups}, x=x, weight=w, bias=bias) if groups > 1 else stem(b, x, w, bias)

    return network(build, maps=False, x=(2, channels, 6, 5), parameters={"w": (out, channels // groups, 3, 3), "bias": (out,)})


IMAGES = PadContraction(granule=64, least_image=1)


def test_channels_of_images_are_filled_up() -> None:
    p = image()
    inputs = values(p)
    expected = results(p, inputs)
    for n in [m.node.id for m in matches(IMAGES, p) if m.node.op != "contract"]:
        apply_checked(IMAGES, next(m for m in matches(IMAGES, p) if m.node.id == n))
    assert [r.name for r in p.log].count("PadContraction") == 2, "forward, and the gradient of the weight"
    calls = [n for n in p.nodes if getattr(n, "op", "") in ("convolution", "conv_grad_weight")]
    assert [p.containers[n.reads["x"].container].shape[1] for n in calls] == [8, 8]
    assert len([n for n in p.nodes if getattr(n, "op", "") == "slice_backward"]) == 2, "the image once, and the weight"
    assert_lowered(p, inputs, expected)


NO_IMAGE = {
    "even": (IMAGES, image(8), "are a multiple of 8"),
    "groups": (IMAGES, image(4, groups=2), "in groups"),
    "small": (PadContraction(granule=64, least_image=1 << 20), image(), "a small image"),
    "wide type": (PadContraction(least_image=1), image(), "only 16-bit types"),
    "few results": (IMAGES, image(out=4), "larger than the result"),
}


@pytest.mark.parametrize("why", NO_IMAGE)
def test_refuses_an_image_with_the_reason(why: str) -> None:
    transformation, p, reason = NO_IMAGE[why]
    assert_refuses(transformation, next(m for m in matches(transformation, p) if m.node.op == "convolution"), reason)
