"""BatchTiling: nodes that work on one sample after the other run together over parts of the batch that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.analysis.movement import node_movement
from shorthaul.analysis.roofline import machine
from shorthaul.analysis.tiles import working_set
from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import LibraryCall, Loop, Map, Node, Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import walk
from shorthaul.symbolic import Expr, Symbol, free_symbols

from ..base import Match, Transformation, apply_everywhere, require
from ..level2_fusion.compose import merge_origins
from .alias_views import AliasViews
from .in_place import InPlace

IntLike = Union[int, Expr]
SLICED, WHOLE, SUMMED = "sliced", "whole", "summed"
PATIENCE = 12  # nodes behind a region that may wait for it before it is closed
_ROWS = {"aten::convolution": "x", "aten::conv_grad_input": "g"}  # their operand that has a row for each sample, as the result does
_ATTENTION = ("flash_attention", "flash_attention_backward")


@dataclass
class Region:
    """Nodes that may run over parts of a batch, in program order. roles: how each uses its containers. behind: what must run after."""

    batch: int
    nodes: list[Node] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)  # containers that nodes behind the region write


class BatchTiling(Transformation):
    """Run a chain of kernels and library calls over a few samples of the batch at a time; what passes between them stays in the cache.

    before:  map n, c, h, w: a[n, c, h, w] = relu(s[c]*x[n, c, h, w]);  y = convolution(a, weight)
    after:   loop over n in steps of k:  map n', c, h, w: a'[n', c, h, w] = ...;  y[n:n+k] = convolution(a', weight)

    It joins what fusion cannot, library calls and their neighbours: expansions of inverted residuals, hidden layers of perceptrons, scores
    of attention. Sums over the batch, such as gradients of weights, are added up from part to part. cache: bytes that an iteration may
    need (weights, sums, and the slices in use at once), of the described machine if 0. least: bytes that an intermediate must have to be
    worth the loop's own time, half of the cache if 0; a smaller one may stay in the cache without it.
    """

    level = 4
    allowed = {"cache": range(1 << 40), "least": range(1 << 40)}
    tunable = {"cache": (1, 1 << 19, 1 << 21, 1 << 23)}  # 1: nothing fits, it is off

    def __init__(self, cache: int = 0, least: int = 0) -> None:
        self.cache = cache
        self.least = least

    @property
    def _budget(self) -> int:
        return self.cache or machine().cache

    @property
    def _least(self) -> int:
        return self.least or self._budget // 2

    # places ---------------------------------------------------------------------------------------------------------------
    def matches(self, program: Program) -> Iterator[Match]:
        """Chains that pay, the first first; none overlaps another."""
        for phase in ("forward", "backward"):
            nodes = [n for n in program.nodes if n.phase == phase]
            at = 0
            while at < len(nodes):
                region, at = self._grow(program, nodes, at)
                if region is not None:
                    yield Match(program, {f"node{i}": n for i, n in enumerate(region.nodes)})

    def _grow(self, p: Program, nodes: Sequence[Node], start: int) -> tuple[Region | None, int]:
        """A region that begins at the first node that can begin one, and where to look for the next."""
        for at in range(start, len(nodes)):
            batch = self._batch(p, nodes[at])
            if batch is None:
                continue
            region = Region(batch)
            self._join(p, region, nodes[at], _roles(p, nodes[at], batch) or {})
            behind = 0
            for n in nodes[at + 1 :]:
                reads, writes = p.reads_of(n), p.writes_of(n)
                roles = _roles(p, n, batch)
                joins = roles is not None and reads.isdisjoint(region.waiting) and self._pays(p, region, n, roles)
                if joins:
                    assert roles is not None
                    self._join(p, region, n, roles)
                elif not reads.isdisjoint(region.written | region.waiting):
                    region.waiting |= writes
                    behind += 1
                    if behind > PATIENCE:
                        break
            if len(region.nodes) > 1:
                taken = {n.id for n in region.nodes}
                following = next((i for i in range(at, len(nodes)) if nodes[i].id not in taken), len(nodes))
                return region, max(following, at + 1)
        return None, len(nodes)

    def _batch(self, p: Program, n: Node) -> int | None:
        """The size of the batch of a node that can begin a region: it writes something large of that many rows, which a region may hold."""
        for c in sorted(p.writes_of(n)):
            container = p.containers[c]
            size, rows = container.bytes, container.shape[0] if container.shape else 1
            if isinstance(size, int) and isinstance(rows, int) and rows > 1 and size >= self._least and _roles(p, n, rows) is not None:
                return rows
        return None

    def _join(self, p: Program, region: Region, n: Node, roles: Mapping[str, str]) -> None:
        region.nodes.append(n)
        region.roles |= roles
        region.written |= p.writes_of(n)

    def _pays(self, p: Program, region: Region, n: Node, roles: Mapping[str, str]) -> bool:
        """Whether the region with the node moves less than both apart, by at least half of what is worth a loop."""
        reads = p.reads_of(n)
        if any(region.roles.get(c) == SUMMED for c in reads) or any(region.roles.get(c, r) != r for c, r in roles.items()):
            return False
        common = [c for c, r in roles.items() if r == SLICED and region.roles.get(c) == SLICED]
        if not any(_bytes(p, c) >= self._least // 2 for c in common):
            return False
        nodes, together = [*region.nodes, n], {**region.roles, **roles}
        return self.tile(p, nodes, together, region.batch) is not None and saved(p, nodes, together) > saved(p, region.nodes, region.roles)

    def tile(self, p: Program, nodes: Sequence[Node], roles: Mapping[str, str], batch: int) -> int | None:
        """The most samples whose slices fit the cache beside weights and sums; None where not one does."""
        whole = sum(_bytes(p, c) for c, r in roles.items() if r != SLICED)
        uses = [(i, p.reads_of(n) | p.writes_of(n)) for i, n in enumerate(nodes)]
        one = working_set(uses, {c: _bytes(p, c) // batch for c, r in roles.items() if r == SLICED}, 0)
        room = self._budget - whole
        found = [t for t in range(1, batch) if batch % t == 0 and t * one <= room]
        return max(found, default=None)

    # the rewrite ------------------------------------------------------------------------------------------------------------
    def check(self, m: Match) -> None:
        p, nodes = m.program, m.nodes
        require(len(nodes) > 1, "there is one node only")
        require(len({n.phase for n in nodes}) == 1, "they run in different phases")
        require(not any(c.alias is not None or p.aliases(c.name) for c in _containers(p, nodes)), "containers share memory")
        sizes = {c.shape[0] for c in _containers(p, nodes) if c.shape and isinstance(c.shape[0], int)}
        for batch in sorted(sizes, reverse=True):
            roles = _together(p, nodes, batch)
            if roles is not None:
                break
        else:
            require(False, "they do not work on one row of a batch after the other")
        assert roles is not None
        tile = self.tile(p, nodes, roles, batch)
        require(tile is not None, f"one sample and the weights do not fit the {self._budget} bytes of the cache")
        m.derived.update(roles=roles, batch=batch, tile=tile, saved=saved(p, nodes, roles))
        require(m.saved > 0, "they share nothing that would stay in the cache")

    def saves(self, m: Match) -> IntLike:
        """What the nodes hand each other and nobody else needs is neither written nor read; what several read is read once."""
        return m.saved

    def apply(self, m: Match, edit: Edit) -> None:
        loop = _loop(m.program, m.nodes, m.roles, m.batch, m.tile)
        written = {c for n in m.nodes for c in m.program.writes_of(n)}
        edit.fuse(m.nodes, loop)
        edit.drop_unused(written)


def _containers(p: Program, nodes: Sequence[Node]) -> list[Container]:
    return [p.containers[c] for c in sorted({c for n in nodes for c in p.reads_of(n) | p.writes_of(n)})]


def _bytes(p: Program, name: str) -> int:
    size = p.containers[name].bytes
    return size if isinstance(size, int) else 1 << 62


def _needed(p: Program, nodes: Sequence[Node], name: str) -> bool:
    """Whether something outside needs what the nodes write."""
    inside = {n.id for n in nodes}
    return name in p.results or any(r.id not in inside for r in p.readers(name))


def saved(p: Program, nodes: Sequence[Node], roles: Mapping[str, str]) -> int:
    """Bytes that the nodes move less as one loop whose working set fits the cache."""
    alone, reads, writes = 0, dict[str, int](), dict[str, int]()
    for n in nodes:
        for x in node_movement(n, p):
            number = x.bytes
            assert isinstance(number, int)
            alone += number
            table = reads if x.side == "read" else writes
            if x.container in roles:
                table[x.container] = max(table.get(x.container, 0), number)
    together = sum(b for c, b in writes.items() if _needed(p, nodes, c)) + sum(b for c, b in reads.items() if c not in writes)
    return alone - together


def _together(p: Program, nodes: Sequence[Node], batch: int) -> dict[str, str] | None:
    roles: dict[str, str] = {}
    for n in nodes:
        own = _roles(p, n, batch)
        if own is None or any(roles.get(c, r) != r for c, r in own.items()) or any(roles.get(c) == SUMMED for c in p.reads_of(n)):
            return None
        roles |= own
    return roles


def _roles(p: Program, n: Node, batch: int) -> dict[str, str] | None:
    """How a node that handles the rows of a batch one by one uses each container; None where it does not, or nothing has rows."""
    if n.defines or any(len(p.writers(c)) > 1 for c in p.writes_of(n)):
        return None
    roles = _roles_of_map(n, batch) if isinstance(n, Map) else _roles_of_call(p, n, batch) if isinstance(n, LibraryCall) else None
    if roles is None or SLICED not in roles.values():
        return None
    for c, role in roles.items():
        container = p.containers[c]
        if not isinstance(container.size, int) or (role == SLICED and not _rows_apart(container, batch)):
            return None
        if role == SUMMED and (c not in p.writes_of(n) or not container.dtype.is_float):
            return None
    return roles


def _rows_apart(c: Container, batch: int) -> bool:
    """Whether the container is an array of that many rows, each a piece of memory of its own."""
    if not c.shape or c.shape[0] != batch or c.alias is not None:
        return False
    strides = c.actual_strides
    return all(isinstance(s, int) for s in strides) and all(strides[0] >= s for s in strides[1:]) and strides[0] > 0  # type: ignore[operator]


def _roles_of_map(n: Map, batch: int) -> dict[str, str] | None:
    for q in n.params:
        if q.lower == 0 and q.size == batch:
            roles = _roles_by(n, q)
            if roles is not None:
                return roles
    return None


def _roles_by(n: Map, q: Symbol) -> dict[str, str] | None:
    """Roles of the map's containers if the rows are those of its parameter q."""
    roles: dict[str, str] = {}
    for x in n.accesses():
        memlet = x.memlet
        if memlet.scan is not None or any(q in _symbols(e) for p in x.params if p is not q for e in (p.lower, p.upper)):
            return None
        if x.is_local:
            if q in memlet.symbols:
                return None
            continue
        if q in memlet.symbols:
            if not memlet.subset or memlet.subset[0] is not q or q in memlet.with_(subset=(0, *memlet.subset[1:])).symbols:
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
    if any(q in _code_symbols(t) for _, t in n.tasklets()):
        return None  # its numbers depend on which row it is
    return roles


