"""Loss functions: negative log-likelihood, and elementwise losses with a reduction, one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import partials, scaled
from shorthaul.ir.dtypes import float32, int64, promote
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, reads_of, rewrite, where
from shorthaul.symbolic import Expr, product, prove_eq

from .builder import Expansion, Gradient
from .elementwise import broadcast_at, broadcast_shapes
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
NONE, MEAN, SUM = 0, 1, 2  # PyTorch's numbers for reductions


def count_scalar(shape: tuple[IntLike, ...], like: Scalar) -> Scalar:
    """The number of elements as a scalar."""
    n = product(shape)
    return const(n, like.dtype) if isinstance(n, int) else cast(index_value(n), like.dtype)


@register
class NllLoss(OperatorDefinition):
    """-weight[t] * x[n, t, ...] for the class t = target[n, ...], 0 where t is ignore_index; reduced: 0 none, 1 weighted mean, 2 sum.

    result total_weight: the sum of the weights of the targets that count (the divisor of the mean).
    """

    name = "nll_loss"
    operands = ("x", "target", "weight?")
    results = ("y", "total_weight")
    attributes: Mapping[str, Any] = {"reduction": MEAN, "ignore_index": -100}
    aten = (
        "aten.nll_loss.default",
        "aten.nll_loss2d.default",
        "aten.nll_loss_nd.default",
        "aten.nll_loss_forward.default",
        "aten.nll_loss2d_forward.default",
    )

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"x": call["self"], "target": call["target"], "weight": call["weight"]}, {
            k: call[k] for k in self.attributes
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, t = types["x"], types["target"]
        self.require(x.dtype.is_float, f"operand x is {x.dtype}, not floating")
        self.require(t.dtype.is_integer, f"target is {t.dtype}, not integers (class numbers)")
        self.require(len(x.shape) >= 1, "operand x has no class dimension")
        rows = (x.shape[0], *x.shape[2:]) if len(x.shape) > 1 else ()
        fits = len(rows) == len(t.shape) and all(
            prove_eq(a, b) is not False for a, b in zip(rows, t.shape, strict=True)
        )
        self.require(
            fits, f"target of shape {list(t.shape)} does not fit operand {list(x.shape)}, which asks for {list(rows)}"
        )
        if "weight" in types:
            w = types["weight"].shape
            self.require(
                len(w) == 1 and prove_eq(w[0], self.classes(x.shape)) is not False,
                f"weight of shape {list(w)} does not have the {self.classes(x.shape)} classes",
            )
        shape = rows if attributes["reduction"] == NONE else ()
        return {"y": TensorType(x.dtype, shape), "total_weight": TensorType(x.dtype, ())}

    @staticmethod
    def classes(shape: tuple[IntLike, ...]) -> IntLike:
        return shape[1] if len(shape) > 1 else shape[0]

    def maps(self, c: Expansion) -> None:
        x, t, y, total_weight = c.input(), c.input("target"), c.output(), c.output("total_weight")
        reduction, ignore = c.attr("reduction"), c.attr("ignore_index")
        accumulate = y.dtype.compute
        # an ignored target may be no class: it reads class 0 and does not count
        row = c.temp(t.shape, int64, "class")
        p = c.params(t.shape)
        c.map(
            p, {"t": at(t, *p)}, {"r": at(row, *p)}, lambda t: {"r": cast(where(apply("eq", t, ignore), 0, t), int64)}
        )
        p = c.params(t.shape)
        subset: tuple[Any, ...] = (p[0], Indirect("r"), *p[1:]) if len(x.shape) > 1 else (Indirect("r"),)
        reads: dict[str, Memlet] = {"t": at(t, *p), "r": at(row, *p), "x": at(x, *subset)}
        if c.has("weight"):
            reads["w"] = at(c.input("weight"), Indirect("r"))

        def counted(t: Scalar, x: Scalar, w: Scalar | None = None, r: Scalar | None = None) -> tuple[Scalar, Scalar]:
            weight = const(1, accumulate) if w is None else cast(w, accumulate)
            ignored = apply("eq", t, ignore)
            value = -cast(x, accumulate) if w is None else -(cast(x, accumulate) * weight)
            return where(ignored, 0, value), where(ignored, 0, weight)

        if reduction == NONE:
            c.map(p, reads, {"y": at(y, *p)}, lambda **v: {"y": cast(counted(**v)[0], y.dtype)})
            c.map((), {}, {"n": at(total_weight)}, {"n": const(0, total_weight.dtype)})
            return
        loss, weights = c.temp((), accumulate), c.temp((), accumulate)
        how = "sum" if p else None
        c.map(
            p,
            reads,
            {"loss": at(loss, combine=how), "n": at(weights, combine=how)},
            lambda **v: dict(zip(("loss", "n"), counted(**v), strict=True)),
        )

        def finish(loss: Scalar, n: Scalar) -> dict[str, Scalar]:
            return {"y": cast(loss / n if reduction == MEAN else loss, y.dtype), "total": cast(n, y.dtype)}

        c.map((), {"loss": at(loss), "n": at(weights)}, {"y": at(y), "total": at(total_weight)}, finish)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, x = g.grad(), g.input()
        if gy is None:
            return {}
        weight = g.input("weight") if g.has("weight") else None
        attributes = {**{k: g.attr(k) for k in self.attributes}, "shape": x.shape}
        return {
            "x": g.op(
                "nll_loss_backward",
                attributes,
                g=gy,
                target=g.input("target"),
                weight=weight,
                total_weight=g.output("total_weight"),
            )
        }

    def samples(self) -> Iterable[Sample]:
        x, t, w = TensorType(float32, (5, 4)), TensorType(int64, (5,)), TensorType(float32, (4,))
        yield Sample({"x": x, "target": t}, {})
        yield Sample({"x": x, "target": t, "weight": w}, {"ignore_index": 1})
        yield Sample({"x": x, "target": t, "weight": w}, {"reduction": SUM})
        yield Sample(
            {"x": TensorType(float32, (2, 4, 3)), "target": TensorType(int64, (2, 3))},
            {"reduction": NONE, "ignore_index": 0},
        )
        yield Sample({"x": x, "target": TensorType(int64, (4,))}, {}, error="does not fit")
        yield Sample({"x": x, "target": TensorType(float32, (5,))}, {}, error="class numbers")
        yield Sample({"x": x, "target": t, "weight": t}, {}, error="classes")


@register
class NllLossBackward(OperatorDefinition):
    """The gradient of nll_loss by x: -weight[t] * g (over the total weight for the mean) at the target's class, else
    0. Elementwise over x.
    """

    name = "nll_loss_backward"
    operands = ("g", "target", "weight?", "total_weight")
    attributes: Mapping[str, Any] = {**NllLoss.attributes, "shape": ()}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        return {"y": TensorType(types["g"].dtype, tuple(attributes["shape"]))}

    def maps(self, c: Expansion) -> None:
        g, t, y = c.input("g"), c.input("target"), c.output()
        accumulate = y.dtype.compute
        reduction, ignore = c.attr("reduction"), c.attr("ignore_index")
        p = c.params(y.shape)
        rows = (p[0], *p[2:]) if len(p) > 1 else ()
        k = p[1] if len(p) > 1 else p[0]
        reads = {"g": at(g, *rows) if reduction == NONE else at(g), "t": at(t, *rows)}
        if c.has("weight"):
            reads["w"] = at(c.input("weight"), k)
        if reduction == MEAN:
            reads["n"] = at(c.input("total_weight"))

        def value(g: Scalar, t: Scalar, w: Scalar | None = None, n: Scalar | None = None) -> dict[str, Scalar]:
            d = -cast(g, accumulate)
            d = d if n is None else d / cast(n, accumulate)
            d = d if w is None else d * cast(w, accumulate)
            hit = apply("eq", cast(t, int64), index_value(k)) & apply("ne", t, ignore)
            return {"y": cast(where(hit, d, 0), y.dtype)}

        c.map(p, reads, {"y": at(y, *p)}, value)

    def samples(self) -> Iterable[Sample]:
        operands = {
            "g": TensorType(float32, ()),
            "target": TensorType(int64, (5,)),
            "total_weight": TensorType(float32, ()),
        }
        yield Sample(operands, {"shape": (5, 4), "ignore_index": 2})


class Loss(OperatorDefinition):
    """An elementwise loss with a reduction, made by `loss`."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Scalar],
        operands: tuple[str, ...],
        keywords: Mapping[str, Any],
        aten: tuple[str, ...],
    ) -> None:
        self.name = name
        self.function = function
        self.operands = operands
        self.keywords = keywords
        self.attributes = {"reduction": MEAN, **keywords}
        self.aten = aten

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        names = [n.rstrip("?") for n in self.operands]
        operands = {"x": call["self"], **{n: call.arguments.get(n) for n in names[1:]}}
        return operands, {k: call[k] for k in self.attributes}

    def shape(self, types: Mapping[str, Any]) -> tuple[IntLike, ...]:
        return broadcast_shapes(self.name, [t.shape for t in types.values()])

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        self.require(
            attributes["reduction"] in (NONE, MEAN, SUM),
            f"reduction {attributes['reduction']} is not 0 (none), 1 (mean) or 2 (sum)",
        )
        dtype = promote(*(t.dtype for t in types.values()))
        self.require(dtype.is_float, f"operands are {dtype}, not floating")
        shape = self.shape(types)
        return {"y": TensorType(dtype, shape if attributes["reduction"] == NONE else ())}

    def code(self, types: Mapping[str, Any], attributes: Mapping[str, Any]) -> Scalar:
        """The loss of one element in its compute dtype."""
        compute = promote(*(t.dtype for t in types.values())).compute
        return self._code({n: cast(read(n, t.dtype), compute) for n, t in types.items()}, attributes)

    def _code(self, values: Mapping[str, Scalar], attributes: Mapping[str, Any]) -> Scalar:
        return self.function(**values, **{k: attributes[k] for k in self.keywords})

    def maps(self, c: Expansion) -> None:
        y, reduction = c.output(), c.attr("reduction")
        operands = {k: c.input(k) for k in c.node.reads}
        code = self.code(operands, c.node.attributes)
        shape = self.shape(operands)
        p = c.params(shape)
        reads = {k: broadcast_at(x, p) for k, x in operands.items()}
        if reduction == NONE:
            c.map(p, reads, {"y": at(y, *p)}, {"y": cast(code, y.dtype)})
            return
        direct = reduction == SUM and code.dtype is y.dtype
        total = y if direct else c.temp((), code.dtype)
        c.map(p, reads, {"y": at(total, combine="sum" if p else None)}, {"y": code})
        if not direct:
            c.map(
                (),
                {"t": at(total)},
                {"y": at(y)},
                lambda t: {"y": cast(t / count_scalar(shape, t) if reduction == MEAN else t, y.dtype)},
            )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        operands = g.inputs()
        wanted = [k for k in operands if g.needs(k)]
        shape = self.shape(operands)
        compute = promote(*(t.dtype for t in operands.values())).compute  # no derivative is rounded to 16 bits on the way
        derivatives = partials(self._code({n: read(n, compute) for n in operands}, g.node.attributes), wanted)
        if g.attr("reduction") == MEAN:
            gy = g.pointwise(lambda v: v / count_scalar(shape, v), gy, dtype=gy.dtype.compute)
        result: dict[str, Container | None] = {}
        for k in wanted:
            d = derivatives[k]
            if d is None:
                continue
            names = [n for n in operands if n in reads_of(d)]
            x = operands[k]
            full = g.pointwise(
                lambda v, *values, d=d, names=names: scaled(_with(d, dict(zip(names, values, strict=True))), v),
                gy,
                *(operands[n] for n in names),
                dtype=x.dtype,
            )
            if tuple(full.shape) != tuple(broadcast_shapes(self.name, [full.shape, x.shape])):
                full = g.op("expand", {"shape": x.shape}, x=full)
            result[k] = g.sum_to(full, x.shape)
        return result

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (3, 4))
        operands = {n.rstrip("?"): x for n in self.operands}
        for reduction in (NONE, MEAN, SUM):
            yield Sample(operands, {"reduction": reduction})
        yield Sample({**operands, "target": TensorType(float32, (3, 5))}, {}, error="broadcast")


