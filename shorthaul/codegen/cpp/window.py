"""Windows: depthwise convolutions, pooling and their gradients, with what is fused into them.

Each result of a window reads its neighbours at coordinates Y = s*a + d*u + k of a position a and a tap u. `rewrite` turns such a
nest into a tree: for every image and every tile of rows, first the values that depend on the coordinates alone are computed once into a
padded tile (the *staging*; guards and anything fused in front of the window happen here and nowhere else), then the window
runs over the tile without conditions, its taps and a few neighbouring positions written out, so that what they share is loaded once
and sums stay in registers. Where taps count only at coordinates divisible by a stride (the data gradient of a strided
window), positions are split by their remainder first, and each part has only the taps that count.

Staging evaluates guarded reads outside of their guard as their fill, exactly as the tasklet would: nothing is assumed about
zeros, infinities or NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.memlet import Condition, simplify_guard
from shorthaul.ir.scalar import Scalar, cast, read, substitute_reads, walk
from shorthaul.ir.scalar_ops import COMBINERS, identity
from shorthaul.symbolic import (
    FloorDiv,
    IntLike,
    Mod,
    Symbol,
    ceildiv,
    free_symbols,
    index,
    minimum,
    product,
    substitute,
    summation,
)

from .linearize import Code, Nest, Ref, decompose, depends, one_tasklet, simplify
from .plan import DEFAULT, Group, Limits, choose_vector, estimate, groups, ref_params
from .unroll import unroll_kept, unroll_positions, unroll_reduced

TILE_BYTES = 512 * 1024  # of the staged tiles of one piece of work: they should stay in the second-level cache
MAX_TAPS = 49
_serial = itertools.count()


@dataclass(frozen=True)
class Axis:
    """Coordinates s*a + d*u of a position parameter a and a tap parameter u."""

    position: Symbol
    tap: Symbol
    s: int
    d: int


class _NoWindow(Exception):
    """The nest is not a window of the kind handled here."""


def rewrite(nest: Nest, limits: Limits = DEFAULT) -> Nest | None:
    """The nest as a tree over staged tiles; None if it is no window, or not one with lanes beside the window's own axes."""
    try:
        return _rewrite(nest, limits)
    except _NoWindow:
        return None


def _rewrite(nest: Nest, limits: Limits) -> Nest:
    tree, taps_kept = _as_tree(nest)
    parts = [(tree, {})] if taps_kept else _split_phases(tree, {})
    windows = [_Window(p, taps_kept, known) for p, known in parts]
    return _Tiles(windows, limits).build()


def _as_tree(nest: Nest) -> tuple[Nest, bool]:
    """Positions outside, taps inside: (tree, whether the taps are kept, as in a weight gradient)."""
    code = nest.leaf
    if code is None:
        inner = [n for n in nest.body if isinstance(n, Nest)]
        if not inner or any(n.leaf is None for n in inner) or any(c.shape != () for c in nest.locals.values()):
            raise _NoWindow
        for n in inner:
            if any(not r.local or r.combine is None or len(COMBINERS[r.combine].components) > 1 for r in n.leaf.writes.values()):  # type: ignore[union-attr]
                raise _NoWindow
        return nest, False
    found = groups(code, frozenset(nest.params))
    combining = [g for g in found if g.combiner is not None]
    if not combining or len(combining) != len(found) or any(len(g.names) > 1 or g.scatters or g.scan is not None for g in combining):
        raise _NoWindow
    if any(r.guard for r in code.writes.values()) or any(r.indirect for r in (*code.reads.values(), *code.writes.values())):
        raise _NoWindow
    kept = frozenset(p for p in nest.params if all(p in g.kept for g in combining))
    if any(p in g.kept for p in nest.params if p not in kept for g in combining):
        raise _NoWindow
    reduced = frozenset(nest.params) - kept
    small = [p for p in nest.params if p in reduced and _is_tap(code, p, nest.params, kept)]
    if small and len(small) == len(reduced):  # every reduced parameter is a tap of a kept position
        return _taps_inside(nest, code, combining, small), False
    small = [p for p in nest.params if p in kept and _is_tap(code, p, nest.params, reduced)]
    if small and len(small) < len(kept) and math.prod(estimate(p.size) for p in small) <= MAX_TAPS:
        return nest, True
    raise _NoWindow


