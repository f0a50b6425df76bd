"""Networks in plain PyTorch, used by benchmarks and tests. Nothing here imports Shorthaul.

    net = network("mbconv", small=True)
    loss = net.loss_fn(net.module(*net.inputs), net.targets)

Each network is one file with a module class; this file lists them with their sizes and their batches.
`small=True` gives the same structure at a size for tests (a step in milliseconds).

BASIC are small enough to time on a CPU at full size. TEN are the benchmark networks, at the sizes and batches usual on one large
GPU; `device="meta"` gives them without memory. FURTHER have structures that the ten lack. REGISTRY is all of them. ON_CPU are the ten at
batches for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.networks import (
    bert,
    chain,
    dlrm,
    fcn,
    lenet,
    lstm,
    mbconv,
    mixer,
    mlp,
    mobilenet,
    moe,
    resnet,
    unet,
    wavenet,
    yolo,
)

Loss = Callable[[Any, Tensor], Tensor]


class Network(NamedTuple):
    """A module in training mode with one batch and the loss that trains it."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    targets: Tensor
    loss_fn: Loss


@dataclass(frozen=True)
class Entry:
    """How a named network is built and fed.

    `build(small, dropout)` makes the module; `dropout=None` means the probabilities usual for this network, a number
    replaces all of them (stochastic depth included). `batch(size, small, generator)` makes inputs and targets;
    `size=None` means the usual batch. Where `cotangent` is set, `targets` has the shape of the output and is what a
    benchmark passes to `output.backward`, so that nothing but the network is timed.
    """

    summary: str
    build: Callable[[bool, float | None], nn.Module]
    batch: Callable[[int | None, bool, torch.Generator], tuple[tuple[Tensor, ...], Tensor]]
    loss_fn: Loss
    cotangent: bool = False


def _images(channels: int, full: tuple[int, int], small: tuple[int, int], classes: tuple[int, int]) -> Any:
    """Random images and labels; `full` and `small` are (batch, pixels a side)."""

    def batch(size: int | None, is_small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
        count, side = small if is_small else full
        count = size or count
        images = torch.randn(count, channels, side, side, generator=generator)
        return (images,), torch.randint(0, classes[is_small], (count,), generator=generator)

    return batch


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


def _already_a_loss(output: Tensor, _: Tensor) -> Tensor:
    return output


def _inner_product(output: Tensor, cotangent: Tensor) -> Tensor:
    return (output * cotangent).sum()


BASIC: dict[str, Entry] = {
    "mlp": Entry("three linear layers with ReLU and dropout", mlp.build, mlp.batch, _cross_entropy),
    "lenet": Entry("LeNet-5: convolutions, pooling, linear layers", lenet.build,
                   _images(1, (128, 28), (4, 28), (10, 10)), _cross_entropy),
    "resnet18": Entry("ResNet-18 with batch norm in training mode, 128×128 images", resnet.build,
                      _images(3, (8, 128), (8, 24), (1000, 10)), _cross_entropy),
    "mbconv": Entry("inverted residuals (EfficientNet-B0's shape), 128×128 images", mbconv.build,
                    _images(3, (8, 128), (8, 24), (1000, 10)), _cross_entropy),
    "bert": Entry("BERT encoder with masked-word loss, 4 layers of 256, 128 tokens", bert.build, bert.batch,
                  _already_a_loss),
    "chain": Entry("tanh·sigmoid → layer norm → softmax on 2048×1024", chain.build, chain.batch, _inner_product,
                   cotangent=True),
}  # fmt: skip

_PHOTOS = _images(3, (128, 224), (8, 24), (1000, 10))

TEN: dict[str, Entry] = {
    "resnet50": Entry("ResNet-50, 224×224 images", resnet.build_bottleneck(1), _PHOTOS, _cross_entropy),
    "wide_resnet50_2": Entry("Wide ResNet-50-2, 224×224 images", resnet.build_bottleneck(2), _PHOTOS, _cross_entropy),
    "mobilenet_v2": Entry("MobileNet-V2, 224×224 images", mobilenet.build, _PHOTOS, _cross_entropy),
    "efficientnet_b0": Entry("EfficientNet-B0, 224×224 images", mbconv.build, _PHOTOS, _cross_entropy),
    "mlp_mixer_b16": Entry("MLP-Mixer B/16, 224×224 images", mixer.build, _PHOTOS, _cross_entropy),
    "fcn8s_vgg16": Entry("FCN-8s on VGG-16, 320×480 images, 21 classes", fcn.build, fcn.batch, _cross_entropy),
    "wavenet": Entry("WaveNet, 3 stacks of 10 layers, 16384 samples", wavenet.build, wavenet.batch, _cross_entropy),
    "bert_large": Entry("BERT-large with masked-word loss, 512 words", bert.build_large, bert.batch_large, bert.masked_loss),
    "dlrm": Entry("DLRM, 26 tables of 33.8 million rows together", dlrm.build, dlrm.batch,
                  nn.functional.binary_cross_entropy_with_logits),
    "yolov4": Entry("YOLOv4, 416×416 images, stand-in loss", yolo.build, yolo.batch, yolo.loss),
}  # fmt: skip

FURTHER: dict[str, Entry] = {
    "unet": Entry(
        "U-Net with group norm and transposed convolutions, 256×256 images", unet.build, unet.batch, _cross_entropy
    ),
    "lstm_cells": Entry(
        "language model of LSTM cells, 2 layers of 650, 35 words", lstm.build, lstm.batch, _cross_entropy
    ),
    "mixture_of_experts": Entry(
        "4 blocks of 8 experts, of which each token visits 2", moe.build, moe.batch, _cross_entropy
    ),
    "dlrm_3m": Entry("DLRM with a tenth of the rows", dlrm.build_tenth, dlrm.batch_tenth,
                     nn.functional.binary_cross_entropy_with_logits),
}  # fmt: skip

REGISTRY: dict[str, Entry] = {**BASIC, **TEN, **FURTHER}

# Samples a batch with which the ten take a second or so a step on two cores; DLRM with fewer rows, to fit the memory several times.
ON_CPU: dict[str, int] = {
    "resnet50": 4, "wide_resnet50_2": 2, "mobilenet_v2": 8, "efficientnet_b0": 8, "mlp_mixer_b16": 4, "fcn8s_vgg16": 1, "wavenet": 1,
    "bert_large": 1, "dlrm_3m": 8192, "yolov4": 1,
}  # fmt: skip


def entry(name: str) -> Entry:
    """The registered network, or a `KeyError` that lists the names there are."""
    if name not in REGISTRY:
        raise KeyError(f"no network named {name!r}; there are: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def network(name: str, small: bool = False, *, dropout: float | None = None, seed: int = 0, size: int | None = None,
            device: str = "cpu") -> Network:  # fmt: skip
    """The named network with parameters drawn from `seed`, in training mode, and its first batch.

    `size` replaces the usual number of samples. On the device "meta" nothing but shapes exists.
    """
    found = entry(name)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        module = found.build(small, dropout).train()
    inputs, targets = batch(name, small, size=size, seed=seed)
    return Network(module, tuple(x.to(device) for x in inputs), targets.to(device), found.loss_fn)


def batch(
    name: str, small: bool = False, *, size: int | None = None, seed: int = 0
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets for the named network; `size` replaces the usual number of samples."""
    return entry(name).batch(size, small, torch.Generator().manual_seed(seed))