def _with(code: Scalar, values: Mapping[str, Scalar]) -> Scalar:
    """Code with its reads (cast to the compute dtype) replaced by values of that dtype."""

    def leaf(n: Scalar) -> Scalar | None:
        if n.op == "cast" and n.args[0].op == "read":
            n = n.args[0]
        return values[str(n.attr)] if n.op == "read" else None

    return rewrite(code, leaf)


def loss(
    name: str, function: Callable[..., Scalar], *aten: str, optional: tuple[str, ...] = (), **keywords: Any
) -> None:
    """Register an elementwise loss of x and target (and optional operands); `keywords` are attributes of the function."""
    operands = ("x", "target", *(f"{o}?" for o in optional))
    register(Loss(name, function, operands, keywords, tuple(f"aten.{a}" for a in aten)))


def _smooth_l1(x: Scalar, target: Scalar, *, beta: float) -> Scalar:
    d = apply("abs", x - target)
    return d if beta == 0 else where(d < beta, d * d * (0.5 / beta), d - 0.5 * beta)


def _huber(x: Scalar, target: Scalar, *, delta: float) -> Scalar:
    d = apply("abs", x - target)
    return where(d <= delta, d * d * 0.5, (d - 0.5 * delta) * delta)


def _bce(x: Scalar, target: Scalar, weight: Scalar | None = None) -> Scalar:
    # the logarithms are cut off at -100, as in PyTorch
    log_x, log_rest = apply("max", apply("log", x), -100), apply("max", apply("log1p", -x), -100)
    value = (target - 1) * log_rest - target * log_x
    return value if weight is None else value * weight


