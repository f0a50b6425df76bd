"""The library functions as the interpreter calls them: NumPy arrays in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from shorthaul.ir.nodes import LibraryCall
from shorthaul.symbolic import Expr, evaluate

from .table import LIBRARY


def library_for_interpreter() -> dict[str, Callable[..., Mapping[str, np.ndarray]]]:
    """Every library function for `interpret(..., library=...)`. Sizes in attributes must be numbers."""

    def adapt(name: str) -> Callable[..., Mapping[str, np.ndarray]]:
        def call(node: LibraryCall, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            reads = {k: torch.from_numpy(np.array(v, order="C")) for k, v in values.items()}
            attributes = {k: evaluate(v, {}) if isinstance(v, Expr) else v for k, v in node.attributes.items()}
            return {k: v.numpy() for k, v in LIBRARY[name](reads, attributes, {}).items()}

        return call

    return {name: adapt(name) for name in LIBRARY}
