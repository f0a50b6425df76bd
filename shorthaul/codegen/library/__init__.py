"""Library calls: what the function names of `LibraryCall` nodes mean, in PyTorch.

    LIBRARY["contract"](reads, attributes, out) -> results by name

`reads` and `out` are tensors by connector; `out` has those results whose memory is planned. A function that is
marked `writes_out` fills and returns
them where it can; others return tensors of their own, and the caller copies. Sizes in attributes are ints.
"""

from . import attention, convolution, counted, generic, matrix_products, ordering, rows, sums  # noqa: F401
from .table import LIBRARY, LibraryError, library, writes_out

__all__ = ["LIBRARY", "LibraryError", "library", "writes_out"]
