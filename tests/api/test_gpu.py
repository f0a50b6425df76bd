"""Training on a GPU: what CUDA graphs must not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shorthaul as sh

pytestmark = pytest.mark.gpu
CALLS = 5  # the third one and those after it replay graphs


def pair() -> tuple[nn.Module, nn.Module]:
    """A network and its optimized twin, on the GPU."""
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.BatchNorm1d(32), nn.Linear(32, 4)).cuda()
    twin = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.BatchNorm1d(32), nn.Linear(32, 4)).cuda()
    twin.load_state_dict(eager.state_dict())
    return eager, sh.optimize(twin, strict=True)


def batch(seed: int) -> Tensor:
    return torch.randn(24, 16, generator=torch.Generator().manual_seed(seed)).cuda()


def close(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"gradient of {n}: {m}")
    for (name, x), y in zip(a.named_buffers(), b.buffers(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def train(net: nn.Module, steps: int = CALLS, **zero: Any) -> list[Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    outputs = []
    for i in range(steps):
        optimizer.zero_grad(**zero)
        y = net(batch(i))
        y.square().mean().backward()
        optimizer.step()
        outputs.append(y)
    return outputs


@pytest.mark.parametrize("zero", [{}, {"set_to_none": False}])
def test_steps_and_outputs_that_are_kept(zero: dict[str, bool]) -> None:
    eager, ours = pair()
    for a, b in zip(train(eager, **zero), train(ours, **zero), strict=True):  # outputs of replays stay apart
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    close(eager, ours)
    assert "forward and backward" in str(ours.report())  # type: ignore[operator]


def test_accumulation_and_two_forwards_before_backward() -> None:
    eager, ours = pair()
    for net in (eager, ours):
        for i in range(CALLS):
            net.zero_grad()
            first, second, third = net(batch(i)), net(batch(i + 10)), net(batch(i + 20))
            second.square().mean().backward()
            (first.mean() + third.sum()).backward()
    close(eager, ours)


def test_gradients_are_lent_and_kept_where_somebody_keeps_them() -> None:
    """The loop lets go of its gradients first, and later keeps them over the next backward phase."""
    eager, ours = pair()
    addresses, held = [], []
    for net in (eager, ours):
        for i in range(3 * CALLS):
            if i < 2 * CALLS:
                net.zero_grad()
            net(batch(i)).square().mean().backward()
            grads = [p.grad for p in net.parameters()]
            if net is ours and CALLS <= i < 2 * CALLS:
                addresses.append(tuple(g.data_ptr() for g in grads))
            if i == 2 * CALLS - 1:
                held.append([g.detach() for g in grads])  # accumulated from here on, in place
                held.append([g.clone() for g in grads])
                net.zero_grad()
            del grads
    assert len(set(addresses)) == 1, "no copies: the same memory at every step"
    close(eager, ours)
    torch.testing.assert_close(held[2], held[3], rtol=0, atol=0)  # ours: what was kept did not change
    torch.testing.assert_close(held[0], held[2], rtol=1e-3, atol=1e-5)


def test_outputs_are_lent_and_kept_where_somebody_keeps_them() -> None:
    """First nobody has an output when the next one is made, and all are the same memory, which may be changed in place."""
    eager, ours = pair()
    addresses, kept = [], []
    for i in range(3 * CALLS):
        results = []
        for net in (eager, ours):
            net.zero_grad()
            y = net(batch(i))
            results.append(y.detach().clone())
            if net is ours and CALLS <= i < 2 * CALLS:
                addresses.append(y.data_ptr())
            if net is ours and i >= 2 * CALLS:
                kept.append((y, results[-1]))
            torch.relu_(y).square().mean().backward()
            del y
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert len(set(addresses)) == 1, "no copies: the same memory at every step"
    for y, as_it_was in kept:
        torch.testing.assert_close(y, torch.relu(as_it_was), rtol=0, atol=0)
    close(eager, ours)


def test_retained_graph() -> None:
    eager, ours = pair()
    for net in (eager, ours):
        for i in range(CALLS):
            net.zero_grad()
            y = net(batch(i)).square().mean()
            y.backward(retain_graph=True)
            y.backward()
            with pytest.raises(RuntimeError, match="a second time"):
                y.backward()
    close(eager, ours)


def test_parameters_that_move_and_states_that_are_loaded() -> None:
    eager, ours = pair()
    train(eager), train(ours)
    state = {k: v.clone() for k, v in eager.state_dict().items()}
    for net in (eager, ours):
        with torch.no_grad():
            for p in net.parameters():
                p.data = p.data.clone()
        net.load_state_dict(state)
    train(eager), train(ours)
    close(eager, ours)


def test_evaluation_between_steps_and_graphs_off() -> None:
    eager, ours = pair()
    plain = sh.optimize(pair()[0], cuda_graphs=False)
    for net in (eager, ours, plain):
        train(net)
        net.eval()
        with torch.no_grad():
            outputs = [net(batch(7)) for _ in range(CALLS)]
        assert all(torch.equal(outputs[0], y) or torch.allclose(outputs[0], y, rtol=1e-4) for y in outputs)
        net.train()
        train(net)
    close(eager, ours)
    close(eager, plain)
