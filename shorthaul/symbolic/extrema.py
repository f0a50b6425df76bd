"""Minimum and maximum, with the arguments that others dominate left out."""

from __future__ import annotations

from .bounds import is_nonnegative
from .expr import Expr, IntLike, Max, Min, checked


def minimum(*values: IntLike) -> IntLike:
    """The least of one or more values.

    >>> from shorthaul.symbolic import Symbol, index
    >>> N = Symbol("N", lower=1)
    >>> minimum(index("i", N), N, N + 3)
    i
    """
    return _extremum(Min, values)


def maximum(*values: IntLike) -> IntLike:
    """The greatest of one or more values."""
    return _extremum(Max, values)


def _extremum(kind: type[Min] | type[Max], values: tuple[IntLike, ...]) -> IntLike:
    if not values:
        raise ValueError(f"{'minimum' if kind is Min else 'maximum'} needs at least one value")
    flat: list[IntLike] = []
    for value in values:
        value = checked(value)
        flat.extend(value.args if isinstance(value, kind) else (value,))
    kept: list[IntLike] = []
    for value in flat:
        if any(_dominates(kind, other, value) for other in kept):
            continue
        kept = [other for other in kept if not _dominates(kind, value, other)]
        kept.append(value)
    return kept[0] if len(kept) == 1 else kind(kept)


def _dominates(kind: type[Min] | type[Max], a: IntLike, b: IntLike) -> bool:
    """Whether b can never be the extremum where a is an argument."""
    if a is b:
        return True
    difference = b - a if kind is Min else a - b
    return is_nonnegative(difference)


def rebuild(e: Expr, args: list[IntLike]) -> IntLike:
    """The same extremum as ``e`` of other arguments."""
    return minimum(*args) if isinstance(e, Min) else maximum(*args)
