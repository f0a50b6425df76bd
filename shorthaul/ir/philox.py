"""Philox4x32-10, the counter-based generator of every random operator.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The value of an element depends on seed, offset and
the element's logical index alone, never on tiling, fusion or the target.
"""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(seed: np.ndarray, offset: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The first 32-bit word for key = seed (low, high) and counter = (index low, index high, offset low, offset high)."""
    seed, offset, index = (np.asarray(v).astype(np.int64).astype(np.uint64) for v in (seed, offset, index))
    k0, k1 = seed & _LOW, seed >> _32
    c0, c1, c2, c3 = np.broadcast_arrays(index & _LOW, index >> _32, offset & _LOW, offset >> _32)
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(_W0)) & _LOW, (k1 + np.uint64(_W1)) & _LOW
    return c0.astype(np.uint32)


def uniform(seed: np.ndarray, offset: np.ndarray, index: np.ndarray) -> np.ndarray:
    """float32 in [0, 1): the upper 24 bits of the first word."""
    return ((philox(seed, offset, index) >> np.uint32(8)).astype(np.float32)) * np.float32(2.0**-24)
