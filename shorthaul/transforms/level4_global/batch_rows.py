"""Rows of a batch: how nodes that handle the leading dimensions row by row use their containers, and the loop over blocks of rows that
`BatchTiling` makes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

from shorthaul.analysis.movement import node_movement
from shorthaul.ir.blocks import block_of, block_shape, grid
from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int64
from shorthaul.ir.memlet import Memlet, full
from shorthaul.ir.nodes import LibraryCall, Loop, Map, Node, Schedule, Tasklet
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import Scalar, read, rewrite, symbols_of, walk
from shorthaul.ir.sizes import node_sizes
from shorthaul.symbolic import Expr, Symbol, affine, free_symbols

from ..base import apply_everywhere
from ..level2_fusion.compose import merge_origins
from .alias_views import AliasViews
from .in_place import InPlace

IntLike = Union[int, Expr]
Rows = Sequence[int]  # sizes of the leading dimensions, or of a tile of them
Params = tuple[Union[Symbol, None], ...]  # the parameters of a map that run over them; None along a dimension of size one
SLICED, WHOLE, SUMMED = "sliced", "whole", "summed"
_ROWS = {"aten::convolution": "x", "aten::conv_grad_input": "g"}  # their operand that has a row for each sample, as the result does
_ATTENTION = ("flash_attention", "flash_attention_backward")


def containers_of(p: Program, nodes: Sequence[Node]) -> list[Container]:
    """What the nodes read and write."""
    return [p.containers[c] for c in sorted({c for n in nodes for c in p.reads_of(n) | p.writes_of(n)})]


def bytes_of(p: Program, name: str) -> int:
    """Bytes of a container; more than any cache holds where they are not known."""
    size = p.containers[name].bytes
    return size if isinstance(size, int) else 1 << 62


def slice_bytes(c: Container, tile: Rows) -> int:
    """Bytes of a container's block of rows."""
    return c.dtype.itemsize * math.prod(block_shape(c.shape, tile))  # type: ignore[arg-type]


def sharing(p: Program, nodes: Sequence[Node]) -> bool:
    """Whether something that the nodes write shares memory with something else that they touch, or is part of it."""
    written = {c for n in nodes for c in p.writes_of(n)}
    touched = written | {c for n in nodes for c in p.reads_of(n)}
    return any(p.containers[c].alias is not None or not p.aliases(c).isdisjoint(touched - {c}) for c in written)


def _needed(p: Program, nodes: Sequence[Node], name: str) -> bool:
    """Whether something outside needs what the nodes write."""
    inside = {n.id for n in nodes}
    family = p.aliases(name) | {name}
    return not family.isdisjoint(p.results) or any(r.id not in inside for c in family for r in p.readers(c))


def saved(p: Program, nodes: Sequence[Node], roles: Mapping[str, str], rows: Rows) -> int:
    """Bytes that the nodes move less as one loop over the rows whose working set fits the cache."""
    alone, reads, writes = 0, dict[str, int](), dict[str, int]()
    for n in nodes:
        for x in node_movement(n, p):
            number = x.bytes
            assert isinstance(number, int)
            alone += number
            table = reads if x.side == "read" else writes
            if x.container in roles:
                table[x.container] = max(table.get(x.container, 0), number)
    together = sum(b for c, b in writes.items() if _needed(p, nodes, c))
    together += sum(b * (_sweeps(p.containers[c], rows) if roles[c] == SLICED else 1) for c, b in reads.items() if c not in writes)
    return alone - together


def _sweeps(c: Container, rows: Rows) -> int:
    """How often all of a container is read: again for each row of an outer dimension along which it is broadcast."""
    varies = [d for d in range(len(rows)) if c.shape[d] != 1]
    return math.prod(r for d, r in enumerate(rows) if d < varies[-1] and d not in varies) if varies else 1