def _symbols(e: Any) -> set[Any]:
    return set(free_symbols(e)) if isinstance(e, Expr) else set()


def _code_symbols(t: Any) -> set[Any]:
    return {s for v in walk(*t.code.values()) if v.op == "index" for s in _symbols(v.attr)}


def _roles_of_call(p: Program, n: LibraryCall, batch: int) -> dict[str, str] | None:
    reads, writes = {k: m.container for k, m in n.reads.items()}, {k: m.container for k, m in n.writes.items()}
    if any(len(set(side.values())) < len(side) for side in (reads, writes)) or not set(reads.values()).isdisjoint(writes.values()):
        return None
    if n.function == "contract":
        return _roles_of_contraction(p, n, reads, writes, batch)
    if n.function in _ROWS:
        roles = {c: SLICED if k == _ROWS[n.function] else WHOLE for k, c in reads.items()}
        return {**roles, writes["y"]: SLICED}
    if n.function == "aten::conv_grad_weight":
        return {**dict.fromkeys(reads.values(), SLICED), writes["y"]: SUMMED}
    if n.function in _ATTENTION and "mask" not in reads:
        return dict.fromkeys((*reads.values(), *writes.values()), SLICED)
    return None


def _roles_of_contraction(p: Program, n: LibraryCall, reads: Mapping[str, str], writes: Mapping[str, str],
                          batch: int) -> dict[str, str] | None:  # fmt: skip
    operands, _, y = n.attributes["equation"].partition("->")
    a, _, b = operands.partition(",")
    sizes = dict(zip(a + b, (*p.containers[reads["a"]].shape, *p.containers[reads["b"]].shape), strict=True))
    for letter in dict.fromkeys((a[:1], b[:1])):
        if letter in ("", "1") or sizes[letter] != batch:
            continue
        words = {reads["a"]: a, reads["b"]: b, writes["y"]: y}
        if any(letter in w[1:] for w in words.values()):
            continue
        roles = {c: SLICED if w[:1] == letter else WHOLE for c, w in words.items()}
        if letter not in y:
            roles[writes["y"]] = SUMMED
        if "bias" in reads:
            bias = p.containers[reads["bias"]]
            if letter not in y or (len(bias.shape) == len(y) and bias.shape[0] == batch):
                continue
            roles[reads["bias"]] = WHOLE
        return roles
    return None


