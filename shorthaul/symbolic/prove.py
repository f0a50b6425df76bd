"""Three-valued proofs about integer expressions.

True: holds for all values within the bounds of the symbols. False: holds for none of them. None: neither is known
(it may hold for some). Where the symbols' bounds admit no values at all, both are vacuously right.
"""

from __future__ import annotations

from .bounds import bounds
from .division import divide
from .expr import Expr, IntLike, checked, known_divisor
from .substitute import expand_remainders


def prove_le(a: IntLike, b: IntLike) -> bool | None:
    """Whether a <= b.

    >>> from shorthaul.symbolic import Symbol, index
    >>> N = Symbol("N", lower=1)
    >>> prove_le(index("i", N), N - 1), prove_le(N, 0), prove_le(N, 5)
    (True, False, None)
    """
    difference = checked(b) - checked(a)
    if isinstance(difference, int):
        return difference >= 0
    result = _sign(difference)
    if result is None and difference.has_division:
        difference = expand_remainders(difference)
        result = difference >= 0 if isinstance(difference, int) else _sign(difference)
    return result


def _sign(difference: Expr) -> bool | None:
    low, high = bounds(difference)
    if low is not None and low >= 0:
        return True
    if high is not None and high < 0:
        return False
    return None


def prove_lt(a: IntLike, b: IntLike) -> bool | None:
    """Whether a < b."""
    return prove_le(checked(a) + 1, b)


def prove_eq(a: IntLike, b: IntLike) -> bool | None:
    """Whether a == b."""
    difference = checked(a) - checked(b)
    if isinstance(difference, Expr) and difference.has_division:
        expanded = expand_remainders(difference)
        difference = expanded if isinstance(expanded, int) else difference
    if isinstance(difference, int):
        return difference == 0
    low, high = bounds(difference)
    if low == 0 and high == 0:
        return True
    if (low is not None and low > 0) or (high is not None and high < 0):
        return False
    step = known_divisor(difference - difference.const)
    if step > 1 and difference.const % step:
        return False
    return None


def prove_divisible(a: IntLike, b: IntLike) -> bool | None:
    """Whether b divides a. None for a divisor that may be zero is not reported: b is taken not to be zero.

    >>> from shorthaul.symbolic import Symbol
    >>> N = Symbol("N", lower=1, multiple_of=8)
    >>> prove_divisible(3 * N, 4), prove_divisible(N + 2, 4), prove_divisible(N, 16)
    (True, False, None)
    """
    return prove_eq(divide(checked(a), checked(b))[1], 0)
