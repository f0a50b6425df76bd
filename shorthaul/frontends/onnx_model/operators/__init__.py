"""Importing this package fills the table of operators, one family a file."""

from shorthaul.frontends.onnx_model.operators import (  # noqa: F401
    attention,
    contraction,
    convolution,
    elementwise,
    indexing,
    losses,
    normalization,
    pooling,
    quantization,
    random,
    recurrent,
    reductions,
    resize,
    shapes,
    signal,
    training,
)
