"""Lent gradients: who uses them is known by their memory, however it came to them."""

from __future__ import annotations

import torch
from torch import nn

from shorthaul.runtime.lending import Lent, Watch


class FromLent(torch.autograd.Function):
    """The sum of a parameter, whose gradient is lent."""

    @staticmethod
    def forward(ctx, lent: Lent, p: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.lent = lent
        return p.sum()

    @staticmethod
    def backward(ctx, g: torch.Tensor):  # type: ignore[no-untyped-def]
        return None, ctx.lent.out("p")


def test_memory_is_in_use_while_a_gradient_has_it() -> None:
    p = nn.Parameter(torch.zeros(3))
    lent = Lent({"p": torch.ones(3), "q": torch.ones(2)})
    assert lent.in_use() == []
    FromLent.apply(lent, p).backward()
    assert p.grad is not None and p.grad.data_ptr() == lent.tensors["p"].data_ptr(), "autograd takes it over without a copy"
    assert lent.in_use() == ["p"]
    kept = p.grad[1:].view(2)
    p.grad = None
    assert lent.in_use() == ["p"], "a view has the memory, too"
    del kept
    assert lent.in_use() == []


def test_an_accumulated_gradient_stays_in_use() -> None:
    p = nn.Parameter(torch.zeros(3))
    first, second = Lent({"p": torch.ones(3)}), Lent({"p": torch.ones(3)})
    FromLent.apply(first, p).backward()
    FromLent.apply(second, p).backward()
    assert first.in_use() == ["p"] and second.in_use() == []
    torch.testing.assert_close(p.grad, torch.full((3,), 2.0))
    (given,) = torch.autograd.grad(FromLent.apply(second, p), [p])
    assert second.in_use() == ["p"] and given is not None


def test_the_watch_keeps_nothing() -> None:
    watch, g = Watch(), torch.ones(3)
    watch.give([g])
    taken = g.detach()
    del g
    assert watch.in_use()
    del taken
    assert not watch.in_use()
    watch.forget()
    assert not watch.in_use()
