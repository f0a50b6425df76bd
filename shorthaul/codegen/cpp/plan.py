"""How a flat nest runs: which parameter becomes vector lanes, the order of the loops, tiles, and what threads share out.

The rules look at strides only. A parameter with stride one (or zero) in most accesses becomes the lanes. Where lanes are kept by a
reduction (column sums, batch-norm statistics in channels-last), or where values depend on the lanes alone (an affine function of the
channel), rows run in tiles inside the lanes: the accumulators and those values stay in registers over a tile, and memory is still
read almost in order. Threads share out the outermost kept loops; where those are few, the reduced ones, with partial results a piece.
Pieces depend on the sizes alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Expr, IntLike, Symbol, ceildiv, free_symbols, maximum, product

from .collisions import colliding
from .linearize import Code, Nest, Ref, decompose, depends, stride_of

NEVER = 1 << 62
LANES = 16  # for which plans are made; kernels are correct for any


@dataclass(frozen=True)
class Limits:
    """What plans are tuned by.

    row_tile: rows that run inside the lanes. inner_reduction: a reduction of at most so many steps runs inside the lanes whole.
    chunk: points of an elementwise piece of work. long_sum: elements that one vector of float32 accumulators adds up before it is
    merged. parallel_work: vector operations below which threads cost more than they give. pieces: pieces of work to aim at;
    enough: pieces of kept loops for which reduced ones are not split. reduction: "persistent" never shares a reduction out among threads,
    "split" always does. lanes: "none" leaves vector lanes out. stack: bytes of a local up to which it lives on the stack.
    as_written: loops run in the order in which the map has them, the innermost one in lanes where that costs no more.
    """

    row_tile: int = 8
    inner_reduction: int = 128
    chunk: int = 16384
    long_sum: int = 8192
    parallel_work: int = 6000
    pieces: int = 64
    enough: int = 12
    reduction: str = ""
    lanes: str = ""
    stack: int = 32768
    as_written: bool = False

    @property
    def whole_reductions(self) -> int:
        """Pieces of kept loops from which on reduced loops are not shared out."""
        return {"persistent": 0, "split": NEVER}.get(self.reduction, self.enough)

    def with_options(self, options: Mapping[str, Any]) -> Limits:
        """The same with those options of a schedule that are limits; other targets have options of their own."""
        return replace(self, **{k: v for k, v in options.items() if k in self.__dataclass_fields__}) if options else self


DEFAULT = Limits()
LANES_BYTES = 256 * 1024  # of all locals together, where every lane has its own


@dataclass(frozen=True)
class Group:
    """Writes that form one combining write: one connector, or the components of a tuple combiner."""

    names: tuple[str, ...]
    combiner: str | None
    address: frozenset[Symbol]  # parameters in scope that the target element depends on, through indices too
    kept: frozenset[Symbol]  # those of them that choose the element one to one: not behind an index read, not colliding
    scan: Symbol | None = None

    @property
    def scatters(self) -> bool:
        return self.address != self.kept


@dataclass
class Loop:
    """One loop of a plan. kind: "seq", "vec", or "tile" (steps through blocks of `step`; a later loop of the symbol runs inside)."""

    symbol: Symbol
    kind: str = "seq"
    step: int = 1


@dataclass
class Plan:
    """`items`: (symbol, chunk), what threads share out, chunk None for single values; `flush`: the loop in which long sums restart."""

    loops: list[Loop]
    vector: Symbol | None
    items: list[tuple[Symbol, IntLike | None]] = field(default_factory=list)
    flush: Loop | None = None
    work: IntLike = 0


def groups(code: Code, scope: frozenset[Symbol]) -> list[Group]:
    """The combining and plain writes of a tasklet."""
    out: list[Group] = []
    done: set[str] = set()
    for name, ref in code.writes.items():
        if name in done:
            continue
        names: tuple[str, ...] = (name,)
        if ref.combine is not None:
            parts = COMBINERS[ref.combine].components
            if len(parts) > 1:
                missing = [p for p in parts if p not in code.writes]
                if missing:
                    raise ValueError(f"combiner {ref.combine} needs writes named {', '.join(parts)}; missing {', '.join(missing)}")
                names = parts
        done |= set(names)
        kept = frozenset().union(*(depends(code.writes[n].address, scope) for n in names))
        address = kept | frozenset().union(*(index_params(code, code.writes[n], scope) for n in names))
        if ref.combine is not None:
            kept -= frozenset().union(*(colliding(code.writes[n].address, scope) for n in names))
        out.append(Group(names, ref.combine, address, kept, ref.scan))
    return out


def index_params(code: Code, ref: Ref, scope: frozenset[Symbol]) -> frozenset[Symbol]:
    """Parameters that the indices behind an access depend on."""
    found: frozenset[Symbol] = frozenset()
    for name, _ in ref.indirect:
        if name not in code.reads:
            raise ValueError(f"indirect subscript <{name}> names no read of its tasklet; reads are {', '.join(code.reads)}")
        r = code.reads[name]
        if r.local:  # a value of one iteration of some enclosing map
            found |= scope
        found |= frozenset().union(*(depends(e, scope) for e in r.expressions)) | index_params(code, r, scope)
    return found


def ref_params(code: Code, ref: Ref, scope: frozenset[Symbol]) -> frozenset[Symbol]:
    """Parameters that an access depends on in any way."""
    return frozenset().union(*(depends(e, scope) for e in ref.expressions)) | index_params(code, ref, scope)


def vector_cost(code: Code, v: Symbol | None, params: Iterable[Symbol]) -> float:
    """What a vector of iterations costs if v becomes the lanes (None: no lanes), in vector operations."""
    scope = frozenset(params)
    ops = 0.5 * code.cost
    if v is None:
        return LANES * (len(code.reads) + len(code.writes) + ops)
    total = ops
    for ref in (*code.reads.values(), *code.writes.values()):
        weight = max(1, ref.dtype.itemsize / 4)
        if ref.combine is not None and v in colliding(ref.address, scope):
            return math.inf
        if v in index_params(code, ref, scope):
            if ref.combine is not None:
                return math.inf
            total += 14
            continue
        stride = stride_of(ref.address, v)
        if isinstance(stride, int):
            total += weight * (0.05 if stride == 0 else 1 if stride == 1 else 14)
        else:
            total += 18 if stride is None else 14
        for c in ref.guard:
            s = stride_of(c.expr, v)
            if s is None or (c.relation == "eq" and not (isinstance(s, int) and s == 0)):
                total += 20
            elif not (isinstance(s, int) and s == 0):
                total += 2
    for ref in code.writes.values():
        if ref.scan is v:
            return math.inf
    n = v.size
    if isinstance(n, int):
        total *= -(-n // LANES) * LANES / max(n, 1)
    return total


def choose_vector(code: Code, params: Sequence[Symbol]) -> Symbol | None:
    """The parameter that becomes the lanes; None where scalar loops are no worse."""
    scope = frozenset(params)
    kept_by_all = [p for p in params if all(p in g.address for g in groups(code, scope))]
    best, cost = None, vector_cost(code, None, params)
    for p in params:
        if any(depends(q.size, frozenset((p,))) for q in params):
            continue
        here = vector_cost(code, p, params)
        n = p.size if isinstance(p.size, int) else 1024
        here -= 1e-3 * min(n, 1024) / 1024 + (5e-4 if p in kept_by_all else 0)
        if here < cost:
            best, cost = p, here
    return best


def weight_order(code: Code, params: Sequence[Symbol]) -> list[Symbol]:
    """Parameters from the largest strides to the smallest: the outermost loop first."""

    def weight(p: Symbol) -> float:
        total = 0.0
        for ref in (*code.reads.values(), *code.writes.values()):
            s = stride_of(ref.address, p)
            total += ref.dtype.itemsize * (abs(s) if isinstance(s, int) else 0 if s is None else estimate(s)) ** 0.5
        return total

    if len(params) < 2:
        return list(params)
    order = sorted(range(len(params)), key=lambda k: (-weight(params[k]), k))
    out = [params[k] for k in order]
    for p in list(out):  # a loop whose bounds use another parameter runs inside it
        used = [q for q in out if q in (free_symbols(p.size) if isinstance(p.size, Expr) else ())]
        if used:
            out.remove(p)
            out.insert(max(out.index(q) for q in used) + 1, p)
    return out


def estimate(e: IntLike) -> int:
    """A size for decisions: symbols count as 64, or as what bounds them."""
    if isinstance(e, int):
        return e
    from shorthaul.symbolic import bounds, evaluate

    low, high = bounds(e)
    values = {}
    for s in free_symbols(e):
        lo, hi = bounds(s)
        values[s] = max(lo or 0, min(64, hi if hi is not None else 64))
    guess = evaluate(e, values)
    return max(guess, low or 0) if high is None else max(low or 0, min(guess, high))


def plan(nest: Nest, code: Code, scope: frozenset[Symbol], *, vector: bool = True, parallel: bool = False, split: bool = True,
         limits: Limits = DEFAULT) -> Plan:  # fmt: skip
    """The plan of a flat nest. scope: all parameters above and here. parallel: threads may share it out; split: also reduced loops."""
    params = nest.params
    if nest.order:
        return Plan([Loop(p, "vec" if p is nest.lanes else "seq") for p in nest.order], nest.lanes)
    all_groups = groups(code, scope)
    combining = [g for g in all_groups if g.combiner is not None]
    scan = next((g.scan for g in combining if g.scan is not None and g.scan in params), None)
    vector = vector and limits.lanes != "none"
    v = choose_vector(code, params[-1:] if limits.as_written and scan is None else params) if vector else None
    others = weight_order(code, [p for p in params if p is not v])
    if scan is not None:
        loops = _scan_order(others, v, scan, combining)
    elif limits.as_written:
        loops = [Loop(p, "vec" if p is v else "seq") for p in params]
    else:
        loops = _order(code, others, v, combining, all_groups, scope, limits)
    out = Plan(loops, v)
    ops = vector_cost(code, v, params)
    out.work = product(p.size for p in params) * int(ops * 16) // (LANES * 16)
    if parallel and not (isinstance(out.work, int) and out.work <= limits.parallel_work):
        out.items = _items(out, params, combining, split, scan, limits)
    _add_flush(out, combining, limits)
    return out


def plan_tree(nest: Nest, scope: frozenset[Symbol], *, vector: bool = True, parallel: bool = False, limits: Limits = DEFAULT) -> Plan:
    """The plan of the outer loops of a tree: whether one of them becomes the lanes of everything below, and what threads share out."""
    vector = vector and bool(nest.params) and limits.lanes != "none" and not limits.as_written
    vector = vector and not any(n.order for n in _nests(nest))
    if not parallel and not vector:
        return Plan([Loop(p) for p in (nest.params if limits.as_written else _tree_order(nest, list(nest.codes())))], None)
    leaves = list(_leaves(nest, list(scope - frozenset(nest.params)), 1.0))
    order = list(nest.params) if limits.as_written else _tree_order(nest, [code for code, _, _, _ in leaves])
    lanes = _tree_lanes(nest, leaves, order) if vector else None
    if lanes is not None:
        order = [p for p in order if p is not lanes] + [lanes]
    out = Plan([Loop(p, "vec" if p is lanes else "seq") for p in order], lanes)
    out.work = int(sum(trips * cost for _, _, trips, cost in leaves) / LANES)
    if not parallel or (out.work <= limits.parallel_work and all(isinstance(p.size, int) for p in nest.params)):
        return out
    outside = []
    local: set[str] = set()
    for code, names, _, _ in leaves:
        local |= names
        every = scope | frozenset(nest.params)
        outside += [g for g in groups(code, every) if g.combiner is not None and not names & {code.writes[n].container for n in g.names}]
    own = frozenset(nest.params)
    fixed = [p for p in order if not depends(p.size, own)]
    free = [p for p in fixed if all(p in g.kept for g in outside)]
    reduced = (
        [p for p in fixed if p not in free and not any(p in g.address for g in outside)]
        if not any(g.scatters or g.scan is not None for g in outside)
        else []
    )
    count = 1
    for p in (*free, *reduced):
        size = estimate(p.size)
        if count >= (limits.whole_reductions if p in reduced else max(limits.enough, limits.pieces)):
            break
        wanted = -(-limits.pieces // count)
        chunk = max(1, size // wanted)
        if p is lanes:
            chunk = -(-chunk // LANES) * LANES
        if isinstance(p.size, int) and chunk >= p.size:
            continue
        out.items.append(
            (p, chunk if isinstance(p.size, int) or p in free else maximum(ceildiv(p.size, limits.pieces), 1))  # an empty one has no pieces
            if chunk > 1 or not isinstance(p.size, int)
            else (p, None)
        )
        count *= -(-size // chunk)
    if count < 4:
        out.items = []
    return out


def _leaves(nest: Nest, above: list[Symbol], trips: float) -> Iterable[tuple[Code, frozenset[str], float, float]]:
    """(tasklet, locals around it, how often it runs, cost of 16 runs with its own lanes) for all tasklets below."""
    trips *= max(1, estimate(product(p.size for p in nest.params)))
    above = [*above, *nest.params]
    for node in nest.body:
        if isinstance(node, Code):
            own = nest.params if nest.leaf is node else []
            yield node, frozenset(nest.locals), trips, vector_cost(node, choose_vector(node, own), own)
        else:
            for code, names, n, cost in _leaves(node, above, trips):
                yield code, names | nest.locals.keys(), n, cost


def _tree_order(nest: Nest, codes: Sequence[Code]) -> list[Symbol]:
    merged = Code({f"{k}.{n}": r for k, c in enumerate(codes) for n, r in c.reads.items() if not r.local},
                  {f"{k}.{n}": r for k, c in enumerate(codes) for n, r in c.writes.items() if not r.local}, {})  # fmt: skip
    return weight_order(merged, nest.params)


def _tree_lanes(nest: Nest, leaves: Sequence[tuple[Code, frozenset[str], float, float]], order: Sequence[Symbol]) -> Symbol | None:
    best, cost = None, sum(trips * own for _, _, trips, own in leaves)
    local = {k: c for n in _nests(nest) for k, c in n.locals.items()}
    if sum(estimate(c.bytes) for c in local.values()) * LANES > LANES_BYTES:
        return None  # each lane has rows of its own: together they must stay in the cache
    scalars = {k for k, c in local.items() if c.shape == ()}
    everything = [p for n in _nests(nest) for p in n.params]
    for p in order:
        if any(depends(q.size, frozenset((p,))) for q in everything):
            continue
        if any(depends(n, frozenset((p,))) for inner in _nests(nest) for c in inner.locals.values() for n in c.shape):
            continue
        here = 0.0
        for code, names, trips, _ in leaves:
            cheap = Code({k: r for k, r in code.reads.items() if r.container not in names},
                         {k: r for k, r in code.writes.items() if r.container not in names}, code.code)  # fmt: skip
            buffers = sum(1 for r in (*code.reads.values(), *code.writes.values()) if r.container in names and r.container not in scalars)
            if any(
                i in code.reads and code.reads[i].container in names
                for r in (*code.reads.values(), *code.writes.values())
                for i, _ in r.indirect
            ):
                here = math.inf
                break
            here += trips * (vector_cost(cheap, p, everything) + buffers)
        if here < cost:
            best, cost = p, here
    return best


def _nests(nest: Nest) -> Iterable[Nest]:
    yield nest
    for node in nest.body:
        if isinstance(node, Nest):
            yield from _nests(node)


def _scan_order(others: list[Symbol], v: Symbol | None, scan: Symbol, combining: list[Group]) -> list[Loop]:
    scanning = [g for g in combining if g.scan is scan]
    kept = [p for p in others if p is not scan and any(p in g.address for g in scanning)]
    rest = [p for p in others if p is not scan and p not in kept]
    loops = [Loop(p) for p in kept]
    lanes = [Loop(v, "vec")] if v is not None else []
    if v is not None and any(v in g.address for g in scanning):
        return [*loops, *lanes, Loop(scan), *(Loop(p) for p in rest)]
    return [*loops, Loop(scan), *(Loop(p) for p in rest), *lanes]


def _order(code: Code, others: list[Symbol], v: Symbol | None, combining: list[Group], all_groups: list[Group],
           scope: frozenset[Symbol], limits: Limits) -> list[Loop]:  # fmt: skip
    lanes = [Loop(v, "vec")] if v is not None else []
    kept = [p for p in others if all(p in g.address for g in combining)]
    reduced = [p for p in others if not any(p in g.address for g in combining)] if combining else []
    mixed = [p for p in others if p not in kept and p not in reduced]
    plain_writes = [g for g in all_groups if g.combiner is None]
    v_kept = v is not None and all(v in g.address for g in combining)
    if not v_kept or mixed:
        return [*(Loop(p) for p in (*kept, *mixed, *reduced)), *lanes]
    outer = [*kept, *reduced]
    if not combining:
        invariant = [r for r in code.reads.values() if v in depends(r.address, scope)]
        tile = outer[-1] if outer else None
        if tile is None or not any(tile not in ref_params(code, r, scope) for r in invariant):
            return [*(Loop(p) for p in outer), *lanes]
        if depends_on_other(tile, others):
            return [*(Loop(p) for p in outer), *lanes]
        return [*(Loop(p) for p in outer[:-1]), *_tiled(tile, lanes, limits.row_tile)]
    inner: list[Symbol] = []
    steps: IntLike = 1
    for p in reversed(reduced):
        steps = steps * p.size
        if not isinstance(steps, int) or steps > limits.inner_reduction:
            break
        inner.insert(0, p)
    above = [p for p in reduced if p not in inner]
    if not plain_writes and not above:
        return [*(Loop(p) for p in kept), *lanes, *(Loop(p) for p in inner)]
    if inner and not plain_writes and math.prod(estimate(p.size) for p in inner) >= limits.row_tile:
        return [*(Loop(p) for p in (*kept, *above)), *lanes, *(Loop(p) for p in inner)]
    tile = reduced[-1] if reduced else None
    if tile is None or depends_on_other(tile, others):
        return [*(Loop(p) for p in outer), *lanes]
    return [
        *(Loop(p) for p in (*kept, *reduced[:-1])),
        *_tiled(tile, lanes, limits.row_tile * (4 if any(len(g.names) > 1 for g in combining) else 1)),
    ]


def depends_on_other(p: Symbol, others: Sequence[Symbol]) -> bool:
    return bool(depends(p.size, frozenset(others)))


def _tiled(p: Symbol, lanes: list[Loop], step: int) -> list[Loop]:
    if isinstance(p.size, int) and p.size <= 2 * step:
        return [*lanes, Loop(p)]
    return [Loop(p, "tile", step), *lanes, Loop(p)]


def _items(out: Plan, params: Sequence[Symbol], combining: list[Group], split: bool, scan: Symbol | None,
           limits: Limits) -> list[tuple[Symbol, IntLike | None]]:  # fmt: skip
    """Which loops threads share out: outermost kept ones first, then chunks of a kept one, then chunks of a reduced one."""
    order = list(dict.fromkeys(loop.symbol for loop in out.loops if loop.symbol is not scan))
    own = frozenset(params)
    fixed = [p for p in order if not depends(p.size, own)]
    free = [p for p in fixed if all(p in g.kept for g in combining)]
    items: list[tuple[Symbol, IntLike | None]] = []
    count: IntLike = 1
    total = product(p.size for p in params)
    for p in free:
        n = estimate(count)
        if n >= limits.pieces:
            break
        size, points = estimate(p.size), max(1, estimate(total) // max(1, n * estimate(p.size)))
        limit = max(1, limits.chunk // points)  # values of p that make a piece of decent size
        if p is out.vector:
            limit = max(limit, 64 if len(params) > 1 else limits.chunk)
            limit = -(-limit // LANES) * LANES
        if limit <= 1 and size <= 4 * limits.pieces:
            items.append((p, None))
            count = count * p.size
            continue
        wanted = -(-limits.pieces // n)
        if p is out.vector and combining and len(params) > 1 and size // limit < 8 and split:
            break
        chunk = (
            max(1, min(limit, size))
            if size * points < limits.chunk * wanted
            else max(1, min(size // wanted, limit) if size >= wanted else 1)
        )
        if p is out.vector:
            chunk = -(-chunk // LANES) * LANES
        if isinstance(p.size, int) and chunk >= p.size:
            continue
        items.append((p, chunk) if chunk > 1 else (p, None))
        count = count * ceildiv(p.size, chunk)
    if estimate(count) >= limits.whole_reductions or not split or any(g.scatters or g.scan is not None for g in combining) or not combining:
        return items
    reduced = [p for p in fixed if p not in free and not any(p in g.kept for g in combining) and p is not scan]
    if not reduced:
        return items
    p = max(reduced, key=lambda x: (estimate(x.size), -order.index(x)))
    if isinstance(p.size, int) and p.size < 4:
        return items
    kept_points = max(1, max(estimate(product(x.size for x in params if x in g.kept)) for g in combining))
    points = max(1, estimate(total))
    pieces = max(1, min(limits.pieces, points // (8 * kept_points), points // limits.chunk + 1) // max(1, estimate(count)))
    if limits.reduction == "split":
        pieces = max(pieces, 4)
    long = max(1, estimate(p.size))
    block: IntLike
    if p is out.vector and len(params) == 1:
        wanted = max(LANES * 4, -(-long // limits.pieces)) if isinstance(p.size, int) else limits.long_sum
        block = -(-min(limits.long_sum, wanted) // LANES) * LANES
    elif p is out.vector:
        block = -(-max(limits.row_tile, -(-long // pieces)) // LANES) * LANES
    elif isinstance(p.size, int):
        block = max(limits.row_tile, -(-long // pieces))
    else:
        block = maximum(limits.row_tile, ceildiv(p.size, limits.pieces))
    if isinstance(p.size, int) and isinstance(block, int) and block >= p.size:
        return items
    return [*items, (p, block)]


def _add_flush(out: Plan, combining: list[Group], limits: Limits) -> None:
    """Break long float sums over the lanes into blocks whose results are merged in turn, so that rounding errors stay small."""
    v = out.vector
    long = [g for g in combining if v is not None and v not in g.address and g.scan is None]
    if not long or v is None or out.loops[-1].symbol is not v:
        return
    if any(s is v for s, c in out.items if c is not None and estimate(c) <= limits.long_sum):
        return
    if isinstance(v.size, int) and v.size <= 2 * limits.long_sum:
        # short rows, but perhaps many of them into one accumulator
        inner = [k for k, loop in enumerate(out.loops[:-1]) if all(loop.symbol not in g.address for g in long)]
        last = max((k for k, loop in enumerate(out.loops[:-1]) if any(loop.symbol in g.address for g in long)), default=-1)
        rows = [k for k in inner if k > last]
        if rows:
            out.flush = out.loops[rows[-1]]
        return
    out.loops.insert(len(out.loops) - 1, Loop(v, "tile", limits.long_sum))
    out.flush = out.loops[-2]


__all__ = ["Group", "Loop", "Plan", "choose_vector", "decompose", "estimate", "groups", "plan", "plan_tree", "ref_params", "vector_cost"]
