"""Embeddings with `sparse=True` in an optimized module: sparse gradients like eager's, and the rest of the network compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shorthaul as sh
from shorthaul.errors import FallbackWarning

IDS = torch.tensor([[1, 3, 3], [0, 6, 2]])


class Net(nn.Module):
    """A table, a layer, and what is done with them."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.table = nn.Embedding(7, 4, sparse=True, **options)
        self.bag = nn.EmbeddingBag(7, 4, sparse=True, mode="sum")
        self.head = nn.Linear(4, 4)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.function(self, ids)


def plain(m: Net, ids: Tensor) -> Tensor:
    return m.head(m.table(ids).tanh())


def shifted(m: Net, ids: Tensor) -> Tensor:
    return m.head(m.table((ids + 1) % 7).tanh()) + m.table(ids[:, :1]) * 2


def bags(m: Net, ids: Tensor) -> Tensor:
    return m.head(m.bag(ids)) + m.table(ids).sum(1)


def tied(m: Net, ids: Tensor) -> Tensor:
    return m.head(m.table(ids)) @ m.table.weight.t()


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    y = model(ids)
    y.backward(torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape))
    return {"output": y.detach(), **{n: p.grad for n, p in model.named_parameters()}}


def agree(ours: dict[str, Tensor | None], eager: dict[str, Tensor | None]) -> None:
    for n, e in eager.items():
        a = ours[n]
        assert (a is None) == (e is None), n
        if a is not None and e is not None:
            assert a.layout == e.layout, n
            a, e = (t.coalesce() if t.is_sparse else t for t in (a, e))
            if a.is_sparse:
                assert torch.equal(a.indices(), e.indices())
                a, e = a.values(), e.values()
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("function", [plain, shifted, bags, tied])
def test_gradients_are_those_of_eager(function: Callable[..., Tensor]) -> None:
    model = Net(function)
    ours = sh.optimize(copy.deepcopy(model))
    for ids in (IDS, IDS.flip(0)):
        agree(gradients(ours, ids), gradients(model, ids))
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS))
    region = ours.report().regions[0]
    assert not region.fallback and region.kernels
    assert "sparse=True is a call of PyTorch" in str(ours.report())


def test_padding_and_torch_compile() -> None:
    model = Net(plain, padding_idx=3)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="shorthaul")
    agree(gradients(compiled, IDS), {f"_orig_mod.{n}" if n != "output" else n: g for n, g in gradients(model, IDS).items()})


def test_a_sparse_optimizer_trains() -> None:
    """Ten steps of SparseAdam for the table and SGD for the rest."""
    found = []
    for optimized in (False, True):
        model = Net(plain)
        model = sh.optimize(model) if optimized else model
        steps = [torch.optim.SparseAdam([model.table.weight], lr=0.1), torch.optim.SGD(model.head.parameters(), lr=0.1)]
        for k in range(10):
            model.zero_grad(set_to_none=True)
            model((IDS + k) % 7).square().mean().backward()
            for s in steps:
                s.step()
        found.append([p.detach() for p in (model.table.weight, *model.head.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_without_gradients_it_is_an_ordinary_lookup() -> None:
    model = Net(plain)
    model.table.weight.requires_grad_(False)
    eager = gradients(copy.deepcopy(model), IDS)
    agree(gradients(sh.optimize(model, strict=True), IDS), eager)


def by_floats(m: Net, ids: Tensor) -> Tensor:
    return m.table((m.head.weight[0, 0].abs() * ids).long() % 7)


def renormalized(m: Net, ids: Tensor) -> Tensor:
    return F.embedding(ids, m.table.weight, max_norm=1.0, sparse=True)


def computed(m: Net, ids: Tensor) -> Tensor:
    return F.embedding(ids, m.table.weight * 2, sparse=True)


def written(m: Net, ids: Tensor) -> Tensor:
    ids = ids.clone()
    ids[0] = 2
    return m.table(ids)


@pytest.mark.parametrize("function", [by_floats, computed, written])
def test_what_cannot_be_looked_up_in_front_runs_in_eager_mode(function: Callable[..., Tensor]) -> None:
    model = Net(function)
    ours = sh.optimize(copy.deepcopy(model))
    with pytest.warns(FallbackWarning, match="sparse embedding"):
        found = gradients(ours, IDS)
    agree(found, gradients(model, IDS))


def test_strict_refuses() -> None:
    with pytest.raises(Exception, match=r"strict=True refuses the fallback: embedding with sparse=True"):
        sh.optimize(Net(plain), strict=True)(IDS)
