"""A language model of LSTM cells, one call a word and layer, as in Zaremba et al. (2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WORDS = 10_000


class CellLanguageModel(nn.Module):
    """Embedding, layers of `nn.LSTMCell` with dropout between them, a linear layer to the logits."""

    def __init__(self, words: int = WORDS, width: int = 650, layers: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.cells = nn.ModuleList(nn.LSTMCell(width, width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(width, words)

    def forward(self, words: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, words, length): logits of each next word."""
        x = self.dropout(self.embed(words))
        zeros = x.new_zeros(x.shape[0], x.shape[2])
        states = [(zeros, zeros) for _ in self.cells]
        outputs = []
        for t in range(x.shape[1]):
            h = x[:, t]
            for i, cell in enumerate(self.cells):
                states[i] = cell(h, states[i])
                h = self.dropout(states[i][0])
            outputs.append(h)
        return self.decoder(torch.stack(outputs, 1)).transpose(1, 2)


def build(small: bool, dropout: float | None) -> CellLanguageModel:
    p = 0.5 if dropout is None else dropout
    return CellLanguageModel(30, 12, 2, p) if small else CellLanguageModel(dropout=p)


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random words, and the same one word later."""
    count, length, words = (size or 4, 6, 30) if small else (size or 20, 35, WORDS)
    text = torch.randint(0, words, (count, length + 1), generator=generator)
    return (text[:, :-1].contiguous(),), text[:, 1:].contiguous()
