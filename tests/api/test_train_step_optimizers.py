"""TrainStep with every optimizer and option set of PyTorch's own database: in the program, or stepped outside and named."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from step_compare import close, same_optimizer, same_state
from torch.testing._internal.common_optimizers import optim_db

import shorthaul as sh
from shorthaul.testing import sample

CE = torch.nn.functional.cross_entropy
OUTSIDE = {"LBFGS", "SparseAdam", "Adafactor"}  # a closure, sparse gradients, decisions by values of tensors
CASES = [pytest.param(info, i, id=f"{info.optim_cls.__name__}-{i.desc.replace(' ', '_')}")
         for info in optim_db for i in info.optim_inputs_func(device="cpu")]  # fmt: skip


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(5, 6, bias=False)
        self.out = torch.nn.Linear(6, 3, bias=False)
        self.shift = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x))) + self.shift


def run(info: Any, given: Any, steps: int) -> None:
    name = info.optim_cls.__name__
    torch.manual_seed(0)
    model = Small().double()
    other = copy.deepcopy(model)

    def made(m: Small) -> torch.optim.Optimizer:
        parameters = [p for p in m.parameters() if name != "Muon" or p.dim() == 2]
        return info.optim_cls(parameters, **copy.deepcopy(given.kwargs))

    a, b = made(model), made(other)
    step = sh.TrainStep(model, CE, a)
    # LBFGS with its defaults diverges here, so that a change of 1e-15 is one of 1e4 a step later
    limit = 1e-8 if name == "LBFGS" else 1e-9
    steps = 1 if name == "LBFGS" else steps
    for i in range(steps):
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(8, 5, generator=g).double(), torch.randint(0, 3, (8,), generator=g)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            b.zero_grad()
            loss = CE(other(x), y)
            loss.backward()
            return loss

        if name == "SparseAdam":
            with pytest.warns(sh.FallbackWarning, match="SparseAdam"), pytest.raises(RuntimeError, match="not support dense gradients"):
                step(x, y)
            return
        theirs = b.step(closure) if name == "LBFGS" else closure()
        if name != "LBFGS":
            b.step()
        with warnings.catch_warnings():
            if name in OUTSIDE:
                warnings.simplefilter("ignore", sh.FallbackWarning)
            ours = step(x, y)
        close(ours, theirs.detach(), f"loss of step {i}", limit)
    same_state(model.state_dict(), other.state_dict(), limit)
    if name != "LBFGS":
        same_optimizer(a, b, limit)
    report = step.report()
    assert report.captured == (name not in OUTSIDE), report.outside
    assert report.captured or name in str(report)


MUON = [i for info in optim_db if info.optim_cls.__name__ == "Muon" for i in info.optim_inputs_func(device="cpu")]


@pytest.mark.parametrize("given", sample(MUON, 1), ids=lambda i: i.desc)
def test_muon_is_as_near_to_float64_as_eager_mode_is(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It iterates in bfloat16, and the gradient has no full rank, so that one direction is noise: judged by the rule for low precision."""
    torch.manual_seed(0)
    models = [Small().double()]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    ours, eager, exact = (torch.optim.Muon([p for p in m.parameters() if p.dim() == 2], **copy.deepcopy(given.kwargs)) for m in models)
    step = sh.TrainStep(models[0], CE, ours, strict=True)
    x, y = torch.randn(8, 5).double(), torch.randint(0, 3, (8,))
    loss = step(x, y)
    for m in models[1:]:
        expected = CE(m(x), y)
        expected.backward()
    close(loss, expected.detach(), "loss")
    eager.step()
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda t: t)
    exact.step()
    for a, b, c in zip(*(m.parameters() for m in models), strict=True):
        assert (a - c).norm() <= 10 * (b - c).norm() + 1e-9
        for name, v in eager.state[b].items():
            close(ours.state[a][name], v, name)


@pytest.mark.parametrize(("info", "given"), sample([c for c in CASES if not c.id.startswith("Muon")], 8))
def test_optimizers(info: Any, given: Any) -> None:
    run(info, given, steps=8)


def test_an_optimizer_of_a_user() -> None:
    class Sign(torch.optim.Optimizer):
        """Momentum, its sign, a bound on the update's size over all parameters, counters as Python numbers."""

        def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
            super().__init__(params, {"lr": lr, "beta": beta})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            total = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
            for g in self.param_groups:
                for p in g["params"]:
                    state = self.state[p]
                    if not state:
                        state["step"], state["m"] = 0, torch.zeros_like(p)
                    state["step"] += 1
                    state["m"].mul_(g["beta"]).add_(p.grad, alpha=1 - g["beta"])
                    p.sub_(torch.sign(state["m"]) * (g["lr"] / (1 + state["step"]) ** 0.5) / (1 + total))

    torch.manual_seed(0)
    model = Small().double()
    other = copy.deepcopy(model)
    a, b = Sign(model.parameters()), Sign(other.parameters())
    step = sh.TrainStep(model, CE, a, strict=True)
    x, y = torch.randn(8, 5).double(), torch.randint(0, 3, (8,))
    for i in range(6):
        ours = step(x, y)
        b.zero_grad()
        theirs = CE(other(x), y)
        theirs.backward()
        b.step()
        close(ours, theirs.detach(), f"loss of step {i}")
    same_state(model.state_dict(), other.state_dict())
    same_optimizer(a, b)
    assert a.state[model.shift]["step"] == 6 and isinstance(a.state[model.shift]["step"], int)
