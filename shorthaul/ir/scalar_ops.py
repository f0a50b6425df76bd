"""The vocabulary of scalar code: one table row per operation.

A row gives the dtype rule, the derivative, the NumPy meaning (which is *the* meaning: the interpreter uses it), and the
C++ and Triton text. One more row extends the vocabulary everywhere. The derivative of an operation gives, for each operand, the
partial derivative as scalar code of (operands, result); None marks an operand without a gradient, NO_RULE one whose gradient is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import philox
from .dtypes import DType, bool_, float32
from .scalar import Number, Scalar, apply, cast, const, where

Derivative = Callable[..., "tuple[Scalar | NoRule | None, ...]"]


class NoRule:
    """The derivative by an operand is not known: asking for it is an error."""


NO_RULE = NoRule()


@dataclass(frozen=True)
class ScalarOp:
    """A row of the vocabulary. `kind`: "arith" (any number), "float" (floats only), "compare" (gives bool), "logic", "select", "philox".

    `numpy` maps arrays to an array; `cpp` and `triton` are templates with {0}, {1}, ... for the operands. `cost` is in
    units of one add: what recomputing the operation costs on a wide vector unit.
    """

    name: str
    arity: int
    kind: str
    numpy: Callable[..., np.ndarray]
    derivative: Derivative | None = None
    cpp: str = ""
    triton: str = ""
    cost: int = 1

    def result(self, operand: DType) -> DType:
        """The result's dtype for operands of that dtype; raises TypeError when it does not apply."""
        if self.kind == "float" and not operand.is_float:
            raise TypeError(f"scalar operation {self.name} takes floats, not {operand}")
        if self.kind == "logic" and operand.is_float:
            raise TypeError(f"scalar operation {self.name} takes bool or integers, not {operand}")
        if self.kind == "compare":
            return bool_
        return float32 if self.kind == "philox" else operand


SCALAR_OPS: dict[str, ScalarOp] = {}


def define(name: str, arity: int, kind: str, numpy: Callable[..., np.ndarray], derivative: Derivative | None = None,
           cpp: str = "", triton: str = "", cost: int = 1) -> None:  # fmt: skip
    """Add a row to the vocabulary. `cpp` defaults to `sh::name(operands)`, `triton` to none (the operation is not on that target)."""
    operands = ", ".join(f"{{{i}}}" for i in range(arity))
    SCALAR_OPS[name] = ScalarOp(name, arity, kind, numpy, derivative, cpp or f"sh::{name}({operands})", triton, cost)


def _one(x: Scalar) -> Scalar:
    return const(1, x.dtype)


def _sign(x: Scalar) -> Scalar:
    return apply("sign", x)


def _np_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.true_divide(a, b) if np.asarray(a).dtype.kind == "f" else np.trunc(np.true_divide(a, b)).astype(np.asarray(a).dtype)


def _np_sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _np_special(name: str) -> Callable[[np.ndarray], np.ndarray]:
    scalar = np.vectorize(getattr(math, name), otypes=[np.float64])
    return lambda x: scalar(np.asarray(x, np.float64)).astype(np.asarray(x).dtype) if np.size(x) else x


def _half_max(a: Scalar, b: Scalar, op: str) -> tuple[Scalar, Scalar]:
    # PyTorch gives half of the gradient to each operand at a tie
    first = where(apply(op, a, b), 1, where(apply("eq", a, b), const(0.5, a.dtype), const(0, a.dtype)))
    return first, 1 - first


_T = "tl.math.{f}({{0}})"
_L = "libdevice.{f}({{0}})"

# arithmetic -----------------------------------------------------------------------------------------------------------
define("add", 2, "arith", np.add, lambda a, b, y: (_one(a), _one(a)), triton="({0} + {1})")
define("sub", 2, "arith", np.subtract, lambda a, b, y: (_one(a), const(-1, a.dtype)), triton="({0} - {1})")
define("mul", 2, "arith", np.multiply, lambda a, b, y: (b, a), triton="({0} * {1})")
define("div", 2, "arith", _np_div, lambda a, b, y: (1 / b, -y / b), triton="({0} / {1})", cost=4)
define("neg", 1, "arith", np.negative, lambda a, y: (const(-1, a.dtype),), triton="(-{0})")
define("abs", 1, "arith", np.abs, lambda a, y: (_sign(a),), triton="tl.abs({0})")
define("sign", 1, "arith", lambda x: np.sign(x).astype(x.dtype), lambda a, y: (const(0, a.dtype),),
       triton="(({0} > 0).to({0}.dtype) - ({0} < 0).to({0}.dtype))")  # fmt: skip
