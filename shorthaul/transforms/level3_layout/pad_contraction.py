"""PadContraction: sizes of large products that tensor cores cannot take whole are filled up with zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Node, Operator, Origin
from shorthaul.ir.program import Program
from shorthaul.ops.registry import definition
from shorthaul.symbolic import Expr, product

from ..base import Match, OperatorNode, Path, Transformation, hint_value, require

IntLike = Union[int, Expr]
STEP = 8  # elements of a 16-bit type that a load of a tensor core's tile takes


class PadContraction(Transformation):
    """Make a size of a matrix product in a 16-bit type a multiple of what one load takes.

    before:  y: [M, 30522] = x: [M, K] @ w: [30522, K].T         after:  v: [30528, K] = w, then zeros
                                                                         y = the first 30522 columns of (x @ v.T)

    A vocabulary of odd size makes the library fall back to kernels of older processors. Filling up is a copy of its own only where
    nothing else is done to the operand: mostly it joins the cast, or what computes the operand; and the part of the result is a view.
    Gradients have the same sizes and share the filled operands. It moves a few bytes more.

    Likewise the channels of a convolution's operand, mostly the three of an image: the library has slow kernels for them, or fills up a
    copy by itself at every call. Here images get channels of zeros once, for the forward pass and for the weight's gradient.

    granule: bytes that one load takes. Of a matrix product: least_size: of a dimension that is filled up, so that zeros are little of the
    work; least_flops, least_flops_a_byte: where it pays. A product of odd sizes runs at a third of the rate (3.9 ms instead of 1.4 for
    16384 x 1024 x 30522 on an H100), which must be worth another pass over what is filled up. Of a convolution: least_image: bytes of the
    larger of operand and result, as the weight's gradient meets them, too.
    """

    level = 3
    pattern = Path(OperatorNode("node", "contract", "convolution", "conv_grad_weight"))

    def __init__(self, granule: int = 16, least_size: int = 128, least_flops: int = 1 << 33, least_flops_a_byte: int = 320,
                 least_image: int = 1 << 24) -> None:  # fmt: skip
        self.granule, self.least_size = granule, least_size
        self.least_flops, self.least_flops_a_byte = least_flops, least_flops_a_byte
        self.least_image = least_image

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        sides = _sides(p, node)
        require(node.expansion in (None, "library"), "it is no call of a library")
        odd = self._odd(p, node, sides) if node.op == "contract" else self._odd_channels(p, node)
        m.derived.update(odd=odd, sides=sides)

    def _odd(self, p: Program, node: Operator, sides: Mapping[str, str]) -> dict[str, int]:
        """What a matrix product's letters lack."""
        sizes: dict[str, IntLike] = {}
        for k, letters in sides.items():
            sizes.update(zip(letters, p.containers[_container(node, k)].shape, strict=True))
        known = {c: n for c, n in sizes.items() if isinstance(n, int)}
        require(known.keys() == sizes.keys(), "a size is known at run time only")
        known["1"] = 1
        flops, itemsize = 2 * math.prod(known.values()), p.containers[_container(node, "y")].dtype.itemsize
        a, b, y = (frozenset(sides[k]) for k in "aby")
        # letters that the library sees as one dimension: rows, columns, terms; those of a batch need nothing
        together = {c: math.prod(known[d] for d in g) for g in ((a & y) - b, (b & y) - a, (a & b) - y) for c in g}
        step = self.granule // itemsize
        require(step >= STEP, "only products in 16-bit types run on units that need it")
        odd = {c: -n % step for c, n in known.items() if n % step and n >= self.least_size and together.get(c, 0) % step}
        require(bool(odd), f"its sizes are multiples of {step}, or small")
        touched = [p.containers[_container(node, k)] for k, letters in sides.items() if set(letters) & odd.keys()]
        moved = sum(hint_value(p, c.bytes) for c in touched)
        least = max(self.least_flops, self.least_flops_a_byte * moved)
        require(flops >= least, f"{flops} operations do not pay for {moved} bytes more")
        return odd

    def _odd_channels(self, p: Program, node: Operator) -> dict[str, int]:
        """What the channels of a convolution's operand lack."""
        image = p.containers[node.reads["x"].container]
        result = p.containers[node.writes["y"].container if node.op == "convolution" else node.reads["g"].container]
        channels, step = image.shape[1], self.granule // image.dtype.itemsize
        require(node.attributes["groups"] == 1 and not node.attributes["transposed"], "its channels are in groups, or it is transposed")
        require(isinstance(channels, int), "the number of channels is known at run time only")
        assert isinstance(channels, int)
        require(step >= STEP, "only 16-bit types run on units that need it")
        missing = -channels % step
        require(missing > 0, f"its channels are a multiple of {step}")
        filled = hint_value(p, image.bytes) // channels * (channels + missing)
        out = hint_value(p, result.bytes)
        require(max(filled, out) >= self.least_image, f"{max(filled, out)} bytes are a small image")
        require(filled <= out, f"the operand would be larger than the result: {filled} and {out} bytes")
        return {"c": missing}

    def saves(self, m: Match) -> IntLike:
        """Less than nothing: what is filled up is copied, until that is fused with its neighbours."""
        p, node = m.program, m.node
        total: IntLike = 0
        for k, letters in m.sides.items():
            c = p.containers[_container(node, k)]
            larger = _larger(c, letters, m.odd)
            if larger.shape != c.shape:
                known = k != "y" and _filled(p, c, larger) is not None
                total = total - (larger.bytes - c.bytes) - (0 if k == "y" or known else _copied(c, letters, m.odd))
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        p, node = m.program, m.node
        reads, writes = dict(node.reads), dict(node.writes)
        after: list[Operator] = []
        for k, letters in m.sides.items():
            c = p.containers[_container(node, k)]
            larger = _larger(c, letters, m.odd)
            if larger.shape == c.shape:
                continue
            if k == "y":
                whole = edit.add_container(larger.with_(name=p.fresh(f"{c.name}_filled")))
                writes["y"] = full(whole)
                after += _parts(p, edit, whole, c, node)
                continue
            known = _filled(p, c, larger)
            reads[k] = full(known if known is not None else _fill(p, edit, c, larger, node))
        edit.replace(p.node(node.id), node.with_(reads=reads, writes=writes), *after)


