"""TrainStep on a GPU: one CUDA graph for the whole step, with the numbers and the state of the ordinary loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from step_compare import Net, same_optimizer

import shorthaul as sh

pytestmark = pytest.mark.gpu
CE = torch.nn.functional.cross_entropy
CALLS = 6  # the third one and those after it replay a graph
MAKE: dict[str, Callable[[torch.nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True),
    "capturable": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, capturable=True),
}


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    eager = Net().double().cuda()
    return copy.deepcopy(eager), eager


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(i)
    return torch.randn(4, 2, 6, 6, generator=g).double().cuda(), torch.randint(0, 3, (4,), generator=g).cuda()


def loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer, i: int) -> torch.Tensor:
    x, y = batch(i)
    optimizer.zero_grad()
    loss = CE(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def check(ours: torch.nn.Module, theirs: torch.nn.Module, limit: float = 1e-9) -> None:
    for (n, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("graphs", [True, False])
def test_steps_are_those_of_the_ordinary_loop(name: str, graphs: bool) -> None:
    ours, theirs = pair()
    a, b = MAKE[name](ours), MAKE[name](theirs)
    step = sh.TrainStep(ours, CE, a, strict=True, cuda_graphs=graphs)
    losses = []
    for i in range(CALLS):
        losses.append((step(*batch(i)), loop(theirs, b, i)))
        for o in (a, b):
            o.param_groups[0]["lr"] *= 0.9  # read inside a replay
    # with its counters on the device PyTorch computes bias corrections in float32
    limit = 1e-5 if name == "capturable" else 1e-9
    for x, y in losses:  # what a replay returned is not overwritten by the next one
        torch.testing.assert_close(x, y, rtol=limit, atol=limit)
    check(ours, theirs, limit)
    same_optimizer(a, b, max(limit, 1e-8))
    assert ("CUDA graphs" in str(step.report())) == graphs


def test_leaving_coming_back_and_loading_state() -> None:
    ours, theirs = pair()
    a, b = MAKE["adamw"](ours), MAKE["adamw"](theirs)
    step = sh.TrainStep(ours, CE, a, strict=True)
    for i in range(4):
        step(*batch(i))
        loop(theirs, b, i)
    saved = copy.deepcopy((a.state_dict(), b.state_dict()))
    loop(ours, a, 4)
    loop(theirs, b, 4)
    for i in range(5, 8):
        step(*batch(i))
        loop(theirs, b, i)
    a.load_state_dict(saved[0])  # new state tensors: other addresses
    b.load_state_dict(saved[1])
    for i in range(8, 12):
        step(*batch(i))
        loop(theirs, b, i)
    check(ours, theirs)
    same_optimizer(a, b, 1e-8)


def test_scaler_clipping_accumulation_and_gradients() -> None:
    ours, theirs = pair()
    a, b = MAKE["adamw"](ours), MAKE["adamw"](theirs)
    scalers = [torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=2) for _ in range(2)]
    step = sh.TrainStep(ours, CE, a, strict=True, scaler=scalers[0], clip_grad_norm=0.5, accumulate=2, grads=True)
    kept = []
    for i in range(12):
        x, y = batch(i)
        if i == 7:
            y = y.clone()
            x[0, 0, 0, 0] = float("inf")
        step(x, y)
        if i % 2 == 0:
            b.zero_grad()
        scalers[1].scale(CE(theirs(x), y) / 2).backward()
        if i % 2:
            scalers[1].unscale_(b)
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            scalers[1].step(b)
            scalers[1].update()
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8, equal_nan=True)
            kept.append(ours.conv.weight.grad)  # type: ignore[union-attr]
        assert scalers[0].state_dict() == scalers[1].state_dict()
        for m in (ours, theirs):
            if i == 7:
                m.norm.reset_running_stats()  # type: ignore[union-attr,operator]
    check(ours, theirs)
    assert len({g.data_ptr() for g in kept}) == len(kept)


def test_autocast_around_the_step() -> None:
    torch.manual_seed(0)
    ours = Net().cuda()
    theirs = copy.deepcopy(ours)
    a, b = MAKE["sgd"](ours), MAKE["sgd"](theirs)
    step = sh.TrainStep(ours, CE, a, strict=True)
    for i in range(CALLS):
        x, y = batch(i)
        with torch.autocast("cuda", torch.bfloat16):
            ours_loss = step(x.float(), y)
            b.zero_grad()
            loss = CE(theirs(x.float()), y)
        loss.backward()
        b.step()
        torch.testing.assert_close(ours_loss, loss.detach(), rtol=0.05, atol=0.02)


def test_dropout_advances_inside_replays() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 1)).cuda()
    step = sh.TrainStep(model, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.0), strict=True)
    x, y = torch.randn(4, 8).cuda(), torch.randn(4, 1).cuda()
    torch.manual_seed(3)
    first = [step(x, y).item() for _ in range(CALLS)]
    assert len(set(first)) == CALLS
    torch.manual_seed(3)
    assert [step(x, y).item() for _ in range(CALLS)] == pytest.approx(first)