define("max", 2, "arith", np.maximum, lambda a, b, y: _half_max(a, b, "gt"),
       triton="tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)")  # fmt: skip
define("min", 2, "arith", np.minimum, lambda a, b, y: _half_max(a, b, "lt"),
       triton="tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)")  # fmt: skip
define("floordiv", 2, "arith", np.floor_divide, lambda a, b, y: (None, None), triton="tl.floor({0} / {1})", cost=4)
define("mod", 2, "arith", np.mod, lambda a, b, y: (_one(a), -apply("floor", a / b)), cost=4)
define("fmod", 2, "arith", np.fmod, lambda a, b, y: (_one(a), -apply("trunc", a / b)), triton="libdevice.fmod({0}, {1})", cost=4)
# float functions ------------------------------------------------------------------------------------------------------
define("exp", 1, "float", np.exp, lambda a, y: (y,), triton="tl.exp({0})", cost=8)
define("expm1", 1, "float", np.expm1, lambda a, y: (y + 1,), triton="libdevice.expm1({0})", cost=10)
define("log", 1, "float", np.log, lambda a, y: (1 / a,), triton="tl.log({0})", cost=8)
define("log1p", 1, "float", np.log1p, lambda a, y: (1 / (a + 1),), triton="libdevice.log1p({0})", cost=10)
define("log2", 1, "float", np.log2, lambda a, y: (1 / (a * math.log(2)),), triton="tl.log2({0})", cost=8)
define("log10", 1, "float", np.log10, lambda a, y: (1 / (a * math.log(10)),), triton="libdevice.log10({0})", cost=8)
define("sqrt", 1, "float", np.sqrt, lambda a, y: (0.5 / y,), triton="tl.sqrt_rn({0})", cost=4)
define("rsqrt", 1, "float", lambda x: (1 / np.sqrt(x)).astype(x.dtype), lambda a, y: (-0.5 * y * y * y,),
       triton="(1 / tl.sqrt_rn({0}))", cost=6)  # fmt: skip
define("tanh", 1, "float", np.tanh, lambda a, y: (1 - y * y,), triton="libdevice.tanh({0})", cost=10)
define("sigmoid", 1, "float", _np_sigmoid, lambda a, y: (y * (1 - y),), triton="tl.sigmoid({0})", cost=10)
define("erf", 1, "float", _np_special("erf"), lambda a, y: (apply("exp", -(a * a)) * (2 / math.sqrt(math.pi)),),
       triton="tl.erf({0})", cost=10)  # fmt: skip
define("erfc", 1, "float", _np_special("erfc"), lambda a, y: (apply("exp", -(a * a)) * (-2 / math.sqrt(math.pi)),), cost=12,
       triton="libdevice.erfc({0})")  # fmt: skip
define("sin", 1, "float", np.sin, lambda a, y: (apply("cos", a),), triton="tl.sin({0})", cost=10)
define("cos", 1, "float", np.cos, lambda a, y: (-apply("sin", a),), triton="tl.cos({0})", cost=10)
define("tan", 1, "float", np.tan, lambda a, y: (1 + y * y,), triton="libdevice.tan({0})", cost=14)
define("asin", 1, "float", np.arcsin, lambda a, y: (apply("rsqrt", 1 - a * a),), triton="libdevice.asin({0})", cost=14)
define("acos", 1, "float", np.arccos, lambda a, y: (-apply("rsqrt", 1 - a * a),), triton="libdevice.acos({0})", cost=14)
define("atan", 1, "float", np.arctan, lambda a, y: (1 / (1 + a * a),), triton="libdevice.atan({0})", cost=14)
define("atan2", 2, "float", np.arctan2, lambda a, b, y: (b / (a * a + b * b), -a / (a * a + b * b)), cost=18,
       triton="libdevice.atan2({0}, {1})")  # fmt: skip
