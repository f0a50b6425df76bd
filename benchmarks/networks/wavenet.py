"""WaveNet (van den Oord et al., 2016): stacks of dilated causal convolutions with gates predict the next audio sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 256  # values of a sample


class Layer(nn.Module):
    """One gated convolution that sees the present and the sample `dilation` steps before; residual and skip outputs."""

    def __init__(self, channels: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.gated = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.residual = nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels, time) -> the same, and (batch, skip, time)."""
        value, gate = self.gated(F.pad(x, (self.dilation, 0))).chunk(2, dim=1)
        y = torch.tanh(value) * torch.sigmoid(gate)
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    """`stacks` times layers of dilations 1, 2, 4, …; the sum of their skip outputs gives the logits."""

    def __init__(
        self, *, channels: int = 128, skip: int = 256, stacks: int = 3, depth: int = 10, levels: int = LEVELS
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, channels)
        self.first = nn.Conv1d(channels, channels, 2)
        self.layers = nn.ModuleList(Layer(channels, skip, 2**i) for _ in range(stacks) for i in range(depth))
        self.hidden = nn.Conv1d(skip, skip, 1)
        self.logits = nn.Conv1d(skip, levels, 1)

    def forward(self, samples: Tensor) -> Tensor:
        """(batch, time) int64 -> (batch, levels, time): logits of each next sample."""
        x = self.first(F.pad(self.embed(samples).transpose(1, 2), (1, 0)))
        total = None
        for layer in self.layers:
            x, skip = layer(x)
            total = skip if total is None else total + skip
        assert total is not None
        return self.logits(F.relu(self.hidden(F.relu(total))))


def build(small: bool, dropout: float | None) -> WaveNet:
    return WaveNet(channels=8, skip=8, stacks=2, depth=2, levels=20) if small else WaveNet()


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random audio, and the same one sample later."""
    count, time, levels = (size or 2, 48, 20) if small else (size or 8, 16384, LEVELS)
    audio = torch.randint(0, levels, (count, time + 1), generator=generator)
    return (audio[:, :-1].contiguous(),), audio[:, 1:].contiguous()
