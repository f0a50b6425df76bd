"""TrainStep: clipping, loss scaling, accumulation, `.grad`, autocast; what runs outside of the program, and says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from step_compare import Net, Pair, batch, close, network, same_optimizer, same_state

import shorthaul as sh

CE = torch.nn.functional.cross_entropy


def sgd(m: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)


def adam(m: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(m.parameters(), lr=0.01)


@pytest.mark.parametrize(
    "options",
    [{"clip_grad_norm": 0.5}, {"clip_grad_value": 0.01}, pytest.param({"clip_grad_norm": 1e3}, marks=pytest.mark.slow)],
    ids=str,
)
def test_clipping(options: dict[str, float]) -> None:
    p = Pair(adam, strict=True, **options)
    for i in range(6):
        x, y = batch(i)
        if i == 3:  # limits are read at every call
            options = {k: v / 2 for k, v in options.items()}
            for k, v in options.items():
                setattr(p.step, k, v)
        ours = p.step(x, y)
        p.eager.zero_grad()
        theirs = CE(p.theirs(x), y)
        theirs.backward()
        if "clip_grad_value" in options:
            torch.nn.utils.clip_grad_value_(p.theirs.parameters(), options["clip_grad_value"])
        else:
            torch.nn.utils.clip_grad_norm_(p.theirs.parameters(), options["clip_grad_norm"])
        p.eager.step()
        close(ours, theirs.detach(), f"loss {i}")
    p.check()
    assert len(p.step.report().regions) == 1
    p.step.clip_grad_norm = p.step.clip_grad_value = None
    with pytest.raises(ValueError, match="not be added or taken away"):
        p.step(*batch(0))


@pytest.mark.parametrize("make", [pytest.param(sgd, marks=pytest.mark.slow), adam])
def test_a_loss_scaler_skips_steps_whose_gradients_are_not_finite(make: Any) -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in range(2)]
    p = Pair(make, scaler=scalers[0], strict=True, clip_grad_norm=1.0)
    for i in range(9):
        x, y = batch(i)
        if i in (0, 4):
            x[0, 0, 0, 0] = float("inf")
        p.step(x, y)
        p.eager.zero_grad()
        scalers[1].scale(CE(p.theirs(x), y)).backward()
        scalers[1].unscale_(p.eager)
        torch.nn.utils.clip_grad_norm_(p.theirs.parameters(), 1.0)
        scalers[1].step(p.eager)
        scalers[1].update()
        assert scalers[0].state_dict() == scalers[1].state_dict(), i
        if i == 0:  # running statistics are not finite any more, in eager mode either
            assert not torch.isfinite(p.ours.norm.running_mean).all() and not torch.isfinite(p.theirs.norm.running_mean).all()
            for m in (p.ours, p.theirs):
                m.norm.reset_running_stats()
            continue
        if i == 4:
            for m in (p.ours, p.theirs):
                m.norm.reset_running_stats()
    for a, b in zip(p.ours.parameters(), p.theirs.parameters(), strict=True):
        close(a, b, "parameter")
    for a, b in zip(p.ours.parameters(), p.theirs.parameters(), strict=True):
        for k, v in p.eager.state[b].items():
            close(p.optimizer.state[a][k], v, k)


@pytest.mark.parametrize("grads", [pytest.param(False, marks=pytest.mark.slow), True])
def test_accumulation_updates_with_the_mean_of_several_calls(grads: bool) -> None:
    p = Pair(adam, accumulate=3, grads=grads, strict=True)
    for i in range(7):
        x, y = batch(i)
        ours = p.step(x, y)
        if i % 3 == 0:
            p.eager.zero_grad()
        theirs = CE(p.theirs(x), y)
        (theirs / 3).backward()
        if i % 3 == 2:
            p.eager.step()
            for a, b in zip(p.ours.parameters(), p.theirs.parameters(), strict=True):
                assert (a.grad is not None) == grads
                if a.grad is not None and b.grad is not None:
                    close(a.grad, b.grad, "gradient")
        close(ours, theirs.detach(), f"loss {i}")
        same_state(p.ours.state_dict(), p.theirs.state_dict())
    same_optimizer(p.optimizer, p.eager)


def test_gradients_that_are_asked_for() -> None:
    p = Pair(sgd, grads=True)
    kept = []
    for i in range(3):
        p.both(i)
        for a, b in zip(p.ours.parameters(), p.theirs.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None and a.grad.stride() == b.grad.stride()
            close(a.grad, b.grad, "gradient")
        kept.append(p.ours.conv.weight.grad)
    assert len({g.data_ptr() for g in kept}) == 3  # nobody writes into a gradient that the user may hold
    p.check()


def test_autocast_around_the_step() -> None:
    p = Pair(sgd, model=network(torch.float32))
    for i in range(3):
        x, y = batch(i, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = p.step(x, y)
            p.eager.zero_grad()
            theirs = CE(p.theirs(x), y)
        theirs.backward()
        p.eager.step()
        close(ours, theirs.detach(), "loss", 0.02)
    for a, b in zip(p.ours.parameters(), p.theirs.parameters(), strict=True):
        close(a, b, "parameter", 0.02)
    assert any(c.dtype.name == "bfloat16" for c in p.step.program.containers.values())


# what is not one program --------------------------------------------------------------------------------------------------
class Custom(torch.optim.Optimizer):
    """Decides by the value of a gradient."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for q in group["params"]:
                if q.grad.abs().max().item() > 1e-3:
                    q.add_(q.grad, alpha=-group["lr"])


