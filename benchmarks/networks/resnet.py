"""Residual networks with batch norm: ResNet-18 and -50 (He et al., 2016), Wide ResNet-50-2 (Zagoruyko and Komodakis, 2016).

Parameters and buffers come in the order of torchvision's, with the same shapes; their names differ.
"""

from __future__ import annotations

from collections.abc import Callable

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


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with batch norm; the last has four times the channels of a basic block.

    `widening` multiplies the channels inside the block only.
    """

    def __init__(self, inside: int, outside: int, stride: int, widening: int = 1) -> None:
        super().__init__()
        hidden = outside // 4 * widening
        self.conv1 = nn.Conv2d(inside, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A stem, four stages of blocks, global average pooling and a linear classifier.

    `block(inside, outside, stride)` makes a block, whose outputs are `expansion` times the width of its stage.
    `small_images` takes the 3×3 stem without pooling that is usual for images of 32×32 pixels or fewer.
    """

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2), classes: int = 1000,
                 small_images: bool = False, block: Callable[[int, int, int], nn.Module] = BasicBlock,
                 expansion: int = 1) -> None:  # fmt: skip
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
            outside = (width << i) * expansion
            for j in range(count):
                stages.append(block(inside, outside, 2 if i and not j else 1))
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


def build_bottleneck(widening: int) -> Callable[[bool, float | None], ResNet]:
    """The factory of ResNet-50 (widening 1) or Wide ResNet-50-2 (widening 2)."""

    def block(inside: int, outside: int, stride: int) -> Bottleneck:
        return Bottleneck(inside, outside, stride, widening)

    def build(small: bool, dropout: float | None) -> ResNet:
        if small:
            return ResNet(4, (1, 1, 1), 10, small_images=True, block=block, expansion=4)
        return ResNet(64, (3, 4, 6, 3), block=block, expansion=4)

    return build
