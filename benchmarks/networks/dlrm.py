"""DLRM (Naumov et al., 2019): rows of 26 embedding tables, their pairwise products, and two MLPs say whether someone clicks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

# Distinct values of the 26 categorical features of Criteo's display advertising data: 33.8 million rows.
CRITEO = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
          2173, 4, 7046547, 18, 15, 286181, 105, 142572)  # fmt: skip
SMALL = tuple(min(rows, 50) for rows in CRITEO)
TENTH = tuple(-(-rows // 10) for rows in CRITEO)
DENSE = 13  # numerical features


def mlp(widths: tuple[int, ...], last_relu: bool) -> nn.Sequential:
    """Linear layers with ReLU after each, but after the last only with `last_relu`."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers if last_relu else layers[:-1])


class DLRM(nn.Module):
    """`bottom` and `top` are the widths of the hidden layers below and above the products."""

    def __init__(self, rows: tuple[int, ...] = CRITEO, width: int = 16, bottom: tuple[int, ...] = (512, 256, 64),
                 top: tuple[int, ...] = (512, 256), sparse: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum", sparse=sparse) for n in rows)
        vectors = len(rows) + 1
        self.bottom = mlp((DENSE, *bottom, width), True)
        self.top = mlp((width + vectors * (vectors - 1) // 2, *top, 1), False)
        i, j = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("pairs", i * vectors + j, persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """(batch, 13) and (tables, batch) int64 -> (batch,) logits."""
        x = self.bottom(dense)
        rows = [table(index.unsqueeze(1)) for table, index in zip(self.tables, sparse)]
        vectors = torch.stack([x, *rows], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.top(torch.cat([x, products], dim=1)).squeeze(1)


def build(small: bool, dropout: float | None) -> DLRM:
    return DLRM(SMALL, 4, (16, 8), (16, 8)) if small else DLRM()


def build_tenth(small: bool, dropout: float | None) -> DLRM:
    """With a tenth of the rows of every table."""
    return build(True, dropout) if small else DLRM(TENTH)


def batch(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """Features and clicks. As in real logs a few rows of each table are asked for far more often than the others."""
    return _batch(size or (16 if small else 8192), SMALL if small else CRITEO, generator)


def batch_tenth(size: int | None, small: bool, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    """As `batch`, for the tables of `build_tenth`."""
    return _batch(size or (16 if small else 8192), SMALL if small else TENTH, generator)


def _batch(count: int, rows: tuple[int, ...], generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    dense = torch.rand(count, DENSE, generator=generator)
    skewed = torch.rand(len(rows), count, generator=generator, dtype=torch.float64) ** 4
    limits = torch.tensor(rows).unsqueeze(1)
    index = torch.minimum((skewed * limits).long(), limits - 1)
    return (dense, index), torch.randint(0, 2, (count,), generator=generator).float()
