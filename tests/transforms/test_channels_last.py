"""ChannelsLast: the layout of images."""

from __future__ import annotations

from typing import Any

import pytest
from transform_nets import apply_checked, assert_refuses, assert_same, kernels, matches, network, only, results, values

from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.pipeline import STAGES
from shorthaul.transforms.level3_layout.channels_last import ChannelsLast, assign_channels_last, channels_last_strides

CONV = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "transposed": False, "output_padding": 0}


def block(train: bool = True) -> Program:
    """Convolution, activation, depthwise convolution, activation."""

    def build(b: Any, x: Any, w: Any, d: Any) -> Any:
        h = b.op("silu", x=b.op("convolution", CONV, x=x, weight=w))
        return b.op(
            "mean", {"dims": (2, 3)}, x=b.op("silu", x=b.op("convolution", {**CONV, "groups": 4}, x=h, weight=d))
        )

    return network(build, parameters={"w": (4, 3, 3, 3), "d": (4, 1, 3, 3)}, train=train, x=(2, 3, 5, 5))


def is_channels_last(p: Program, name: str) -> bool:
    c = p.containers[name]
    return c.actual_strides == channels_last_strides(c.shape)


def test_images_inside_are_laid_out_channels_last_forward_and_backward() -> None:
    p = block()
    apply_checked(ChannelsLast(), only(ChannelsLast().matches(p)))
    inside = [
        c.name
        for c in p.containers.values()
        if len(c.shape) == 4 and c.role == "transient" and "packed" not in c.name and c.shape[0] == 2
    ]
    assert inside and all(is_channels_last(p, n) for n in inside)
    assert not is_channels_last(p, "x"), "the caller's tensors keep their layout"


def test_depthwise_weights_are_packed_once_with_channels_innermost() -> None:
    p = block()
    apply_checked(ChannelsLast(), only(ChannelsLast().matches(p)))
    packs = [k for k in kernels(p) if k.label == "pack"]
    assert len(packs) == 1 and packs[0].phase == "forward"
    (packed,) = packs[0].written_containers()
    assert p.containers[packed].actual_strides[0] == 1
    assert len(p.readers(packed)) >= 2, "forward window and gradient"


def test_refuses_a_network_without_images() -> None:
    p = network(lambda b, x: b.op("softmax", {"dim": -1}, x=x), x=(4, 6))
    assert_refuses(ChannelsLast(), only(ChannelsLast().matches(p)), "there is no convolution or pooling")
    assert assign_channels_last(p) == 0


def test_refuses_to_do_it_twice() -> None:
    p = block()
    assert assign_channels_last(p) > 4
    assert_refuses(ChannelsLast(), only(matches(ChannelsLast(), p)), "channels-last already")


def test_strides() -> None:
    assert channels_last_strides((2, 3, 4, 5)) == (60, 1, 15, 3)


@pytest.mark.parametrize(("keep", "last"), [(0, True), (1152, False), (1153, True)])
def test_gradients_of_large_weights_may_keep_the_layout_of_the_weights(keep: int, last: bool) -> None:
    def build(b, x, w):  # type: ignore[no-untyped-def]
        how = {k: (v,) if isinstance(v, int) and k in ("stride", "padding", "dilation", "output_padding") else v for k, v in CONV.items()}
        y = b.op("convolution", how, x=x, weight=w)
        gradient = b.op("conv_grad_weight", {**how, "size": (3, 3)}, g=y, x=x)
        return b.op("tanh", x=gradient)

    p = network(build, parameters={"w": (16, 8, 3, 3)}, train=False, maps=False, x=(1, 8, 5, 5))
    inputs = values(p)
    expected = results(p, inputs)
    STAGES["Expand"](p)
    t = ChannelsLast(keep)
    assert t.try_apply(only(t.matches(p)))
    (call,) = (n for n in p.nodes if isinstance(n, LibraryCall) and n.function == "aten::conv_grad_weight")
    assert is_channels_last(p, call.writes["y"].container) == last
    assert_same(p, inputs, expected)
