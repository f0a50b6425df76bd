"""The benchmark networks: plain PyTorch, deterministic, trainable, and usable without Shorthaul."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.networks import FURTHER, REGISTRY, TEN, batch, entry, network
from benchmarks.networks.mbconv import drop_path

ROOT = Path(__file__).resolve().parents[2]
UNUSED = {"wavenet": "layers.3.residual"}  # what the last layer passes on goes nowhere, as in the paper


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
        for n, p in net.module.named_parameters():
            assert n.startswith(UNUSED.get(name, " ")) == (p.grad is None), n
            assert p.grad is None or torch.isfinite(p.grad).all(), n
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


# Numbers of parameters as published (torchvision, timm, transformers, the usual port of YOLOv4); those of FCN-8s, WaveNet and DLRM
# are another implementation's at the same sizes.
PARAMETERS = {
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "mlp_mixer_b16": 59_880_472,
    "fcn8s_vgg16": 134_489_759,
    "wavenet": 3_657_088,
    "bert_large": 335_174_458,
    "dlrm": 540_677_217,
    "yolov4": 64_363_101,
}
INPUTS = {
    "mlp_mixer_b16": [(128, 3, 224, 224)],
    "fcn8s_vgg16": [(16, 3, 320, 480)],
    "wavenet": [(8, 16384)],
    "bert_large": [(32, 512)],
    "dlrm": [(8192, 13), (26, 8192)],
    "yolov4": [(32, 3, 416, 416)],
    "unet": [(8, 3, 256, 256)],
    "lstm_cells": [(20, 35)],
}
OUTPUTS = {
    "fcn8s_vgg16": [(16, 21, 320, 480)],
    "wavenet": [(8, 256, 16384)],
    "bert_large": [(32, 512, 30522)],
    "dlrm": [(8192,)],
    "yolov4": [(32, 255, 52, 52), (32, 255, 26, 26), (32, 255, 13, 13)],
    "unet": [(8, 4, 256, 256)],
    "lstm_cells": [(20, 10000, 35)],
}


@pytest.mark.parametrize("name", [*TEN, *(n for n in FURTHER if n in OUTPUTS)])
def test_full_size_has_the_published_parameters_and_shapes(name: str) -> None:
    """On the meta device, where nothing takes memory."""
    net = network(name, device="meta")
    if name in PARAMETERS:
        assert sum(p.numel() for p in net.module.parameters()) == PARAMETERS[name]
    assert [tuple(x.shape) for x in net.inputs] == INPUTS.get(name, [(128, 3, 224, 224)])
    found = net.module(*net.inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    assert [tuple(y.shape) for y in outputs] == OUTPUTS.get(name, [(128, 1000)])
    net.loss_fn(found, net.targets).backward()
    gradients = {n: p.grad for n, p in net.module.named_parameters() if p.grad is not None}
    assert all(n.startswith("layers.29.residual") for n, _ in net.module.named_parameters() if n not in gradients)