def test_an_optimizer_that_cannot_be_traced_steps_outside() -> None:
    p = Pair(lambda m: Custom(m.parameters()))
    with pytest.warns(sh.FallbackWarning, match="step of Custom runs outside"):
        p.both(0)
    p.train(3, 1)
    p.check()
    report = p.step.report()
    assert not report.captured and "reads the value" in report.outside and "Custom, stepped outside" in str(report)
    assert all(q.grad is None for q in p.ours.parameters())
    model = network()
    with pytest.raises(sh.Unsupported, match="update of Custom is not captured"):
        sh.TrainStep(model, CE, Custom(model.parameters()), strict=True)(*batch(0))


def test_closures_of_lbfgs() -> None:
    def made(m: torch.nn.Module) -> torch.optim.Optimizer:
        m.norm.eval()  # type: ignore[union-attr,operator]
        return torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=4)

    p = Pair(made)
    for i in range(3):
        x, y = batch(i)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            p.eager.zero_grad()
            loss = CE(p.theirs(x), y)
            loss.backward()
            return loss

        theirs = p.eager.step(closure)
        if i == 0:
            with pytest.warns(sh.FallbackWarning, match="LBFGS"):
                ours = p.step(x, y)
        else:
            ours = p.step(x, y)
        close(ours, theirs.detach(), "loss", 1e-8)
    same_state(p.ours.state_dict(), p.theirs.state_dict(), 1e-8)


@pytest.mark.filterwarnings("ignore::shorthaul.FallbackWarning")
def test_outside_with_scaler_clipping_and_accumulation() -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8) for _ in range(2)]
    p = Pair(lambda m: Custom(m.parameters()), scaler=scalers[0], clip_grad_norm=0.3, accumulate=2)
    for i in range(4):
        x, y = batch(i)
        p.step(x, y)
        if i % 2 == 0:
            p.eager.zero_grad()
        scalers[1].scale(CE(p.theirs(x), y) / 2).backward()
        if i % 2:
            scalers[1].unscale_(p.eager)
            torch.nn.utils.clip_grad_norm_(p.theirs.parameters(), 0.3)
            scalers[1].step(p.eager)
            scalers[1].update()
    assert scalers[0].state_dict() == scalers[1].state_dict()
    p.check()


def test_a_graph_break_makes_it_the_ordinary_loop() -> None:
    class Breaks(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super().forward(x)

    torch.manual_seed(0)
    p = Pair(adam, model=Breaks().double(), clip_grad_norm=100.0)
    with pytest.warns(sh.FallbackWarning, match="ordinary loop, not as one program"):
        p.both(0)
    p.train(3, 1)
    p.check()
    assert p.step.report().loop and "stepped by PyTorch" in str(p.step.report())
    with pytest.raises(sh.Unsupported):
        sh.TrainStep(p.ours, CE, adam(p.ours), strict=True)(*batch(0))


def test_gradient_hooks_make_it_the_ordinary_loop() -> None:
    p = Pair(sgd)
    p.train(1)
    seen: list[int] = []
    p.ours.out.bias.register_hook(lambda g: seen.append(1))
    with pytest.warns(sh.FallbackWarning, match="gradient hook"):
        p.both(1)
    p.train(2, 2)
    p.check()
    assert len(seen) == 3


def test_step_hooks_of_the_optimizer_run() -> None:
    p = Pair(sgd)
    seen: list[Any] = []
    p.optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o))
    with pytest.warns(sh.FallbackWarning, match="step hooks"):
        p.both(0)
    p.train(2, 1)
    p.check()
    assert seen == [p.optimizer] * 3


def test_sparse_gradients_make_it_the_ordinary_loop() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4, sparse=True), torch.nn.Flatten(), torch.nn.Linear(8, 2)).double()
    other = copy.deepcopy(model)
    a, b = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    step = sh.TrainStep(model, CE, a)
    x, y = torch.randint(0, 9, (5, 2)), torch.randint(0, 2, (5,))
    with pytest.warns(sh.FallbackWarning, match="sparse"):
        step(x, y)
    CE(other(x), y).backward()
    b.step()
    same_state(model.state_dict(), other.state_dict())
