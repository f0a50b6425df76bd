"""ResNet-18 (He et al., 2016): basic residual blocks with batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the input (or to its 1×1 projection)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A stem, four stages of basic blocks, global average pooling and a linear classifier.

    `small_images` takes the 3×3 stem without pooling that is usual for images of 32×32 pixels or fewer.
    """

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2), classes: int = 1000,
                 small_images: bool = False) -> None:  # fmt: skip
        super().__init__()
        stem: list[nn.Module]
        if small_images:
            stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        else:
            stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                    nn.MaxPool2d(3, 2, 1)]  # fmt: skip
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        inside = width
        for i, count in enumerate(blocks):
            outside = width << i
            for j in range(count):
                stages.append(BasicBlock(inside, outside, 2 if i and not j else 1))
                inside = outside
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        x = self.stages(self.stem(x))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.classifier(x)


def build(small: bool, dropout: float | None) -> ResNet:
    return ResNet(8, (1, 1, 1, 1), classes=10, small_images=True) if small else ResNet()
