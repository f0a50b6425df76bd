"""Elementwise operators: one line each.

`elementwise(name, function, aten)` registers an operator from its scalar function. Positional parameters of the function are operands (they
broadcast, and may be Python numbers instead); keyword-only parameters are attributes. Shapes broadcast, dtypes follow PyTorch's
promotion, the gradient is the scalar derivative.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import partials, scaled
from shorthaul.ir.dtypes import DType, bool_, float32, int64, promote
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, reads_of, substitute_reads, where
from shorthaul.symbolic import Expr, prove_eq

from .builder import Expansion, Gradient
from .registry import AtenCall, OperatorDefinition, OperatorError, Sample, TensorType, register

IntLike = Union[int, Expr]


def broadcast_shapes(op: str, shapes: Iterable[Sequence[IntLike]]) -> tuple[IntLike, ...]:
    """NumPy's broadcasting of symbolic shapes; raises OperatorError when sizes cannot agree."""
    listing = [tuple(s) for s in shapes]
    rank = max((len(s) for s in listing), default=0)
    result: list[IntLike] = [1] * rank
    for shape in listing:
        for d, n in enumerate(shape, start=rank - len(shape)):
            if n == 1 or n is result[d]:
                continue
            if result[d] == 1:
                result[d] = n
            elif prove_eq(result[d], n) is False:
                raise OperatorError(f"{op}: shapes {', '.join(str(list(s)) for s in listing)} do not broadcast: {result[d]} against {n}")
            else:
                result[d] = agreed(result[d], n)
    return tuple(result)


def agreed(a: IntLike, b: IntLike) -> IntLike:
    """One of two sizes that are not provably different, such as n and 2 (n // 2), which a guard of the capture knows to be equal.

    The same one in either order, so that what is inferred from operands in another order has the same shape: a number, else what is
    written more shortly.
    """
    return min(a, b, key=lambda n: (not isinstance(n, int), len(str(n)), str(n)))


def broadcast_at(x: Container, params: Sequence[IntLike]) -> Memlet:
    """The element of `x` that broadcasts to the point `params` of the result."""
    offset = len(params) - len(x.shape)
    return at(x, *(0 if n == 1 else params[offset + d] for d, n in enumerate(x.shape)))


