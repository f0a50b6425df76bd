"""MobileNet-V2 (Sandler et al., 2018). Parameters and buffers have the names and order of torchvision's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stage(NamedTuple):
    """`blocks` blocks of `channels` outputs; the first of them has `stride`, the others 1."""

    expansion: int
    channels: int
    blocks: int
    stride: int


V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
TINY = (Stage(1, 8, 1, 1), Stage(4, 12, 2, 2), Stage(4, 16, 1, 2))


class ConvNormReLU6(nn.Sequential):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """1×1 convolution that widens, depthwise 3×3, 1×1 that narrows without activation; a residual where shapes allow."""

    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        widen = [] if expansion == 1 else [ConvNormReLU6(inside, wide, 1)]
        self.conv = nn.Sequential(
            *widen,
            ConvNormReLU6(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inside, h, w) -> (batch, outside, h/stride, w/stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, 1×1 convolution, average pooling, dropout, classifier."""

    def __init__(self, stages: tuple[Stage, ...] = V2, *, stem: int = 32, stem_stride: int = 2, head: int = 1280,
                 classes: int = 1000, dropout: float = 0.2) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [ConvNormReLU6(3, stem, 3, stem_stride)]
        inside = stem
        for stage in stages:
            for i in range(stage.blocks):
                layers.append(InvertedResidual(inside, stage.channels, 1 if i else stage.stride, stage.expansion))
                inside = stage.channels
        layers.append(ConvNormReLU6(inside, head, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


def build(small: bool, dropout: float | None) -> MobileNetV2:
    p = 0.2 if dropout is None else dropout
    return MobileNetV2(TINY, stem=8, stem_stride=1, head=32, classes=10, dropout=p) if small else MobileNetV2(dropout=p)
