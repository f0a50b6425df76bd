"""Scaled dot-product attention and its gradient.

`maps` computes the scores, a softmax that is zero for rows without an allowed key, dropout and the weighted sum as
maps. `composition` leaves the
products to the library and keeps the rest as maps (dropout, any mask). `library` is PyTorch's fused kernel, for the cases that it takes.
The gradient recomputes the probabilities from the log-sum-exp of each row, and draws the mask of dropout again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, bool_, float32, int64
from shorthaul.ir.memlet import Condition, Memlet, full
from shorthaul.ir.nodes import LibraryCall, Operator
from shorthaul.ir.scalar import Scalar, apply, cast, const, where
from shorthaul.symbolic import Expr, floordiv, prove_eq

from .builder import Expansion, Gradient
from .elementwise import broadcast_at, broadcast_shapes
from .random import linear_index, uniform
from .registry import AtenCall, ExpansionRule, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]
ATTRIBUTES: Mapping[str, Any] = {"causal": False, "p": 0.0, "scale": None, "stream": 0}
LETTERS = "ABCDFGHIJK"


def shared_heads(q: Any, k: Any) -> bool:
    """Whether several heads of q share one of k (or v)."""
    if len(q.shape) < 3 or len(k.shape) != len(q.shape):
        return False
    a, b = q.shape[-3], k.shape[-3]
    return isinstance(a, int) and isinstance(b, int) and 1 < b < a and a % b == 0


class AttentionBase(OperatorDefinition):
    """Shapes: q (batch..., L, E), k (batch..., S, E), v (batch..., S, V). The last batch dimension (heads) of k and
    v may divide that of q.
    """

    attributes: Mapping[str, Any] = ATTRIBUTES
    function = ""
    layouts: tuple[tuple[str, Any], ...] = ()  # what the library functions lay out like what; see LibraryLayout
    gpu_layouts: tuple[tuple[str, Any], ...] = ()

    def uses_random(self, attributes: Mapping[str, Any]) -> bool:
        return attributes["p"] > 0

    def batch_shape(self, types: Mapping[str, Any]) -> tuple[IntLike, ...]:
        """The batch dimensions to which those of q, k and v broadcast."""
        q, k, v = (types[n] for n in "qkv")
        for n, t in (("q", q), ("k", k), ("v", v)):
            self.require(len(t.shape) >= 2, f"operand {n} of shape {list(t.shape)} is not (batch..., length, size)")
            self.require(
                t.dtype.is_float and t.dtype is q.dtype,
                f"operand {n} is {t.dtype}, q is {q.dtype}; all must be of one floating dtype",
            )
        self.require(
            prove_eq(q.shape[-1], k.shape[-1]) is not False,
            f"q of shape {list(q.shape)} and k of {list(k.shape)} differ in the last size",
        )
        self.require(
            prove_eq(k.shape[-2], v.shape[-2]) is not False,
            f"k of shape {list(k.shape)} and v of {list(v.shape)} differ in length",
        )
        if shared_heads(q, k) or shared_heads(q, v):
            return tuple(q.shape[:-2])
        return broadcast_shapes(self.name, [q.shape[:-2], k.shape[:-2], v.shape[:-2]])

    def more_expansions(self) -> dict[str, ExpansionRule]:
        def one_batch(node: Operator, containers: Mapping[str, Container]) -> bool:
            q, k, v = (containers[node.reads[n].container] for n in "qkv")
            return len(q.shape) <= 2 + len(LETTERS) and all(
                len(t.shape) == len(q.shape)
                and all(prove_eq(a, b) is True for a, b in zip(t.shape[:-2], q.shape[:-2], strict=True))
                for t in (k, v)
            )

        def fits_kernel(node: Operator, containers: Mapping[str, Container]) -> bool:
            """What PyTorch's kernel takes: (batch, heads, length, size), one head size, no dropout, an additive mask or none."""
            q, v = (containers[node.reads[n].container] for n in "qv")
            if (
                node.attributes["p"] > 0
                or len(q.shape) != 4
                or not one_batch(node, containers)
                or prove_eq(q.shape[3], v.shape[3]) is not True
            ):
                return False
            if q.dtype.name not in ("float32", "float64", "bfloat16") or "gmask" in node.writes:
                return False
            if "mask" not in node.reads:
                return True
            mask = containers[node.reads["mask"].container]
            return len(mask.shape) in (2, 4) and mask.dtype in (bool_, q.dtype)

        def library(c: Expansion) -> None:
            call = c.library(self.function, {"causal": c.attr("causal"), "scale": c.attr("scale"), "layouts": self.layouts})
            missing = [k for k in self.results if k not in call.writes and k not in ("gmask", "rng")]
            for k in missing:  # the kernel gives all results
                like = {"gq": "q", "gk": "k", "gv": "v"}.get(k)
                t = (
                    c.temp(c.input(like).shape, c.input(like).dtype)
                    if like
                    else c.temp(c.output().shape[:-1], c.output().dtype.compute)
                )
                call.writes[k] = full(t)
            if call.writes.pop("rng", None) is not None:
                self.no_rng(c)

        def fits_gpu(node: Operator, containers: Mapping[str, Container]) -> bool:
            """What the fused kernels of GPUs take: 16-bit floats, heads of a multiple of 8 up to 128, no mask; dropout too."""
            q, v = (containers[node.reads[n].container] for n in "qv")
            size = q.shape[-1]
            return (
                len(q.shape) == 4
                and one_batch(node, containers)
                and "mask" not in node.reads
                and q.dtype.bits == 16
                and isinstance(size, int)
                and size % 8 == 0
                and size <= 128
                and prove_eq(size, v.shape[3]) is True
                and ("rng" in node.reads or "rng" in node.writes or not node.attributes["p"])
            )

        def gpu_library(c: Expansion) -> None:
            attributes = {**{k: c.attr(k) for k in ("causal", "scale", "p")}, "layouts": self.gpu_layouts}
            call = c.library(f"gpu_{self.function}", {**attributes, "deterministic": c.edit.program.deterministic})
            for k in ("seed", "offset"):  # the kernel draws for itself, and hands on what the gradient needs to draw again
                call.reads.pop(k, None)
            for k in ("lse", "gq", "gk", "gv"):
                if k in self.results and k not in call.writes:
                    like = c.input(k[1]) if k != "lse" else None
                    t = c.temp(like.shape, like.dtype) if like else c.temp(c.output().shape[:-1], c.output().dtype.compute)
                    call.writes[k] = full(t)
            if not c.attr("p") and call.writes.pop("rng", None) is not None:
                self.no_rng(c)

        return {
            "library": ExpansionRule(library, fits_kernel),
            "composition": ExpansionRule(lambda c: self.build(c, library=True), one_batch),
            "gpu_library": ExpansionRule(gpu_library, fits_gpu, device="cuda"),
        }

    def no_rng(self, c: Expansion) -> None:
        """The result rng where nothing draws from PyTorch's generator."""
        p = c.params((2,))
        c.map(p, {}, {"r": at(c.output("rng"), *p)}, lambda: {"r": const(0, int64)})

    def maps(self, c: Expansion) -> None:
        self.build(c, library=False)

    def build(self, c: Expansion, library: bool) -> None:
        """Expand, with the products as library calls or as maps."""
        raise NotImplementedError

    # parts ----------------------------------------------------------------------------------------------------------------
    def operands_of(self, c: Expansion) -> tuple[tuple[IntLike, ...], IntLike, IntLike, DType]:
        """(batch shape, L, S, compute dtype)."""
        q, k, v = (c.input(n) for n in "qkv")
        return self.batch_shape({"q": q, "k": k, "v": v}), q.shape[-2], k.shape[-2], q.dtype.compute

    def product(
        self,
        c: Expansion,
        a: Container,
        b: Container,
        letters: str,
        y: Container,
        batch: Sequence[IntLike],
        library: bool,
    ) -> None:
        """y = a batched product; `letters` such as "le,se->ls" name the last two dimensions. Batch dimensions that y lacks are summed."""
        of_a, of_b, of_y = letters.replace("->", ",").split(",")
        if library:
            names = LETTERS[: len(batch)]
            equation = f"{names}{of_a},{names}{of_b}->{names}{of_y}"
            c.nodes.append(
                LibraryCall(
                    "contract",
                    {"equation": equation, "alpha": 1, "beta": 1},
                    reads={"a": full(a), "b": full(b)},
                    writes={"y": full(y)},
                    origins=c.origins,
                    phase=c.phase,
                )
            )
            return
        sizes = {n: size for word, x in ((of_a, a), (of_b, b)) for n, size in zip(word, x.shape[-2:], strict=True)}
        point = c.params(batch)
        own = dict(zip(sizes, c.params(list(sizes.values())), strict=True))
        accumulate = y.dtype.compute
        total = y if accumulate is y.dtype else c.temp(y.shape, accumulate)
        subset = {
            x.name: [*batch_at(x.shape[:-2], point, batch), *(own[n] for n in word)]
            for x, word in ((a, of_a), (b, of_b), (total, of_y))
        }
        c.map(
            [*point, *own.values()],
            {"a": at(a, *subset[a.name]), "b": at(b, *subset[b.name])},
            {"y": at(total, *subset[total.name], combine="sum")},
            lambda a, b: {"y": cast(a, accumulate) * cast(b, accumulate)},
        )
        if total is not y:
            p = c.params(y.shape)
            c.map(p, {"t": at(total, *p)}, {"y": at(y, *p)}, lambda t: {"y": cast(t, y.dtype)})

    def score(
        self, c: Expansion, products: Container, params: Sequence[Any], compute: DType
    ) -> tuple[dict[str, Memlet], Any]:
        """(reads, code of those reads) for a score: the raw product scaled and masked, -inf where the key is not allowed."""
        scale = c.attr("scale")
        scale = float(scale) if scale is not None else None
        size = c.input("q").shape[-1]
        factor: Any = scale if scale is not None else 1.0 / math.sqrt(size) if isinstance(size, int) else None
        self.require(
            factor is not None, f"the head size {size} must be known when the program is built, or scale given"
        )
        guard = (Condition(params[-2] - params[-1]),) if c.attr("causal") else ()
        reads = {"s": at(products, *params, guard=guard, fill=-math.inf if guard else None)}
        if c.has("mask"):
            reads["mask"] = broadcast_at(c.input("mask"), params)

        def code(s: Scalar, mask: Scalar | None = None) -> Scalar:
            value = cast(s, compute) * factor
            if mask is None:
                return value
            return where(mask, value, -math.inf) if mask.dtype is bool_ else value + cast(mask, compute)

        return reads, code

    def dropped(self, c: Expansion, params: Sequence[Any], shape: Sequence[IntLike]) -> tuple[dict[str, Memlet], Any]:
        """(reads, code) for the factor of dropout at a score: 1 / (1 - p) or 0. Without dropout: no reads, and the value itself."""
        p = c.attr("p")
        if not p:
            return {}, lambda value, **_: value
        position = linear_index(params, shape)
        scale = 1 / (1 - p) if p < 1 else 0.0

        def code(value: Scalar, seed: Scalar, offset: Scalar) -> Scalar:
            return where(uniform(seed, offset, c.attr("stream"), position) >= p, value * scale, 0)

        return {"seed": at(c.input("seed")), "offset": at(c.input("offset"))}, code


