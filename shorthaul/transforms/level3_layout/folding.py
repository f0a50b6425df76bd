"""Maps that only move or scale elements, next to a contraction by library: what `FoldTranspose` and `FoldScale` have in common.

A contraction names its dimensions by letters, so an operand, or the result, may have them in any order, and a factor is its `alpha`: such a
map is a change of the contraction, not a pass over memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

from shorthaul.analysis.movement import distinct
from shorthaul.analysis.products import copied
from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Memlet, full
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar
from shorthaul.symbolic import Expr, Symbol, prove_eq

from .. import traffic
from ..base import Match, Transformation, describe, require

IntLike = Union[int, Expr]
Dims = tuple[Union[Symbol, None], ...]  # a parameter for each dimension, None for a dimension of size one


@dataclass(frozen=True)
class Moving:
    """target[...] = scale * source[...] over all elements of the target: which parameter runs over which dimension."""

    source: str
    target: str
    source_dims: Dims
    target_dims: Dims
    scale: float


def is_product(node: object) -> bool:
    return isinstance(node, LibraryCall) and node.function == "contract"


def moving(p: Program, node: Map) -> Moving:
    """What a map moves. Raises Refusal where it does more than permute, repeat and scale."""
    t = node.tasklet
    assert t is not None
    require(len(t.code) == 1 and len(t.reads) == 1, "it computes something")
    (code,), (write,), (read,) = t.code.values(), t.writes.values(), t.reads.values()
    source, target = p.containers[read.container], p.containers[write.container]
    require(source.dtype is target.dtype, "it converts")
    scale = _scale(code)
    require(scale is not None, "it computes something")
    assert scale is not None
    require(not read.guard and not write.guard, "it pads")
    require(not node.schedule.get("pack"), "the copy makes a layout that kernels need")
    dims = _dims(node, write, target), _dims(node, read, source)
    require(all(q in dims[0] for q in node.params if not _same(q.size, 1)), "it writes elements more than once")
    return Moving(source.name, target.name, dims[1], dims[0], scale)


def _scale(code: Scalar) -> float | None:
    """The constant factor of scalar code that is one value times a constant; None for other code."""
    if code.op == "read":
        return 1.0
    if not code.dtype.is_float or any(a.op not in ("read", "const") for a in code.args):
        return None
    numbers = [float(a.attr) for a in code.args if a.op == "const"]  # type: ignore[arg-type]
    if code.op == "neg" and not numbers:
        return -1.0
    if len(numbers) != 1 or numbers[0] == 0 or not math.isfinite(numbers[0]):  # a product by zero is NaN where an element is infinite
        return None
    if code.op == "mul":
        return numbers[0]
    return 1.0 / numbers[0] if code.op == "div" and code.args[1].op == "const" else None


def _dims(node: Map, memlet: Memlet, c: Container) -> Dims:
    found: list[Symbol | None] = []
    for s, n in zip(memlet.subset, c.shape, strict=True):
        if isinstance(s, int) and s == 0 and _same(n, 1):
            found.append(None)
            continue
        require(isinstance(s, Symbol) and s in node.params and s not in found, "it does more than exchange dimensions")
        assert isinstance(s, Symbol)
        require(s.lower == 0 and _same(s.size, n), f"it takes a part of {c.name}")
        found.append(s)
    return tuple(found)


class Fold(Transformation, ABC):
    """Base of the two: places are a map with an operand of contractions as its result, or with a contraction's result as its operand."""

    level = 3

    @abstractmethod
    def accepts(self, moved: Moving) -> None:
        """Raise Refusal where the map is not this transformation's business."""

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if not (isinstance(node, Map) and program.node_is_current(node) and node.is_elementwise and len(program.writes_of(node)) == 1):
                continue
            (mid,) = program.writes_of(node)
            if any(is_product(r) for r in program.readers(mid)):
                yield Match(program, {"map": node, "mid": mid})
            for c in sorted(program.reads_of(node)):
                for call in program.writers(c):
                    if is_product(call) and call.phase == node.phase:
                        yield Match(program, {"call": call, "mid": c, "map": node})

    def check(self, m: Match) -> None:
        moved = moving(m.program, m.map)
        self.accepts(moved)
        m.derived["moved"] = moved
        m.derived["calls"] = _into_result(m, moved) if "call" in m.items else _into_operands(m, moved)

    def saves(self, m: Match) -> IntLike:
        """All that the map moves, and what repeated operands are larger than what they repeat."""
        p, total = m.program, traffic.all_moved(m.program, m.map)
        if "call" not in m.items:
            source = p.containers[m.moved.source]
            for old, _ in m.calls:
                total = total + p.containers[m.mid].bytes
                if source.name not in p.reads_of(old):
                    total = total - distinct(source, source.size) * source.dtype.itemsize
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        if "call" in m.items:
            ((call, new),) = m.calls
            edit.fuse([call, m.map], new)
        else:
            edit.remove(m.map)
            for call, new in m.calls:
                edit.replace(call, new)
        edit.drop_unused([m.mid])


