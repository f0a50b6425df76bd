"""The demo's network: a small EfficientNet for 28×28 images with one channel (after Tan and Le, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Scale every channel by a weight between 0 and 1 that depends on the averages of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x)


class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel, squeeze and excite, narrow by a 1×1 convolution."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1, widen: int = 4) -> None:
        super().__init__()
        wide = inside * widen
        self.block = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            SqueezeExcite(wide, max(4, inside // 4)),
            nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + y if self.residual else y


class SmallEfficientNet(nn.Module):
    """Stem, six inverted residuals, head: (batch, 1, 28, 28) -> (batch, 10).

    Without dropout and stochastic depth: the demo compares loss curves, and two engines do not draw the same masks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
            InvertedResidual(16, 16),
            InvertedResidual(16, 24, stride=2), InvertedResidual(24, 24),
            InvertedResidual(24, 40, kernel=5, stride=2), InvertedResidual(40, 40, kernel=5),
            InvertedResidual(40, 64),
            nn.Conv2d(64, 192, 1, bias=False), nn.BatchNorm2d(192), nn.SiLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
