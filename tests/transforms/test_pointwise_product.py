"""PointwiseProduct: 1×1 convolutions of channels-last images as matrix products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transform_nets import assert_refuses

import shorthaul as sh
from shorthaul.analysis.flops import node_flops
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import LibraryCall
from shorthaul.transforms.level1_operator.pointwise_product import PointwiseProduct


def lowered(module: nn.Module, *shape: int, dtype: torch.dtype = torch.float64, memory_format: Any = torch.channels_last) -> Any:
    """Everything but this transformation, of a network whose images are channels-last from the start."""
    x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    program = sh.capture(module.to(dtype), (x,), train=True)
    program.optimize(level=0)
    return program


def pointwise(rank: int, **options: Any) -> nn.Module:
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    return nn.Sequential(convolution(6, 10, 1, bias=False, **options), nn.Tanh(), convolution(10, 4, 1, bias=False))


def calls(program: Any) -> list[LibraryCall]:
    return [n for n in program.nodes if isinstance(n, LibraryCall)]


@pytest.mark.parametrize("case", ["images", "voxels", "single", "symbolic"])
def test_results_and_gradients_are_the_same(case: str) -> None:
    torch.manual_seed(0)
    shape = {"images": (3, 6, 5, 7), "voxels": (2, 6, 3, 4, 5), "single": (5, 6, 1, 1), "symbolic": (3, 6, 5, 7)}[case]
    model = pointwise(len(shape) - 2)
    if case == "single":
        model = nn.Sequential(nn.Conv2d(6, 10, 1), nn.Tanh(), nn.Conv2d(10, 4, 1))  # with a bias
    last = torch.channels_last_3d if case == "voxels" else torch.channels_last
    want, got = model.double(), sh.optimize(nn.Sequential(*[type(m)(**_options(m)) for m in model]).double())
    got.load_state_dict(want.state_dict())
    for size in (shape[0], shape[0] + 2) if case == "symbolic" else (shape[0],):
        x = torch.randn(size, *shape[1:], dtype=torch.float64).to(memory_format=last)
        a, b = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.clone(memory_format=torch.preserve_format).requires_grad_()
        y, z = want(a), got(b)
        g = torch.randn_like(y)
        y.backward(g)
        z.backward(g)
        torch.testing.assert_close(z, y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-12, atol=1e-12)
        for p, q in zip(want.parameters(), got.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-12, atol=1e-12)
    program = sh.capture(got, (x.requires_grad_(),), train=True)
    program.optimize()
    assert sum(n.function == "contract" for n in calls(program)) >= 3, program.explain("PointwiseProduct")  # the caller's own layouts stay


def _options(m: nn.Module) -> dict[str, Any]:
    if isinstance(m, nn.Tanh):
        return {}
    assert isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return {"in_channels": m.in_channels, "out_channels": m.out_channels, "kernel_size": 1, "bias": m.bias is not None}


def test_the_program_moves_what_it_moved_and_undo_brings_it_back() -> None:
    p = lowered(pointwise(2), 3, 6, 5, 7)
    for c in list(p.containers.values()):  # as ChannelsLast leaves them
        if len(c.shape) == 4 and not c.is_external and c.name not in p.results:
            with p.edit("layout") as edit:
                edit.set_container(c.with_(strides=(c.shape[1] * c.shape[2] * c.shape[3], 1, c.shape[3] * c.shape[1], c.shape[1])))
    before, moved = fingerprint(p), p.movement().bytes
    forward = sorted(filter(None, (node_flops(n, p.containers) for n in calls(p))))
    applied = [m for m in PointwiseProduct().matches(p) if PointwiseProduct().try_apply(m)]
    assert len(applied) >= 3
    assert p.movement().bytes == moved and all(r.notes["saves"] == 0 for r in p.log if r.name == "PointwiseProduct")
    assert sorted(filter(None, (node_flops(n, p.containers) for n in calls(p) if n.phase == "forward"))) == forward
    for _ in applied:
        p.undo()
    assert fingerprint(p) == before


REFUSED = {
    "kernel": (nn.Conv2d(6, 4, 3, bias=False), "more than one element"),
    "groups": (nn.Conv2d(6, 6, 1, groups=2, bias=False), "in groups"),
    "stride": (nn.Conv2d(6, 4, 1, stride=2, bias=False), "stride or padding"),
    "padding": (nn.Conv2d(6, 4, 1, padding=1, bias=False), "stride or padding"),
    "transposed": (nn.ConvTranspose2d(6, 4, 1, bias=False), "transposed"),
    "bias": (nn.Conv2d(6, 4, 1), "adds a bias"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refusals(why: str) -> None:
    module, reason = REFUSED[why]
    p = lowered(module, 2, 6, 4, 4)
    for m in PointwiseProduct().matches(p):
        if m.call.function == "aten::convolution":
            with p.edit("layout") as edit:
                y = p.containers[m.call.writes["y"].container]
                _n, c, h, w = y.shape
                if not y.is_external and y.name not in p.results:
                    edit.set_container(y.with_(strides=(c * h * w, 1, w * c, c)))
    m = next(m for m in PointwiseProduct().matches(p) if m.call.function == "aten::convolution")
    assert_refuses(PointwiseProduct(), m, reason)


def test_images_with_channels_outermost_are_refused() -> None:
    p = lowered(pointwise(2), 2, 6, 4, 4, memory_format=torch.contiguous_format)
    m = next(m for m in PointwiseProduct().matches(p) if m.call.function == "aten::convolution")
    assert_refuses(PointwiseProduct(), m, "not in channels-last")


@pytest.mark.parametrize(("dtype", "applies"), [(torch.float32, True), (torch.bfloat16, False)])
def test_long_sums_in_a_narrow_type_stay_with_the_library(dtype: torch.dtype, applies: bool) -> None:
    model = nn.Sequential(nn.SiLU(), nn.Conv2d(8, 8, 1, bias=False), nn.SiLU(), nn.Conv2d(8, 8, 1, bias=False), nn.Tanh()).to(dtype)
    p = sh.capture(model, (torch.randn(4, 8, 32, 32, dtype=dtype, requires_grad=True),), train=True)
    p.optimize()
    gradients = [n for n in calls(p) if n.phase == "backward" and p.containers[n.writes["y"].container].shape[2:] == (1, 1)]
    assert len(gradients) == 2 and all((n.function == "contract") == applies for n in gradients)


def test_a_long_sum_is_the_same_on_several_threads() -> None:
    """One for each thread, added up: the gradient of a small weight over many positions."""
    from shorthaul.codegen.library import LIBRARY

    g, x = torch.randn(4, 8, 32, 32, dtype=torch.float64), torch.randn(4, 6, 32, 32, dtype=torch.float64)
    g, x = g.contiguous(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = torch.empty(8, 6, 1, 1, dtype=torch.float64)
            LIBRARY["contract"]({"a": g, "b": x}, {"equation": "nkhw,nchw->kc11"}, {"y": y})
            torch.testing.assert_close(y[:, :, 0, 0], torch.einsum("nkhw,nchw->kc", g, x), rtol=1e-12, atol=1e-12)
    finally:
        torch.set_num_threads(threads)
