"""The benchmark networks: plain PyTorch, deterministic, trainable, and usable without Shorthaul."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.networks import REGISTRY, batch, entry, network
from benchmarks.networks.mbconv import drop_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", REGISTRY)
def test_trains_and_every_parameter_has_a_gradient(name: str) -> None:
    net = network(name, small=True, dropout=0.0)
    optimizer = torch.optim.SGD(net.module.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = net.loss_fn(net.module(*net.inputs), net.targets)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.module.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", REGISTRY)
def test_same_seed_same_network_and_batches_of_any_size(name: str) -> None:
    one, two = network(name, small=True, seed=3), network(name, small=True, seed=3)
    for a, b in zip(one.module.parameters(), two.module.parameters()):
        assert torch.equal(a, b)
    for a, b in zip(one.inputs, two.inputs):
        assert torch.equal(a, b)
    inputs, _ = batch(name, small=True, size=7)
    assert inputs[0].shape[0] == 7
    one.module(*inputs)


@pytest.mark.parametrize("name", ["mlp", "mbconv", "bert"])
def test_dropout_can_be_set_to_zero(name: str) -> None:
    net = network(name, small=True, dropout=0.0)
    assert torch.equal(net.module(*net.inputs), net.module(*net.inputs))
    usual = network(name, small=True)
    assert not torch.equal(usual.module(*usual.inputs), usual.module(*usual.inputs))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    y = drop_path(torch.ones(4000, 2, 3, 3), 0.25, True)
    kept = y[:, 0, 0, 0] != 0
    assert torch.equal(y != 0, kept[:, None, None, None].expand_as(y))
    assert abs(float(y.mean()) - 1) < 0.05


def test_unknown_network_lists_the_names() -> None:
    with pytest.raises(KeyError, match="there are: mlp"):
        entry("vgg")


def test_networks_run_without_shorthaul() -> None:
    program = (
        "import sys; sys.modules['shorthaul'] = None\n"
        "from benchmarks.networks import REGISTRY, network\n"
        "for name in REGISTRY:\n"
        "    net = network(name, small=True)\n"
        "    net.loss_fn(net.module(*net.inputs), net.targets).backward()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
