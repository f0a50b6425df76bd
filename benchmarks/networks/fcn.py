"""FCN-8s (Long et al., 2015) on VGG-16 (Simonyan and Zisserman, 2015): every pixel gets a class.

The scores of three depths are added, each enlarged by a transposed convolution that is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 21


def stage(inside: int, outside: int, convolutions: int) -> list[nn.Module]:
    """3×3 convolutions with ReLU, then 2×2 max pooling."""
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [nn.Conv2d(outside if i else inside, outside, 3, padding=1), nn.ReLU(inplace=True)]
    return [*layers, nn.MaxPool2d(2)]


class FCN8s(nn.Module):
    """`width` channels in the first stage, `hidden` in the two convolutions that stand for VGG's linear layers."""

    def __init__(self, width: int = 64, hidden: int = 4096, classes: int = CLASSES, kernel: int = 7,
                 dropout: float = 0.5) -> None:  # fmt: skip
        super().__init__()
        w = width
        self.to_eighth = nn.Sequential(*stage(3, w, 2), *stage(w, 2 * w, 2), *stage(2 * w, 4 * w, 3))
        self.to_sixteenth = nn.Sequential(*stage(4 * w, 8 * w, 3))
        self.to_thirtysecond = nn.Sequential(*stage(8 * w, 8 * w, 3))
        self.head = nn.Sequential(
            nn.Conv2d(8 * w, hidden, kernel, padding=kernel // 2), nn.ReLU(inplace=True), nn.Dropout2d(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout2d(dropout),
        )  # fmt: skip
        self.score_thirtysecond = nn.Conv2d(hidden, classes, 1)
        self.score_sixteenth = nn.Conv2d(8 * w, classes, 1)
        self.score_eighth = nn.Conv2d(4 * w, classes, 1)
        self.to_twice = nn.ConvTranspose2d(classes, classes, 4, 2, 1, bias=False)
        self.to_four_times = nn.ConvTranspose2d(classes, classes, 4, 2, 1, bias=False)
        self.to_pixels = nn.ConvTranspose2d(classes, classes, 16, 8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width), both multiples of 32 -> (batch, classes, height, width)."""
        eighth = self.to_eighth(x)
        sixteenth = self.to_sixteenth(eighth)
        scores = self.score_thirtysecond(self.head(self.to_thirtysecond(sixteenth)))
        scores = self.to_twice(scores) + self.score_sixteenth(sixteenth)
        scores = self.to_four_times(scores) + self.score_eighth(eighth)
        return self.to_pixels(scores)


def build(small: bool, dropout: float | None) -> FCN8s:
    p = 0.5 if dropout is None else dropout
    return FCN8s(6, 16, 5, 3, p) if small else FCN8s(dropout=p)


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Images and the class of every pixel."""
    count, height, width, classes = (size or 2, 32, 64, 5) if small else (size or 16, 320, 480, CLASSES)
    images = torch.randn(count, 3, height, width, generator=generator)
    return (images,), torch.randint(0, classes, (count, height, width), generator=generator)
