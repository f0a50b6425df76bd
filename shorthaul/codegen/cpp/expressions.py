"""Scalar code as C++ text: types, literals, and the text of one operation over the vector header's functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shorthaul.ir.dtypes import DType, bool_, float32
from shorthaul.ir.scalar import Scalar
from shorthaul.ir.scalar_ops import SCALAR_OPS
from shorthaul.symbolic import IntLike, Symbol, to_c

_TYPES = {"float64": "double", "float32": "float", "bfloat16": "sh::bfloat16", "float16": "sh::float16", "int64": "int64_t",
          "int32": "int32_t", "int16": "int16_t", "int8": "int8_t", "uint8": "uint8_t", "bool": "bool"}  # fmt: skip


def ctype(dtype: DType) -> str:
    """The C++ element type of a container or value."""
    return _TYPES[dtype.name]


def is_half(dtype: DType) -> bool:
    """A 16-bit float, which is stored but not computed with."""
    return dtype.is_float and dtype.bits < 32


def literal(value: object, dtype: DType) -> str:
    """A number as a C++ expression of exactly the type."""
    if is_half(dtype):
        return f"sh::cast<{ctype(dtype)}>({literal(value, float32)})"
    if dtype.is_float:
        x = float(value)  # type: ignore[arg-type]
        if dtype is float32 and abs(x) > 3.4028235677973366e38:
            x = math.copysign(math.inf, x) if x == x else x
        suffix = "f" if dtype is float32 else ""
        if math.isnan(x):
            return f'__builtin_nan{suffix}("")'
        if math.isinf(x):
            return f"{'-' if x < 0 else ''}__builtin_inf{suffix}()"
        if dtype is float32:
            return f"{_float32(x)}f"
        return repr(x)
    if dtype is bool_:
        return "true" if value else "false"
    n = int(value)  # type: ignore[call-overload]
    if n == -(2**63):
        return "int64_t(-9223372036854775807LL - 1)"
    return f"{ctype(dtype)}({n}{'LL' if abs(n) >= 2**31 else ''})"


def _float32(x: float) -> str:
    """The shortest text that C++ reads as the float32 nearest to x."""
    import numpy as np

    y = np.float32(x)
    positional = y == 0 or 1e-4 <= abs(y) < 1e7
    text = np.format_float_positional(y, unique=True) if positional else np.format_float_scientific(y, unique=True)
    return text.replace(".e", ".0e") + ("0" if text.endswith(".") else "")


def index_text(e: IntLike, names: dict[Symbol, str]) -> str:
    """An index expression over int64_t; raises KeyError for a symbol that nothing defines."""

    def name(s: Symbol) -> str:
        if s not in names:
            raise KeyError(f"symbol {s} of index expression {e} is neither a parameter in scope nor a size")
        return names[s]

    return to_c(e, name).replace("std::min<int64_t>", "sh_min").replace("std::max<int64_t>", "sh_max")


def operation(node: Scalar, args: Sequence[str]) -> str:
    """The text of one operation of the vocabulary, over operand texts of the right types."""
    if node.op == "cast":
        return f"sh::cast<{ctype(node.dtype)}>({args[0]})"
    row = SCALAR_OPS[node.op]
    if is_half(node.args[-1].dtype):  # computes in float32, as everything of 16 bits
        wide = [f"sh::cast<float>({a})" if is_half(x.dtype) else a for a, x in zip(args, node.args, strict=True)]
        text = row.cpp.format(*wide)
        return f"sh::cast<{ctype(node.dtype)}>({text})" if is_half(node.dtype) else text
    return row.cpp.format(*args)


def needs_splat(node: Scalar) -> bool:
    """Whether plain operands must be broadcast before they meet vector operands (conditions and selections)."""
    row = SCALAR_OPS.get(node.op)
    return row is not None and (row.kind in ("logic", "select") or any(a.dtype is bool_ or is_half(a.dtype) for a in node.args))