def _into_operands(m: Match, moved: Moving) -> list[tuple[LibraryCall, LibraryCall]]:
    """Every reader of the map's result, with what it becomes. Raises Refusal."""
    p, node = m.program, m.map
    source, target = p.containers[moved.source], p.containers[m.mid]
    require(m.mid not in p.results and not target.is_external, "the caller needs it as a tensor of its own")
    require(len(p.writers(m.mid)) == 1, "several nodes write it")
    require(not p.aliases(m.mid) and target.alias is None, "it shares memory with others")
    readers = p.readers(m.mid)
    for r in readers:
        require(is_product(r), f"{describe(r)} needs it as it is")
    if any(r.phase != node.phase for r in readers):
        require(moved.source not in p.results or source.is_external, "its source is handed to the caller, who may change it")
        updated = any(c == moved.source for c, _ in p.signature.updates)
        require(not updated, "its source changes before the backward phase reads it")
    return [(r, _with_operands(p, r, moved)) for r in readers if isinstance(r, LibraryCall)]


def _with_operands(p: Program, call: LibraryCall, moved: Moving) -> LibraryCall:
    letters = _letters(call)
    reads, alpha = dict(call.reads), call.attributes.get("alpha", 1)
    before = _copied(p, call)
    for k in ("a", "b"):
        if call.reads[k].container != moved.target:
            continue
        of = {q: letter for q, letter in zip(moved.target_dims, letters[k], strict=True) if q is not None}
        letters[k] = "".join("1" if q is None else of[q] for q in moved.source_dims)
        reads[k] = full(p.containers[moved.source])
        alpha = alpha * moved.scale
    require("bias" not in call.reads or call.reads["bias"].container != moved.target, f"{describe(call)} adds it to a product")
    return _checked(p, call, letters, before, reads=reads, alpha=alpha)


def _into_result(m: Match, moved: Moving) -> list[tuple[LibraryCall, LibraryCall]]:
    """The contraction, with the map's result as its own. Raises Refusal."""
    p, call = m.program, m.call
    source, target = p.containers[m.mid], p.containers[moved.target]
    require({*moved.source_dims, None} == {*moved.target_dims, None}, "it repeats elements")
    require(source.role == "transient" and m.mid not in p.results, "the caller gets the product as it is, too")
    require(len(p.readers(m.mid)) == 1 and len(p.writers(m.mid)) == 1, "something else needs the product as it is")
    require(len(p.writers(target.name)) == 1 and not target.is_external, "several nodes write the result")
    require(source.alias is None and target.alias is None, "containers share memory")
    require(not p.aliases(m.mid) and not p.aliases(target.name), "containers share memory")
    require("bias" not in call.reads, "the product adds a bias along its own dimensions")
    letters, before = _letters(call), _copied(p, call)
    of = {q: letter for q, letter in zip(moved.source_dims, letters["y"], strict=True) if q is not None}
    letters["y"] = "".join("1" if q is None else of[q] for q in moved.target_dims)
    alpha = call.attributes.get("alpha", 1) * moved.scale
    return [(call, _checked(p, call, letters, before, writes={"y": full(target)}, alpha=alpha))]


def _letters(call: LibraryCall) -> dict[str, str]:
    operands, _, y = call.attributes["equation"].partition("->")
    a, _, b = operands.partition(",")
    return {"a": a, "b": b, "y": y}


def _copied(p: Program, call: LibraryCall) -> set[str]:
    a, b, y = (p.containers[(call.writes if k == "y" else call.reads)[k].container] for k in ("a", "b", "y"))
    return set(copied(call.attributes["equation"], a, b, y))


def _checked(p: Program, call: LibraryCall, letters: dict[str, str], before: set[str], alpha: float, **changes: object) -> LibraryCall:
    """The call with other letters. Raises Refusal where that is no product, or the library would copy what it does not copy now."""
    a, b, y = ({*letters[k]} - {"1"} for k in ("a", "b", "y"))
    require((a ^ b) <= y <= (a | b), "it repeats along a dimension that only it has, or that is summed")
    attributes = {**call.attributes, "equation": f"{letters['a']},{letters['b']}->{letters['y']}"}
    if alpha != attributes.get("alpha", 1):
        attributes["alpha"] = alpha
    new: LibraryCall = call.with_(attributes=attributes, **changes)
    more = _copied(p, new) - before
    names = ", ".join(sorted((new.writes if k == "y" else new.reads)[k].container for k in more))
    require(not more, f"{names} is no matrix as it lies in memory: the library would copy it")
    return new


def _same(a: IntLike, b: IntLike) -> bool:
    return a is b or a == b or prove_eq(a, b) is True
