"""Huge pages for memory that is read here and there: rows of a large embedding table lie on pages of 4 KiB, and finding the page of a row
costs more than the row."""

from __future__ import annotations

import ctypes
import logging
import sys
import time

import torch

LOG = logging.getLogger("shorthaul")
HUGE = 2 << 20  # bytes of a huge page
LEAST = 16 << 20  # bytes of a tensor from which on it is worth it: the processor's table of small pages reaches some MiB
_ADVISE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE of Linux' madvise(2)


def gather(t: torch.Tensor, name: str = "a tensor") -> bool:
    """Move the memory of a tensor on a CPU to huge pages, where the system does that; values and address stay. Returns whether it did.

    A second or so for a GiB. Linux asks for it with MADV_COLLAPSE (6.1 and later); elsewhere, and where huge pages are turned off,
    nothing happens.
    """
    size = t.untyped_storage().nbytes()
    if not sys.platform.startswith("linux") or t.device.type != "cpu" or size < LEAST:
        return False
    address = t.untyped_storage().data_ptr()
    begin, end = -(-address // HUGE) * HUGE, (address + size) // HUGE * HUGE
    start = time.perf_counter()
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    failed = madvise(begin, end - begin, _ADVISE) or madvise(begin, end - begin, _COLLAPSE)
    if failed:
        LOG.debug("no huge pages for %s: errno %d", name, ctypes.get_errno())
        return False
    LOG.info("%s, %d MiB, is on huge pages now (%.1f s)", name, size >> 20, time.perf_counter() - start)
    return True