define("sinh", 1, "float", np.sinh, lambda a, y: (apply("cosh", a),), triton="libdevice.sinh({0})", cost=12)
define("cosh", 1, "float", np.cosh, lambda a, y: (apply("sinh", a),), triton="libdevice.cosh({0})", cost=12)
define("asinh", 1, "float", np.arcsinh, lambda a, y: (apply("rsqrt", a * a + 1),), triton="libdevice.asinh({0})", cost=14)
define("acosh", 1, "float", np.arccosh, lambda a, y: (apply("rsqrt", a * a - 1),), triton="libdevice.acosh({0})", cost=14)
define("atanh", 1, "float", np.arctanh, lambda a, y: (1 / (1 - a * a),), triton="libdevice.atanh({0})", cost=14)
define("pow", 2, "arith", np.power,
       lambda a, b, y: (where(apply("eq", b, 0), 0, b * apply("pow", a, b - 1)),
                        where(apply("eq", a, 0) & (b >= 0), 0, y * apply("log", a))),
       triton="libdevice.pow({0}, {1})", cost=18)  # fmt: skip
define("floor", 1, "float", np.floor, lambda a, y: (const(0, a.dtype),), triton="tl.floor({0})")
define("ceil", 1, "float", np.ceil, lambda a, y: (const(0, a.dtype),), triton="tl.ceil({0})")
define("round", 1, "float", np.rint, lambda a, y: (const(0, a.dtype),), triton="libdevice.rint({0})")
define("trunc", 1, "float", np.trunc, lambda a, y: (const(0, a.dtype),), triton="libdevice.trunc({0})")
define("lgamma", 1, "float", _np_special("lgamma"), lambda a, y: (apply("digamma", a),), triton="libdevice.lgamma({0})", cost=30)


def _np_digamma(x: np.ndarray) -> np.ndarray:
    """Digamma by recurrence up to x >= 10, then the asymptotic series; reflection for negative arguments."""
    z = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        negative = z <= 0
        w = np.where(negative, 1 - z, z)
        shift = np.zeros_like(w)
        for _ in range(10):
            shift, w = np.where(w < 10, shift - 1 / w, shift), np.where(w < 10, w + 1, w)
        i = 1 / (w * w)
        series = i * (1 / 12 - i * (1 / 120 - i * (1 / 252 - i * (1 / 240 - i * (1 / 132 - i * 691 / 32760)))))
        value = shift + np.log(w) - 0.5 / w - series
        value = np.where(negative, value - np.pi / np.tan(np.pi * z), value)
        value = np.where(z == 0, -np.copysign(np.inf, z), np.where(negative & (z == np.floor(z)), np.nan, value))
    return value.astype(np.asarray(x).dtype)


define("digamma", 1, "float", _np_digamma, lambda a, y: (apply("trigamma", a),), triton="digamma({0})", cost=40)
# comparisons, logic, selection ----------------------------------------------------------------------------------------
for _name, _fn, _sym in (("eq", np.equal, "=="), ("ne", np.not_equal, "!="), ("lt", np.less, "<"),
                         ("le", np.less_equal, "<="), ("gt", np.greater, ">"), ("ge", np.greater_equal, ">=")):  # fmt: skip
    define(_name, 2, "compare", _fn, lambda a, b, y: (None, None), triton=f"({{0}} {_sym} {{1}})")
