"""Triton's own interpreter (TRITON_INTERPRET=1), made to work with current NumPy."""

from __future__ import annotations

from typing import Any


def is_interpreting() -> bool:
    """Whether kernels run in Triton's interpreter instead of on a GPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def repair() -> None:
    """Two faults of Triton 3.6's interpreter: blocks of one element become integers by int(array), which NumPy 2.4 refuses for
    arrays of rank 1; and matrix products of bfloat16 multiply the bit patterns.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor
    if getattr(original, "repaired", False):
        return

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        def widen(x: Any) -> Any:
            if x.dtype.scalar is not tl.bfloat16:
                return x
            bits = x.data.view(np.uint16).astype(np.uint32) << 16
            return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

        return product(self, widen(a), widen(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    patch.repaired = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patch
