"""Tiles of windows: the tree that stages values once and then runs the window over the tile (see `window`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.memlet import Condition, simplify_guard
from shorthaul.ir.scalar import Scalar, cast, read, substitute_reads, walk
from shorthaul.ir.scalar import rewrite as rewrite_scalar
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import IntLike, Symbol, ceildiv, free_symbols, index, minimum, product, substitute, summation

from .linearize import Code, Nest, Ref, decompose, depends, int_size, one_tasklet
from .plan import DEFAULT, Limits, estimate, ref_params
from .specialize import split_rim
from .unroll import unroll_kept, unroll_positions, unroll_reduced
from .window import Axis, NoWindow, Stage, Window, find_windows, widened

TILE_BYTES = 512 * 1024  # of the staged tiles of one piece of work: they should stay in the second-level cache
_serial = itertools.count()


def rewrite_windows(nest: Nest, limits: Limits = DEFAULT, above: Sequence[Symbol] = ()) -> Nest:
    """The nest with every window in it as a tree over staged tiles. above: the parameters around it."""
    try:
        return _Tiles(find_windows(nest, bool(above)), limits, above).build()
    except NoWindow:
        pass
    around = [*above, *nest.params]
    body = [rewrite_windows(n, limits, around) if isinstance(n, Nest) else n for n in nest.body]
    return replace(nest, body=body)


class _Tiles:
    """The tree over tiles of one or several windows (phases of one) that share staged values."""

    def __init__(self, windows: list[Window], limits: Limits, above: Sequence[Symbol]) -> None:
        self.windows, self.limits, self.above = windows, limits, above
        w = windows[0]
        if any(x.outer != w.outer or x.lanes is not w.lanes or len(x.positions) != len(w.positions) for x in windows):
            raise NoWindow
        self.lanes, self.outer = w.lanes, w.outer
        self.rows = max(int_size(x.positions[0]) for x in windows)
        self.sums: dict[tuple[str, IntLike, str, DType, bool], list[tuple[str, int]]] = {}  # result -> (tile buffer, row in it)

    def build(self) -> Nest:
        self._geometry()
        tiles = ceildiv(self.rows, self.height)
        self.tile: IntLike = 0 if isinstance(tiles, int) and tiles == 1 else index("row tile", tiles)
        body: list[Nest | Code] = []
        local: dict[str, Container] = {}
        shared: dict[tuple[object, ...], tuple[Stage, list[int], list[int]]] = {}
        placed: dict[str, tuple[Ref, list[int]]] = {}
        every = [(w, s) for w in self.windows for s in w.stages]
        # one tile serves all phases: its coordinates start at the least one and end at the greatest one of all
        for w, s in every:
            s.signature = self._signature(w, s)
            lows, highs = self._extent(w, s)
            if s.signature in shared:
                _, old_lows, old_highs = shared[s.signature]
                lows = [min(a, b) for a, b in zip(lows, old_lows, strict=True)]
                highs = [max(a, b) for a, b in zip(highs, old_highs, strict=True)]
            shared[s.signature] = (shared.get(s.signature, (s, [], []))[0], lows, highs)
        for w, s in every:
            first, lows, highs = shared[s.signature]
            sizes = [h - low + 1 for low, h in zip(lows, highs, strict=True)]
            if first is s:
                stage_nests, container = self._stage_nests(w, s, lows, sizes)
                body += stage_nests
                local[container.name] = container
            placed[s.key] = self._tile_ref(w, s, first, lows, sizes)
        for k, w in enumerate(self.windows):
            body += self._compute(w, k, placed, local)
        body += self._flush()
        params = [*self.outer, self.tile] if isinstance(self.tile, Symbol) else self.outer
        return Nest(params, body, local, self.windows[0].tree.name)

    def _geometry(self) -> None:
        """Rows of positions a tile covers: all, if the tile fits the cache and pieces are enough."""
        w = self.windows[0]
        lane_bytes = estimate(self.lanes.size) * 4
        across = 1
        for p in w.positions[1:]:
            across = estimate(p.size) * max(a.s for a in w.axes.values() if a.position is p) + 8
        per_row = (
            lane_bytes
            * across
            * max(a.s for a in w.axes.values() if a.position is w.positions[0])
            * max(1, len({s.signature for s in w.stages}))
        )
        images = estimate(product(p.size for p in (*self.outer, *self.above)))
        height = max(1, min(self.rows, TILE_BYTES // max(1, per_row)))
        if images < self.limits.enough:
            height = max(1, min(height, -(-self.rows * images // self.limits.enough)))
        divisors = [h for h in range(1, height + 1) if self.rows % h == 0]
        self.height = divisors[-1] if 2 * divisors[-1] > height else height

    def _signature(self, w: Window, s: Stage) -> tuple[object, ...]:
        """What the staged value is as a function of its coordinates: equal signatures share a tile."""
        code = self._moved(s, [Symbol(f"coordinate {k}") for k in range(len(s.axes))])
        names = {n: read(f"r{k}", r.dtype) for k, (n, r) in enumerate(code.reads.items())}
        return (substitute_reads(code.code["tile"], names), *code.reads.values(), *(w.positions.index(a.position) for a in s.axes),
                *((a.s, a.d) for a in s.axes if len(self.windows) == 1))  # fmt: skip

    def _moved(self, s: Stage, coordinates: Sequence[IntLike]) -> Code:
        """The staged value at given coordinates instead of positions and taps; its result is called "tile"."""
        code = s.nest.leaf
        assert code is not None
        names = [str(x.attr) for x in walk(s.node) if x.op == "read"]
        symbols = frozenset(p for a in s.axes for p in (a.position, a.tap))

        def fn(e: IntLike) -> IntLike:
            coefficients, rest, _ = decompose(e, symbols)
            for a, k, y in zip(s.axes, s.offsets, coordinates, strict=True):
                step = coefficients.get(a.position, 0)
                rest = rest + step // a.s * (y - k)
            return rest

        moved = Code({n: code.reads[n] for n in names}, {}, {"tile": s.node}, code.origin).rewritten(fn)
        return Code({n: replace(r, guard=simplify_guard(r.guard)) for n, r in moved.reads.items()}, {}, moved.code, code.origin)

    def _extent(self, w: Window, s: Stage) -> tuple[list[int], list[int]]:
        """Least and greatest coordinate of each axis, for the first tile of rows."""
        lows, highs = [], []
        for a, k in zip(s.axes, s.offsets, strict=True):
            n = self.height if a.position is w.positions[0] else int_size(a.position)
            reach = a.d * (int_size(a.tap) - 1)
            lows.append(k + min(0, reach))
            highs.append(k + a.s * (n - 1) + max(0, reach))
        return lows, highs

    def _base(self, w: Window, a: Axis, low: int) -> IntLike:
        """The coordinate that the first element of the tile has."""
        return low + a.s * self.height * self.tile if a.position is w.positions[0] else low

    def _stage_nests(self, w: Window, s: Stage, lows: list[int], sizes: list[int]) -> tuple[list[Nest], Container]:
        """The nests that fill a tile: its inside and its rim."""
        code = s.nest.leaf
        assert code is not None
        used = [self.lanes] if self._has_lanes(s) else []
        params = [index(f"y{k}", n) for k, n in enumerate(sizes)]
        moved = self._moved(s, [p + self._base(w, a, low) for p, a, low in zip(params, s.axes, lows, strict=True)])
        dtype = s.node.dtype.compute
        container = Container(s.key, dtype, (*sizes, *(p.size for p in used)), storage="register")
        address = summation(p * n for p, n in zip((*params, *used), container.actual_strides, strict=True))
        reads = {n: replace(r, guard=self._inside(code.reads[n], r, w, s, params, lows)) for n, r in moved.reads.items()}
        stage = Code(reads, {"tile": Ref(s.key, dtype, address, local=True)}, {"tile": cast(moved.code["tile"], dtype)}, code.origin)
        return split_rim(Nest([*params, *used], [stage]), stage), container

    def _has_lanes(self, s: Stage) -> bool:
        code = s.nest.leaf
        assert code is not None
        lanes = frozenset((self.lanes,))
        return any((ref_params(code, code.reads[str(x.attr)], lanes) if x.op == "read" else depends(x.attr, lanes))  # type: ignore[arg-type]
                   for x in walk(s.node) if x.op in ("read", "index"))  # fmt: skip

    def _inside(self, original: Ref, r: Ref, w: Window, s: Stage, params: Sequence[Symbol], lows: list[int]) -> tuple[Condition, ...]:
        """The guard, and for an access without one on the rows: that the row is needed at all (the last tile may be short)."""
        a = next((a for a in s.axes if a.position is w.positions[0]), None)
        if a is None or (self.rows % self.height == 0 and len(self.windows) == 1):
            return r.guard
        k = s.axes.index(a)
        last = s.offsets[k] + a.s * (int_size(a.position) - 1) + max(0, a.d * (int_size(a.tap) - 1))
        if any(depends(c.expr, frozenset((a.position,))) for c in original.guard):
            return r.guard
        if len(self.windows) > 1:
            raise NoWindow
        return (*r.guard, Condition(last - params[k] - self._base(w, a, lows[k])))

    def _tile_ref(self, w: Window, s: Stage, first: Stage, lows: list[int], sizes: list[int]) -> tuple[Ref, list[int]]:
        """The staged value as an access of the tile, in terms of the positions within the tile and the taps."""
        has_lanes = self._has_lanes(s)
        dtype = s.node.dtype.compute
        shape = (*sizes, *((self.lanes.size,) if has_lanes else ()))
        strides = Container("", dtype, shape).actual_strides
        address: IntLike = self.lanes if has_lanes else 0
        for a, k, low, n in zip(s.axes, s.offsets, lows, strides, strict=False):
            address = address + n * (a.s * a.position + a.d * a.tap + (k - low))
        return Ref(first.key, dtype, address, local=True), lows

    # computing over tiles ----------------------------------------------------------------------------------------------
    def _compute(self, w: Window, number: int, placed: dict[str, tuple[Ref, list[int]]], local: dict[str, Container]) -> list[Nest | Code]:
        """The nests that compute from the tiles: the window itself, and for sums over tiles their addition to the result."""
        body: list[Nest | Code] = []
        for n in w.tree.body if not w.taps_kept else w.inner:
            body.append(self._with_tiles(w, n, placed) if isinstance(n, Nest) else n)
        row = w.positions[0]
        inside = index(
            f"{row.name} in tile",
            self.height
            if row.size % self.height == 0 and row.size == self.rows
            else minimum(self.height, row.size - self.height * self.tile),
        )
        absolute: dict[Symbol, IntLike] = {row: self.height * self.tile + inside}
        local_row: dict[Symbol, IntLike] = {row: inside}
        moved: list[Nest | Code] = []
        for n in body:
            fixed = _relocate(n, absolute, local_row, set(local) | {s.key for s in w.stages} | {r.container for r, _ in placed.values()})
            moved.append(fixed)
        flat: list[Code] = []
        for n in moved:
            if isinstance(n, Nest):
                taps = [p for p in n.params if p in w.taps]
                flat.append(unroll_kept(n.leaf, taps) if w.taps_kept else unroll_reduced(n.leaf, taps))  # type: ignore[arg-type]
            else:
                flat.append(n)
        positions = [inside, *w.positions[1:]]
        code = one_tasklet(Nest([*positions, self.lanes], list(flat), {} if w.taps_kept else dict(w.tree.locals))).leaf
        if code is None:
            raise NoWindow
        return self._blocked(w, code, positions, number, local)

    def _with_tiles(self, w: Window, n: Nest, placed: dict[str, tuple[Ref, list[int]]]) -> Nest:
        code = n.leaf
        assert code is not None
        values: dict[Scalar, Scalar] = {}
        reads = dict(code.reads)
        for s in w.stages:
            if s.nest is n:
                ref, _ = placed[s.key]
                reads[s.key] = ref
                values[s.node] = cast(read(s.key, ref.dtype), s.node.dtype)
        memo: dict[Scalar, Scalar] = {}
        roots = {k: rewrite_scalar(v, values.get, memo) for k, v in code.code.items()}
        used = {str(x.attr) for x in walk(*roots.values()) if x.op == "read"}
        todo = [*used, *(i for r in code.writes.values() for i, _ in r.indirect)]
        while todo:  # what an access is subscripted by is read, too
            name = todo.pop()
            used.add(name)
            todo += [i for i, _ in reads[name].indirect if i not in used]
        return Nest(n.params, [Code({k: r for k, r in reads.items() if k in used}, code.writes, roots, code.origin)], n.locals)

    def _blocked(self, w: Window, code: Code, positions: list[Symbol], number: int, local: dict[str, Container]) -> list[Nest | Code]:
        """A few neighbouring positions at once; sums that go to the result through a buffer of the tile."""
        last = positions[-1]
        n = last.size if isinstance(last.size, int) else 0  # rows of a tile may be fewer in the last one: no blocks of a fixed width
        taps = math.prod(int_size(a.tap) for a in w.axes.values())
        widest = 4 if taps <= 12 or not w.taps_kept else 2
        single = all(len(COMBINERS[str(r.combine)].components) == 1 for r in code.writes.values() if r.combine is not None)
        factor = 1
        if single and n > 1:
            factor = next((f for f in (widest, 5, 3, 7, 6, 2) if n % f == 0 and f <= (7 if widest == 4 else 3)), 0)
        nests: list[tuple[Code, list[Symbol]]] = []
        if factor > 1:
            blocks = index(f"{last.name} block", n // factor)
            nests.append((unroll_positions(code, last, blocks, factor), [*positions[:-1], blocks]))
        elif factor == 0 and n >= widest:
            blocks, rest = index(f"{last.name} block", n // widest), index(f"{last.name} rest", n % widest)
            nests.append((unroll_positions(code, last, blocks, widest), [*positions[:-1], blocks]))
            tail = code.rewritten(lambda e: e if isinstance(e, int) else substitute(e, {last: n // widest * widest + rest}))
            nests.append((tail, [*positions[:-1], rest]))
        else:
            nests.append((code, positions))
        out: list[Nest | Code] = []
        indirect_sums = w.taps_kept or len(nests) > 1 or len(self.windows) > 1
        for part, params in nests:
            if indirect_sums:
                part = self._sums_to_tile(part, frozenset(params), local)
            out.append(Nest([*params, self.lanes], [part], {}, w.tree.name, order=(self.lanes, *params), lanes=self.lanes))
        return out

    def _sums_to_tile(self, code: Code, moving: frozenset[Symbol], local: dict[str, Container]) -> Code:
        """Redirect sums into the result to rows of lanes that live for one tile."""
        writes = dict(code.writes)
        own = [n for n, r in code.writes.items() if r.combine is not None and not depends(r.address, moving)]
        if not own:
            return code
        key = f"sums#{next(_serial)}"
        lanes = self.lanes.size
        for k, n in enumerate(own):
            r = writes[n]
            if len(COMBINERS[str(r.combine)].components) > 1 or r.indirect:
                raise NoWindow
            if self.lanes not in free_symbols_of(r.address):
                raise NoWindow
            part = Ref(key, r.dtype.compute, k * lanes + self.lanes, combine=r.combine, local=True)
            writes[n] = part
            self.sums.setdefault((r.container, r.address, r.combine or "", r.dtype, r.local), []).append((key, k))
        dtypes = {code.writes[n].dtype.compute for n in own}
        if len(dtypes) != 1:
            raise NoWindow
        local[key] = Container(key, dtypes.pop(), (len(own), lanes), storage="register")
        return Code(code.reads, writes, {n: widened(v) if n in own else v for n, v in code.code.items()}, code.origin)

    def _flush(self) -> list[Nest | Code]:
        """result (sum) = what the tile added up; results of one container that are equally far apart in one loop."""
        out: list[Nest | Code] = []
        rest = list(self.sums.items())
        while rest:
            (container, address, combiner, dtype, is_local), parts = rest.pop(0)
            run = [parts]
            step: IntLike = 0
            while rest and rest[0][0][0] == container and rest[0][0][2] == combiner and len(rest[0][1]) == len(parts):
                gap = rest[0][0][1] - address
                follows = all(key == old and at == row + len(run) for (key, at), (old, row) in zip(rest[0][1], parts, strict=True))
                if len(run) == 1:
                    step = gap
                if not isinstance(gap, int) or gap != len(run) * step or not follows:
                    break
                run.append(rest.pop(0)[1])
            k = index("result", len(run))
            lanes = self.lanes.size
            compute = dtype.compute
            reads = {f"part{j}": Ref(key, compute, (row + k) * lanes + self.lanes, local=True) for j, (key, row) in enumerate(parts)}
            value = read("part0", compute)
            for name in list(reads)[1:]:
                (value,) = COMBINERS[combiner].merge((value,), (read(name, compute),))
            write = Ref(container, dtype, address + k * step, combine=combiner, local=is_local)
            params = [k, self.lanes] if len(run) > 1 else [self.lanes]
            code = Code(reads, {"sum": write}, {"sum": value})
            if len(run) == 1:
                only: dict[Symbol, IntLike] = {k: 0}
                code = code.rewritten(lambda e, only=only: e if isinstance(e, int) else substitute(e, only))  # type: ignore[misc]
            out.append(Nest(params, [code]))
        return out


def _relocate(n: Nest | Code, absolute: dict[Symbol, IntLike], local: dict[Symbol, IntLike], tiles: set[str]) -> Nest | Code:
    """Replace the row position: counted within the tile for accesses of tiles, from the first row on elsewhere."""

    def place(r: Ref) -> Ref:
        return r.rewritten(lambda e: e if isinstance(e, int) else substitute(e, local if r.container in tiles else absolute))

    if isinstance(n, Nest):
        assert n.leaf is not None
        return Nest(n.params, [_relocate(n.leaf, absolute, local, tiles)], n.locals, n.name)
    values = n.rewritten(lambda e: e if isinstance(e, int) else substitute(e, absolute)).code
    return Code({k: place(r) for k, r in n.reads.items()}, {k: place(r) for k, r in n.writes.items()}, values, n.origin)


def free_symbols_of(e: IntLike) -> frozenset[Symbol]:
    return frozenset() if isinstance(e, int) else free_symbols(e)