def _loop(p: Program, nodes: Sequence[Node], roles: Mapping[str, str], batch: int, tile: int) -> Loop:
    """The nodes as a loop over `batch` rows, `tile` at a time."""
    written = {c for n in nodes for c in p.writes_of(n)}
    read = {c for n in nodes for c in p.reads_of(n)}
    outputs = sorted(c for c in written if _needed(p, nodes, c) or roles[c] == SUMMED)
    inputs = sorted(read - written)
    containers = {}
    for c in sorted(read | written):
        role = "input" if c in inputs else "output" if c in outputs else "transient"
        own = p.containers[c].with_(role=role)
        containers[c] = own.with_(shape=(tile, *own.shape[1:])) if roles[c] == SLICED else own
    body = Program("rows", Form.SCHEDULED, containers, [_part(n, containers, batch, tile) for n in nodes],
                   Signature(tuple(inputs), tuple(outputs)))  # fmt: skip
    apply_everywhere(body, [AliasViews(), InPlace()])
    body.log.clear()
    return Loop(body, batch // tile, (), tuple(c for c in inputs if roles[c] == SLICED), tuple(c for c in outputs if roles[c] == SLICED),
                tile=tile, summed=tuple(c for c in outputs if roles[c] == SUMMED), reads={c: full(p.containers[c]) for c in inputs},
                writes={c: full(p.containers[c]) for c in outputs}, origins=merge_origins(*nodes), phase=nodes[0].phase)  # fmt: skip


def _part(n: Node, containers: Mapping[str, Container], batch: int, tile: int) -> Node:
    """A copy of the node over `tile` rows."""
    if isinstance(n, Map):
        q = next(q for q in n.params if q.lower == 0 and q.size == batch and _roles_by(n, q) is not None)
        part = rename(n, {}, {q: Symbol(f"{q.name}_part", 0, tile - 1)}, fresh=False, phase="forward", id=None)
        return part.with_(schedule=Schedule("parallel", part.schedule.options)) if part.schedule.kind == "auto" else part
    reads, writes = ({k: full(containers[m.container]) for k, m in side.items()} for side in (n.reads, n.writes))
    return n.copy(reads=reads, writes=writes, phase="forward")
