"""MLP-Mixer (Tolstikhin et al., 2021): layers that mix the patches of an image, then the channels of a patch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A two-layer MLP over patches and one over channels, each behind a layer norm and with a residual."""

    def __init__(self, width: int, patches: int, patch_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(width)
        self.patch_in = nn.Linear(patches, patch_hidden)
        self.patch_out = nn.Linear(patch_hidden, patches)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_in = nn.Linear(width, channel_hidden)
        self.channel_out = nn.Linear(channel_hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, patches, width) -> the same."""
        across = self.patch_norm(x).transpose(1, 2)
        x = x + self.patch_out(F.gelu(self.patch_in(across))).transpose(1, 2)
        return x + self.channel_out(F.gelu(self.channel_in(self.channel_norm(x))))


class Mixer(nn.Module):
    """Patches embedded by a strided convolution, blocks, layer norm, the average over patches, a classifier."""

    def __init__(self, *, side: int = 224, patch: int = 16, width: int = 768, depth: int = 12, patch_hidden: int = 384,
                 channel_hidden: int = 3072, classes: int = 1000) -> None:  # fmt: skip
        super().__init__()
        patches = (side // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*[Block(width, patches, patch_hidden, channel_hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, side, side) -> (batch, classes)."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.classifier(self.norm(self.blocks(x)).mean(1))


def build(small: bool, dropout: float | None) -> Mixer:
    if small:
        return Mixer(side=24, patch=6, width=24, depth=2, patch_hidden=12, channel_hidden=48, classes=10)
    return Mixer()
