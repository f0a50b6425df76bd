"""YOLOv4 (Bochkovskiy et al., 2020): CSPDarknet-53 with Mish, spatial pyramid pooling, path aggregation, three heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, and Mish (in the backbone) or leaky ReLU (behind it)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, mish: bool = False) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outside),
            nn.Mish() if mish else nn.LeakyReLU(0.1),
        )


class DarkBlock(nn.Module):
    """1×1 and 3×3 convolution with a residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(channels, hidden, 1, mish=True), ConvNorm(hidden, channels, 3, mish=True))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Stage(nn.Module):
    """Halves the image; then one part of the channels goes through the blocks and the other past them (CSP).

    The first stage of the network keeps all channels in both parts.
    """

    def __init__(self, inside: int, outside: int, blocks: int, first: bool = False) -> None:
        super().__init__()
        part = outside if first else outside // 2
        self.down = ConvNorm(inside, outside, 3, 2, mish=True)
        self.past = ConvNorm(outside, part, 1, mish=True)
        self.enter = ConvNorm(outside, part, 1, mish=True)
        self.blocks = nn.Sequential(*[DarkBlock(part, outside // 2) for _ in range(blocks)])
        self.leave = ConvNorm(part, part, 1, mish=True)
        self.merge = ConvNorm(2 * part, outside, 1, mish=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.merge(torch.cat([self.leave(self.blocks(self.enter(x))), self.past(x)], 1))


def alternating(inside: int, width: int, count: int) -> nn.Sequential:
    """An odd number of convolutions, 1×1 to `width` and 3×3 to twice as many channels in turn."""
    layers: list[nn.Module] = []
    for i in range(count):
        outside, kernel = (2 * width, 3) if i % 2 else (width, 1)
        layers.append(ConvNorm(inside, outside, kernel))
        inside = outside
    return nn.Sequential(*layers)


class YOLOv4(nn.Module):
    """`width` channels in the stem, `blocks` of the five stages, `outputs` numbers per cell of each of three grids."""

    def __init__(self, width: int = 32, blocks: tuple[int, ...] = (1, 2, 8, 8, 4), outputs: int = 255,
                 pools: tuple[int, ...] = (13, 9, 5)) -> None:  # fmt: skip
        super().__init__()
        w = width
        self.pools = pools
        self.stem = ConvNorm(3, w, 3, mish=True)
        self.stages = nn.ModuleList(Stage(w << i, w << (i + 1), count, first=i == 0) for i, count in enumerate(blocks))
        self.before_pools = alternating(32 * w, 16 * w, 3)
        self.behind_pools = alternating((len(pools) + 1) * 16 * w, 16 * w, 3)
        self.up5 = ConvNorm(16 * w, 8 * w, 1)
        self.across4 = ConvNorm(16 * w, 8 * w, 1)
        self.merge4 = alternating(16 * w, 8 * w, 5)
        self.up4 = ConvNorm(8 * w, 4 * w, 1)
        self.across3 = ConvNorm(8 * w, 4 * w, 1)
        self.merge3 = alternating(8 * w, 4 * w, 5)
        self.down3 = ConvNorm(4 * w, 8 * w, 3, 2)
        self.again4 = alternating(16 * w, 8 * w, 5)
        self.down4 = ConvNorm(8 * w, 16 * w, 3, 2)
        self.again5 = alternating(32 * w, 16 * w, 5)
        self.heads = nn.ModuleList(
            nn.Sequential(ConvNorm(c * w, 2 * c * w, 3), nn.Conv2d(2 * c * w, outputs, 1)) for c in (4, 8, 16)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, h, w), multiples of 32 -> (batch, outputs, ·, ·) at an eighth, a sixteenth and a thirty-second of the size."""
        x = self.stem(x)
        depths = []
        for stage in self.stages:
            x = stage(x)
            depths.append(x)
        c3, c4, c5 = depths[-3:]
        p5 = self.before_pools(c5)
        p5 = self.behind_pools(torch.cat([*(F.max_pool2d(p5, k, 1, k // 2) for k in self.pools), p5], 1))
        p4 = self.merge4(torch.cat([self.across4(c4), F.interpolate(self.up5(p5), scale_factor=2.0)], 1))
        p3 = self.merge3(torch.cat([self.across3(c3), F.interpolate(self.up4(p4), scale_factor=2.0)], 1))
        n4 = self.again4(torch.cat([self.down3(p3), p4], 1))
        n5 = self.again5(torch.cat([self.down4(n4), p5], 1))
        return self.heads[0](p3), self.heads[1](n4), self.heads[2](n5)


def build(small: bool, dropout: float | None) -> YOLOv4:
    return YOLOv4(2, (1, 1, 1, 1, 1), 6, (5, 3)) if small else YOLOv4()


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Images; the targets are a zero that the stand-in loss does not need."""
    count, side = (size or 4, 64) if small else (size or 32, 416)
    return (torch.randn(count, 3, side, side, generator=generator),), torch.zeros(())


def loss(outputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
    """A stand-in: the sum of the mean squares of the three grids (assigning boxes to cells is no part of the network)."""
    return outputs[0].square().mean() + outputs[1].square().mean() + outputs[2].square().mean()