def _taps_inside(nest: Nest, code: Code, combining: Sequence[Group], small: list[Symbol]) -> Nest:
    """The flat nest with its taps in a nest of their own, whose sums are scalars that a second tasklet stores."""
    if not all(isinstance(p.size, int) for p in small) or math.prod(p.size for p in small) > MAX_TAPS:  # type: ignore[misc]
        raise _NoWindow
    outer = [p for p in nest.params if p not in small]
    local, inner_writes, values, writes = {}, {}, {}, {}
    for g in combining:
        (name,) = g.names
        ref = code.writes[name]
        key = f"window sum#{next(_serial)}"
        local[key] = Container(key, ref.dtype.compute, (), storage="register")
        inner_writes[name] = Ref(key, ref.dtype.compute, 0, combine=ref.combine, local=True)
        values[name] = cast(read(name, ref.dtype.compute), ref.dtype)
        writes[name] = replace(ref, combine=None)
    body: list[Nest | Code] = [Nest(small, [Code(code.reads, inner_writes, {n: _widened(code.code[n]) for n in inner_writes}, code.origin)]),
                               Code({n: replace(inner_writes[n], combine=None) for n in writes}, writes, values)]  # fmt: skip
    return Nest(outer, body, local, nest.name)


def _widened(value: Scalar) -> Scalar:
    """A summand without its last rounding to 16 bits."""
    if value.op == "cast" and value.dtype.is_float and value.dtype.bits < 32:
        return cast(value.args[0], value.dtype.compute)
    return cast(value, value.dtype.compute)


def _is_tap(code: Code, p: Symbol, params: Sequence[Symbol], among: frozenset[Symbol]) -> bool:
    """Whether p shares its coordinate with exactly one parameter, and that is one of `among`."""
    return {q for q, _, _ in _partners(code, p, params)} <= among and bool(_partners(code, p, params))


def _partners(code: Code, tap: Symbol, params: Sequence[Symbol]) -> set[tuple[Symbol, int, int]]:
    """(position, s, d) of the coordinates s * position + d * tap that the reads use; steps are 0 where a quotient hides them.

    Conditions tell which parameters form a coordinate; without any, the parameter whose step in memory is next to the tap's does.
    """
    every = frozenset(params)
    found: set[tuple[Symbol, int, int]] = set()
    for r in code.reads.values():
        for c in r.guard:
            coefficients, _, nonlinear = decompose(c.expr, every)
            if tap in nonlinear:
                for atom in _atoms(c.expr):
                    others = [q for q in params if q is not tap and isinstance(atom, (FloorDiv, Mod)) and q in free_symbols(atom)]
                    if isinstance(atom, (FloorDiv, Mod)) and tap in free_symbols(atom) and len(others) == 1:
                        found.add((others[0], 0, 0))
            elif tap in coefficients and len(coefficients) == 2:
                (q,) = (q for q in coefficients if q is not tap)
                _add_steps(found, q, coefficients[q], coefficients[tap])
    if found:
        return found
    for r in code.reads.values():
        coefficients, _, _ = decompose(r.address, every)
        d = coefficients.get(tap)
        near = [(abs(s) / abs(d), q) for q, s in coefficients.items() if isinstance(d, int) and isinstance(s, int) and q is not tap
                and abs(s) % abs(d) == 0 and abs(s) <= 4 * abs(d) and estimate(q.size) >= estimate(tap.size)]  # fmt: skip
        if near:
            q = min(near, key=lambda x: x[0])[1]
            _add_steps(found, q, coefficients[q], coefficients[tap])
    return found


