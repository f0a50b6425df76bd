"""ScheduleChoice: parameters of a kernel's plan, and the choices by which a lowering differs from the default one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import shorthaul as sh
from shorthaul import pipeline
from shorthaul.codegen.cpp.emit import emit_kernel
from shorthaul.codegen.cpp.plan import Limits
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Map
from shorthaul.transforms.base import Refusal
from shorthaul.transforms.choices import FUSION, Choices
from shorthaul.transforms.recipe import Step


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 48), torch.nn.SiLU(), torch.nn.LayerNorm(48), torch.nn.Linear(48, 32))


def program() -> Any:
    return sh.capture(network(), (torch.randn(600, 16),))


def kernel(p: Any) -> Map:
    """One whose rows run in tiles inside the lanes."""
    maps = [n for n in p.nodes if isinstance(n, Map)]
    return next(n for n in maps if emit_kernel(n, p.containers, limits=Limits(row_tile=2)).name != emit_kernel(n, p.containers).name)


def test_a_parameter_changes_the_kernel_and_not_what_moves() -> None:
    p = program().optimize()
    node, moved = kernel(p), p.movement().bytes
    p.apply(p.places("ScheduleChoice", node, row_tile=2)[0])
    (now,) = [n for n in p.nodes if isinstance(n, Map) and n.schedule.options]
    assert dict(now.schedule.options) == {"row_tile": 2}
    assert emit_kernel(now, p.containers).source == emit_kernel(node, p.containers, limits=Limits(row_tile=2)).source
    assert p.movement().bytes == moved
    assert p.recipe.steps[-1].parameters == (("row_tile", 2),)
    again = program()
    again.replay(p.recipe)
    assert fingerprint(again) == fingerprint(p)


def test_results_are_the_same(tmp_path: Any) -> None:
    model, x = network().double(), torch.randn(600, 16).double()
    p = sh.capture(model, (x,)).optimize()
    p.apply(p.places("ScheduleChoice", kernel(p), row_tile=4, chunk=256, pieces=3, inner_reduction=4)[0])
    p.recipe.save(tmp_path / "recipe.py")
    expected = model(x)
    expected.square().sum().backward()
    gradients = [q.grad.clone() for q in model.parameters() if q.grad is not None]
    model.zero_grad()
    tuned = sh.optimize(model, recipe=tmp_path / "recipe.py")
    out = tuned(x)
    out.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for q, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(q.grad, g, rtol=1e-10, atol=1e-10)
    assert not [r for r in model.report().regions[0].program.attributes["refusals"] if r.transformation == "ScheduleChoice"]


@pytest.mark.parametrize(
    ("parameters", "error", "reason"),
    [
        ({}, Refusal, "no parameter is given"),
        ({"row_tile": 3}, ValueError, "row_tile is one of 0, 2, 4"),
        ({"pieces": -1}, ValueError, "pieces is one of 0 to 4096"),
        ({"unroll": 2}, TypeError, "has no parameter 'unroll'"),
    ],
)
def test_refusals(parameters: dict[str, int], error: type[Exception], reason: str) -> None:
    p = program().optimize()
    before = fingerprint(p)
    with pytest.raises(error, match=reason):
        p.apply("ScheduleChoice", **parameters)
    assert fingerprint(p) == before


def test_before_scheduling_it_is_refused() -> None:
    p = program()
    pipeline._expand(p)
    with pytest.raises(Refusal, match="not scheduled yet"):
        p.apply("ScheduleChoice", row_tile=4)


def test_a_value_left_out_is_not_fused_and_others_are() -> None:
    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.tanh().exp().sin()

    p, q = (sh.capture(Chain(), (torch.randn(64, 16),), train=False) for _ in range(2))
    pipeline.optimize(p)
    assert len(p.nodes) == 1
    result = pipeline.optimize(q, choices=Choices(without=frozenset([(FUSION, "tanh_default")])), check=True)
    assert [n.label for n in q.nodes] == ["tanh", "exp+sin"]
    assert "tanh_default is left as it is by choice" in [r.reason for r in result.refused]


def test_parameters_hold_wherever_the_pipeline_uses_the_transformation() -> None:
    p, q = program(), program()
    pipeline.optimize(p)
    pipeline.optimize(q, choices=Choices().with_parameter("Recompute", "max_cost", 0))
    assert any(s.name == "Recompute" for s in p.recipe.steps)
    assert not any(s.name == "Recompute" for s in q.recipe.steps)
    r = program()
    assert r.replay(q.recipe).applied == len(q.recipe) and fingerprint(r) == fingerprint(q)


def test_first_and_last_steps_are_taken_or_refused() -> None:
    p = program()
    place = next(iter(p.places("ExpansionChoice", to="maps")))
    pipeline.optimize(p, choices=Choices(first=(Step("ExpansionChoice", tuple(place.where.items()), (("to", "maps"),)),)))
    assert p.recipe.steps[0].name == "ExpansionChoice" or p.recipe.steps[0].place is not None
    with pytest.raises(Refusal, match="there is no 'nowhere: silu'"):
        pipeline.optimize(program(), choices=Choices(last=(Step("ScheduleChoice", (("node", "nowhere: silu"),), (("row_tile", 4),)),)))


def test_equal_choices_have_equal_keys() -> None:
    a = Choices().with_parameter("MapFusion", "max_repeat", 1).with_parameter("Recompute", "max_cost", 0)
    b = Choices().with_parameter("Recompute", "max_cost", 16).with_parameter("Recompute", "max_cost", 0)
    b = b.with_parameter("MapFusion", "max_repeat", 1)
    assert a == b and a.key == b.key != Choices().key