# roles ----------------------------------------------------------------------------------------------------------------------
def roles_together(p: Program, nodes: Sequence[Node], rows: Rows) -> dict[str, str] | None:
    """How nodes that run over blocks of rows together use each container; None where they cannot."""
    roles: dict[str, str] = {}
    for n in nodes:
        own = roles_of(p, n, rows)
        if own is None or any(roles.get(c, r) != r for c, r in own.items()) or any(roles.get(c) == SUMMED for c in p.reads_of(n)):
            return None
        roles |= own
    return roles


def roles_of(p: Program, n: Node, rows: Rows) -> dict[str, str] | None:
    """How a node that handles rows one by one uses each container; None where it does not, or nothing has rows."""
    if n.defines or any(len(p.writers(c)) > 1 for c in p.writes_of(n)):
        return None
    roles = _roles_of_map(p, n, rows) if isinstance(n, Map) else _roles_of_call(p, n, rows) if isinstance(n, LibraryCall) else None
    if roles is None or SLICED not in roles.values():
        return None
    for c, role in roles.items():
        container, written = p.containers[c], c in p.writes_of(n)
        if not isinstance(container.size, int) or (role == SLICED and not _rows_apart(container, rows, written)):
            return None
        if role == SUMMED and (not written or not container.dtype.is_float):
            return None
    return roles


def _rows_apart(c: Container, rows: Rows, written: bool) -> bool:
    """Whether the container is an array of those rows, of size one where it is broadcast, and each row a piece of memory of its own."""
    leading, strides = c.shape[: len(rows)], c.actual_strides
    if len(leading) < len(rows) or (written and c.alias is not None) or not all(isinstance(s, int) for s in strides):
        return False
    if any(n != r and (n != 1 or written) for n, r in zip(leading, rows, strict=True)):
        return False
    if len(rows) > 1:
        return all(n == 1 or s > 0 for n, s in zip(c.shape, strides, strict=True))  # type: ignore[operator]
    return leading[0] == rows[0] and all(strides[0] >= s for s in strides[1:]) and strides[0] > 0  # type: ignore[operator]


def _params_of(n: Map, rows: Rows) -> Iterator[Params]:
    """The parameters that may run over the rows, in the order of the dimensions."""
    choices: list[list[Symbol | None]] = []
    for r in rows:
        found: list[Symbol | None] = [q for q in n.params if q.lower == 0 and q.size == r]
        choices.append(found or ([None] if r == 1 else []))
    for qs in itertools.product(*choices):
        named = [q for q in qs if q is not None]
        if len(set(named)) == len(named) > 0:
            yield qs


def _roles_of_map(p: Program, n: Map, rows: Rows) -> dict[str, str] | None:
    found = _rows_of_map(p, n, rows)
    return None if found is None else found[1]


def _rows_of_map(p: Program, n: Map, rows: Rows) -> tuple[Params, dict[str, str]] | None:
    """The parameters that run over the rows, and the roles of the map's containers."""
    for qs in _params_of(n, rows):
        roles = _roles_by(p, n, qs, rows)
        if roles is not None:
            return qs, roles
    return None


def _roles_by(p: Program, n: Map, qs: Params, rows: Rows) -> dict[str, str] | None:
    """Roles of the map's containers if the rows are those of its parameters qs."""
    own = {q for q in qs if q is not None}
    roles: dict[str, str] = {}
    for x in n.accesses():
        memlet = x.memlet
        if memlet.scan is not None or any(not own.isdisjoint(_symbols(e)) for q in x.params if q not in own for e in (q.lower, q.upper)):
            return None
        if x.is_local:
            if not own.isdisjoint(memlet.symbols):
                return None
            continue
        if not own.isdisjoint(memlet.symbols):
            if not _is_row(memlet, qs, p.containers[memlet.container]):
                return None
            role = SLICED
        elif x.is_write:
            if memlet.combine != "sum":
                return None
            role = SUMMED
        else:
            role = WHOLE
        if roles.setdefault(memlet.container, role) != role:
            return None
    if any(_per_row(e, qs, rows) is None for _, t in n.tasklets() for e in _indices(t)):
        return None  # its numbers depend on the row in a way that the number of the block does not tell
    return roles


