"""Hooks of every kind, on submodules and parameters, before and after the first call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ecosystem import Net, agree, batch, close, compiled, mlp, step, twins
from torch import nn

import shorthaul as sh
from shorthaul.testing import sample


def both(pair: tuple[nn.Module, nn.Module], run: Any) -> None:
    """What `run` returns (a list of tensors) is the same for both, and so are gradients and state."""
    found = [run(m) for m in pair]
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        close(b, a)
    agree(*pair)


def test_forward_hook_of_a_submodule_that_comes_after_the_first_call() -> None:
    pair = twins(Net)
    for m in pair:
        step(m, batch())

    def hooked(m: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        handle = m.first.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
        step(m, batch(1))
        handle.remove()
        step(m, batch(2))
        assert len(seen) == 1
        return seen

    both(pair, hooked)
    compiled(pair[1])


def test_forward_hooks_that_change_inputs_and_outputs() -> None:
    pair = twins(Net)

    def hooked(m: Any) -> list[torch.Tensor]:
        handles = [
            m.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,)),
            m.norm.register_forward_hook(lambda module, inputs, output: output * 2),
            m.head.register_forward_pre_hook(lambda module, args, kwargs: ((args[0].sin(),), kwargs), with_kwargs=True),
        ]
        step(m, batch())
        for h in handles:
            h.remove()
        step(m, batch())
        return []

    both(pair, hooked)
    assert len(compiled(pair[1])) == 2


def test_hooks_of_all_modules() -> None:
    pair = twins(Net)
    for m in pair:
        step(m, batch())
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.BatchNorm1d) else None
    )
    try:
        both(pair, lambda m: [step(m, batch(1))])
    finally:
        handle.remove()
    both(pair, lambda m: [step(m, batch(2))])


@pytest.mark.parametrize("make", sample([Net, mlp], 1))
def test_backward_hooks_of_submodules(make: Any) -> None:
    pair = twins(make)

    def hooked(m: nn.Module) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        last = list(m.children())[-1]
        middle = list(m.children())[1]
        handles = [
            middle.register_full_backward_hook(lambda module, grads, outer: seen.append(outer[0].clone())),
            last.register_full_backward_pre_hook(lambda module, outer: (outer[0] * 2,)),
            last.register_full_backward_hook(lambda module, grads, outer: (grads[0] * 3,)),
        ]
        step(m, batch())
        for h in handles:
            h.remove()
        step(m, batch())
        return seen

    both(pair, hooked)


def test_hooks_of_parameters_and_their_order() -> None:
    pair = twins(Net)

    def hooked(m: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        handles = [m.first.weight.register_hook(lambda g: g.clamp(-0.01, 0.01)),
                   m.first.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))]  # fmt: skip
        step(m, batch())
        step(m, batch(1))
        for h in handles:
            h.remove()
        return seen

    both(pair, hooked)


def test_optimizer_in_the_hook_of_each_parameter() -> None:
    """Updates while the backward pass runs, each gradient freed at once."""
    pair = twins(mlp)
    for m in pair:
        optimizers = {p: torch.optim.SGD([p], 0.1) for p in m.parameters()}

        def update(p: Any, optimizers: Any = optimizers) -> None:
            optimizers[p].step()
            p.grad = None

        for p in m.parameters():
            p.register_post_accumulate_grad_hook(update)
        for k in range(3):
            step(m, batch(k))
    agree(*pair)
    assert all(p.grad is None for p in pair[1].parameters())


def test_state_dict_hooks_still_run() -> None:
    pair = twins(Net)
    step(pair[1], batch())
    pair[1].register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update({"more": torch.ones(1)}))
    assert "more" in pair[1].state_dict()


def test_model_of_which_nothing_is_compiled_warns() -> None:
    model = sh.optimize(sh.disable(Net()))
    with pytest.warns(sh.FallbackWarning, match="nothing of Net was compiled"):
        model(torch.randn(5, 8))
    model(torch.randn(5, 8))  # once is enough
    with pytest.raises(sh.Unsupported, match="nothing of Net was compiled"):
        sh.optimize(sh.disable(Net()), strict=True)(torch.randn(5, 8))
