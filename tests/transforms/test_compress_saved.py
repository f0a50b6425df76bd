"""CompressSaved: on request, what is saved for the backward phase is stored in a narrower type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compiled import compiled_results
from transform_nets import apply_checked, assert_refuses, kernels, matches, network, only, results, values

import shorthaul as sh
from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.config import Options
from shorthaul.gui import details
from shorthaul.ir.dtypes import float16, float64
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.ir.verify import verify
from shorthaul.ops.expand import choose_default, expand
from shorthaul.pipeline import optimize
from shorthaul.symbolic import Symbol
from shorthaul.transforms.base import Match
from shorthaul.transforms.catalog import make
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level4_global.compress_saved import ROUNDING, CompressSaved
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code
from shorthaul.workbench import check_numbers


def narrow(dtype: str = "bfloat16", goal: str = "traffic") -> CompressSaved:
    return CompressSaved(dtype, goal, least=1)


def exponential(b: Any, x: Any) -> Any:
    """exp saves its result, which the forward phase does not read again once it is fused."""
    return b.op("sum", {"dims": (1,), "keepdim": False}, x=b.op("sigmoid", x=b.op("exp", x=x)))


def two_layers(b: Any, x: Any, w: Any, v: Any) -> Any:
    """Products by library save their operands; the function between them its own."""
    h = b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w)
    return b.op("contract", {"equation": "mk,nk->mn"}, a=b.op("tanh", x=h), b=v)


def read_by_both(b: Any, x: Any, w: Any) -> Any:
    """A library writes h; maps of both phases read it."""
    h = b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w)
    return b.op("sin", x=h)


def layers(build: Callable[..., Any] = two_layers, **parameters: Any) -> Program:
    p = network(build, maps=False, x=(6, 5), parameters=parameters or {"w": (8, 5), "v": (4, 8)})
    expand(p, choose_default)
    fuse(p)
    eliminate_dead_code(p)
    return p


def place(p: Program, t: CompressSaved, **wanted: str) -> Match:
    return max(matches(t, p, **wanted), key=lambda m: p.containers[m.mid].size)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).float().to(getattr(torch, dtype)).double().numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_value_that_only_the_backward_phase_reads_is_stored_in_no_other_form(dtype: str) -> None:
    p = network(lambda b, x: b.op("exp", x=b.op("tanh", x=x)), x=(6, 5))
    fuse(p)
    wide = {n for n, _ in liveness(p).saved}
    t = narrow(dtype)
    before, saved = movement(p).bytes, liveness(p).saved_bytes
    m = next(m for m in matches(t, p) if not [r for r in p.readers(m.mid) if r.phase == "forward"])
    apply_checked(t, m)
    assert m.mid in wide and m.mid not in p.containers
    assert before - movement(p).bytes == 2 * (8 - 2) * 30 == 2 * (saved - liveness(p).saved_bytes)
    assert p.log[-1].notes["memory"] == saved - liveness(p).saved_bytes
    assert p.log[-1].notes["rounding"] == ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_forward_phase_keeps_the_exact_values_and_gradients_are_those_of_the_rounded_ones(dtype: str) -> None:
    p = layers(read_by_both, w=(8, 5))
    inputs = values(p)
    expected = results(p, inputs)
    t = narrow(dtype)
    m = place(p, t, writer="contract")
    assert isinstance(m.writer, LibraryCall)
    forward = len(kernels(p, "forward"))
    apply_checked(t, m)
    assert len(kernels(p, "forward")) == forward, "the kernel that reads the value stores the copy in passing"
    h = rounded(inputs["x"] @ inputs["w"].T, dtype)
    (y,) = p.signature.outputs
    ((_, cotangent),) = p.signature.cotangents
    gradients = dict(p.signature.gradients)
    gh = inputs[cotangent] * np.cos(h)
    for found in (results(p, inputs), compiled_results(p, inputs)):
        np.testing.assert_allclose(found[y], expected[y], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found[gradients["w"]], gh.T @ inputs["x"], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found[gradients["x"]], gh @ inputs["w"], rtol=1e-10, atol=1e-12)


def test_for_the_memory_alone_library_calls_get_a_wide_value_again() -> None:
    p = layers()
    inputs = values(p)
    expected = results(p, inputs)
    t = narrow(goal="memory")
    saved = liveness(p).saved_bytes
    m = place(p, t, writer="tanh")
    assert any(isinstance(r, LibraryCall) for r in p.readers(m.mid) if r.phase == "backward")
    assert_refuses(narrow(), m, "bytes more; with goal='memory' it is done for the memory")
    apply_checked(t, m)
    assert p.log[-1].notes["saves"] < 0
    assert saved - liveness(p).saved_bytes == p.log[-1].notes["memory"] == (8 - 2) * 48
    for k, v in compiled_results(p, inputs).items():
        np.testing.assert_allclose(v, expected[k], atol=8 * ROUNDING["bfloat16"] * np.abs(expected[k]).max())


def test_a_value_of_which_no_kernel_sees_all_is_copied() -> None:
    """A library writes it, and the forward phase reads it by library only."""
    p = layers(lambda b, x, w, v: b.op("contract", {"equation": "mk,nk->mn"}, b=v,
                                       a=b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=w)))  # fmt: skip
    t = narrow("float16", "memory")
    m = place(p, t, writer="contract")
    count = len(p.nodes)
    apply_checked(t, m)
    assert len(p.nodes) == count + 2  # narrow and wide again


class Heads(torch.nn.Module):
    """Products of heads, which are views of what a layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.q = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).view(2, 5, 2, 4).transpose(1, 2)
        return torch.sin(q @ torch.cos(q).transpose(2, 3))


