"""Python's cyclic garbage collector, paused while graphs are built."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collector, also as a decorator. Graphs are many small objects that stay, and what a rewrite drops is mostly freed without
    it: going through all of them again and again takes a quarter to a third of the time that an optimization takes."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