class Pointwise(OperatorDefinition):
    """Any elementwise code: attribute `code` is a Scalar over the reads x0, x1, ... What gradients and fusions on operators build."""

    name = "pointwise"
    operands: tuple[str, ...] = ("x*",)
    attributes: Mapping[str, Any] = {"code": None}

    def code(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Scalar:
        """The scalar code over the operands' names."""
        return attributes["code"]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        shape = broadcast_shapes(self.name, [t.shape for t in types.values()])
        return {"y": TensorType(self.code(types, attributes).dtype, shape)}

    def _code_of(self, c: Expansion | Gradient) -> Scalar:
        types = {k: TensorType(c.input(k).dtype, c.input(k).shape) for k in c.node.reads}
        return self.code(types, c.node.attributes)

    def maps(self, c: Expansion) -> None:
        y = c.output()
        code = self._code_of(c)
        params = c.params(y.shape)
        used = set(reads_of(code))
        c.map(params, {k: broadcast_at(c.input(k), params) for k in c.node.reads if k in used}, {"y": at(y, *params)}, {"y": code})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None or not gy.dtype.is_float:
            return {}
        code = self._code_of(g)
        wanted = [k for k in g.node.reads if g.needs(k) and g.input(k).dtype.is_float]
        compute = code.args[0] if code.op == "cast" else code  # the derivative is taken before the rounding of the result
        derivatives = partials(compute, wanted)
        result: dict[str, Container | None] = {}
        for k in wanted:
            d = derivatives[k]
            if d is None:
                continue
            x = g.input(k)
            names = [n for n in g.node.reads if n in reads_of(d)]
            operands = {f"x{i}": g.input(n) for i, n in enumerate(names)}
            rename = {n: read(f"x{i}", g.input(n).dtype) for i, n in enumerate(names)}
            gname = f"x{len(names)}"
            value = scaled(substitute_reads(d, rename), cast(read(gname, gy.dtype), d.dtype))
            shape = broadcast_shapes(self.name, [gy.shape, *(c.shape for c in operands.values())])
            full_grad = g.op("pointwise", {"code": cast(value, x.dtype)}, **operands, **{gname: gy})
            assert tuple(full_grad.shape) == tuple(shape)
            result[k] = g.sum_to(full_grad, x.shape)
        return result


register(Pointwise)


class Elementwise(Pointwise):
    """An operator made by `elementwise`."""

    def __init__(self, name: str, function: Callable[..., Scalar], aten: Sequence[str], raw: Sequence[str], result: DType | None,
                 samples: Sequence[Sample]) -> None:  # fmt: skip
        self.name = name
        self.function = function
        self.aten = tuple(a if a.startswith(("aten.", "shorthaul.")) else f"aten.{a}" for a in aten)
        parameters = inspect.signature(function).parameters.values()
        self.operands = tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)
        keywords = {p.name: (None if p.default is inspect.Parameter.empty else p.default) for p in parameters
                    if p.kind is inspect.Parameter.KEYWORD_ONLY}  # fmt: skip
        self.keywords = keywords
        self.attributes = {**keywords, "compute": None, "dtype": None}
        self.raw = frozenset(raw)
        self.result = result
        self._samples = tuple(samples)

    def code(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Scalar:
        numbers = [n for n in self.operands if n not in types]
        compute = attributes.get("compute")
        if compute is None:
            compute = promote(*(t.dtype for n, t in types.items() if n not in self.raw)).compute
        values: list[Scalar] = []
        for n in self.operands:
            if n in types:
                value = read(n, types[n].dtype)
                values.append(value if n in self.raw else cast(value, compute))
            elif attributes.get(n) is None:
                raise OperatorError(f"{self.name}: operand {n} is missing (numbers given: {numbers})")
            else:
                number = attributes[n]
                values.append(cast(index_value(number), compute) if isinstance(number, Expr) else const(number, compute))
        keywords = {k: attributes.get(k) if attributes.get(k) is not None else d for k, d in self.keywords.items()}
        try:
            value = self.function(*values, **keywords)
        except TypeError as e:
            raise OperatorError(f"{self.name} of {', '.join(map(repr, types.values()))}: {e}") from e
        dtype = attributes.get("dtype") or self.result
        if dtype is None:
            given = promote(*(t.dtype for n, t in types.items() if n not in self.raw))
            dtype = given if value.dtype is given.compute else value.dtype
        return cast(value, dtype)

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        operands: dict[str, Any] = {}
        attributes: dict[str, Any] = {}
        plain = [k for k in call.order if k not in self.keywords and k not in ("out", "dtype", "layout", "device", "pin_memory")]
        for name, key in zip(self.operands, plain, strict=False):
            value = call.arguments[key]
            if isinstance(value, Container):
                operands[name] = value
            else:
                attributes[name] = value
        attributes.update({k: call.arguments[k] for k in self.keywords if k in call.arguments})
        result = call.results[0]
        assert result is not None
        attributes["dtype"] = result.dtype
        if not self.raw.issuperset(self.operands):
            attributes["compute"] = (call.compute or result.dtype).compute if result.dtype is bool_ else result.dtype.compute
        return operands, attributes

    def samples(self) -> Iterable[Sample]:
        if self._samples:
            return self._samples
        shapes = [(3, 4), (4,), (3, 1)]
        dtype = int64 if self.name.startswith("bitwise_") else float32
        return [Sample({n: TensorType(bool_ if n in self.raw else dtype, shapes[i]) for i, n in enumerate(self.operands)})]


def elementwise(name: str, function: Callable[..., Scalar], *aten: str, raw: Sequence[str] = (), result: DType | None = None,
                samples: Sequence[Sample] = ()) -> None:  # fmt: skip
    """Register an elementwise operator.

    function: scalar code of the operands (positional) and attributes (keyword-only). aten: overloads, without the leading `aten.`.
    raw: operands that keep their dtype (conditions). result: the result's dtype where it does not follow from promotion.
    """
    register(Elementwise(name, function, aten, raw, result, samples))


def _scaled(b: Scalar, alpha: Any) -> Scalar:
    return b if alpha in (None, 1) else b * alpha


def _clamp(x: Scalar, *, min: Any = None, max: Any = None) -> Scalar:
    # where() and not max/min: the gradient at a bound is one, and NaN passes through, as in PyTorch
    if min is not None:
        x = where(x < min, min, x)
    return x if max is None else where(x > max, max, x)


def _div(a: Scalar, b: Scalar, *, rounding_mode: str | None = None) -> Scalar:
    if rounding_mode is None:
        return a / b
    if rounding_mode == "floor":
        return apply("floordiv", a, b)
    return apply("trunc", a / b) if a.dtype.is_float else a / b


def _power(a: Scalar, b: Scalar) -> Scalar:
    if b.op == "const" and a.dtype.is_float:
        exact = {2.0: lambda: a * a, 3.0: lambda: a * a * a, 1.0: lambda: a, 0.5: lambda: apply("sqrt", a), -1.0: lambda: 1 / a,
                 -0.5: lambda: apply("rsqrt", a), -2.0: lambda: 1 / (a * a)}  # fmt: skip
        if b.attr in exact:
            return exact[b.attr]()  # type: ignore[index]
    return apply("pow", a, b)


def unary(name: str) -> Callable[[Scalar], Scalar]:
    """The function that applies a scalar operation of one operand."""
    return lambda x: apply(name, x)


def binary(name: str) -> Callable[[Scalar, Scalar], Scalar]:
    """The function that applies a scalar operation of two operands."""
    return lambda a, b: apply(name, a, b)


def _float_first(name: str) -> Callable[[Scalar], Scalar]:
    return lambda x: apply(name, x) if x.dtype.is_float else x


def _logical(op: str) -> Callable[..., Scalar]:
    return lambda a, b: apply(op, cast(a, bool_), cast(b, bool_))


elementwise("add", lambda a, b, *, alpha=1: a + _scaled(b, alpha) if a.dtype is not bool_ else a | b, "add.Tensor", "add.Scalar")
elementwise("sub", lambda a, b, *, alpha=1: a - _scaled(b, alpha), "sub.Tensor", "sub.Scalar")
elementwise("rsub", lambda a, b, *, alpha=1: b - _scaled(a, alpha), "rsub.Tensor", "rsub.Scalar")
elementwise("mul", lambda a, b: a * b if a.dtype is not bool_ else a & b, "mul.Tensor", "mul.Scalar")
elementwise("div", _div, "div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
elementwise("floor_divide", lambda a, b: apply("floordiv", a, b), "floor_divide.default", "floor_divide.Scalar")
elementwise("remainder", lambda a, b: apply("mod", a, b), "remainder.Tensor", "remainder.Scalar",
            "remainder.Scalar_Tensor")  # fmt: skip
elementwise("fmod", lambda a, b: apply("fmod", a, b), "fmod.Tensor", "fmod.Scalar")
elementwise("pow", _power, "pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
elementwise("maximum", lambda a, b: apply("max", a, b), "maximum.default")
elementwise("minimum", lambda a, b: apply("min", a, b), "minimum.default")
elementwise("atan2", lambda a, b: apply("atan2", a, b), "atan2.default")
elementwise("neg", lambda x: -x, "neg.default")
elementwise("abs", lambda x: apply("abs", x), "abs.default")
elementwise("sign", lambda x: apply("sign", x), "sign.default")
elementwise("square", lambda x: x * x, "square.default")
elementwise("reciprocal", lambda x: 1 / x, "reciprocal.default")
for _name in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "erfc", "sin", "cos", "tan",
              "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "lgamma", "digamma"):  # fmt: skip
    elementwise(_name, unary(_name), f"{_name}.default")
for _name in ("floor", "ceil", "round", "trunc"):
    elementwise(_name, _float_first(_name), f"{_name}.default")
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    elementwise(_name, binary(_name), f"{_name}.Tensor", f"{_name}.Scalar", result=bool_)
elementwise("isnan", lambda x: apply("ne", x, x), "isnan.default", result=bool_)
elementwise("isinf", lambda x: apply("isinf", x), "isinf.default", result=bool_)
elementwise("logical_and", _logical("and"), "logical_and.default", result=bool_)
elementwise("logical_or", _logical("or"), "logical_or.default", result=bool_)
elementwise("logical_xor", _logical("xor"), "logical_xor.default", result=bool_)
elementwise("logical_not", lambda x: apply("not", cast(x, bool_)), "logical_not.default", result=bool_)
elementwise("bitwise_and", lambda a, b: a & b, "bitwise_and.Tensor", "bitwise_and.Scalar")
elementwise("bitwise_or", lambda a, b: a | b, "bitwise_or.Tensor", "bitwise_or.Scalar")
elementwise("bitwise_xor", lambda a, b: apply("xor", a, b), "bitwise_xor.Tensor", "bitwise_xor.Scalar")
elementwise("bitwise_not", lambda x: ~x, "bitwise_not.default")
elementwise(
    "where",
    lambda condition, a, b: where(condition, a, b),
    "where.self",
    "where.ScalarSelf",
    "where.ScalarOther",
    raw=("condition",),
)
elementwise("masked_fill", lambda x, mask, value: where(mask, value, x), "masked_fill.Scalar", "masked_fill.Tensor", raw=("mask",))
elementwise("clamp", _clamp, "clamp.default")
elementwise("clamp_min", lambda x, b: where((x < b) | apply("ne", b, b), b, x), "clamp_min.default", "clamp_min.Tensor")
elementwise("clamp_max", lambda x, b: where((x > b) | apply("ne", b, b), b, x), "clamp_max.default", "clamp_max.Tensor")
elementwise("lerp", lambda a, b, weight: a + weight * (b - a), "lerp.Scalar", "lerp.Tensor")
elementwise("addcmul", lambda x, a, b, *, value=1: x + _scaled(a * b, value), "addcmul.default")
elementwise("addcdiv", lambda x, a, b, *, value=1: x + _scaled(a / b, value), "addcdiv.default")
elementwise("cast", lambda x: x, "_to_copy.default", "clone.default", "alias.default", "contiguous.default", "lift_fresh_copy.default",
            "alias_copy.default")  # fmt: skip
