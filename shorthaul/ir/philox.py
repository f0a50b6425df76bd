"""Philox4x32-10: the counter-based generator behind dropout and random initial values, in NumPy.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

This is the definition; ``shorthaul_random.h`` (C++) and the Triton kernels give the same bits. Only 32-bit
multiplications with high and low half are used, so that every target can say it:

    key     = (seed low, seed high)
    counter = (index low, index high, offset low, offset high)
    uniform = (word 0 >> 8) * 2**-24                      in [0, 1)

A number depends on (seed, offset, index) alone. The index is an element's logical position, so tiling, fusion and
recomputation do not change it; the offset separates operators and steps.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
KEY_STEP_0, KEY_STEP_1 = 0x9E3779B9, 0xBB67AE85

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def _halves(value: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    bits = np.asarray(value).astype(np.int64).view(np.uint64)
    return bits & _LOW, bits >> _SHIFT


def words(
    seed: np.ndarray | int, offset: np.ndarray | int, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four 32-bit words of each block: uint32 arrays of the shape to which the int64 arguments broadcast."""
    k0, k1 = _halves(seed)
    # Kept in uint64 so that one multiplication gives both halves of the product.
    c0, c1, c2, c3 = np.broadcast_arrays(*_halves(index), *_halves(offset))
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIER_0), c2 * np.uint64(MULTIPLIER_1)
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(KEY_STEP_0)) & _LOW, (k1 + np.uint64(KEY_STEP_1)) & _LOW
    return c0.astype(np.uint32), c1.astype(np.uint32), c2.astype(np.uint32), c3.astype(np.uint32)


def _unit_interval(word: np.ndarray) -> np.ndarray:
    return (word >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def uniform(seed: np.ndarray | int, offset: np.ndarray | int, index: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float32, of the shape of ``index``; multiples of 2**-24, exact on every target."""
    return _unit_interval(words(seed, offset, index)[0])


def normal(seed: np.ndarray | int, offset: np.ndarray | int, index: np.ndarray) -> np.ndarray:
    """Standard normal numbers, float32, by Box-Muller from words 0 and 1: sqrt(-2 log(1 - u0)) cos(2 pi u1).

    Targets agree to a few units in the last place, not to the bit (logarithm and cosine are rounded differently).
    """
    word_0, word_1, _, _ = words(seed, offset, index)
    u0, u1 = _unit_interval(word_0).astype(np.float64), _unit_interval(word_1).astype(np.float64)
    return (np.sqrt(-2 * np.log1p(-u0)) * np.cos(2 * np.pi * u1)).astype(np.float32)