def _bce_with_logits(
    x: Scalar, target: Scalar, weight: Scalar | None = None, pos_weight: Scalar | None = None
) -> Scalar:
    log_sigmoid = apply("min", x, 0) - apply("log1p", apply("exp", -apply("abs", x)))
    scale = const(1, x.dtype) if pos_weight is None else (pos_weight - 1) * target + 1
    value = (1 - target) * x - scale * log_sigmoid
    return value if weight is None else value * weight


def _kl_div(x: Scalar, target: Scalar, *, log_target: bool) -> Scalar:
    if log_target:
        return apply("exp", target) * (target - x)
    # 0 * log(0) = 0
    return where(target > 0, target * apply("log", target), 0) - target * x


loss("mse_loss", lambda x, target: (x - target) * (x - target), "mse_loss.default")
loss("l1_loss", lambda x, target: apply("abs", x - target), "l1_loss.default")
loss("smooth_l1_loss", _smooth_l1, "smooth_l1_loss.default", beta=1.0)
loss("huber_loss", _huber, "huber_loss.default", delta=1.0)
loss("binary_cross_entropy", _bce, "binary_cross_entropy.default", optional=("weight",))
loss(
    "binary_cross_entropy_with_logits",
    _bce_with_logits,
    "binary_cross_entropy_with_logits.default",
    optional=("weight", "pos_weight"),
)
loss("kl_div", _kl_div, "kl_div.default", log_target=False)
loss("soft_margin_loss", lambda x, target: apply("log1p", apply("exp", -(target * x))), "soft_margin_loss.default")
