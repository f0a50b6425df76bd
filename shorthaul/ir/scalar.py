"""Scalar code of tasklets: an interned expression graph over the vocabulary of `scalar_ops`.

A `Scalar` is immutable and interned, so equal code is the same object and common subexpressions are shared
by construction. Leaves are `read(name)` (the value that arrives through the tasklet's memlet of that name),
`const` and `index_value` (an integer expression of map parameters as a value).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Union

from shorthaul.symbolic import Expr, Symbol, free_symbols, substitute

from .dtypes import DType, bool_, int64

IntLike = Union[int, Expr]
Number = Union[int, float, bool]

_table: dict[tuple, Scalar] = {}
_lock = threading.Lock()


class Scalar:
    """One node of scalar code: `op` applied to `args`, giving a value of `dtype`.

    Leaves: op "read" (attr: the connector's name), "const" (attr: the number), "index" (attr: an integer expression).
    Python's operators build code; Python numbers take the other operand's dtype; mixing dtypes raises TypeError
    (insert `cast`).
    """

    __slots__ = ("__weakref__", "args", "attr", "dtype", "has_index", "op")
    op: str
    args: tuple[Scalar, ...]
    dtype: DType
    attr: object
    has_index: bool  # whether an "index" leaf is below

    def __new__(cls, op: str, args: tuple[Scalar, ...], dtype: DType, attr: object = None) -> Scalar:
        key = (op, args, dtype, _attr_key(attr))
        found = _table.get(key)
        if found is None:
            found = object.__new__(cls)
            found.op, found.args, found.dtype, found.attr = op, args, dtype, attr
            found.has_index = op == "index" or any(a.has_index for a in args)
            with _lock:
                found = _table.setdefault(key, found)
        return found

    def __reduce__(self) -> tuple:
        return Scalar, (self.op, self.args, self.dtype, self.attr)

    def __repr__(self) -> str:
        return to_text(self)

    def __add__(self, o: Scalar | Number) -> Scalar:
        return apply("add", self, o)

    def __radd__(self, o: Number) -> Scalar:
        return apply("add", o, self)

    def __sub__(self, o: Scalar | Number) -> Scalar:
        return apply("sub", self, o)

    def __rsub__(self, o: Number) -> Scalar:
        return apply("sub", o, self)

    def __mul__(self, o: Scalar | Number) -> Scalar:
        return apply("mul", self, o)

    def __rmul__(self, o: Number) -> Scalar:
        return apply("mul", o, self)

    def __truediv__(self, o: Scalar | Number) -> Scalar:
        return apply("div", self, o)

    def __rtruediv__(self, o: Number) -> Scalar:
        return apply("div", o, self)

    def __neg__(self) -> Scalar:
        return apply("neg", self)

    def __lt__(self, o: Scalar | Number) -> Scalar:
        return apply("lt", self, o)

    def __le__(self, o: Scalar | Number) -> Scalar:
        return apply("le", self, o)

    def __gt__(self, o: Scalar | Number) -> Scalar:
        return apply("gt", self, o)

    def __ge__(self, o: Scalar | Number) -> Scalar:
        return apply("ge", self, o)

    def __and__(self, o: Scalar) -> Scalar:
        return apply("and", self, o)

    def __or__(self, o: Scalar) -> Scalar:
        return apply("or", self, o)

    def __invert__(self) -> Scalar:
        return apply("not", self)


def _attr_key(attr: object) -> object:
    # 0.0 and -0.0, 1 and 1.0 and True, and NaN must stay apart (or together) by what they mean, not by ==
    if isinstance(attr, float):
        return ("f", math.copysign(1.0, attr), attr) if attr == attr else ("nan",)
    return (type(attr).__name__, attr)


def read(name: str, dtype: DType) -> Scalar:
    """The value that arrives through the memlet called `name`."""
    return Scalar("read", (), dtype, name)


def const(value: Number, dtype: DType) -> Scalar:
    """A number of the given dtype."""
    if dtype.is_float:
        value = float(value)
    elif dtype is bool_:
        value = bool(value)
    else:
        value = int(value)
    return Scalar("const", (), dtype, value)


def index_value(expr: IntLike) -> Scalar:
    """An integer expression of map parameters and sizes as an int64 value."""
    return const(expr, int64) if isinstance(expr, int) else Scalar("index", (), int64, expr)


def cast(value: Scalar, dtype: DType) -> Scalar:
    """Convert with PyTorch's rules. Constants fold."""
    if value.dtype is dtype:
        return value
    if value.op == "const" and not (isinstance(value.attr, float) and not math.isfinite(value.attr) and not dtype.is_float):
        return const(value.attr, dtype)  # type: ignore[arg-type]
    return Scalar("cast", (value,), dtype)


def apply(op: str, *args: Scalar | Number) -> Scalar:
    """Apply a vocabulary operation; Python numbers become constants of the scalar operands' dtype.

    Raises TypeError when dtypes are mixed or the operation does not take them, KeyError for an unknown operation.
    """
    from .scalar_ops import SCALAR_OPS, simplify

    row = SCALAR_OPS[op]
    if len(args) != row.arity:
        raise TypeError(f"scalar operation {op} takes {row.arity} operands, {len(args)} given")
    data = args[1:] if op == "where" else args
    types = {a.dtype for a in data if isinstance(a, Scalar)}
    if len(types) > 1 and row.kind != "philox":
        raise TypeError(f"scalar operation {op} mixes dtypes {sorted(t.name for t in types)}: insert a cast")
    if not types:
        raise TypeError(f"scalar operation {op} needs at least one scalar operand")
    common = next(iter(types))
    operands = tuple(a if isinstance(a, Scalar) else const(a, common) for a in args)
    return simplify(op, operands, row.result(common))


def where(condition: Scalar, a: Scalar | Number, b: Scalar | Number) -> Scalar:
    """`a` where the condition holds, else `b`."""
    return apply("where", condition, a, b)


def walk(*roots: Scalar) -> Iterator[Scalar]:
    """All nodes below the roots once each, operands before users."""
    seen: set[Scalar] = set()
    for root in roots:
        stack: list[tuple[Scalar, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(node.args) if a not in seen)


def rewrite(root: Scalar, leaf: Callable[[Scalar], Scalar | None], memo: dict[Scalar, Scalar] | None = None) -> Scalar:
    """Rebuild code bottom-up: `leaf(node)` gives a replacement for a node, or None to keep it (with new operands).

    Rebuilding simplifies again. Pass one `memo` for several roots of a tasklet.
    """
    from .scalar_ops import simplify

    memo = {} if memo is None else memo
    stack = [root]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        new = leaf(node)
        if new is None and node.args:
            missing = [a for a in node.args if a not in memo]
            if missing:
                stack += reversed(missing)
                continue
            args = tuple([memo[a] for a in node.args])
            if args == node.args:
                new = node
            elif node.op == "cast":
                new = cast(args[0], node.dtype)
            else:
                new = simplify(node.op, args, node.dtype)
        memo[node] = node if new is None else new
        stack.pop()
    return memo[root]


def substitute_reads(root: Scalar, values: Mapping[str, Scalar], memo: dict[Scalar, Scalar] | None = None) -> Scalar:
    """Replace reads by name."""
    return rewrite(root, lambda n: values.get(str(n.attr)) if n.op == "read" else None, memo)


def substitute_indices(root: Scalar, values: Mapping[Symbol, IntLike], memo: dict[Scalar, Scalar] | None = None) -> Scalar:
    """Replace map parameters inside `index` leaves."""
    if not root.has_index:
        return root

    def leaf(n: Scalar) -> Scalar | None:
        return index_value(substitute(n.attr, values)) if n.op == "index" else None  # type: ignore[arg-type]

    return rewrite(root, leaf, memo)


def reads_of(*roots: Scalar) -> list[str]:
    """Names of the reads used, in order of first use."""
    return [n.attr for n in walk(*roots) if n.op == "read"]  # type: ignore[misc]


def symbols_of(*roots: Scalar) -> frozenset[Symbol]:
    """Symbols used in `index` leaves."""
    found: frozenset[Symbol] = frozenset()
    if not any(r.has_index for r in roots):
        return found
    for n in walk(*roots):
        if n.op == "index":
            found |= free_symbols(n.attr)  # type: ignore[arg-type]
    return found


_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
          "eq": "==", "ne": "!=", "and": "&", "or": "|"}  # fmt: skip


def to_text(s: Scalar) -> str:
    """Readable form, e.g. `x * sigmoid(x)`. Shared subexpressions are repeated."""
    if s.op == "read":
        return str(s.attr)
    if s.op == "const":
        return repr(s.attr)
    if s.op == "index":
        return f"[{s.attr}]"
    if s.op == "cast":
        return f"{s.dtype}({to_text(s.args[0])})"
    if s.op in _INFIX:
        a, b = (f"({to_text(x)})" if x.op in _INFIX else to_text(x) for x in s.args)
        return f"{a} {_INFIX[s.op]} {b}"
    return f"{s.op}({', '.join(to_text(a) for a in s.args)})"