define("isnan", 1, "compare", np.isnan, lambda a, y: (None,), triton="({0} != {0})")
define("isinf", 1, "compare", np.isinf, lambda a, y: (None,), triton='(tl.abs({0}) == float("inf"))')
define("and", 2, "logic", np.bitwise_and, lambda a, b, y: (None, None), cpp="sh::band({0}, {1})", triton="({0} & {1})")
define("or", 2, "logic", np.bitwise_or, lambda a, b, y: (None, None), cpp="sh::bor({0}, {1})", triton="({0} | {1})")
define("xor", 2, "logic", np.bitwise_xor, lambda a, b, y: (None, None), cpp="sh::bxor({0}, {1})", triton="({0} ^ {1})")
define("not", 1, "logic", np.invert, lambda a, y: (None,), cpp="sh::bnot({0})", triton="(~{0})")
define("shl", 2, "logic", np.left_shift, lambda a, b, y: (None, None), triton="({0} << {1})")
define("shr", 2, "logic", np.right_shift, lambda a, b, y: (None, None), triton="({0} >> {1})")
define("where", 3, "select", np.where, lambda c, a, b, y: (None, where(c, _one(a), const(0, a.dtype)),
                                                         where(c, const(0, a.dtype), _one(a))),
       cpp="sh::select({0}, {1}, {2})", triton="tl.where({0}, {1}, {2})")  # fmt: skip
# random numbers: operands are seed (int64), offset (int64) and the element's logical index (int64)
define("philox", 3, "philox", philox.uniform, lambda s, o, i, y: (None, None, None), cpp="sh::philox_uniform({0}, {1}, {2})",
       triton="philox_uniform({0}, {1}, {2})", cost=40)  # fmt: skip


def simplify(op: str, args: tuple[Scalar, ...], dtype: DType) -> Scalar:
    """Build `op(args)`, applying the identities that hold for every value (also NaN, infinities and signed zeros).

    x*1, 1*x, x/1, x-0, x+(-0) , neg(neg x), x or False, where with a constant condition or equal branches, and folding of constants.
    x*0 is *not* folded: it is NaN for an infinite x.
    """
    if all(a.op == "const" for a in args) and op != "philox":
        folded = _fold(op, args, dtype)
        if folded is not None:
            return folded
    x = args[0]
    if op == "mul":
        if _is(args[1], 1):
            return x
        if _is(x, 1):
            return args[1]
    elif op == "div" and _is(args[1], 1):
        return x
    elif op == "add" and dtype.kind != "bool":
        if _is(args[1], 0) and (not dtype.is_float or math.copysign(1, args[1].attr) < 0):  # type: ignore[arg-type]
            return x
        if _is(x, 0) and (not dtype.is_float or math.copysign(1, x.attr) < 0):  # type: ignore[arg-type]
            return args[1]
        if args[1].op == "neg":
            return simplify("sub", (x, args[1].args[0]), dtype)
    elif op == "sub" and _is(args[1], 0) and (not dtype.is_float or math.copysign(1, args[1].attr) > 0):  # type: ignore[arg-type]
        return x
    elif op == "neg" and x.op == "neg":
        return x.args[0]
    elif op == "where":
        if args[0].op == "const":
            return args[1] if args[0].attr else args[2]
        if args[1] is args[2]:
            return args[1]
    elif op == "or" and dtype is bool_ and args[1].op == "const" and not args[1].attr:
        return x
    elif op == "not" and dtype is bool_ and x.op == "not":
        return x.args[0]
    return Scalar(op, args, dtype)


def _is(s: Scalar, value: Number) -> bool:
    return s.op == "const" and s.dtype is not bool_ and s.attr == value


def _fold(op: str, args: tuple[Scalar, ...], dtype: DType) -> Scalar | None:
    with np.errstate(all="ignore"):
        try:
            value = SCALAR_OPS[op].numpy(*(np.asarray(a.attr, a.dtype.numpy) for a in args))
        except (ValueError, OverflowError, ZeroDivisionError):
            return None
    return const(np.asarray(value).item(), dtype)


@dataclass(frozen=True)
class Combiner:
    """An associative operation on a tuple of accumulators: `merge` gives the combined components.

    `components` name the accumulators in order; `identity` their neutral values; `merge(left, right)` scalar code of both tuples.
    `step(state, element)` (optional) is a cheaper form of merge for one lifted element. `numpy` names a ufunc for one-component combiners.
    """

    name: str
    components: tuple[str, ...]
    identity: tuple[Number, ...]
    merge: Callable[[tuple[Scalar, ...], tuple[Scalar, ...]], tuple[Scalar, ...]]
    numpy: np.ufunc | None = None


