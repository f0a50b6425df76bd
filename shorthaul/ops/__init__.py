"""Operators: the registry and one module per operator family. Importing this package registers them all."""

from . import (  # noqa: F401
    contraction,
    convolution,
    custom,
    elementwise,
    normalization,
    reductions,
    views,
)
