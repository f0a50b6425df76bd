"""FoldTranspose: a transposition next to a matrix product is a change of its letters."""

from __future__ import annotations

from ..base import require
from .folding import Fold, Moving


class FoldTranspose(Fold):
    """Let a contraction by library read what a copy exchanges or repeats the dimensions of, or write where such a copy puts its result.

    before:  map i, j: t[i, j] = w[j, i];  y = contract(x, t, "mk,kn->mn")        after:  y = contract(x, w, "mk,nk->mn")
    before:  g = contract(x, e, "mk,mn->kn");  map i, j: d[i, j] = g[j, i]        after:  d = contract(x, e, "mk,mn->nk")

    Forward and gradients alike: a gradient is a contraction too. An operand that is repeated along a batch is read once. All readers of the
    copy must be contractions, and the library must take what it reads then as it lies in memory: where the dimensions of rows or columns
    do not walk through it in equal steps, it would copy it itself.
    """

    def accepts(self, moved: Moving) -> None:
        require(moved.scale == 1, "it computes something; see FoldScale")
