"""Operators: the registry and one module per operator family. Importing this package registers them all."""

from . import (  # noqa: F401
    attention,
    contraction,
    convolution,
    creation,
    custom,
    elementwise,
    embedding,
    losses,
    map_gradient,
    normalization,
    pooling,
    random,
    reductions,
    several,
    views,
)