def _is_row(memlet: Memlet, qs: Params, c: Container) -> bool:
    """Whether the memlet's leading subscripts are the rows' parameters, or zero where the container is broadcast, and no other is."""
    k = len(qs)
    if len(memlet.subset) < k:
        return False
    if any(s is not q and (s != 0 or c.shape[d] != 1) for d, (s, q) in enumerate(zip(memlet.subset, qs, strict=False))):
        return False
    return {q for q in qs if q is not None}.isdisjoint(memlet.with_(subset=(*(0 for _ in qs), *memlet.subset[k:])).symbols)


def _symbols(e: Any) -> frozenset[Symbol]:
    return free_symbols(e) if isinstance(e, Expr) else frozenset()


def _indices(t: Tasklet) -> Iterator[IntLike]:
    for v in walk(*t.code.values()):
        if v.op == "index":
            yield v.attr  # type: ignore[misc]


def _per_row(e: IntLike, qs: Params, rows: Rows) -> int | None:
    """What is added to a value from one row to the next, rows numbered in row-major order; None where that is not a number."""
    own = [q for q in qs if q is not None]
    form = affine(e, own)
    if form is None or not all(isinstance(k, int) for k in form[0].values()):
        return None
    steps = [form[0].get(q, 0) if q is not None else None for q in qs]
    result: int | None = None
    rest = 1
    for step, r in zip(reversed(steps), reversed(rows), strict=True):
        if step is not None:
            assert isinstance(step, int)
            if result is None:
                result = step // rest if step % rest == 0 else None
                if result is None:
                    return None
            if step != result * rest:
                return None
        rest *= r
    return result or 0


def _roles_of_call(p: Program, n: LibraryCall, rows: Rows) -> dict[str, str] | None:
    reads, writes = ({k: m.container for k, m in side.items()} for side in (n.reads, n.writes))
    if any(len(set(side.values())) < len(side) for side in (reads, writes)) or not set(reads.values()).isdisjoint(writes.values()):
        return None
    if n.function == "contract":
        return _roles_of_contraction(p, n, reads, writes, rows)
    if len(rows) > 1:
        return None
    if n.function in _ROWS:
        roles = {c: SLICED if k == _ROWS[n.function] else WHOLE for k, c in reads.items()}
        return {**roles, writes["y"]: SLICED}
    if n.function == "aten::conv_grad_weight":
        return {**dict.fromkeys(reads.values(), SLICED), writes["y"]: SUMMED}
    if n.function in _ATTENTION and "mask" not in reads:
        return dict.fromkeys((*reads.values(), *writes.values()), SLICED)
    return None


def _roles_of_contraction(p: Program, n: LibraryCall, reads: Mapping[str, str], writes: Mapping[str, str],
                          rows: Rows) -> dict[str, str] | None:  # fmt: skip
    k = len(rows)
    operands, _, y = n.attributes["equation"].partition("->")
    a, _, b = operands.partition(",")
    sizes = dict(zip(a + b, (*p.containers[reads["a"]].shape, *p.containers[reads["b"]].shape), strict=True))
    for letters in dict.fromkeys((a[:k], b[:k])):
        if len(letters) < k or "1" in letters or any(sizes[c] != r for c, r in zip(letters, rows, strict=True)):
            continue
        words = {reads["a"]: a, reads["b"]: b, writes["y"]: y}
        if any(c in (w[k:] if w[:k] == letters else w) for w in words.values() for c in letters):
            continue
        roles = {c: SLICED if w[:k] == letters else WHOLE for c, w in words.items()}
        inside = y[:k] == letters
        if not inside:
            roles[writes["y"]] = SUMMED
        if "bias" in reads:
            bias = p.containers[reads["bias"]]
            along = n.attributes.get("along", len(y) - 1) if len(bias.shape) == 1 else len(y) - len(bias.shape)
            leading = bias.shape[: k - along] if len(bias.shape) > 1 else (() if along >= k else (rows[0],))
            if not inside or any(size != 1 for size in leading):
                continue
            roles[reads["bias"]] = WHOLE
        return roles
    return None