def test_views_of_a_saved_value_become_views_of_the_copy() -> None:
    p = sh.capture(Heads(), (torch.randn(2, 5, 8),), train=True).optimize()
    t = narrow(goal="memory")
    inputs = values(p)
    expected = results(p, inputs)
    found = [m for m in matches(t, p) if p.aliases(m.mid)]
    assert found, "no saved value has a view"
    for m in found:
        moved = movement(p).bytes
        assert t.try_apply(m)
        verify(p)
        assert moved - movement(p).bytes == p.log[-1].notes["saves"]
    assert any(c.alias is not None and c.alias.base.endswith("_again") for c in p.containers.values())
    for computed in (results(p, inputs), compiled_results(p, inputs)):
        for k, v in computed.items():
            np.testing.assert_allclose(v, expected[k], atol=8 * t.rounding * np.abs(expected[k]).max(), err_msg=k)


def test_sizes_may_be_symbolic() -> None:
    n = Symbol("n", 1)
    p = network(lambda b, x: b.op("exp", x=b.op("tanh", x=x)), x=(n, 5), sizes=(n,))
    fuse(p)
    t = narrow()
    p.attributes["size_hints"] = {"n": 7}
    m = place(p, t)
    apply_checked(t, m, sizes={n: 3})


REFUSED: dict[str, tuple[Callable[..., Any], CompressSaved, str]] = {
    "the caller's": (lambda b, x: [h := b.op("tanh", x=x), b.op("exp", x=h)], narrow(), "the caller gets it, and keeps it"),
    "small": (exponential, CompressSaved(), "it has only 240 bytes"),
    "nothing gained": (two_layers, narrow(), "bytes more"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refuses_with_the_reason(why: str) -> None:
    build, t, reason = REFUSED[why]
    p = network(build, x=(6, 5)) if build is not two_layers else layers()
    found = [m for m in matches(t, p) if build is not two_layers or "tanh" in m.writer.label]
    assert_refuses(t, found[0], reason)


def test_what_is_narrow_already_is_left_alone() -> None:
    p = network(exponential, x=(6, 5), dtypes={"x": float16})
    assert_refuses(narrow("bfloat16"), place(p, narrow()), "it is stored in float16 already")


def test_wrong_parameters_are_errors() -> None:
    with pytest.raises(ValueError, match=r"CompressSaved.dtype is one of 'bfloat16', 'float16', not 'float64'"):
        make("CompressSaved", dtype="float64")
    with pytest.raises(ValueError, match="saved is None, bits, bfloat16 or float16, not 'int8'"):
        Options(saved="int8")
    with pytest.raises(ValueError, match="level 4"):
        Options(level=2, saved="bfloat16")


def test_it_is_said_that_numbers_change() -> None:
    p = layers(read_by_both, w=(8, 5))
    text = str(p.explain(narrow()))
    assert "changes numbers: values are rounded by at most 3.9e-03 of themselves" in text and "  changes numbers\n" in text + "\n"
    assert all(details.place(x)["text"].endswith(" (changes numbers)") for x in p.places(narrow()))  # in the studio
    before = p.clone()
    m = place(p, narrow(), writer="contract")
    p.apply(narrow(), m, check="numbers")  # allows for the rounding
    found = check_numbers(before, p)
    assert found.ok and found.limit == 8 * ROUNDING["bfloat16"] > found.error > 1e-6
    assert "(limit 3e-02)" in str(found)


def block() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64, 5),
    )  # fmt: skip


def test_the_pipeline_does_it_on_request_only() -> None:
    p = sh.capture(block(), (torch.randn(4, 3, 32, 32),), train=True)
    plain, asked = p.clone(), p.clone()
    optimize(plain, Options(4), check=True)
    optimize(asked, Options(4, saved="bfloat16"), check=True)
    assert not [r for r in plain.log if r.notes.get("rounding")]
    assert [r.name for r in asked.log if r.notes.get("rounding")] == ["CompressSaved"]
    assert movement(asked).bytes < movement(plain).bytes and liveness(asked).saved_bytes < liveness(plain).saved_bytes
    again = p.clone()
    again.replay(asked.recipe)
    assert movement(again).bytes == movement(asked).bytes


def test_a_model_trains_with_narrow_saved_values() -> None:
    x = torch.randn(4, 3, 32, 32)
    eager, model = block(), sh.optimize(block(), saved="bfloat16")
    expected, found = eager(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # the forward phase is as exact as ever
    expected.square().sum().backward()
    found.square().sum().backward()
    worst = 0.0
    for p, q in zip(eager[1:].parameters(), model[1:].parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        worst = max(worst, float((p.grad - q.grad).abs().max() / p.grad.abs().max()))
    assert 1e-6 < worst < 8 * ROUNDING["bfloat16"]
    text = str(model.report())
    assert "rounded       1 value saved for the backward phase, by at most 3.9e-03 of themselves" in text


def test_in_float64_without_rounding_it_is_the_same() -> None:
    """The rewrite itself changes nothing: with values that the narrow type holds exactly gradients are equal."""
    p = network(lambda b, x, w: b.op("mul", a=b.op("neg", x=x), b=w), x=(6, 5), parameters={"w": (6, 5)})
    fuse(p)
    inputs = {k: np.round(v * 4) / 4 for k, v in values(p).items()}
    expected = results(p, inputs)
    t = narrow()
    for m in matches(t, p):
        t.try_apply(m)
    assert p.containers[p.signature.outputs[0]].dtype is float64
    for k, v in results(p, inputs).items():
        np.testing.assert_array_equal(v, expected[k])


def test_one_place_a_saved_value() -> None:
    p = layers(read_by_both, w=(8, 5))
    assert len(matches(narrow(), p)) == len(liveness(p).saved)
    only(m for m in matches(narrow(), p) if "contract" in m.writer.label)
