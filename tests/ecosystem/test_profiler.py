"""`torch.profiler` shows the steps of a compiled program under the names of the user's modules."""

from __future__ import annotations

import torch
from ecosystem import Net, batch, compiled, step
from torch import nn

import shorthaul as sh


def test_ranges_are_named_after_modules() -> None:
    model = sh.optimize(nn.Sequential(Net(8), nn.Sequential(nn.Tanh(), nn.Linear(8, 2))).double())
    step(model, batch())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(model, batch())
    events = [e for e in profile.events() if e.name.startswith("shorthaul ")]
    (region,) = compiled(model)
    phases = region.compiled.executable.host.phases
    assert len(events) == sum(len(p.steps) for p in phases.values())
    assert all(len(p.labels) == len(p.steps) for p in phases.values())
    for phase in ("forward", "backward"):
        for module in ("0.first", "0.norm", "0.head", "1.1"):
            assert any(e.name.startswith(f"shorthaul {phase}: ") and module in e.name for e in events), (phase, module)
    # a range lies around what it names: the matrix product of the library runs inside its own
    products = [e for e in profile.events() if e.name in ("aten::addmm", "aten::mm")]
    assert products and all(_within(p).startswith("shorthaul ") for p in products)


def _within(event: torch.autograd.profiler_util.FunctionEvent) -> str:
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith("shorthaul "):
        parent = parent.cpu_parent
    return parent.name if parent is not None else ""
