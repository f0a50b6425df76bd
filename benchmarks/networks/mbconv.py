"""A network of inverted residual blocks, shaped as EfficientNet-B0 (Tan and Le, 2019).

A block (MBConv): 1×1 convolution that widens, depthwise convolution, squeeze-excite, 1×1 convolution that narrows;
batch norm after each convolution, SiLU after the first two, stochastic depth (Huang et al., 2016) on the residual.
"""

from __future__ import annotations

import math
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
    kernel: int


B0 = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)
TINY = (Stage(1, 8, 1, 1, 3), Stage(4, 12, 2, 2, 3), Stage(4, 16, 1, 2, 5))


def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
    """Stochastic depth: drops whole samples of `x` with `probability` and scales the others up."""
    if not training or probability == 0.0:
        return x
    keep = 1.0 - probability
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = x.new_empty(shape).bernoulli_(keep)
    return x * (mask / keep)


class SqueezeExcite(nn.Module):
    """Scales each channel by a number computed from the averages of all channels (Hu et al., 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        scale = self.expand(F.silu(self.reduce(scale)))
        return x * torch.sigmoid(scale)


class MBConv(nn.Module):
    """One inverted residual block: (batch, inside, h, w) -> (batch, outside, h/stride, w/stride)."""

    def __init__(self, inside: int, outside: int, expansion: int = 6, kernel: int = 3, stride: int = 1,
                 squeeze: float = 0.25, drop: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        wide = inside * expansion
        self.expand_conv: nn.Module | None = None
        if expansion != 1:
            self.expand_conv = nn.Conv2d(inside, wide, 1, bias=False)
            self.expand_bn = nn.BatchNorm2d(wide)
        self.depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(wide)
        self.squeeze_excite = SqueezeExcite(wide, max(1, int(inside * squeeze)))
        self.project_conv = nn.Conv2d(wide, outside, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(outside)
        self.residual = stride == 1 and inside == outside
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand_conv is not None:
            y = F.silu(self.expand_bn(self.expand_conv(y)))
        y = F.silu(self.depthwise_bn(self.depthwise_conv(y)))
        y = self.squeeze_excite(y)
        y = self.project_bn(self.project_conv(y))
        if self.residual:
            y = drop_path(y, self.drop, self.training) + x
        return y


class MBConvNet(nn.Module):
    """Stem, stages of MBConv blocks, head convolution, average pooling, dropout, classifier.

    `width` and `depth` scale the numbers of channels (to multiples of 8) and of blocks. The probability of dropping a
    block grows linearly with its depth up to `stochastic_depth`.
    """

    def __init__(self, stages: tuple[Stage, ...] = B0, *, inputs: int = 3, stem: int = 32, head: int = 1280,
                 classes: int = 1000, width: float = 1.0, depth: float = 1.0, dropout: float = 0.2,
                 stochastic_depth: float = 0.2, stem_stride: int = 2) -> None:  # fmt: skip
        super().__init__()

        def scaled(channels: int) -> int:
            return channels if width == 1.0 else max(8, round(channels * width / 8) * 8)

        counts = [math.ceil(stage.blocks * depth) for stage in stages]
        inside = scaled(stem)
        self.stem_conv = nn.Conv2d(inputs, inside, 3, stem_stride, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(inside)
        blocks: list[nn.Module] = []
        for stage, count in zip(stages, counts):
            for i in range(count):
                drop = stochastic_depth * len(blocks) / sum(counts)
                outside = scaled(stage.channels)
                stride = 1 if i else stage.stride
                blocks.append(MBConv(inside, outside, stage.expansion, stage.kernel, stride, drop=drop))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.head_conv = nn.Conv2d(inside, scaled(head), 1, bias=False)
        self.head_bn = nn.BatchNorm2d(scaled(head))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(scaled(head), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, classes)."""
        x = F.silu(self.stem_bn(self.stem_conv(x)))
        x = self.blocks(x)
        x = F.silu(self.head_bn(self.head_conv(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.classifier(self.dropout(x))


def build(small: bool, dropout: float | None) -> MBConvNet:
    p = 0.2 if dropout is None else dropout
    if small:
        return MBConvNet(TINY, stem=8, head=32, classes=10, dropout=p, stochastic_depth=p, stem_stride=1)
    return MBConvNet(dropout=p, stochastic_depth=p)