def batch_at(own: Sequence[IntLike], point: Sequence[Any], sizes: Sequence[IntLike]) -> list[Any]:
    """Batch subscripts of a tensor: broadcast sizes of one get 0, a smaller number of heads head // share."""
    found: list[Any] = []
    for n, p, m in zip(own, point[len(point) - len(own) :], sizes[len(sizes) - len(own) :], strict=True):
        if isinstance(n, int) and n == 1:
            found.append(0)
        elif isinstance(n, int) and isinstance(m, int) and n < m:
            found.append(floordiv(p, m // n))
        else:
            found.append(p)
    return found


def split_values(values: Mapping[str, Scalar], *groups: Iterable[str]) -> list[dict[str, Scalar]]:
    """The reads of a tasklet by group."""
    return [{k: values[k] for k in group} for group in groups]


@register
class Attention(AttentionBase):
    """softmax(scale * q k^T + mask) v, with dropout of the probabilities. mask: bool (True: allowed) or additive,
    broadcast to (batch..., L, S).

    result lse: the logarithm of the sum of exponentials of each row's scores; 0 for a row without an allowed key, whose result is zero.
    result rng: what a library kernel that draws for itself needs to draw the same mask again; zero where seed and offset are used.
    """

    name = "attention"
    operands = ("q", "k", "v", "mask?", "seed?", "offset?")
    results = ("y", "lse", "rng")
    optional_results = ("lse", "rng")
    is_random = True
    function = "flash_attention"
    layouts = (("y", "q"), ("lse", (0, 2, 1)))
    gpu_layouts = (("y", "q"),)
    aten = ("aten.scaled_dot_product_attention.default", "aten._scaled_dot_product_flash_attention_for_cpu.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        q, k, v = call["query"], call["key"], call["value"]
        self.require(
            call.arguments.get("enable_gqa") or not (shared_heads(q, k) or shared_heads(q, v)),
            f"q of shape {list(q.shape)} and k of {list(k.shape)} have different numbers of heads: pass enable_gqa=True",
        )
        attributes = {"causal": bool(call["is_causal"]), "p": float(call["dropout_p"]), "scale": call["scale"]}
        return {"q": q, "k": k, "v": v, "mask": call.arguments.get("attn_mask")}, attributes

    def aten_results_match(self, i: int) -> bool:
        return False  # lse is saved for our own gradient

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        q, k, v = (types[n] for n in "qkv")
        batch = self.batch_shape(types)
        if "mask" in types:
            mask, scores = types["mask"], (*batch, q.shape[-2], k.shape[-2])
            fits = len(mask.shape) <= len(scores) and tuple(broadcast_shapes(self.name, [mask.shape, scores])) == scores
            self.require(fits, f"mask of shape {list(mask.shape)} does not broadcast to the scores' {list(scores)}")
            self.require(mask.dtype is bool_ or mask.dtype.is_float, f"mask is {mask.dtype}, not bool or floating")
        self.require(0 <= attributes["p"] <= 1, f"dropout probability {attributes['p']} is not between 0 and 1")
        self.require(
            not attributes["p"] or {"seed", "offset"} <= types.keys(), "dropout needs the operands seed and offset"
        )
        return {
            "y": TensorType(q.dtype, (*batch, q.shape[-2], v.shape[-1])),
            "lse": TensorType(q.dtype.compute, (*batch, q.shape[-2])),
            "rng": TensorType(int64, (2,)),
        }

    def build(self, c: Expansion, library: bool) -> None:
        batch, rows, keys, compute = self.operands_of(c)
        y = c.output()
        held = y.dtype if library else compute
        products = c.temp((*batch, rows, keys), held, "scores")
        self.product(c, c.input("q"), c.input("k"), "le,se->ls", products, batch, library)
        top, total = c.temp((*batch, rows), compute, "row_max"), c.temp((*batch, rows), compute, "row_sum")
        p = c.params(products.shape)
        reads, score = self.score(c, products, p, compute)
        c.map(p, reads, {"m": at(top, *p[:-1], combine="max")}, lambda **v: {"m": score(**v)})

        def finite(m: Scalar) -> Scalar:
            return where(apply("eq", m, -math.inf), 0, m)  # a row without an allowed key

        p = c.params(products.shape)
        reads, score_2 = self.score(c, products, p, compute)
        c.map(
            p,
            {**reads, "m": at(top, *p[:-1])},
            {"t": at(total, *p[:-1], combine="sum")},
            lambda m, **v: {"t": apply("exp", score_2(**v) - finite(m))},
        )
        weights = c.temp(products.shape, held, "weights")
        p = c.params(products.shape)
        reads, score_3 = self.score(c, products, p, compute)
        random, drop = self.dropped(c, p, products.shape)
        scored = tuple(reads)

        def weight(m: Scalar, t: Scalar, **v: Scalar) -> dict[str, Scalar]:
            of_score, of_drop = split_values(v, scored, random)
            value = apply("exp", score_3(**of_score) - finite(m)) / where(apply("eq", t, 0), 1, t)
            return {"w": cast(drop(value, **of_drop), held)}

        c.map(p, {**reads, **random, "m": at(top, *p[:-1]), "t": at(total, *p[:-1])}, {"w": at(weights, *p)}, weight)
        self.product(c, weights, c.input("v"), "ls,sv->lv", y, batch, library)
        if c.wants("rng"):
            self.no_rng(c)
        if c.wants("lse"):
            lse = c.output("lse")
            p = c.params(lse.shape)
            c.map(
                p,
                {"m": at(top, *p), "t": at(total, *p)},
                {"l": at(lse, *p)},
                lambda m, t: {"l": finite(m) + apply("log", where(apply("eq", t, 0), 1, t))},
            )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        operands = g.inputs()
        attributes = {**{k: g.attr(k) for k in ATTRIBUTES}, "mask_gradient": g.needs("mask")}
        if g.attr("p"):
            operands = {**operands, "rng": g.output("rng")}
        results = g.op("attention_backward", attributes, g=gy, y=g.output(), lse=g.output("lse"), **operands)
        return dict(zip(("q", "k", "v", "mask"), results, strict=False))

    def samples(self) -> Iterable[Sample]:
        def t(*shape: int, dtype: DType = float32) -> TensorType:
            return TensorType(dtype, shape)

        random = {"seed": t(dtype=int64), "offset": t(dtype=int64)}
        plain = {"q": t(2, 3, 4, 8), "k": t(2, 3, 5, 8), "v": t(2, 3, 5, 8)}
        yield Sample(plain, {})
        yield Sample(plain, {"causal": True, "scale": 0.3})
        yield Sample({**plain, "mask": t(4, 5, dtype=bool_)}, {})
        yield Sample({**plain, "mask": t(2, 1, 4, 5)}, {})
        yield Sample({**plain, **random}, {"p": 0.4, "stream": 2})
        yield Sample({"q": t(4, 6), "k": t(5, 6), "v": t(5, 3)}, {})
        yield Sample({"q": t(2, 4, 3, 6), "k": t(2, 2, 5, 6), "v": t(2, 2, 5, 6)}, {})
        yield Sample({"q": t(2, 3, 4, 6), "k": t(5, 6), "v": t(1, 3, 5, 6)}, {})
        yield Sample({**plain, "k": t(2, 3, 5, 7)}, {}, error="differ in the last size")
        yield Sample({**plain, "v": t(2, 3, 6, 8)}, {}, error="differ in length")
        yield Sample({**plain, "mask": t(3, 5)}, {}, error="broadcast")
        yield Sample(plain, {"p": 0.1}, error="seed and offset")


@register
class AttentionBackward(AttentionBase):
    """The gradients of attention by q, k, v (and by an additive mask: attribute mask_gradient) from that of its result, `g`."""

    name = "attention_backward"
    operands = ("g", "y", "lse", "q", "k", "v", "mask?", "seed?", "offset?", "rng?")
    results = ("gq", "gk", "gv", "gmask")
    optional_results = ("gq", "gk", "gv", "gmask")
    attributes: Mapping[str, Any] = {**ATTRIBUTES, "mask_gradient": False}
    function = "flash_attention_backward"
    layouts = tuple((k, (0, 2, 1, 3)) for k in ("gq", "gk", "gv"))
    gpu_layouts = (("gq", "q"), ("gk", "k"), ("gv", "v"))

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        found = {f"g{n}": types[n] for n in "qkv"}
        return {**found, "gmask": types["mask"]} if attributes["mask_gradient"] else found

    def build(self, c: Expansion, library: bool) -> None:
        batch, rows, keys, compute = self.operands_of(c)
        g, y, lse = c.input("g"), c.input("y"), c.input("lse")
        held = c.input("q").dtype if library else compute
        shape = (*batch, rows, keys)
        products, incoming = c.temp(shape, held, "scores"), c.temp(shape, held, "weights_grad")
        self.product(c, c.input("q"), c.input("k"), "le,se->ls", products, batch, library)
        self.product(c, g, c.input("v"), "lv,sv->ls", incoming, batch, library)
        delta = c.temp((*batch, rows), compute, "row_delta")
        p = c.params(y.shape)
        c.map(
            p,
            {"g": at(g, *p), "y": at(y, *p)},
            {"d": at(delta, *p[:-1], combine="sum")},
            lambda g, y: {"d": cast(g, compute) * cast(y, compute)},
        )
        p = c.params(shape)
        reads, score = self.score(c, products, p, compute)
        random, drop = self.dropped(c, p, shape)
        scored = tuple(reads)
        size = c.attr("scale")
        scale = float(size) if size is not None else 1 / math.sqrt(c.input("q").shape[-1])  # type: ignore[arg-type]
        weights, scores_grad = c.temp(shape, held, "weights"), c.temp(shape, held, "scores_grad")
        writes = {"w": at(weights, *p), "ds": at(scores_grad, *p)}
        if c.wants("gmask"):
            mask = c.output("gmask")
            mask_total = mask if mask.dtype is compute else c.temp(mask.shape, compute)
            writes["mask"] = broadcast_at(mask_total, p).with_(combine="sum")

        def value(lse: Scalar, dp: Scalar, delta: Scalar, **v: Scalar) -> dict[str, Scalar]:
            of_score, of_drop = split_values(v, scored, random)
            weight = apply("exp", score(**of_score) - lse)
            ds = weight * (drop(cast(dp, compute), **of_drop) - delta)
            return {"w": cast(drop(weight, **of_drop), held), "ds": cast(ds * scale, held), "mask": ds}

        c.map(
            p,
            {**reads, **random, "lse": at(lse, *p[:-1]), "dp": at(incoming, *p), "delta": at(delta, *p[:-1])},
            writes,
            lambda **v: {k: e for k, e in value(**v).items() if k in writes},
        )
        if c.wants("gmask") and mask_total is not mask:
            p = c.params(mask.shape)
            c.map(p, {"t": at(mask_total, *p)}, {"y": at(mask, *p)}, lambda t: {"y": cast(t, mask.dtype)})
        for result, a, b, letters in (
            ("gv", weights, g, "ls,lv->sv"),
            ("gq", scores_grad, c.input("k"), "ls,se->le"),
            ("gk", scores_grad, c.input("q"), "ls,le->se"),
        ):
            if c.wants(result):
                self.product(c, a, b, letters, c.output(result), batch, library)
