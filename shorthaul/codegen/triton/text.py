"""Index expressions and scalar code as Triton text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Union

from shorthaul.ir.dtypes import DType, bool_, float32, float64
from shorthaul.ir.scalar import Scalar, cast, walk
from shorthaul.ir.scalar_ops import SCALAR_OPS
from shorthaul.symbolic import Expr, FloorDiv, Max, Min, Mod, Symbol, bounds

IntLike = Union[int, Expr]

TRITON_TYPES = {"float64": "tl.float64", "float32": "tl.float32", "bfloat16": "tl.bfloat16", "float16": "tl.float16",
                "int64": "tl.int64", "int32": "tl.int32", "int16": "tl.int16", "int8": "tl.int8", "uint8": "tl.uint8",
                "bool": "tl.int1"}  # fmt: skip


class NoTritonText(ValueError):
    """A scalar operation that the target cannot say yet."""


def index_text(e: IntLike, names: Mapping[Expr, str]) -> str:
    """Triton source of an index expression; `names` gives variables that hold symbols and quotients."""
    if isinstance(e, int):
        return str(e)
    if e in names:
        return names[e]
    if isinstance(e, Symbol):
        return e.name
    if isinstance(e, (FloorDiv, Mod)):
        left, right = _operand(e.dividend, names), _operand(e.divisor, names)
        low = bounds(e.dividend)[0]
        if low is not None and low >= 0:
            return f"{left} {'//' if isinstance(e, FloorDiv) else '%'} {right}"
        return f"{'floor_div' if isinstance(e, FloorDiv) else 'floor_mod'}({left}, {right})"
    if isinstance(e, (Min, Max)):
        fn = "tl.minimum" if isinstance(e, Min) else "tl.maximum"
        text = index_text(e.args[0], names)
        for other in e.args[1:]:
            text = f"{fn}({text}, {index_text(other, names)})"
        return text
    parts: list[str] = []
    for mono, c in sorted(e.terms.items(), key=lambda t: (t[1] < 0, -len(t[0]), [a.uid for a in t[0]])):
        factors = [_operand(a, names) for a in mono]
        if abs(c) != 1:
            factors.append(str(abs(c)))
        text = " * ".join(factors)
        parts.append(("- " if c < 0 else "+ ") + text)
    if e.const or not parts:
        parts.append(f"{'-' if e.const < 0 else '+'} {abs(e.const)}")
    text = " ".join(parts)
    return text[2:] if text.startswith("+ ") else "-" + text[2:]


def _operand(e: IntLike, names: Mapping[Expr, str]) -> str:
    text = index_text(e, names)
    return text if text.isidentifier() or text.isdigit() else f"({text})"


def literal(value: object) -> str:
    """A Python number as Triton source."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def cast_text(text: str, source: DType, target: DType) -> str:
    """Convert a block."""
    if target is bool_:
        return f"({text} != 0)"
    return f"{text}.to({TRITON_TYPES[target.name]})"


def operation_text(node: Scalar, args: list[str]) -> str:
    """One operation of the vocabulary on the texts of its operands; raises ValueError where Triton has none."""
    if node.op == "cast":
        return cast_text(args[0], node.args[0].dtype, node.dtype)
    row = SCALAR_OPS[node.op]
    operand = node.args[-1].dtype
    if node.op in ("floordiv", "mod") and operand.is_integer:
        return f"{'floor_div' if node.op == 'floordiv' else 'floor_mod'}({args[0]}, {args[1]})"
    if node.op == "div" and operand.is_integer:
        return f"({args[0]} // {args[1]})"
    if node.op == "fmod" and operand.is_integer:
        return f"({args[0]} % {args[1]})"  # Triton's own remainder has the sign of the dividend
    if node.op == "mod":
        return f"({args[0]} - tl.floor({args[0]} / {args[1]}) * {args[1]})"
    if node.op == "where" and node.args[1].op == "const" and node.args[2].op == "const" and not args[1].startswith("tl.full"):
        args = [args[0], f"tl.full([], {args[1]}, {TRITON_TYPES[node.dtype.name]})", args[2]]
    if not row.triton:
        raise NoTritonText(f"the scalar operation {node.op} has no Triton text; add it to its row in ir/scalar_ops.py")
    text = row.triton.format(*args)
    return text.replace("tl.sqrt_rn", "tl.sqrt") if operand is float64 else text


def combiner_text(name: str, parameters: list[Scalar], results: tuple[Scalar, ...]) -> str:
    """A function of its own for the merge of a combiner's states."""
    lines = ["@triton.jit", f"def {name}({', '.join(str(p.attr) for p in parameters)}):"]
    known: dict[Scalar, str] = {p: str(p.attr) for p in parameters}
    for n in walk(*results):
        if n not in known:
            if n.op == "const":
                known[n] = literal(n.attr)
                continue
            known[n] = f"t{len(lines)}"
            lines.append(f"    {known[n]} = {operation_text(n, [known[a] for a in n.args])}")
    lines.append(f"    return {', '.join(known[r] for r in results)}")
    return "\n".join(lines)


def computed(node: Scalar, texts: Sequence[str]) -> str:
    """The text of an operation; 16-bit floats are computed in float32 and rounded, which gives the same for one operation."""
    narrow = [a.dtype.is_float and a.dtype.bits == 16 for a in node.args]
    if node.op in ("cast", "where") or not any(narrow):
        return operation_text(node, list(texts))
    wide = tuple(cast(a, float32) if n else a for a, n in zip(node.args, narrow, strict=True))
    rounded = node.dtype.is_float and node.dtype.bits == 16
    args = [f"{x}.to(tl.float32)" if n and a.op != "const" else x for x, n, a in zip(texts, narrow, node.args, strict=True)]
    text = operation_text(Scalar(node.op, wide, float32 if rounded else node.dtype, node.attr), args)
    return f"{text}.to({TRITON_TYPES[node.dtype.name]})" if rounded else text


def alone(node: Scalar) -> bool:
    """Operations in which a bare number would not become a block."""
    return node.op not in ("add", "sub", "mul", "div", "lt", "le", "gt", "ge", "eq", "ne") or all(a.op == "const" for a in node.args)
