"""A BERT encoder (Devlin et al., 2019) that predicts masked words, with the loss as part of the module or without.

`Bert` at its usual size is a quarter of BERT-base in width; `MaskedLanguageModel` with LARGE is BERT-large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # the label of a word that was not masked


class Embeddings(nn.Module):
    """The sum of token, position and segment embeddings, normalized."""

    def __init__(self, vocabulary: int, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(positions, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """(batch, length) and (batch, length) -> (batch, length, width)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token(tokens) + self.position(positions) + self.segment(segments)
        return self.dropout(self.norm(x))


class Attention(nn.Module):
    """Multi-head self-attention with residual connection and layer norm after it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        y = y.transpose(1, 2).reshape(x.shape)
        return self.norm(x + self.dropout(self.output(y)))


class FeedForward(nn.Module):
    """Two linear layers with GELU, residual connection and layer norm after them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.narrow(F.gelu(self.widen(x)))))


class Layer(nn.Module):
    """One encoder layer: attention, then feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.feed_forward(self.attention(x, mask))


class Bert(nn.Module):
    """Encoder with masked-word head. With `tied`, the output projection is the token embedding itself."""

    def __init__(self, *, vocabulary: int = 30522, positions: int = 512, width: int = 256, layers: int = 4,
                 heads: int = 4, hidden: int = 1024, dropout: float = 0.1, tied: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.embeddings = Embeddings(vocabulary, positions, width, dropout)
        self.layers = nn.ModuleList(Layer(width, heads, hidden, dropout) for _ in range(layers))
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, vocabulary)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
        if tied:
            self.decoder.weight = self.embeddings.token.weight

    def forward(self, tokens: Tensor, segments: Tensor, labels: Tensor, padding: Tensor | None = None) -> Tensor:
        """The mean cross-entropy over the words whose label is not IGNORED (a scalar).

        tokens, segments, labels: (batch, length) int64. padding: (batch, length) bool, False where a word is padding.
        """
        return masked_loss(self.logits(tokens, segments, padding), labels)

    def logits(self, tokens: Tensor, segments: Tensor, padding: Tensor | None = None) -> Tensor:
        """(batch, length, vocabulary)."""
        mask = None if padding is None else padding[:, None, None, :]
        x = self.embeddings(tokens, segments)
        for layer in self.layers:
            x = layer(x, mask)
        return self.decoder(self.norm(F.gelu(self.transform(x))))


class MaskedLanguageModel(Bert):
    """The same network up to its logits, on one segment without padding."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, length) int64 -> (batch, length, vocabulary)."""
        return self.logits(tokens, torch.zeros_like(tokens))


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy over the words whose label is not IGNORED."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


SMALL = {"vocabulary": 50, "positions": 16, "width": 16, "layers": 2, "heads": 2, "hidden": 32}
LARGE = {"vocabulary": 30522, "positions": 512, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096}


def build(small: bool, dropout: float | None) -> Bert:
    sizes: dict[str, Any] = SMALL if small else {}
    return Bert(**sizes, dropout=0.1 if dropout is None else dropout)


def build_large(small: bool, dropout: float | None) -> MaskedLanguageModel:
    sizes: dict[str, Any] = SMALL if small else LARGE
    return MaskedLanguageModel(**sizes, dropout=0.1 if dropout is None else dropout)


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random words in two segments."""
    count, length, vocabulary = (size or 3, 12, 50) if small else (size or 8, 128, 30522)
    tokens, labels = _masked_words(count, length, vocabulary, generator)
    boundary = torch.randint(1, length, (count, 1), generator=generator)
    segments = (torch.arange(length) >= boundary).long()
    return (tokens, segments, labels), labels


def batch_large(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random words in one segment."""
    count, length, vocabulary = (size or 3, 12, 50) if small else (size or 32, 512, 30522)
    tokens, labels = _masked_words(count, length, vocabulary, generator)
    return (tokens,), labels


def _masked_words(count: int, length: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Words, and labels of the 15 % of them (and always the first) that are to be predicted."""
    words = torch.randint(5, vocabulary, (count, length), generator=generator)
    masked = torch.rand(count, length, generator=generator) < 0.15
    masked[:, 0] = True
    return words.masked_fill(masked, 3), words.masked_fill(~masked, IGNORED)
