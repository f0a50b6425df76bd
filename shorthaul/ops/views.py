"""Operators that only address elements: reshape, permute, expand, slice, concatenation, padding, gathering along a dimension.

Each gives the element of its operand that a result's element is; their maps are copies, which fusion substitutes away. What is left at
the end becomes an alias where strides can express it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, float64, promote
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import cast
from shorthaul.symbolic import Expr, floordiv, maximum, minimum, mod, product, prove_eq, prove_le

from .builder import Expansion, Gradient
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register

IntLike = Union[int, Expr]


def wrap_dim(op: str, dim: int, rank: int) -> int:
    """A dimension counted from the end made non-negative; raises OperatorError when out of range."""
    from .registry import OperatorError

    if not -max(rank, 1) <= dim < max(rank, 1):
        raise OperatorError(f"{op}: dimension {dim} is out of range for {rank} dimensions")
    return dim % max(rank, 1)


class View(OperatorDefinition):
    """Base: the result's element at `params` is the operand's element at `source(params)`."""

    is_view = True

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        """The operand's subscripts for the result's subscripts."""
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        params = c.params(y.shape)
        subset = self.source(TensorType(x.dtype, x.shape), params, c.node.attributes)
        c.map(params, {"x": at(x, *subset)}, {"y": at(y, *params)}, lambda x: {"y": x})


def reshaped(params: Sequence[IntLike], new: Sequence[IntLike], old: Sequence[IntLike]) -> tuple[IntLike, ...]:
    """Subscripts into `old` for the element at `params` of the same elements seen as `new` (row-major), group by group."""
    result: list[IntLike] = []
    i = j = 0
    while i < len(new) or j < len(old):
        a: list[int] = []
        b: list[int] = []
        size_a: IntLike = 1
        size_b: IntLike = 1
        while True:
            if a and b and prove_eq(size_a, size_b) is True:
                break
            if i >= len(new) and j >= len(old):
                break
            take_old = i >= len(new) or (j < len(old) and a and (not b or prove_le(size_b, size_a) is True))
            if take_old:
                size_b = size_b * old[j]
                b.append(j)
                j += 1
            else:
                size_a = size_a * new[i]
                a.append(i)
                i += 1
        linear: IntLike = 0
        for d in a:
            linear = linear * new[d] + params[d]
        rest = size_b
        for k, d in enumerate(b):
            rest = product(old[e] for e in b[k + 1 :])
            term = floordiv(linear, rest) if not (isinstance(rest, int) and rest == 1) else linear
            result.append(0 if old[d] == 1 else (mod(term, old[d]) if k else term))
    return tuple(result)


def resolve_shape(op: str, x: Sequence[IntLike], shape: Sequence[IntLike]) -> tuple[IntLike, ...]:
    """Fill in a -1."""
    total = product(x)
    if any(isinstance(n, int) and n == -1 for n in shape):
        known = product(n for n in shape if not (isinstance(n, int) and n == -1))
        return tuple(floordiv(total, known) if isinstance(n, int) and n == -1 else n for n in shape)
    return tuple(shape)


@register
class Reshape(View):
    """The same elements in row-major order in another shape. attribute shape: may hold one -1."""

    name = "reshape"
    attributes = {"shape": ()}
    aten = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.squeeze.dim", "aten.squeeze.dims",
            "aten.squeeze.default", "aten.unsqueeze.default", "aten.flatten.using_ints", "aten._reshape_alias.default",
            "aten.view_copy.default", "aten.squeeze_copy.default", "aten.squeeze_copy.dim", "aten.squeeze_copy.dims",
            "aten.unsqueeze_copy.default", "aten._reshape_copy.default", "aten.unflatten.int")  # fmt: skip

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        return {"x": call["self"]}, {"shape": call.results[0].shape}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        shape = resolve_shape(self.name, x.shape, attributes["shape"])
        self.require(prove_eq(product(shape), product(x.shape)) is not False, f"{list(x.shape)} has not as many elements as {list(shape)}")
        return {"y": TensorType(x.dtype, shape)}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        return reshaped(params, resolve_shape(self.name, x.shape, attributes["shape"]), x.shape)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.reshape(gy, g.input().shape)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (2, 3, 4))
        yield Sample({"x": x}, {"shape": (6, 4)})
        yield Sample({"x": x}, {"shape": (3, -1)})
        yield Sample({"x": x}, {"shape": (1, 2, 12, 1)})
        yield Sample({"x": x}, {"shape": (4, 6)})
        yield Sample({"x": x}, {"shape": (5, 5)}, error="elements")


@register
class Permute(View):
    """Dimension d of the result is dimension dims[d] of the operand."""

    name = "permute"
    attributes = {"dims": ()}
    aten = ("aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.mT.default", "aten.numpy_T.default",
            "aten.permute_copy.default", "aten.transpose_copy.int", "aten.t_copy.default")  # fmt: skip

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        rank = len(x.shape)
        if "dims" in call.arguments:
            dims = [wrap_dim(self.name, d, rank) for d in call["dims"]]
        elif "dim0" in call.arguments:
            a, b = wrap_dim(self.name, call["dim0"], rank), wrap_dim(self.name, call["dim1"], rank)
            dims = list(range(rank))
            if rank:
                dims[a], dims[b] = b, a
        else:
            dims = (
                [*range(rank - 2), *reversed(range(max(0, rank - 2), rank))]
                if call.target != "aten.numpy_T.default"
                else list(reversed(range(rank)))
            )
        return {"x": x}, {"dims": tuple(dims)}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, dims = types["x"], attributes["dims"]
        self.require(sorted(dims) == list(range(len(x.shape))), f"dims {list(dims)} is not a permutation of {len(x.shape)} dimensions")
        return {"y": TensorType(x.dtype, tuple(x.shape[d] for d in dims))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        place = {d: i for i, d in enumerate(attributes["dims"])}
        return tuple(0 if x.shape[d] == 1 else params[place[d]] for d in range(len(x.shape)))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        dims = g.attr("dims")
        return {"x": gy and g.permute(gy, [dims.index(d) for d in range(len(dims))])}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 3, 4))}, {"dims": (2, 0, 1)})
        yield Sample({"x": TensorType(float32, (2, 3))}, {"dims": (0, 0)}, error="permutation")


@register
class Expand(View):
    """Broadcast to `shape` (-1 keeps a size)."""

    name = "expand"
    attributes = {"shape": ()}
    aten = ("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default", "aten.expand_copy.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        assert call.results[0] is not None
        return {"x": call["self"]}, {"shape": call.results[0].shape}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, shape = types["x"], tuple(attributes["shape"])
        extra = len(shape) - len(x.shape)
        self.require(extra >= 0, f"{list(x.shape)} has more dimensions than {list(shape)}")
        sizes = []
        for d, n in enumerate(shape):
            own: IntLike = x.shape[d - extra] if d >= extra else 1
            n = own if isinstance(n, int) and n == -1 else n
            self.require(own == 1 or prove_eq(own, n) is not False, f"{list(x.shape)} does not expand to {list(shape)}")
            sizes.append(n)
        return {"y": TensorType(x.dtype, tuple(sizes))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        extra = len(params) - len(x.shape)
        return tuple(0 if n == 1 else params[extra + d] for d, n in enumerate(x.shape))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.sum_to(gy, g.input().shape)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (3, 1))}, {"shape": (2, 3, 4)})
        yield Sample({"x": TensorType(float32, (3, 2))}, {"shape": (3, 4)}, error="expand")


def from_front(i: IntLike, n: IntLike) -> IntLike:
    """An index as counted from the front, where a negative one counts from the end of `n` elements."""
    if isinstance(i, int):
        return i if i >= 0 else i + n
    return i if prove_le(0, i) is True else i + n * maximum(0, minimum(1, -i))


def clamped(i: IntLike, n: IntLike) -> IntLike:
    """A bound of a slice as Python reads it: negative ones count from the end, and none is outside of the `n` elements."""
    front = from_front(i, n)
    return minimum(front if prove_le(0, front) is True else maximum(front, 0), n)


@register
class Slice(View):
    """Elements start, start+step, ... before stop along `dim`."""

    name = "slice"
    attributes = {"dim": 0, "start": 0, "stop": 0, "step": 1}
    aten = ("aten.slice.Tensor", "aten.narrow.default", "aten.slice_copy.Tensor", "aten.narrow_copy.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        dim = wrap_dim(self.name, call["dim"], len(x.shape))
        n = x.shape[dim]
        start = call.arguments.get("start")
        start = clamped(0 if start is None else start, n)
        if "length" in call.arguments:
            return {"x": x}, {"dim": dim, "start": start, "stop": start + call["length"], "step": 1}
        stop = call.arguments.get("end")
        stop = n if stop is None or (isinstance(stop, int) and stop >= 2**62) else stop
        stop = maximum(clamped(stop, n), start)
        return {"x": x}, {"dim": dim, "start": start, "stop": stop, "step": call.arguments.get("step", 1)}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x = types["x"]
        a = attributes
        count = floordiv(a["stop"] - a["start"] + a["step"] - 1, a["step"])
        self.require(prove_le(a["stop"], x.shape[a["dim"]]) is not False, f"stop {a['stop']} is beyond size {x.shape[a['dim']]}")
        return {"y": TensorType(x.dtype, (*x.shape[: a["dim"]], count, *x.shape[a["dim"] + 1 :]))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        d = attributes["dim"]
        return (*params[:d], attributes["start"] + params[d] * attributes["step"], *params[d + 1 :])

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        a = {k: g.attr(k) for k in ("dim", "start", "step")}
        return {"x": g.op("slice_backward", {**a, "size": g.input().shape[a["dim"]]}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        x = TensorType(float32, (4, 7))
        yield Sample({"x": x}, {"dim": 1, "start": 1, "stop": 6, "step": 2})
        yield Sample({"x": x}, {"dim": 0, "start": 1, "stop": 3, "step": 1})
        yield Sample({"x": x}, {"dim": 1, "start": 1, "stop": 9, "step": 1}, error="beyond")


@register
class SliceBackward(OperatorDefinition):
    """Zeros of size `size` along `dim` with the operand at start, start+step, ..."""

    name = "slice_backward"
    attributes = {"dim": 0, "start": 0, "step": 1, "size": 0}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, d = types["x"], attributes["dim"]
        return {"y": TensorType(x.dtype, (*x.shape[:d], attributes["size"], *x.shape[d + 1 :]))}

    def maps(self, c: Expansion) -> None:
        x, y = c.input(), c.output()
        params = c.params(y.shape)
        d, start, step = c.attr("dim"), c.attr("start"), c.attr("step")
        offset = params[d] - start
        at_x = floordiv(offset, step)
        guard = [*inside(at_x, x.shape[d])] + ([Condition(mod(offset, step), "eq")] if step != 1 else [])
        c.map(params, {"x": at(x, *params[:d], at_x, *params[d + 1 :], guard=guard, fill=0)}, {"y": at(y, *params)}, lambda x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        d, start, step = g.attr("dim"), g.attr("start"), g.attr("step")
        stop = start + (g.input().shape[d] - 1) * step + 1
        return {"x": gy and g.op("slice", {"dim": d, "start": start, "stop": stop, "step": step}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4, 3))}, {"dim": 1, "start": 1, "step": 2, "size": 7})


@register
class Select(View):
    """One index along a dimension, which goes."""

    name = "select"
    attributes = {"dim": 0, "index": 0}
    aten = ("aten.select.int", "aten.select_copy.int")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        x = call["self"]
        dim, i = wrap_dim(self.name, call["dim"], len(x.shape)), call["index"]
        return {"x": x}, {"dim": dim, "index": from_front(i, x.shape[dim])}

    def conditions(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Iterable[tuple[Condition, str]]:
        i, n = attributes["index"], types["x"].shape[attributes["dim"]]
        text = f"the index {i} is out of range for dimension {attributes['dim']}, which has size {n}"
        return (Condition(i), text), (Condition(n - 1 - i), text)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, d = types["x"], attributes["dim"]
        self.require(
            prove_le(x.shape[d], attributes["index"]) is not True,
            f"index {attributes['index']} is out of range for size {x.shape[d]}",
        )
        return {"y": TensorType(x.dtype, (*x.shape[:d], *x.shape[d + 1 :]))}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        d = attributes["dim"]
        return (*params[:d], attributes["index"], *params[d:])

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        if gy is None:
            return {}
        d, x = g.attr("dim"), g.input()
        kept = g.reshape(gy, (*x.shape[:d], 1, *x.shape[d + 1 :]))
        return {"x": g.op("slice_backward", {"dim": d, "start": g.attr("index"), "step": 1, "size": x.shape[d]}, x=kept)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4, 3, 2))}, {"dim": 1, "index": 2})
        yield Sample({"x": TensorType(float32, (4, 3))}, {"dim": 1, "index": 3}, error="out of range")


@register
class Flip(View):
    """Reverse dimensions."""

    name = "flip"
    attributes = {"dims": ()}
    aten = ("aten.flip.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        for d in attributes["dims"]:
            wrap_dim(self.name, d, len(types["x"].shape))
        return {"y": types["x"]}

    def source(self, x: TensorType, params: Sequence[IntLike], attributes: Mapping[str, Any]) -> tuple[IntLike, ...]:
        dims = {d % len(x.shape) for d in attributes["dims"]}
        return tuple(x.shape[d] - 1 - p if d in dims else p for d, p in enumerate(params))

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("flip", {"dims": g.attr("dims")}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (4, 3))}, {"dims": (0, -1)})


@register
class Concatenate(OperatorDefinition):
    """Operands x0, x1, ... one after another along `dim`, in their common dtype; each is written in place, by a map of its own."""

    name = "cat"
    operands = ("x*",)
    attributes = {"dim": 0}
    aten = ("aten.cat.default", "aten.concat.default")

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = [t for t in call["tensors"] if not (len(t.shape) == 1 and isinstance(t.shape[0], int) and t.shape[0] == 0)]
        return {f"x{i}": t for i, t in enumerate(tensors)}, {
            "dim": wrap_dim(self.name, call.arguments.get("dim", 0), len(tensors[0].shape))
        }

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        d = attributes["dim"]
        xs = list(types.values())
        first = xs[0]
        total: IntLike = 0
        for k, x in types.items():
            sizes = enumerate(zip(x.shape, first.shape, strict=False))
            same = len(x.shape) == len(first.shape) and all(e == d or prove_eq(n, m) is not False for e, (n, m) in sizes)
            self.require(same, f"operand {k} of shape {list(x.shape)} does not fit {list(first.shape)} along dimension {d}")
            total = total + x.shape[d]
        return {"y": TensorType(promote(*(x.dtype for x in xs)), (*first.shape[:d], total, *first.shape[d + 1 :]))}

    def maps(self, c: Expansion) -> None:
        y, d = c.output(), c.attr("dim")
        offset: IntLike = 0
        for x in c.inputs():
            params = c.params(x.shape)
            place = at(y, *params[:d], params[d] + offset, *params[d + 1 :])
            c.map(params, {"x": at(x, *params)}, {"y": place}, lambda x: {"y": cast(x, y.dtype)})
            offset = offset + x.shape[d]

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy, d = g.grad(), g.attr("dim")
        result: dict[str, Container | None] = {}
        offset: IntLike = 0
        for k, x in g.inputs().items():
            if gy is not None and g.needs(k):
                part = g.op("slice", {"dim": d, "start": offset, "stop": offset + x.shape[d], "step": 1}, x=gy)
                result[k] = g.cast(part, x.dtype)
            offset = offset + x.shape[d]
        return result

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x0": TensorType(float32, (2, 3)), "x1": TensorType(float32, (2, 4))}, {"dim": 1})
        yield Sample({"x0": TensorType(float32, (2, 3)), "x1": TensorType(float64, (2, 4))}, {"dim": 1})
        yield Sample({"x0": TensorType(float32, (2, 3)), "x1": TensorType(float32, (3, 4))}, {"dim": 1}, error="does not fit")


@register
class Pad(OperatorDefinition):
    """Constant padding. attribute pad: (before, after) from the last dimension on, as in PyTorch; negative crops."""

    name = "pad"
    attributes = {"pad": (), "value": 0.0}
    aten = ("aten.constant_pad_nd.default",)

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        x, pad = types["x"], attributes["pad"]
        self.require(len(pad) % 2 == 0 and len(pad) <= 2 * len(x.shape), f"padding {list(pad)} does not fit {len(x.shape)} dimensions")
        shape = list(x.shape)
        for i in range(len(pad) // 2):
            shape[-1 - i] = shape[-1 - i] + pad[2 * i] + pad[2 * i + 1]
        return {"y": TensorType(x.dtype, tuple(shape))}

    def maps(self, c: Expansion) -> None:
        x, y, pad = c.input(), c.output(), c.attr("pad")
        params = c.params(y.shape)
        subset: list[IntLike] = list(params)
        guard: list[Condition] = []
        for i in range(len(pad) // 2):
            d = len(subset) - 1 - i
            subset[d] = params[d] - pad[2 * i]
            guard += inside(subset[d], x.shape[d])
        c.map(params, {"x": at(x, *subset, guard=guard, fill=c.attr("value"))}, {"y": at(y, *params)}, lambda x: {"y": x})

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        gy = g.grad()
        return {"x": gy and g.op("pad", {"pad": tuple(-p for p in g.attr("pad")), "value": 0.0}, x=gy)}

    def samples(self) -> Iterable[Sample]:
        yield Sample({"x": TensorType(float32, (2, 3))}, {"pad": (1, 2), "value": 0.5})
        yield Sample({"x": TensorType(float32, (2, 5))}, {"pad": (-1, 2, 1, 0), "value": 0.0})


