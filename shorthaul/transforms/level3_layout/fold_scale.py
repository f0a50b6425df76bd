"""FoldScale: a constant factor next to a matrix product is the product's own."""

from __future__ import annotations

from ..base import require
from .folding import Fold, Moving


class FoldScale(Fold):
    """Make a constant factor of an operand or the result of a contraction by library the contraction's `alpha`.

    before:  s = contract(q, k, "mk,nk->mn");  map i, j: y[i, j] = s[i, j] / 8        after:  y = contract(q, k, "mk,nk->mn", alpha=0.125)

    The dimensions may be exchanged at the same time. The factor is applied once to each sum, before it is rounded to the result's type,
    so that results differ by rounding and are no less exact. Maps that compute anything else are left to fusion.
    """

    def accepts(self, moved: Moving) -> None:
        require(moved.scale != 1, "it has no factor; see FoldTranspose")