def _add_steps(found: set[tuple[Symbol, int, int]], q: Symbol, s: IntLike, d: IntLike) -> None:
    if isinstance(s, int) and isinstance(d, int):
        g = math.gcd(s, d) * (1 if s > 0 else -1)
        found.add((q, s // g, d // g))


def _atoms(e: IntLike) -> list[object]:
    return [] if isinstance(e, int) else [a for mono in e.terms for a in mono]


# phases ------------------------------------------------------------------------------------------------------------------
Known = dict[Symbol, "Axis"]


def _split_phases(tree: Nest, known: Known) -> list[tuple[Nest, Known]]:
    """Split positions by the remainder that decides which taps count, until no condition asks for a remainder.

    known: axes of taps that phases have made, which are hard to tell from a single tap.
    """
    for n in tree.body:
        if not isinstance(n, Nest):
            continue
        code = n.leaf
        assert code is not None
        for r in code.reads.values():
            for c in r.guard:
                if c.relation != "eq":
                    continue
                atoms = _atoms(c.expr)
                if len(atoms) != 1 or not isinstance(atoms[0], Mod) or not isinstance(atoms[0].divisor, int) or c.expr is not atoms[0]:
                    raise _NoWindow
                return _phases(tree, n, atoms[0].dividend, atoms[0].divisor, known)
    return [(tree, known)]


def _phases(tree: Nest, inner: Nest, dividend: IntLike, m: int, known: Known) -> list[tuple[Nest, Known]]:
    coefficients, rest, nonlinear = decompose(dividend, frozenset((*tree.params, *inner.params)))
    taps = [p for p in coefficients if p in inner.params]
    positions = [p for p in coefficients if p in tree.params]
    if nonlinear or len(taps) != 1 or len(positions) != 1 or not isinstance(rest, int) or len([n for n in tree.body if isinstance(n, Nest)]) > 1:
        raise _NoWindow
    (u,), (a,) = taps, positions
    ca, cu = coefficients[a], coefficients[u]
    if not isinstance(ca, int) or not isinstance(cu, int) or math.gcd(cu, m) != 1 or not isinstance(u.size, int):
        raise _NoWindow
    out: list[tuple[Nest, Known]] = []
    sign = 1 if ca > 0 else -1
    for r in range(m):
        first = next(k for k in range(m) if (ca * r + cu * k + rest) % m == 0)
        a2, count = index(f"{a.name}_{m}", ceildiv(a.size - r, m)), -(-(u.size - first) // m)
        u2 = index(f"{u.name}_{m}", max(count, 1))
        body: list[Nest | Code] = []
        for n in tree.body:
            if isinstance(n, Code):
                body.append(n)
            elif count <= 0:
                code = n.leaf
                assert code is not None
                zero = {k: identity(w.combine, 0, w.dtype) for k, w in code.writes.items()}  # type: ignore[arg-type]
                body.append(Code({}, {k: replace(w, combine=None) for k, w in code.writes.items()}, zero))
            else:
                body.append(Nest([u2 if p is u else p for p in n.params], n.body, n.locals))
        part = Nest([a2 if p is a else p for p in tree.params], body, tree.locals, tree.name)
        part = part.rewritten_body({a: m * a2 + r, u: m * u2 + first})
        for code in part.codes():
            for k, ref in code.reads.items():
                code.reads[k] = replace(ref, guard=tuple(c for c in ref.guard if not isinstance(c.expr, int)))
        if isinstance(a2.size, int) and a2.size == 0:
            continue
        out += _split_phases(part, {**known, u2: Axis(a2, u2, sign * ca, sign * cu)})
    return out


# windows -----------------------------------------------------------------------------------------------------------------
@dataclass
class _Stage:
    """A value that depends on coordinates: `code` computes it from coordinate symbols; `axes` and `offsets` place it."""

    key: str
    node: Scalar
    nest: Nest
    axes: list[Axis]
    offsets: list[int]
    signature: tuple[object, ...] = ()


class _Window:
    """One tree of positions and taps: its axes, its lanes, and the values to stage."""

    def __init__(self, tree: Nest, taps_kept: bool, known: Known) -> None:
        self.tree, self.taps_kept = tree, taps_kept
        kept_taps: set[Symbol] = set()
        if taps_kept:
            assert tree.leaf is not None
            kept = groups(tree.leaf, frozenset(tree.params))[0].kept
            kept_taps = {u for u in kept if _is_tap(tree.leaf, u, tree.params, frozenset(tree.params) - kept)}
        self.inner = [tree] if taps_kept else [n for n in tree.body if isinstance(n, Nest)]
        self.axes: dict[Symbol, Axis] = {}
        for n in self.inner:
            code = n.leaf
            assert code is not None
            scope = [*tree.params, *(p for p in n.params if p not in tree.params)]
            for u in n.params:
                if taps_kept and u not in kept_taps:
                    continue
                self.axes[u] = known[u] if u in known else self._axis(code, u, scope)
        if not self.axes:
            raise _NoWindow
        self.positions = list(dict.fromkeys(a.position for a in self.axes.values()))
        self.taps = list(self.axes)
        self.lanes = self._lanes()
        self.outer = [p for p in tree.params if p not in self.positions and p not in self.taps and p is not self.lanes]
        if len(self.positions) > 2 or not all(isinstance(p.size, int) for p in (*self.positions, *self.taps)):
            raise _NoWindow
        every = frozenset((*tree.params, *self.taps))
        if any(depends(p.size, every) for p in every):
            raise _NoWindow
        self.stages = [s for n in self.inner for s in self._stages(n)]

    def _axis(self, code: Code, u: Symbol, scope: Sequence[Symbol]) -> Axis:
        found = _partners(code, u, scope)
        if len(found) != 1:
            raise _NoWindow
        ((q, s, d),) = found
        if s == 0:
            raise _NoWindow
        return Axis(q, u, s, d)

    def _lanes(self) -> Symbol:
        reads: dict[str, Ref] = {}
        writes: dict[str, Ref] = {}
        for k, c in enumerate(self.tree.codes()):
            reads.update({f"{k}.{n}": r for n, r in c.reads.items() if not r.local and depends(r.address, frozenset(self.positions))})
            writes.update({f"{k}.{n}": r for n, r in c.writes.items() if not r.local and depends(r.address, frozenset(self.positions))})
        params = [p for p in self.tree.params if p not in self.taps]
        v = choose_vector(Code(reads, writes, {}), params)
        if v is None or v in self.positions or v in self.taps:
            raise _NoWindow
        return v

    def _stages(self, n: Nest) -> list[_Stage]:
        """The largest values of a tap nest that depend on the coordinates and on nothing else of the window."""
        code = n.leaf
        assert code is not None
        window = frozenset((*self.positions, *self.taps))
        scope = window | frozenset(self.tree.params)
        kind: dict[Scalar, str] = {}  # "free" of the window, by "coordinates", or "other"
        for node in walk(*code.code.values()):
            if node.op == "const":
                kind[node] = "free"
            elif node.op in ("read", "index"):
                ref = code.reads[node.attr] if node.op == "read" else None  # type: ignore[index]
                used = ref_params(code, ref, scope) & window if ref is not None else depends(node.attr, scope) & window  # type: ignore[arg-type]
                if not used:
                    kind[node] = "free"
                elif ref is not None and not ref.local and not ref.indirect and self._by_coordinates(ref, used):
                    kind[node] = "coordinates"
                else:
                    kind[node] = "other"
            else:
                kinds = {kind[a] for a in node.args}
                kind[node] = "other" if "other" in kinds else "coordinates" if "coordinates" in kinds else "free"
        below = {a for node in kind if kind[node] == "other" for a in node.args} | set(code.code.values())
        out = []
        for node in kind:
            if kind[node] == "coordinates" and node in below:
                reads_only = node.op == "read" and not code.reads[node.attr].guard  # type: ignore[index]
                if not reads_only:
                    out.append(self._stage(n, node))
        return out

    def _by_coordinates(self, ref: Ref, used: frozenset[Symbol]) -> bool:
        axes = [a for a in self.axes.values() if a.tap in used]
        if frozenset(p for a in axes for p in (a.position, a.tap)) != used or len({a.position for a in axes}) != len(axes):
            return False
        for e in ref.expressions:
            coefficients, _, nonlinear = decompose(e, used)
            if nonlinear:
                return False
            for a in axes:
                x, y = coefficients.get(a.position, 0), coefficients.get(a.tap, 0)
                if not isinstance(x, int) or not isinstance(y, int) or x * a.d != y * a.s:
                    return False
        return True

    def _stage(self, n: Nest, node: Scalar) -> _Stage:
        code = n.leaf
        assert code is not None
        used = frozenset((*self.positions, *self.taps))
        names = [x.attr for x in walk(node) if x.op == "read"]
        refs: dict[str, Ref] = {name: code.reads[name] for name in names}  # type: ignore[misc]
        touched = frozenset().union(*(ref_params(code, r, used) for r in refs.values()))
        axes = [a for a in self.axes.values() if a.tap in touched]
        offsets = []
        for a in axes:  # absolute coordinates, if a condition tells them: Y = s*a + d*u + k >= 0
            lows = []
            for r in refs.values():
                for c in r.guard:
                    coefficients, rest, _ = decompose(c.expr, used)
                    if c.relation == "ge" and set(coefficients) == {a.position, a.tap} and coefficients[a.position] == a.s and isinstance(rest, int):
                        lows.append(rest)
            offsets.append(min(lows, default=0))
        return _Stage(f"tile#{next(_serial)}", node, n, axes, offsets)


# tiles -------------------------------------------------------------------------------------------------------------------
class _Tiles:
    """The tree over tiles of one or several windows (phases of one) that share staged values."""

    def __init__(self, windows: list[_Window], limits: Limits) -> None:
        self.windows, self.limits = windows, limits
        w = windows[0]
        if any(x.outer != w.outer or x.lanes is not w.lanes or len(x.positions) != len(w.positions) for x in windows):
            raise _NoWindow
        self.lanes, self.outer = w.lanes, w.outer
        self.rows = max(x.positions[0].size for x in windows)  # type: ignore[type-var]
        if not any(x.stages for x in windows):
            raise _NoWindow
        self.sums: dict[tuple[str, IntLike, str, DType], list[tuple[str, int]]] = {}  # result -> (tile buffer, row in it)

    def build(self) -> Nest:
        self._geometry()
        tiles = ceildiv(self.rows, self.height)
        self.tile = index("row tile", tiles)
        body: list[Nest | Code] = []
        local: dict[str, Container] = {}
        shared: dict[tuple[object, ...], tuple[_Stage, list[int], list[int]]] = {}
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
                stage_nest, container = self._stage_nest(w, s, lows, sizes)
                body.append(stage_nest)
                local[container.name] = container
            placed[s.key] = self._tile_ref(w, s, first, lows, sizes)
        for k, w in enumerate(self.windows):
            body += self._compute(w, k, placed, local)
        body += self._flush()
        return Nest([*self.outer, self.tile], body, local, self.windows[0].tree.name)

    def _geometry(self) -> None:
        """Rows of positions a tile covers: all, if the tile fits the cache and pieces are enough."""
        w = self.windows[0]
        lane_bytes = estimate(self.lanes.size) * 4
        across = 1
        for p in w.positions[1:]:
            across = estimate(p.size) * max(a.s for a in w.axes.values() if a.position is p) + 8
        per_row = lane_bytes * across * max(a.s for a in w.axes.values() if a.position is w.positions[0]) * max(1, len({s.signature for s in w.stages}))
        images = estimate(product(p.size for p in self.outer))
        height = max(1, min(self.rows, TILE_BYTES // max(1, per_row)))
        if images < self.limits.enough:
            height = max(1, min(height, -(-self.rows * images // self.limits.enough)))
        divisors = [h for h in range(1, height + 1) if self.rows % h == 0]
        self.height = divisors[-1] if 2 * divisors[-1] > height else height

    def _signature(self, w: _Window, s: _Stage) -> tuple[object, ...]:
        """What the staged value is as a function of its coordinates: equal signatures share a tile."""
        code = s.nest.leaf
        assert code is not None
        ys = [Symbol(f"coordinate {k}") for k in range(len(s.axes))]
        names: dict[str, Scalar] = {}
        refs = []
        for x in walk(s.node):
            if x.op == "read":
                ref = self._at(code.reads[x.attr], s, ys)  # type: ignore[index]
                refs.append(ref)
                names[x.attr] = read(f"r{len(refs)}", x.dtype)  # type: ignore[index]
        return (substitute_reads(s.node, names), *refs, *(w.positions.index(a.position) for a in s.axes), *((a.s, a.d) for a in s.axes if len(self.windows) == 1))

    def _at(self, ref: Ref, s: _Stage, coordinates: Sequence[IntLike]) -> Ref:
        """An access of a staged value at given coordinates instead of positions and taps."""

        def fn(e: IntLike) -> IntLike:
            symbols = frozenset(p for a in s.axes for p in (a.position, a.tap))
            coefficients, rest, _ = decompose(e, symbols)
            for a, k, y in zip(s.axes, s.offsets, coordinates, strict=True):
                step = coefficients.get(a.position, 0)
                rest = rest + step // a.s * (y - k)
            return rest

        moved = ref.rewritten(fn)
        return replace(moved, guard=simplify_guard(moved.guard))

    def _extent(self, w: _Window, s: _Stage) -> tuple[list[int], list[int]]:
        """Least and greatest coordinate of each axis, for the first tile of rows."""
        lows, highs = [], []
        for a, k in zip(s.axes, s.offsets, strict=True):
            n = self.height if a.position is w.positions[0] else a.position.size
            reach = a.d * (a.tap.size - 1)
            lows.append(k + min(0, reach))
            highs.append(k + a.s * (n - 1) + max(0, reach))
        return lows, highs

    def _base(self, w: _Window, a: Axis, low: int) -> IntLike:
        """The coordinate that the first element of the tile has."""
        return low + a.s * self.height * self.tile if a.position is w.positions[0] else low

    def _stage_nest(self, w: _Window, s: _Stage, lows: list[int], sizes: list[int]) -> tuple[Nest, Container]:
        code = s.nest.leaf
        assert code is not None
        names = [x.attr for x in walk(s.node) if x.op == "read"]
        refs: dict[str, Ref] = {n: code.reads[n] for n in names}  # type: ignore[misc]
        used = [self.lanes] if any(self.lanes in ref_params(code, r, frozenset((self.lanes,))) for r in refs.values()) else []
        params = [index(f"y{k}", n) for k, n in enumerate(sizes)]
        coordinates = [p + self._base(w, a, low) for p, a, low in zip(params, s.axes, lows, strict=True)]
        dtype = s.node.dtype.compute
        shape = (*sizes, *(p.size for p in used))
        container = Container(s.key, dtype, shape, storage="register")
        address = summation(p * n for p, n in zip((*params, *used), container.actual_strides, strict=True))
        reads = {n: self._at(r, s, coordinates) for n, r in refs.items()}
        reads = {n: replace(r, guard=self._inside(refs[n], r, w, s, params, lows)) for n, r in reads.items()}
        stage = Code(reads, {"tile": Ref(s.key, dtype, address, local=True)}, {"tile": cast(s.node, dtype)}, code.origin)
        return simplify(Nest([*params, *used], [stage])), container

    def _inside(self, original: Ref, r: Ref, w: _Window, s: _Stage, params: Sequence[Symbol], lows: list[int]) -> tuple[Condition, ...]:
        """The guard, and for an access without one on the rows: that the row is needed at all (the last tile may be short)."""
        a = next((a for a in s.axes if a.position is w.positions[0]), None)
        if a is None or (self.rows % self.height == 0 and len(self.windows) == 1):
            return r.guard
        k = s.axes.index(a)
        last = s.offsets[k] + a.s * (a.position.size - 1) + max(0, a.d * (a.tap.size - 1))
        if any(depends(c.expr, frozenset((a.position,))) for c in original.guard):
            return r.guard
        if len(self.windows) > 1:
            raise _NoWindow
        return (*r.guard, Condition(last - params[k] - self._base(w, a, lows[k])))

    def _tile_ref(self, w: _Window, s: _Stage, first: _Stage, lows: list[int], sizes: list[int]) -> tuple[Ref, list[int]]:
        """The staged value as an access of the tile, in terms of the positions within the tile and the taps."""
        code = s.nest.leaf
        assert code is not None
        names = [x.attr for x in walk(s.node) if x.op == "read"]
        has_lanes = any(self.lanes in ref_params(code, code.reads[n], frozenset((self.lanes,))) for n in names)  # type: ignore[index]
        dtype = s.node.dtype.compute
        shape = (*sizes, *((self.lanes.size,) if has_lanes else ()))
        strides = Container("", dtype, shape).actual_strides
        address: IntLike = self.lanes if has_lanes else 0
        for a, k, low, n in zip(s.axes, s.offsets, lows, strides, strict=False):
            address = address + n * (a.s * a.position + a.d * a.tap + (k - low))
        return Ref(first.key, dtype, address, local=True), lows

    # computing over tiles ----------------------------------------------------------------------------------------------
    def _compute(self, w: _Window, number: int, placed: dict[str, tuple[Ref, list[int]]], local: dict[str, Container]) -> list[Nest | Code]:
        """The nests that compute from the tiles: the window itself, and for sums over tiles their addition to the result."""
        body: list[Nest | Code] = []
        for n in w.tree.body if not w.taps_kept else w.inner:
            body.append(self._with_tiles(w, n, placed) if isinstance(n, Nest) else n)
        row = w.positions[0]
        inside = index(f"{row.name} in tile", self.height if row.size % self.height == 0 and row.size == self.rows else minimum(self.height, row.size - self.height * self.tile))
        absolute = {row: self.height * self.tile + inside}
        local_row = {row: inside}
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
            raise _NoWindow
        return self._blocked(w, code, positions, number, local)

    def _with_tiles(self, w: _Window, n: Nest, placed: dict[str, tuple[Ref, list[int]]]) -> Nest:
        code = n.leaf
        assert code is not None
        values: dict[Scalar, Scalar] = {}
        reads = dict(code.reads)
        for s in w.stages:
            if s.nest is n:
                ref, _ = placed[s.key]
                reads[s.key] = ref
                values[s.node] = cast(read(s.key, ref.dtype), s.node.dtype)
        from shorthaul.ir.scalar import rewrite as rewrite_scalar

        memo: dict[Scalar, Scalar] = {}
        roots = {k: rewrite_scalar(v, values.get, memo) for k, v in code.code.items()}
        used = {x.attr for x in walk(*roots.values()) if x.op == "read"}
        return Nest(n.params, [Code({k: r for k, r in reads.items() if k in used}, code.writes, roots, code.origin)], n.locals)

    def _blocked(self, w: _Window, code: Code, positions: list[Symbol], number: int, local: dict[str, Container]) -> list[Nest | Code]:
        """A few neighbouring positions at once; sums that go to the result through a buffer of the tile."""
        last = positions[-1]
        n = last.size
        taps = math.prod(a.tap.size for a in w.axes.values())
        widest = 4 if taps <= 12 or not w.taps_kept else 2
        single = all(len(COMBINERS[r.combine].components) == 1 for r in code.writes.values() if r.combine is not None)
        factor = 1
        if isinstance(n, int) and single and n > 1:
            factor = next((f for f in (widest, 5, 3, 7, 6, 2) if n % f == 0 and f <= (7 if widest == 4 else 3)), 0)
        nests: list[tuple[Code, list[Symbol]]] = []
        if factor > 1:
            blocks = index(f"{last.name} block", n // factor)  # type: ignore[operator]
            nests.append((unroll_positions(code, last, blocks, factor), [*positions[:-1], blocks]))
        elif factor == 0 and isinstance(n, int) and n >= widest:
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
                part = self._sums_to_tile(part, local)
            out.append(Nest([*params, self.lanes], [part], {}, w.tree.name, order=(self.lanes, *params), lanes=self.lanes))
        return out

    def _sums_to_tile(self, code: Code, local: dict[str, Container]) -> Code:
        """Redirect sums into the result to rows of lanes that live for one tile."""
        writes = dict(code.writes)
        own = [n for n, r in code.writes.items() if r.combine is not None and not r.local]
        if not own:
            return code
        free = frozenset((*self.outer, self.tile, self.lanes))
        key = f"sums#{next(_serial)}"
        lanes = self.lanes.size
        for k, n in enumerate(own):
            r = writes[n]
            if len(COMBINERS[r.combine].components) > 1 or r.indirect or not depends(r.address, frozenset(free_symbols_of(r.address))) <= free:  # type: ignore[index]
                raise _NoWindow
            if self.lanes not in free_symbols_of(r.address):
                raise _NoWindow
            part = Ref(key, r.dtype.compute, k * lanes + self.lanes, combine=r.combine, local=True)
            writes[n] = part
            self.sums.setdefault((r.container, r.address, r.combine or "", r.dtype), []).append((key, k))
        dtypes = {code.writes[n].dtype.compute for n in own}
        if len(dtypes) != 1:
            raise _NoWindow
        local[key] = Container(key, dtypes.pop(), (len(own), lanes), storage="register")
        return Code(code.reads, writes, {n: _widened(v) if n in own else v for n, v in code.code.items()}, code.origin)

    def _flush(self) -> list[Nest | Code]:
        """result (sum) = what the tile added up; results of one container that are equally far apart in one loop."""
        out: list[Nest | Code] = []
        rest = list(self.sums.items())
        while rest:
            (container, address, combiner, dtype), parts = rest.pop(0)
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
            write = Ref(container, dtype, address + k * step, combine=combiner)
            params = [k, self.lanes] if len(run) > 1 else [self.lanes]
            code = Code(reads, {"sum": write}, {"sum": value})
            if len(run) == 1:
                code = code.rewritten(lambda e, k=k: e if isinstance(e, int) else substitute(e, {k: 0}))
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