def _welford(l: tuple[Scalar, ...], r: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    # Chan, Golub, LeVeque 1979: pairwise merging of (count, mean, sum of squared deviations)
    n = l[0] + r[0]
    share = r[0] / apply("max", n, 1)
    delta = r[1] - l[1]
    return n, l[1] + delta * share, l[2] + r[2] + delta * delta * l[0] * share


def _argmax(l: tuple[Scalar, ...], r: tuple[Scalar, ...], better: str = "gt", preferred: str = "lt") -> tuple[Scalar, ...]:
    # of equal elements the first wins (the last with preferred="gt"); NaN wins over everything, as in PyTorch
    nan_l, nan_r = apply("ne", l[0], l[0]), apply("ne", r[0], r[0])
    tie = apply(preferred, r[1], l[1])
    right = (nan_r & (~nan_l | tie)) | (~nan_l & (apply(better, r[0], l[0]) | (apply("eq", r[0], l[0]) & tie)))
    return where(right, r[0], l[0]), where(right, r[1], l[1])


def _online_softmax(l: tuple[Scalar, ...], r: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    # Milakov and Gimelshein 2018: running maximum and rescaled sum of exponentials
    m = apply("max", l[0], r[0])

    def scaled(s: tuple[Scalar, ...]) -> Scalar:
        return where(apply("eq", s[0], m), s[1], s[1] * apply("exp", s[0] - m))

    return m, scaled(l) + scaled(r)


def _recurrence(l: tuple[Scalar, ...], r: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    # the composition of h -> factor * h + value, left first: a linear recurrence as a scan (Blelloch 1990). Not commutative
    return l[0] * r[0], l[1] * r[0] + r[1]


_BIG = 2**63 - 1
COMBINERS: dict[str, Combiner] = {
    c.name: c
    for c in (
        Combiner("sum", ("value",), (0,), lambda l, r: (l[0] + r[0],), np.add),
        Combiner("prod", ("value",), (1,), lambda l, r: (l[0] * r[0],), np.multiply),
        Combiner("max", ("value",), (-math.inf,), lambda l, r: (apply("max", l[0], r[0]),), np.maximum),
        # of numbers that are not negative: where nothing comes, zero
        Combiner("max0", ("value",), (0,), lambda l, r: (apply("max", l[0], r[0]),), np.maximum),
        Combiner("min", ("value",), (math.inf,), lambda l, r: (apply("min", l[0], r[0]),), np.minimum),
        Combiner("any", ("value",), (False,), lambda l, r: (l[0] | r[0],), np.logical_or),
        Combiner("all", ("value",), (True,), lambda l, r: (l[0] & r[0],), np.logical_and),
        Combiner("welford", ("count", "mean", "m2"), (0, 0, 0), _welford),
        Combiner("argmax", ("value", "index"), (-math.inf, _BIG), _argmax),
        Combiner("argmin", ("value", "index"), (math.inf, _BIG), lambda l, r: _argmax(l, r, "lt")),
        Combiner("argmax_last", ("value", "index"), (-math.inf, -1), lambda l, r: _argmax(l, r, "gt", "gt")),
        Combiner("argmin_last", ("value", "index"), (math.inf, -1), lambda l, r: _argmax(l, r, "lt", "gt")),
        Combiner("recurrence", ("factor", "value"), (1, 0), _recurrence),
        Combiner("online_softmax", ("max", "sum"), (-math.inf, 0), _online_softmax),
    )
}


def identity(combiner: str, component: int, dtype: DType) -> Scalar:
    """The neutral element of one component, clamped to the range of an integer dtype."""
    value = COMBINERS[combiner].identity[component]
    if not dtype.is_float and isinstance(value, float) and math.isinf(value):
        if dtype is bool_:
            return const(value > 0, dtype)
        info = np.iinfo(dtype.numpy)
        return const(int(info.max if value > 0 else info.min), dtype)
    return cast(const(value, dtype), dtype)


from . import scalar_special  # noqa: E402,F401  (its rows belong to the table)
