"""Contractions: every matrix product is one operator `contract` with an equation, such as "abk,nk->abn" for a linear layer.

One letter per dimension; a letter that the result lacks is summed; "1" is a dimension of size one that broadcasts.
Gradients are contractions with
the letters exchanged, so transposes never become copies.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.nodes import Operator
from shorthaul.ir.scalar import Scalar, cast
from shorthaul.symbolic import Expr, prove_eq

from .builder import Expansion, Gradient
from .elementwise import broadcast_at, broadcast_shapes
from .registry import REQUIRED, AtenCall, ExpansionRule, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]


def parse_equation(equation: str) -> tuple[str, str, str]:
    """The letters of a, b and the result of "a,b->y"."""
    operands, _, result = equation.partition("->")
    a, _, b = operands.partition(",")
    return a, b, result


def matmul_equation(a: Sequence[IntLike], b: Sequence[IntLike], transpose_b: bool = False) -> str:
    """The equation of `a @ b` with NumPy's rules: one-dimensional operands are vectors, leading dimensions
    broadcast. `transpose_b`: b is (..., n, k).
    """
    batch = max(len(a), len(b), 2) - 2
    letters = string.ascii_letters.translate({ord(c): None for c in "mnk"})[:batch]

    def leading(shape: Sequence[IntLike]) -> str:
        own = letters[batch - max(0, len(shape) - 2) :] if len(shape) > 2 else ""
        return "".join("1" if isinstance(n, int) and n == 1 else c for c, n in zip(own, shape, strict=False))

    of_a, of_b = leading(a), leading(b)
    of_y = "".join(c if c in of_a or c in of_b else "1" for c in letters)
    left = of_a + ("mk" if len(a) > 1 else "k")
    right = of_b + ("k" if len(b) < 2 else "nk" if transpose_b else "kn")
    return f"{left},{right}->{of_y}{'m' if len(a) > 1 else ''}{'n' if len(b) > 1 else ''}"


def linear_equation(rank: int) -> str:
    """The equation of `x @ weight.T` for an x of that rank."""
    rows = string.ascii_letters.translate({ord(c): None for c in "nk"})[: rank - 1]
    return f"{rows}k,nk->{rows}n"


@register
class Contract(OperatorDefinition):
    """alpha * (the sum over the letters that the result lacks of a * b) + beta * bias, where bias broadcasts to the result.

    The product is accumulated in float32 or better and rounded once. attribute equation: see the module's page.
    """

    name = "contract"
    operands = ("a", "b", "bias?")
    attributes: Mapping[str, Any] = {"equation": REQUIRED, "alpha": 1, "beta": 1}
    aten = (
        "aten.linear.default",
        "aten.matmul.default",
        "aten.mm.default",
        "aten.bmm.default",
        "aten.addmm.default",
        "aten.baddbmm.default",
        "aten.mv.default",
        "aten.dot.default",
        "aten.addmv.default",
        "aten.vdot.default",
        "aten.addbmm.default",
        "aten.addr.default",
    )
    # overloads whose equation does not follow from the operands' dimensions alone
    equations: Mapping[str, str] = {"aten.addbmm.default": "bmk,bkn->mn", "aten.addr.default": "m,n->mn"}

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        if call.target == "aten.linear.default":
            x, w = call["input"], call["weight"]
            if len(w.shape) == 1:
                return {"a": x, "b": w, "bias": call["bias"]}, {"equation": matmul_equation(x.shape, w.shape)}
            return {"a": x, "b": w, "bias": call["bias"]}, {"equation": linear_equation(len(x.shape))}
        names = [n for n in call.order if isinstance(call.arguments[n], Container)]
        a, b = (call[n] for n in names[-2:])
        attributes = {"equation": self.equations.get(call.target) or matmul_equation(a.shape, b.shape)}
        if "alpha" not in call.arguments:
            return {"a": a, "b": b}, attributes
        attributes.update(alpha=call["alpha"], beta=call["beta"])
        # beta = 0 ignores the bias, even a NaN in it
        return {"a": a, "b": b, "bias": call["self"] if call["beta"] != 0 else None}, attributes

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        a, b = types["a"], types["b"]
        equation = attributes["equation"]
        letters_a, letters_b, letters_y = parse_equation(equation)
        sizes: dict[str, IntLike] = {}
        for name, letters, x in (("a", letters_a, a), ("b", letters_b, b)):
            self.require(
                len(letters) == len(x.shape),
                f"operand {name} of shape {list(x.shape)} does not have the dimensions {letters!r} of {equation!r}",
            )
            for c, n in zip(letters, x.shape, strict=True):
                if c == "1":
                    self.require(
                        prove_eq(n, 1) is not False,
                        f"operand {name} of shape {list(x.shape)} has size {n} where {equation!r} says 1",
                    )
                    continue
                known = sizes.setdefault(c, n)
                self.require(
                    prove_eq(known, n) is not False,
                    f"shapes {list(a.shape)} and {list(b.shape)} do not fit: dimension {c!r} of {equation!r} is {known} and {n}",
                )
            repeated = {c for c in letters if c != "1" and letters.count(c) > 1}
            self.require(
                not repeated,
                f"{equation!r} repeats {', '.join(sorted(repeated))} in operand {name}: take the diagonal first",
            )
        for c in sizes:
            self.require(
                c in letters_y or (c in letters_a and c in letters_b),
                f"{equation!r} sums {c!r}, which only one operand has: sum it first",
            )
        unknown = [c for c in letters_y if c != "1" and c not in sizes]
        self.require(not unknown, f"the result of {equation!r} has {unknown[:1]}, which no operand has")
        self.require(a.dtype is b.dtype, f"operands are {a.dtype} and {b.dtype}; both must have one dtype: cast one")
        shape = tuple(sizes.get(c, 1) for c in letters_y)
        if "bias" in types:
            bias = types["bias"]
            fits = len(bias.shape) <= len(shape) and tuple(broadcast_shapes(self.name, [bias.shape, shape])) == shape
            self.require(fits, f"bias of shape {list(bias.shape)} does not broadcast to the result's {list(shape)}")
            self.require(bias.dtype is a.dtype, f"bias is {bias.dtype}, the operands {a.dtype}")
        return {"y": TensorType(a.dtype, shape)}

    def maps(self, c: Expansion) -> None:
        a, b, y = c.input("a"), c.input("b"), c.output()
        letters_a, letters_b, letters_y = parse_equation(c.attr("equation"))
        sizes: dict[str, IntLike] = {}
        for letters, x in ((letters_y, y), (letters_a, a), (letters_b, b)):
            sizes.update({k: n for k, n in zip(letters, x.shape, strict=True) if k != "1" and k not in sizes})
        accumulate = y.dtype.compute
        plain = not c.has("bias") and c.attr("alpha") == 1 and accumulate is y.dtype
        total = y if plain else c.temp(y.shape, accumulate)
        params: dict[str, Any] = dict(zip(sizes, c.params(list(sizes.values())), strict=True))
        point = {k: params.get(k, 0) for k in "1" + "".join(sizes)}
        summed = any(k not in letters_y for k in sizes)
        c.map(
            tuple(params.values()),
            {"a": at(a, *(point[k] for k in letters_a)), "b": at(b, *(point[k] for k in letters_b))},
            {"y": at(total, *(point[k] for k in letters_y), combine="sum" if summed else None)},
            lambda a, b: {"y": cast(a, accumulate) * cast(b, accumulate)},
        )
        if plain:
            return
        p = c.params(y.shape)
        reads = {"t": at(total, *p)}
        if c.has("bias"):
            reads["bias"] = broadcast_at(c.input("bias"), p)

        def finish(t: Scalar, bias: Scalar | None = None) -> dict[str, Scalar]:
            t = t if c.attr("alpha") == 1 else t * c.attr("alpha")
            if bias is not None:
                bias = cast(bias, accumulate)
                t = t + (bias if c.attr("beta") == 1 else bias * c.attr("beta"))
            return {"y": cast(t, y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, finish)

    def more_expansions(self) -> dict[str, ExpansionRule]:
        def is_float(node: Operator, containers: Mapping[str, Container]) -> bool:
            return containers[node.reads["a"].container].dtype.is_float

        return {"library": ExpansionRule(lambda c: c.library("contract"), is_float)}  # type: ignore[arg-type,return-value]

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        letters_a, letters_b, letters_y = parse_equation(g.attr("equation"))
        scale = {"alpha": g.attr("alpha")}
        result: dict[str, Container | None] = {}
        if g.needs("a"):
            result["a"] = g.op(
                "contract", {"equation": f"{letters_y},{letters_b}->{letters_a}", **scale}, a=gy, b=g.input("b")
            )
        if g.needs("b"):
            # the incoming gradient first where the result starts with its letters: (n, rows) @ (rows, k)
            if letters_b[-1:] in letters_a:
                result["b"] = g.op(
                    "contract", {"equation": f"{letters_y},{letters_a}->{letters_b}", **scale}, a=gy, b=g.input("a")
                )
            else:
                result["b"] = g.op(
                    "contract", {"equation": f"{letters_a},{letters_y}->{letters_b}", **scale}, a=g.input("a"), b=gy
                )
        if g.has("bias") and g.needs("bias"):
            bias = g.sum_to(gy, g.input("bias").shape)
            beta = g.attr("beta")
            result["bias"] = bias if beta == 1 else g.pointwise(lambda v: v * beta, bias)
        return result

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int) -> TensorType:
            return TensorType(float32, shape)

        yield Sample({"a": t(3, 4), "b": t(5, 4), "bias": t(5)}, {"equation": "mk,nk->mn"})
        yield Sample({"a": t(2, 3, 4), "b": t(5, 4)}, {"equation": "abk,nk->abn"})
        yield Sample({"a": t(2, 3, 4), "b": t(2, 4, 5)}, {"equation": "bmk,bkn->bmn"})
        yield Sample({"a": t(2, 1, 3, 4), "b": t(6, 4, 5)}, {"equation": "a1mk,bkn->abmn"})
        yield Sample({"a": t(2, 3), "b": t(4)}, {"equation": "mk,n->nmk"})
        yield Sample({"a": t(4), "b": t(4)}, {"equation": "k,k->"})
        yield Sample({"a": t(2, 3, 4), "b": t(2, 3, 5)}, {"equation": "abm,abn->nm"})
        yield Sample(
            {"a": t(2, 4, 3), "b": t(2, 4, 5), "bias": t(2, 1, 5)},
            {"equation": "bkm,bkn->bmn", "alpha": 0.5, "beta": -2.0},
        )
        yield Sample({"a": t(3, 4), "b": t(5, 6)}, {"equation": "mk,nk->mn"}, error="do not fit")
        yield Sample({"a": t(3, 4), "b": t(5)}, {"equation": "mk,nk->mn"}, error="dimensions 'nk'")
        yield Sample({"a": t(3, 4), "b": t(5, 4)}, {"equation": "mk,nk->m"}, error="sum it first")
        yield Sample({"a": t(3, 4), "b": t(5, 4), "bias": t(3)}, {"equation": "mk,nk->mn"}, error="broadcast")
