"""U-Net (Ronneberger et al., 2015) with group norm: transposed convolutions enlarge, features of the way down are joined on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4


class Double(nn.Sequential):
    """Two 3×3 convolutions, each with group norm and SiLU."""

    def __init__(self, inside: int, outside: int, groups: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.GroupNorm(groups, outside), nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.GroupNorm(groups, outside), nn.SiLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """`depth` halvings of the image, each with twice the channels."""

    def __init__(self, width: int = 64, depth: int = 4, groups: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        widths = [width << i for i in range(depth + 1)]
        self.down = nn.ModuleList(Double(a, b, groups) for a, b in zip([3, *widths], widths))
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.up = nn.ModuleList(Double(2 * w, w, groups) for w in widths[-2::-1])
        self.classes = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w), multiples of 2 ** depth -> (batch, classes, h, w)."""
        kept: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            kept.append(x)
        for enlarge, block, across in zip(self.enlarge, self.up, kept[-2::-1]):
            x = block(torch.cat([across, enlarge(x)], 1))
        return self.classes(x)


def build(small: bool, dropout: float | None) -> UNet:
    return UNet(8, 2, 4) if small else UNet()


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Images and the class of every pixel."""
    count, side = (size or 2, 24) if small else (size or 8, 256)
    images = torch.randn(count, 3, side, side, generator=generator)
    return (images,), torch.randint(0, CLASSES, (count, side, side), generator=generator)
