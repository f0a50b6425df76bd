"""Triton's own interpreter (TRITON_INTERPRET=1), made to work with current NumPy."""

from __future__ import annotations

from typing import Any

from shorthaul.ir.dtypes import round_bfloat16
from shorthaul.ir.scalar_ops import SCALAR_OPS


def is_interpreting() -> bool:
    """Whether kernels run in Triton's interpreter instead of on a GPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def repair() -> None:
    """Three faults of Triton 3.6's interpreter: blocks of one element become integers by int(array), which NumPy 2.4 refuses for
    arrays of rank 1; matrix products of bfloat16 multiply the bit patterns; rounding to bfloat16 cuts off (a GPU rounds to nearest).
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

    convert = interpreter._convert_float

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source is not tl.float32 or target is not tl.bfloat16:
            return convert(data, source, target, rounding)
        values = np.ascontiguousarray(data).view(np.float32)
        return (round_bfloat16(values).view(np.uint32) >> 16).astype(np.uint16).reshape(values.shape)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot
    patch.repaired = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patch


class HostLibdevice:
    """Stands in for libdevice, which the interpreter lacks: the vocabulary's own NumPy functions, by the names that libdevice has."""

    def __getattr__(self, name: str) -> Any:
        meaning = SCALAR_OPS[{"rint": "round"}.get(name, name)].numpy

        def function(*operands: Any) -> Any:
            import numpy as np
            import triton.language as tl
            from triton.runtime.interpreter import TensorHandle

            first = operands[0]
            values = [x.handle.data for x in operands]
            with np.errstate(all="ignore"):
                try:
                    data = meaning(*values)
                except ValueError:  # a pole, in a lane that is masked or not: libdevice gives infinity or NaN there
                    data = np.vectorize(lambda *v: _or_nan(meaning, v), otypes=[values[0].dtype])(*values)
            data = np.asarray(data, first.handle.data.dtype)
            scalar = first.dtype.scalar
            return tl.tensor(TensorHandle(data, scalar), tl.block_type(scalar, list(data.shape)) if data.shape else scalar)

        return function


def _or_nan(function: Any, values: Any) -> Any:
    try:
        return function(*values)
    except ValueError:
        return float("nan")