# the loop -------------------------------------------------------------------------------------------------------------------
def loop_of(p: Program, nodes: Sequence[Node], roles: Mapping[str, str], rows: Rows, tile: Rows) -> Loop:
    """The nodes as a loop over the rows, a tile of them at a time."""
    written = {c for n in nodes for c in p.writes_of(n)}
    read_ = {c for n in nodes for c in p.reads_of(n)}
    outputs = sorted(c for c in written if _needed(p, nodes, c) or roles[c] == SUMMED)
    inputs = sorted(read_ - written)
    containers = {}
    for c in sorted(read_ | written):
        role = "input" if c in inputs else "output" if c in outputs else "transient"
        own = p.containers[c].with_(role=role, alias=None)
        containers[c] = block_of(own, tile) if roles[c] == SLICED else own
    number = Container(p.fresh("block"), int64, (), role="input")
    parts = [_part(p, n, containers, number, rows, tile) for n in nodes]
    numbered = any(number.name in x.read_containers() for x in parts if isinstance(x, Map))
    if numbered:
        containers[number.name] = number
    used = {s for x in parts for s in node_sizes(x, containers)}  # a mean divides by a size, for example
    signature = Signature((*inputs, *([number.name] if numbered else ())), tuple(outputs))
    body = Program("rows", Form.SCHEDULED, containers, parts, signature, tuple(s for s in p.symbols if s in used))
    apply_everywhere(body, [AliasViews(), InPlace()])
    body.log.clear()
    return Loop(body, math.prod(grid(tile, [tuple(rows)])), (), tuple(c for c in inputs if roles[c] == SLICED),
                tuple(c for c in outputs if roles[c] == SLICED), index=number.name if numbered else None, tile=tuple(tile),
                summed=tuple(c for c in outputs if roles[c] == SUMMED), reads={c: full(p.containers[c]) for c in inputs},
                writes={c: full(p.containers[c]) for c in outputs}, origins=merge_origins(*nodes), phase=nodes[0].phase)  # fmt: skip


def _part(p: Program, n: Node, containers: Mapping[str, Container], number: Container, rows: Rows, tile: Rows) -> Node:
    """A copy of the node over a tile of rows."""
    if isinstance(n, Map):
        found = _rows_of_map(p, n, rows)
        assert found is not None
        qs = found[0]
        values = {q: Symbol(f"{q.name}_part", 0, t - 1) for q, t in zip(qs, tile, strict=True) if q is not None}
        part = rename(_numbered(n, qs, rows, tile, number), {}, values, fresh=False, phase="forward", id=None)
        return part.with_(schedule=Schedule("parallel", part.schedule.options)) if part.schedule.kind == "auto" else part
    reads, writes = ({k: full(containers[m.container]) for k, m in side.items()} for side in (n.reads, n.writes))
    return n.copy(reads=reads, writes=writes, phase="forward")


def _numbered(n: Map, qs: Params, rows: Rows, tile: Rows, number: Container) -> Map:
    """The map with what depends on the number of a row computed from the number of the block, too."""
    size = math.prod(tile)
    return n.with_(body=tuple(_numbered(x, qs, rows, tile, number) if isinstance(x, Map) else _numbered_tasklet(x, qs, rows, size, number)
                              if isinstance(x, Tasklet) else x for x in n.body))  # fmt: skip


def _numbered_tasklet(t: Tasklet, qs: Params, rows: Rows, size: int, number: Container) -> Tasklet:
    if symbols_of(*t.code.values()).isdisjoint(q for q in qs if q is not None):
        return t
    name = next(k for k in (f"block{i or ''}" for i in itertools.count()) if k not in t.reads)

    def leaf(v: Scalar) -> Scalar | None:
        step = _per_row(v.attr, qs, rows) if v.op == "index" else 0  # type: ignore[arg-type]
        return v + read(name, int64) * (step * size) if step else None

    memo: dict[Scalar, Scalar] = {}
    code = {k: rewrite(v, leaf, memo) for k, v in t.code.items()}
    return t.with_(code=code, reads={**t.reads, name: at(number)})
