"""Common values of the passes over a row: what an earlier pass has computed, a later one reads from a row buffer.

Passes of a row kernel (the sum of a softmax's exponentials, then their quotient) often evaluate the same costly value. Fusion gives
them as separate nests over parameters of their own, so the comparison here is by position: the k-th parameter of one
pass stands for the k-th of the other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from shorthaul.ir.containers import Container
from shorthaul.ir.scalar import Scalar, cast, read, rewrite, walk
from shorthaul.ir.scalar_ops import SCALAR_OPS
from shorthaul.symbolic import IntLike, Symbol, index, substitute

from .linearize import Code, Nest, Ref

CHEAP = 6  # a value of at most so many adds is computed again rather than stored
ROW_BYTES = 64 * 1024  # of all rows that are kept for later passes
_serial = itertools.count()

Key = tuple[object, ...]


@dataclass
class _Known:
    """A value of an earlier pass: where it is computed, and the row buffer that keeps it once someone asks for it."""

    position: int
    node: Scalar
    ref: Ref | None


def share_rows(nest: Nest) -> Nest:
    """The tree with costly values that several of its passes compute kept in row buffers."""
    body = [share_rows(n) if isinstance(n, Nest) else n for n in nest.body]
    nest = Nest(nest.params, list(body), dict(nest.locals), nest.name, nest.order, nest.lanes)
    passes = [(k, n, n.leaf) for k, n in enumerate(nest.body) if isinstance(n, Nest) and n.leaf is not None and n.params and not n.order]
    if len(passes) < 2:
        return nest
    written = {r.container for n in nest.codes() for r in n.writes.values() if not r.local}
    known: dict[Key, _Known] = {}
    budget = ROW_BYTES
    for k, n, code in passes:
        assert code is not None
        shape = _shape(n)
        if shape is None:
            continue
        names = {p: index(f"row position {j}", size) for j, (p, size) in enumerate(zip(n.params, shape, strict=True))}
        keys = _keys(code, names, shape, written, nest, k)
        replaced: dict[Scalar, Scalar] = {}
        reads = dict(code.reads)
        covered: set[Scalar] = set()
        for node in reversed(list(walk(*code.code.values()))):  # users before operands: the largest common value counts
            if node in covered or node not in keys:
                continue
            found = known.get(keys[node])
            if found is None or found.position == k:
                continue
            size = node.dtype.compute.itemsize
            for s in shape:
                size *= s
            if _cost(node) == 0 or (found.ref is None and (_cost(node) <= CHEAP or size > budget)):
                continue
            if found.ref is None:
                budget -= size
                found.ref = _keep(nest, found, shape)
            name = f"shared {len(reads)}"
            reads[name] = replace(found.ref, address=_at(found.ref.address, nest.body[found.position].params, n.params))  # type: ignore[union-attr]
            replaced[node] = cast(read(name, found.ref.dtype), node.dtype)
            covered |= set(walk(node))
        if replaced:
            memo: dict[Scalar, Scalar] = {}
            roots = {w: rewrite(v, replaced.get, memo) for w, v in code.code.items()}
            used = {x.attr for x in walk(*roots.values()) if x.op == "read"}
            needed = {i for r in (*code.reads.values(), *code.writes.values()) for i, _ in r.indirect}
            code = Code({w: r for w, r in reads.items() if w in used | needed}, code.writes, roots, code.origin)
            nest.body[k] = replace(n, body=[code])
        for node, key in keys.items():
            if key in known or node in replaced:
                continue
            at = next(
                (r for w, r in code.writes.items() if code.code[w] is node and r.local and not r.combine and not r.guard and _covers(r, n)),
                None,
            )
            known[key] = _Known(k, node, at)
    return nest


def _shape(n: Nest) -> list[int] | None:
    sizes = [p.size for p in n.params]
    return sizes if all(isinstance(s, int) for s in sizes) else None  # type: ignore[return-value]


def _keys(code: Code, names: dict[Symbol, Symbol], shape: list[int], written: set[str], nest: Nest, position: int) -> dict[Scalar, Key]:
    """What each value is, in terms of memory that does not change between the passes; values that others cannot share are left out."""
    keys: dict[Scalar, Key] = {}

    def at(e: IntLike) -> IntLike:
        return e if isinstance(e, int) else substitute(e, names)

    for node in walk(*code.code.values()):
        if node.op == "const":
            keys[node] = ("const", node)
        elif node.op == "index":
            keys[node] = ("index", at(node.attr))  # type: ignore[arg-type]
        elif node.op == "read":
            ref = code.reads[node.attr]  # type: ignore[index]
            if ref.indirect or ref.container in written or (ref.local and _written_from(nest, ref.container, position)):
                continue
            keys[node] = ("read", *replace(ref.rewritten(at), guard=()).__dict__.values(), *((at(c.expr), c.relation) for c in ref.guard))
        elif all(a in keys for a in node.args):
            keys[node] = (node.op, node.dtype, *(keys[a] for a in node.args))
    return {n: (tuple(shape), *k) for n, k in keys.items()}


def _written_from(nest: Nest, container: str, position: int) -> bool:
    """Whether a local is written in this pass or a later one."""
    for k, n in enumerate(nest.body):
        if k >= position:
            for c in n.codes() if isinstance(n, Nest) else (n,):
                if any(r.container == container for r in c.writes.values()):
                    return True
    return False


def _cost(node: Scalar) -> int:
    return sum(SCALAR_OPS[n.op].cost for n in walk(node) if n.op in SCALAR_OPS)


def _covers(r: Ref, n: Nest) -> bool:
    """Whether a write puts each point of the pass at a place of its own, in row order."""
    address: IntLike = 0
    step = 1
    for p in reversed(n.params):
        address = address + p * step
        step *= p.size  # type: ignore[operator,assignment]
    return r.address is address


def _keep(nest: Nest, found: _Known, shape: list[int]) -> Ref:
    """Make the earlier pass store the value in a new row buffer."""
    n = nest.body[found.position]
    assert isinstance(n, Nest) and n.leaf is not None
    dtype = found.node.dtype.compute
    key = f"shared row#{next(_serial)}"
    nest.locals[key] = Container(key, dtype, tuple(shape), storage="register")
    address: IntLike = 0
    step = 1
    for p in reversed(n.params):
        address = address + p * step
        step *= p.size  # type: ignore[operator,assignment]
    ref = Ref(key, dtype, address, local=True)
    code = n.leaf
    name = f"keep {len(code.writes)}"
    new = Code(code.reads, {**code.writes, name: ref}, {**code.code, name: cast(found.node, dtype)}, code.origin)
    nest.body[found.position] = replace(n, body=[new])
    return ref


def _at(address: IntLike, old: list[Symbol], new: list[Symbol]) -> IntLike:
    return address if isinstance(address, int) else substitute(address, dict(zip(old, new, strict=True)))
