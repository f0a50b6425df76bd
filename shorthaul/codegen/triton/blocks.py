"""Two block axes for any map: which parameters run along which axis, and how.

Every value of a kernel is a block of rank two. Axis `a` is dimension 0, axis `b` dimension 1, the *lanes*: its fastest parameter is the one
along which most of the moved elements lie next to each other. An axis counts several map parameters as one number (slowest first); a
parameter is then a quotient and remainder of it, which the symbolic simplification removes where an address is linear in the axis.
Modes of an axis:

    tile     blocks over the grid
    whole    one block holds the axis: rows that stay in registers
    loop     a loop over blocks; `chunked`, the blocks are dealt to several programs whose partial results a second kernel merges
    serial   a loop over single values (taps of a window, the steps of a scan): no block axis

Parameters of a window may be written out instead (`windows`): they are on no axis, and the plan's `at` says where the emitter stands.

Forms: *elementwise* (a tile, b tile), *rows* (a kept: tile; b reduced: whole or loop), *columns* (a reduced: loop; b kept: tile), *nests*
(a the rows of the outer map, b the parameters of the inner maps, whole).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.analysis.collisions import may_meet, telling
from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Expr, Symbol, bounds, evaluate, index, product, substitute

from .plan import NotSchedulable, address, coefficient, free, next_power_of_two
from .windows import TAPS, Split, Window, choose_window, is_window, points

IntLike = Union[int, Expr]
WHOLE = 8192  # elements of a row up to which it stays in registers
FEW_TAPS = 9  # accumulators of a window that leave registers for whole blocks
SHARED = 144 * 1024  # bytes of shared memory for what a loop loads ahead
PROGRAMS = 528  # programs that fill a large GPU: four for each of 132 multiprocessors


@dataclass(frozen=True)
class BlockAxis:
    """One axis. `index` counts its points; `dim` is None for a serial axis."""

    name: str
    params: tuple[Symbol, ...]
    mode: str
    dim: int | None
    index: Symbol
    chunked: bool = False

    @property
    def size(self) -> IntLike:
        return self.index.size

    @property
    def block(self) -> str:
        return f"BLOCK_{self.name.upper()}"

    @property
    def steps(self) -> str:
        return f"STEPS_{self.name.upper()}"


def make_axis(name: str, params: Sequence[Symbol], mode: str, dim: int | None, chunked: bool = False) -> BlockAxis:
    return BlockAxis(name, tuple(params), mode, dim, index(f"{name}.", product(p.size for p in params)), chunked)


@dataclass(frozen=True)
class Group:
    """Writes that are computed together: one plain write, or the components of a combiner."""

    connectors: tuple[str, ...]
    combine: str | None
    scan: Symbol | None
    reduced: frozenset[Symbol]
    scatters: bool
    is_local: bool


@dataclass
class Stage:
    """A tasklet with the axes that its loops run over (beside `a`), and those of its writes that this kernel computes.

    taps: what is written out of what it sums.
    """

    tasklet: Tasklet
    b: BlockAxis | None
    serial: tuple[BlockAxis, ...]
    groups: tuple[Group, ...]
    taps: tuple[Split, ...] = ()


@dataclass
class BlockPlan:
    """A kernel: its map, the axes, the stages in order. values: map parameters as expressions of axis indices.

    loop_bytes: bytes that are loaded for every element of a block in its loop (known once the kernel is written).
    copies: what is written out of the results; at: the values of what is written out (see `windows`) where the emitter stands.
    """

    map: Map
    containers: Mapping[str, Container]
    a: BlockAxis | None
    stages: list[Stage]
    local_names: frozenset[str] = frozenset()
    values: dict[Symbol, IntLike] = field(default_factory=dict)
    form: str = "elementwise"
    loop_bytes: int = 0
    copies: tuple[Split, ...] = ()
    at: dict[Symbol, int] = field(default_factory=dict)
    _known: dict[Expr, IntLike] = field(default_factory=dict, init=False, repr=False, compare=False)
    _there: dict[tuple, dict[Expr, IntLike]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _here: dict[Expr, IntLike] = field(default_factory=dict, init=False, repr=False, compare=False)

    def stand(self, at: dict[Symbol, int]) -> dict[Symbol, int]:
        """Give what is written out other values; returns those before."""
        before, self.at = self.at, at
        self._here = self._there.setdefault(tuple(at.items()), {})
        return before

    def bind(self, p: Symbol, value: IntLike) -> None:
        """Say what a map parameter is in axis indices."""
        self.values[p] = value
        self._known.clear()
        self._there.clear()

    def finish(self) -> BlockPlan:
        for p in _params(self.map):
            if _unit(p):
                self.values[p] = p.lower  # type: ignore[assignment]
        for axis in self.axes:
            for at, p in enumerate(axis.params):
                after = product(q.size for q in axis.params[at + 1 :])
                self.values[p] = (p.lower or 0) + (axis.index // after if at == 0 else axis.index // after % p.size)
        for x in self.splits:
            self.values[x.param] = substitute(x.expr, self.values)
        self._known.clear()
        return self

    @property
    def splits(self) -> list[Split]:
        """All that is written out."""
        return [*self.copies, *(x for s in self.stages for x in s.taps)]

    @property
    def axes(self) -> list[BlockAxis]:
        found = [self.a] if self.a is not None else []
        for s in self.stages:
            found += [x for x in ((s.b,) if s.b is not None else ()) + s.serial if x not in found]
        return found

    @property
    def grid(self) -> list[tuple[BlockAxis, str]]:
        """Axes over which programs are dealt, fastest first, and how."""
        tiles = [(x, "tile") for x in sorted(self.axes, key=lambda x: -(x.dim or 0)) if x.mode == "tile"]
        return tiles + [(x, "chunk") for x in self.axes if x.chunked]

    def reduces(self, g: Group, axis: BlockAxis) -> bool:
        """Whether a combining write sums over the axis (maps of a nest call its parameters by names of their own)."""
        return any(axis.index in free(self.values[p]) for p in g.reduced)

    def expr(self, e: IntLike | Indirect) -> IntLike:
        if isinstance(e, int):
            return e
        if isinstance(e, Indirect):  # of a local: those of containers are split off by `address`
            raise NotSchedulable(f"map {self.map.label}: a local is read at an index that is data ({e.name}), which registers do not have")
        found = self._known.get(e)  # the same subscripts are asked for at every position and tap of a window
        if found is None:
            found = self._known[e] = substitute(e, self.values)
        if not self.at or isinstance(found, int):
            return found
        here = self._here.get(found)
        if here is None:
            here = self._here[found] = substitute(found, self.at)
        return here

    def address(self, m: Memlet) -> tuple[IntLike, tuple[tuple[str, IntLike], ...]]:
        """Offset of an element in axis indices, and its indirect subscripts with their strides."""
        base, indirect = address(m, self.containers[m.container])
        return self.expr(base), indirect


# groups -----------------------------------------------------------------------------------------------------------------
def write_groups(
    t: Tasklet, scope: frozenset[Symbol], local: Mapping[str, frozenset[Symbol]], containers: Mapping[str, Container]
) -> list[Group]:
    """The writes of a tasklet. local: for each local the parameters outside it."""
    found: list[Group] = []
    done: set[str] = set()
    for name, m in t.writes.items():
        if name in done:
            continue
        names: tuple[str, ...] = (name,)
        if m.combine is not None and len(COMBINERS[m.combine].components) > 1:
            names = COMBINERS[m.combine].components
            if any(c not in t.writes for c in names):
                raise NotSchedulable(f"{t}: combiner {m.combine} needs the writes {', '.join(names)}")
        done.update(names)
        subset = frozenset().union(*(free(s) for s in m.subset))
        reduced = frozenset() if m.combine is None else frozenset(p for p in scope - subset if not _unit(p))
        inside = reduced - local.get(m.container, frozenset())
        meets = m.combine is not None and may_meet(m, scope, containers[m.container])
        found.append(Group(names, m.combine, m.scan, inside, meets, m.container in local))
    return found


def _params(m: Map) -> Iterable[Symbol]:
    yield from m.params
    for node in m.body:
        if isinstance(node, Map):
            yield from _params(node)


def _unit(p: Symbol) -> bool:
    return isinstance(p.size, int) and p.size == 1


# lanes ------------------------------------------------------------------------------------------------------------------
def weights(m: Map, containers: Mapping[str, Container], local: Iterable[str], params: Iterable[Symbol]) -> dict[Symbol, float]:
    """For each parameter how much is moved along it contiguously."""
    votes = dict.fromkeys(params, 0.0)
    skip = set(local)
    for a in m.accesses():
        if a.memlet.container in skip:
            continue
        base, _ = address(a.memlet, containers[a.memlet.container])
        used = [p for p in votes if p in free(base)]
        moved = 1.0
        for p in used:
            moved *= _number(p.size)
        for p in used:
            if coefficient(base, p) == 1:
                votes[p] += moved * (2 if a.is_write else 1)
    return votes


def _number(e: IntLike) -> float:
    if isinstance(e, int):
        return e
    low, high = bounds(e)
    return float(high if high is not None and high < 1 << 20 else max(64, low or 0))


def ordered(m: Map, containers: Mapping[str, Container], params: Sequence[Symbol], last: Symbol | None = None) -> list[Symbol]:
    """Parameters slowest first by the strides that they have in the largest container they address; `last` goes to the end."""
    best: dict[Symbol, tuple[float, float]] = {}
    for a in m.accesses():
        c = containers.get(a.memlet.container)
        if c is None:
            continue
        base, _ = address(a.memlet, c)
        size = _number(c.size)
        for p in params:
            k = coefficient(base, p)
            if k is not None and not (isinstance(k, int) and k == 0):
                stride = abs(_number(k)) if not isinstance(k, int) else abs(k)
                if p not in best or size > best[p][0]:
                    best[p] = (size, stride)
    rest = [p for p in params if p is not last]
    rest.sort(key=lambda p: -best.get(p, (0.0, float("inf")))[1])
    return [*rest, *([last] if last is not None else [])]


# plans ------------------------------------------------------------------------------------------------------------------
def plan_flat(m: Map, containers: Mapping[str, Container], split: bool = True, ordered: bool = False) -> list[BlockPlan]:
    """The kernels of a flat map: one for all writes that can share their loops, more where reductions run over different parameters.

    ordered: floating sums that meet are made in one order (see `Program.deterministic`), not by atomics.
    """
    t = m.tasklet
    assert t is not None
    params = tuple(p for p in m.params if not _unit(p))
    scope = frozenset(params)
    groups = write_groups(t, scope, {}, containers)
    first: list[Group] = []
    others: dict[Any, list[Group]] = {}
    sets = [g.reduced for g in groups if g.combine is not None and not g.scatters and g.scan is None]
    main = max(sets, key=lambda s: (sets.count(s), len(s)), default=frozenset())
    for g in groups:
        if g.scan is not None:
            others.setdefault(("scan", g.scan), []).append(g)
        elif g.scatters and not atomic(g, t, ordered):
            others.setdefault(("serial", g.connectors), []).append(g)
        elif g.combine is None or g.scatters or g.reduced == main:
            first.append(g)
        else:
            others.setdefault(g.reduced, []).append(g)
    plans = [_flat(m, containers, params, first, main, split)] if first else []
    for key, these in others.items():
        if isinstance(key, tuple) and key[0] == "scan":
            plans.append(_steps(m, containers, params, these, [key[1]], "scan"))
        elif isinstance(key, tuple):
            apart = telling(t.writes[these[0].connectors[0]])  # programs that differ in these never meet
            serial = [p for p in params if p not in apart]
            plans.append(_steps(m, containers, params, these, serial, "serial"))
        else:
            plans.append(_flat(m, containers, params, these, key, split))
    return plans


def atomic(g: Group, t: Tasklet, ordered: bool = False) -> bool:
    """Whether hardware has the combination as one operation on memory; ordered: and its result does not depend on the order."""
    dtype = t.code[g.connectors[0]].dtype
    if g.combine == "sum":
        return (dtype.is_float and not ordered) or (not dtype.is_float and dtype.bits >= 32)
    return g.combine in ("max", "max0", "min") and not dtype.is_float and dtype.bits >= 32


def _flat(m: Map, containers: Mapping[str, Container], params: tuple[Symbol, ...], groups: list[Group], reduced: frozenset[Symbol],
          split: bool) -> BlockPlan:  # fmt: skip
    t = m.tasklet
    assert t is not None
    kept = [p for p in params if p not in reduced]
    summed = [p for p in params if p in reduced]
    taps = product(p.size for p in summed)
    most = TAPS if is_window(t.reads.values(), kept, summed) else 64
    few = summed and kept and isinstance(taps, int) and taps <= most and _number(product(p.size for p in kept)) >= 16 * taps
    votes = weights(m, containers, (), kept if few else [*kept, *summed])
    lane = max(votes, key=lambda p: votes[p], default=None)
    window = None
    if lane is not None and all(g.combine and not g.scatters and g.reduced == reduced for g in groups):
        window = choose_window(t.reads.values(), containers, kept, summed, lane, bool(few))
    serial: tuple[BlockAxis, ...] = ()
    if few:
        serial = () if window else tuple(make_axis(f"s{i}", [p], "serial", None) for i, p in enumerate(summed))
        summed = []

    def plan(a: Sequence[Symbol], b: Sequence[Symbol], modes: tuple[str, str], form: str, chunked: str = "") -> BlockPlan:
        row = make_axis("a", a, modes[0], 0, chunked == "a") if (a := _outer(a, window)) else None
        taps = window.taps if window else ()
        stage = Stage(t, make_axis("b", b, modes[1], 1, chunked == "b") if b else None, serial, tuple(groups), taps)
        return BlockPlan(m, containers, row, [stage], form=form, copies=window.copies if window else ()).finish()

    if lane is None:
        return plan([], [], ("tile", "tile"), "elementwise")
    if not summed:
        return plan(*_tiled(m, containers, kept, lane, window), ("tile", "tile"), "elementwise")
    chunked = split and not any(g.scatters and g.combine for g in groups if not g.combine)
    if lane in summed:
        b = _outer(ordered(m, containers, summed, lane), window)
        return plan(ordered(m, containers, kept), b, ("tile", "loop"), "rows", "b" if chunked else "")
    b = _outer(ordered(m, containers, kept, lane), window)
    return plan(ordered(m, containers, summed), b, ("loop", "tile"), "columns", "a" if chunked else "")


def _tiled(
    m: Map, containers: Mapping[str, Container], kept: Sequence[Symbol], lane: Symbol, window: Window | None
) -> tuple[list[Symbol], list[Symbol]]:
    """The parameters of the two axes of an elementwise map."""
    b, a = [lane], ordered(m, containers, [p for p in kept if p is not lane])
    while not window and a and _merges(m, containers, a[-1], b[0]):
        b.insert(0, a.pop())
    if not window and isinstance(n := product(p.size for p in b), int) and n < 32:  # too few lanes: all of it is one axis
        a, b = [], [*a, *b]
    return a, b


def _outer(params: Sequence[Symbol], window: Window | None) -> list[Symbol]:
    """What remains of parameters where some are written out."""
    splits = {x.param: x for x in (*window.copies, *window.taps)} if window else {}
    rest = [splits[p].outer if p in splits else p for p in params]
    return [p for p in rest if p is not None]


def _merges(m: Map, containers: Mapping[str, Container], outer: Symbol, inner: Symbol) -> bool:
    """Whether every access walks through the two parameters as through one."""
    for x in m.accesses():
        exprs = [address(x.memlet, containers[x.memlet.container])[0], *(c.expr for c in x.memlet.guard)]
        for e in exprs:
            p, q = coefficient(e, outer), coefficient(e, inner)
            if p is None or q is None or p != q * inner.size:
                return False
    return not any(n.has_index for t in _tasklets(m) for n in t.code.values())


def _tasklets(m: Map) -> Iterable[Tasklet]:
    for node in m.body:
        if isinstance(node, Map):
            yield from _tasklets(node)
        elif isinstance(node, Tasklet):
            yield node


def _steps(m: Map, containers: Mapping[str, Container], params: tuple[Symbol, ...], groups: list[Group], steps: Sequence[Symbol],
           form: str) -> BlockPlan:  # fmt: skip
    """One value after the other along `steps`, everything else in parallel: scans, and combinations that memory cannot do atomically."""
    t = m.tasklet
    assert t is not None
    rest = [p for p in params if p not in steps]
    if form == "scan":
        from .block_scans import scans_blocks

        votes = weights(m, containers, (), params)
        rows = product(p.size for p in rest)
        if scans_blocks(groups, steps[0], rows if isinstance(rows, int) else None, max(votes, key=lambda p: votes[p], default=None)):
            a = make_axis("a", ordered(m, containers, rest), "tile", 0) if rest else None
            return BlockPlan(m, containers, a, [Stage(t, make_axis("b", steps, "loop", 1), (), tuple(groups))], form="rows").finish()
    votes = weights(m, containers, (), rest)
    lane = max(votes, key=lambda p: votes[p], default=None)
    b = make_axis("b", ordered(m, containers, rest, lane), "tile", 1) if rest else None
    serial = tuple(make_axis(f"s{i}", [p], "serial", None) for i, p in enumerate(p for p in steps if not _unit(p)))
    return BlockPlan(m, containers, None, [Stage(t, b, serial, tuple(groups))], form=form).finish()


def plan_window(m: Map, containers: Mapping[str, Container]) -> BlockPlan:
    """The kernel of a nest whose inner maps sum windows into single values: its own parameters run along both axes, as in a flat map.

    Raises NotSchedulable where that is not what it is.
    """
    outer = [p for p in m.params if not _unit(p)]
    every = {**containers, **m.locals}
    local = {name: frozenset(m.params) for name in m.locals}
    votes = weights(m, every, m.locals, [*outer, *(p for n in m.body if isinstance(n, Map) for p in n.params)])
    lane = max(votes, key=lambda p: votes[p], default=None)
    if lane is None or lane not in outer or any(c.size != 1 for c in m.locals.values()):
        raise NotSchedulable(f"map {m.label}: it does not sum windows into single values")
    window: Window | None = None
    stages: list[Stage] = []
    for node in m.body:
        t = node.tasklet if isinstance(node, Map) else node
        params = [p for p in node.params if not _unit(p)] if isinstance(node, Map) else []
        taps = product(p.size for p in params)
        if not isinstance(t, Tasklet) or not isinstance(taps, int) or taps > TAPS:
            raise NotSchedulable(f"map {m.label}: its inner maps are no windows")
        groups = write_groups(t, frozenset([*outer, *params]), local, every)
        for g in groups:
            if g.scan is not None or g.scatters or (g.combine is None) == bool(params) or g.reduced != frozenset(params):
                raise NotSchedulable(f"map {m.label}: it writes or sums otherwise than a window")
        found = choose_window(t.reads.values(), containers, outer, params, lane, True) if params and window is None else None
        window = window or found
        serial = () if found else tuple(make_axis(f"s{len(stages)}_{i}", [p], "serial", None) for i, p in enumerate(params))
        stages.append(Stage(t, None, serial, tuple(groups), found.taps if found else ()))
    if not any(g.combine for s in stages for g in s.groups):
        raise NotSchedulable(f"map {m.label}: it has no window")
    a, b = _tiled(m, every, outer, lane, window)
    col = make_axis("b", b, "tile", 1)
    for s in stages:
        s.b = col
    row = make_axis("a", rows, "tile", 0) if (rows := _outer(a, window)) else None
    return BlockPlan(m, every, row, stages, frozenset(m.locals), copies=window.copies if window else ()).finish()


def plan_nest(m: Map, containers: Mapping[str, Container], split: bool = True) -> BlockPlan:
    """The kernel of a nested map whose inner maps run over rows. Raises NotSchedulable where that is not what it is."""
    outer = [p for p in m.params if not _unit(p)]
    every = {**containers, **m.locals}
    local = {name: frozenset(m.params) for name in m.locals}
    stages: list[Stage] = []
    axes: dict[tuple, BlockAxis] = {}
    values: dict[Symbol, IntLike] = {}
    chunked = False
    for node in m.body:
        inner = node if isinstance(node, Map) else None
        if inner is not None and (inner.tasklet is None or inner.locals):
            raise NotSchedulable(f"map {m.label}: maps are nested more than twice")
        t = inner.tasklet if inner is not None else node
        if not isinstance(t, Tasklet):
            raise NotSchedulable(f"map {m.label}: a {node.kind} inside a kernel has no Triton schedule")
        params = [p for p in inner.params if not _unit(p)] if inner is not None else []
        groups = write_groups(t, frozenset([*outer, *params]), local, every)
        for g in groups:
            rows = g.reduced & set(outer)
            if g.scan is not None or g.scatters:
                raise NotSchedulable(f"map {m.label}: a scan or scatter inside a nest")
            if g.combine is not None and ((rows and rows != set(outer)) or (g.reduced - rows) not in (frozenset(), frozenset(params))):
                raise NotSchedulable(f"map {m.label}: {g.combine} over a part of the rows")
            chunked = chunked or bool(rows)
        b = None
        if params:
            key = tuple(p.size for p in params)
            if key not in axes:
                name = "b" if not axes else f"b{len(axes)}"
                axes[key] = make_axis(name, params, "whole", 1)
            b = axes[key]
            values.update(zip(params, b.params, strict=True))
        stages.append(Stage(t, b, (), tuple(groups)))
    wide = [x for x in axes.values() if (bounds(x.size)[1] or WHOLE + 1) > WHOLE]
    if wide and any(name for name, c in m.locals.items() if not isinstance(c.size, int) or c.size > 1):
        raise NotSchedulable(f"map {m.label}: rows of {wide[0].size} elements do not stay in registers")
    votes = weights(m, every, m.locals, [*outer, *(p for x in axes.values() for p in x.params)])
    best = max(votes, key=lambda p: votes[p], default=None)
    if best in outer and votes[best] > 0 and any(_number(x.size) > 64 for x in axes.values()):
        raise NotSchedulable(f"map {m.label}: neighbours in memory belong to different rows")
    both = m.read_containers() & m.written_containers()
    if both:
        raise NotSchedulable(f"map {m.label}: {', '.join(sorted(both))} is written and read again")
    if wide:
        looped = {x.index: make_axis(x.name, x.params, "loop", 1) for x in wide}
        for s in stages:
            s.b = looped.get(s.b.index, s.b) if s.b is not None else None
    a = make_axis("a", outer, "loop" if chunked else "tile", 0, chunked and split) if outer else None
    plan = BlockPlan(m, every, a, stages, frozenset(m.locals), form="nest").finish()
    for p, q in values.items():
        if p is not q:
            plan.bind(p, plan.values[q])  # type: ignore[index]
    return plan


# sizes ------------------------------------------------------------------------------------------------------------------
def choose_blocks(plan: BlockPlan, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks, steps, chunks, warps at concrete sizes.

    changes: block sizes by name, `num_warps`, `num_stages`; `budget`, elements a block aims at; `programs`, how many chunks aim at.
    """
    at = {x.name: evaluate(x.size, sizes) for x in plan.axes}
    tiles: dict[str, Any] = {"num_warps": 4, "num_stages": 2}
    a, b = plan.a, next((s.b for s in plan.stages if s.b is not None), None)
    n_a, n_b = at["a"] if a is not None else 1, at[b.name] if b is not None else 1
    wide = 1
    for x in plan.axes:
        if x.dim == 1:
            if x.mode == "tile":
                # operands without rows, as a window's weights, are loaded as vectors where a row of the block is shorter than the warps
                most = 64 if plan.copies else 128 if plan.form == "columns" else 512
                tiles[x.block] = _lanes(at[x.name], min(most, changes.get("budget", 512)))
            else:
                tiles[x.block] = min(next_power_of_two(at[x.name]), WHOLE if x.mode == "whole" else 2048)
            wide = max(wide, tiles[x.block])
    budget = {"elementwise": 1024, "nest": 2048}.get(plan.form, 2048)
    if plan.form == "elementwise" and n_a * n_b >= 1 << 22:
        budget = 2048
    taps = len(list(points(plan.copies))) if plan.copies and plan.form == "columns" else 0
    if plan.copies:  # each has an accumulator in registers, and neighbouring positions are loaded beside them
        budget = 512 if not taps else 1024 if taps <= FEW_TAPS else 256
    programs = PROGRAMS
    if plan.form == "columns" and plan.loop_bytes > 2 and not plan.copies:  # several operands: more of them under way, in more programs
        budget, programs = 4096, 2 * PROGRAMS
    budget, programs = changes.get("budget", budget), changes.get("programs", programs)
    if a is None and plan.form == "elementwise" and "b" in at:
        tiles["BLOCK_B"] = wide = min(budget, next_power_of_two(at["b"]))
    if plan.form == "columns" and a is not None and not a.chunked:  # a merge of partial results: few elements, latency counts
        rows = max(min(64, next_power_of_two(n_a)), min(256, next_power_of_two(n_a + 1) // 2))
        tiles["BLOCK_B"] = wide = min(tiles["BLOCK_B"], max(1, 1024 // rows))
        budget = max(rows * wide, changes.get("budget", 0))
    if a is not None:
        tiles[a.block] = max(1, min(budget // wide, next_power_of_two(n_a)))
    total = wide * tiles.get("BLOCK_A", 1)
    tiles["num_warps"] = 1 if total <= 256 and not plan.copies else 4 if total <= 4096 else 8 if total <= 8192 else 16
    if plan.form == "nest" and any(x.mode == "loop" for x in plan.axes if x.dim == 1):  # long rows: many warps, nothing loaded ahead
        tiles |= {"num_warps": 16, "STAGES": 1}
    tiles.update({k: v for k, v in changes.items() if k not in ("budget", "programs")})
    total = tiles.get("BLOCK_A", 1) * max((tiles[x.block] for x in plan.axes if x.dim == 1), default=1)
    # loads of the next steps are under way while a step computes, as far as shared memory holds them
    most = 3 if not taps else 2 if taps <= FEW_TAPS else 1  # what many taps share is in the first cache, which loading ahead passes by
    tiles.setdefault("STAGES", min(most, 1 + SHARED // max(1, plan.loop_bytes * total)))
    others = 1
    for x in plan.axes:
        if x.mode == "tile":
            others *= -(-at[x.name] // tiles[x.block])
    chunked = next((x for x in plan.axes if x.chunked), None)
    for x in plan.axes:
        if x.mode == "loop":
            blocks = -(-at[x.name] // tiles[x.block])
            chunks = max(1, min(blocks, -(-programs // max(1, others)))) if x is chunked else 1
            tiles[x.steps] = -(-blocks // chunks)
            if x is chunked:
                tiles["CHUNKS"] = max(1, -(-blocks // max(1, tiles[x.steps])))
    return tiles


def _lanes(n: int, most: int) -> int:
    """A power of two of at most `most` lanes that wastes few of them."""
    if n <= 16:
        return next_power_of_two(n)
    sizes = [s for s in (1024, 512, 256, 128, 64, 32) if s <= most and s <= next_power_of_two(n)] or [next_power_of_two(n)]
    return min(sizes, key=lambda s: (-(-n // s) * s * (1 + 8 / s), -s))