def _sides(p: Program, node: Operator) -> dict[str, str]:
    """The letters of each operand and of the result; a bias has the last ones of the result, "1" where it is repeated. Of a convolution:
    n of the batch, c and o of the channels, "1" of all that stays as it is."""
    if node.op != "contract":
        rest = "1" * (len(p.containers[node.reads["x"].container].shape) - 2)
        last = {"weight": "oc", "y": "no"} if node.op == "convolution" else {"g": "no", "y": "oc"}
        return {k: v + rest for k, v in {"x": "nc", **last}.items()}
    operands, _, y = node.attributes["equation"].partition("->")
    a, _, b = operands.partition(",")
    sides = {"a": a, "b": b, "y": y}
    if "bias" in node.reads:
        shape = p.containers[node.reads["bias"].container].shape
        sides["bias"] = "".join("1" if n == 1 else x for x, n in zip(y[len(y) - len(shape) :], shape, strict=True))
    return sides


def _container(node: Operator, side: str) -> str:
    return (node.writes if side == "y" else node.reads)[side].container


def _larger(c: Container, letters: str, odd: Mapping[str, int]) -> Container:
    shape = tuple(n + odd[x] if x in odd else n for x, n in zip(letters, c.shape, strict=True))
    return Container(c.name, c.dtype, shape)


def _steps(c: Container, larger: Container) -> list[tuple[int, tuple[IntLike, ...]]]:
    """The dimensions that grow, one after the other, with the shape after each."""
    shape, steps = list(c.shape), []
    for d, n in enumerate(larger.shape):
        if shape[d] != n:
            shape[d] = n
            steps.append((d, tuple(shape)))
    return steps


def _copied(c: Container, letters: str, odd: Mapping[str, int]) -> IntLike:
    """Bytes of the copies that fill a container up."""
    total: IntLike = 0
    before = c.bytes
    for _, shape in _steps(c, _larger(c, letters, odd)):
        after = product(shape) * c.dtype.itemsize
        total, before = total + before + after, after
    return total


def _filled(p: Program, c: Container, larger: Container) -> Container | None:
    """The filled container of which this one is a part, if there is one of the wanted shape."""
    name = c.name
    while p.containers[name].shape != larger.shape:
        w = _writer(p, name)
        if w is None or w.op != "slice" or w.attributes["start"] != 0 or w.attributes["step"] != 1:
            return None
        name = w.reads["x"].container
    w = _writer(p, name)
    return p.containers[name] if w is not None and w.op == "slice_backward" else None


def _writer(p: Program, name: str) -> Operator | None:
    writers = p.writers(name)
    return writers[0] if len(writers) == 1 and isinstance(writers[0], Operator) else None


def _operator(op: str, attributes: Mapping[str, Any], x: Container, y: Container, origins: tuple[Origin, ...], phase: str) -> Operator:
    return Operator(op, {**definition(op).attributes, **attributes}, reads={"x": full(x)}, writes={"y": full(y)},
                    origins=origins, phase=phase)  # fmt: skip


def _fill(p: Program, edit: Edit, c: Container, larger: Container, node: Operator) -> Container:
    """Zeros behind what a container holds, and the container as a part of that for its other readers, so that what computes it can
    write the filled one at once."""
    writer = _writer(p, c.name)
    readers = p.readers(c.name)
    near = writer if writer is not None else node
    nodes: list[Node] = []
    whole = c
    for d, shape in _steps(c, larger):
        made = edit.add_container(Container(p.fresh(f"{c.name}_filled"), c.dtype, shape))
        attributes = {"dim": d, "start": 0, "step": 1, "size": shape[d]}
        nodes.append(_operator("slice_backward", attributes, whole, made, near.origins, near.phase))
        whole = made
    others = [r for r in readers if r.id != node.id]
    if writer is None or c.name in p.results or not all(isinstance(r, Operator) for r in others):
        edit.add(*nodes, before=p.node(node.id))
        return whole
    part = edit.add_container(Container(p.fresh(f"{c.name}_part"), c.dtype, c.shape))
    if others:
        nodes += _parts(p, edit, whole, part, near)
    edit.add(*nodes, after=writer)
    for r in others:
        reads = {k: full(part) if x.container == c.name else x for k, x in r.reads.items()}
        edit.replace(r, r.with_(reads=reads))
    edit.drop_unused([part.name])
    return whole


def _parts(p: Program, edit: Edit, whole: Container, c: Container, node: Operator) -> list[Operator]:
    """Nodes that make the front part of a filled container."""
    nodes: list[Operator] = []
    steps = [d for d, n in enumerate(c.shape) if n != whole.shape[d]]
    x = whole
    for d in steps:
        shape = tuple(c.shape[e] if e <= d else n for e, n in enumerate(whole.shape))
        y = c if d == steps[-1] else edit.add_container(Container(p.fresh(f"{c.name}_part"), c.dtype, shape))
        nodes.append(_operator("slice", {"dim": d, "start": 0, "stop": c.shape[d], "step": 1}, x, y, node.origins, node.phase))
        x = y
    return nodes
