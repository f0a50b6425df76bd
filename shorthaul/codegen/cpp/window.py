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
from shorthaul.ir.scalar import Scalar, cast, read, walk
from shorthaul.ir.scalar_ops import COMBINERS, identity
from shorthaul.symbolic import (
    FloorDiv,
    IntLike,
    Mod,
    Symbol,
    ceildiv,
    free_symbols,
    index,
)

from .linearize import Code, Nest, Ref, decompose, depends
from .plan import Group, choose_vector, estimate, groups, ref_params

MAX_TAPS = 49
_serial = itertools.count()


@dataclass(frozen=True)
class Axis:
    """Coordinates s*a + d*u of a position parameter a and a tap parameter u."""

    position: Symbol
    tap: Symbol
    s: int
    d: int


class NoWindow(Exception):
    """The nest is not a window of the kind handled here."""


def find_windows(nest: Nest, nested: bool = False) -> list[Window]:
    """The phases of a window, one for most; raises NoWindow if the nest is none, or has no lanes beside the window's own axes.

    nested: loops run around it, which a result may be summed over.
    """
    tree, taps_kept = _as_tree(nest, nested)
    parts: list[tuple[Nest, Known]] = [(tree, {})] if taps_kept else _split_phases(tree, {})
    return [Window(p, taps_kept, known) for p, known in parts]


def _as_tree(nest: Nest, nested: bool) -> tuple[Nest, bool]:
    """Positions outside, taps inside: (tree, whether the taps are kept, as in a weight gradient)."""
    code = nest.leaf
    if code is None:
        inner = [n for n in nest.body if isinstance(n, Nest)]
        if not inner or any(n.leaf is None for n in inner) or any(c.shape != () for c in nest.locals.values()):
            raise NoWindow
        for n in inner:
            if any(not r.local or r.combine is None or len(COMBINERS[r.combine].components) > 1 for r in n.leaf.writes.values()):  # type: ignore[union-attr]
                raise NoWindow
        return nest, False
    found = groups(code, frozenset(nest.params))
    combining = [g for g in found if g.combiner is not None]
    if not combining or len(combining) != len(found) or any(len(g.names) > 1 or g.scatters or g.scan is not None for g in combining):
        raise NoWindow
    if any(r.guard for r in code.writes.values()) or any(r.indirect for r in (*code.reads.values(), *code.writes.values())):
        raise NoWindow
    kept = frozenset(p for p in nest.params if all(p in g.kept for g in combining))
    if any(p in g.kept for p in nest.params if p not in kept for g in combining):
        raise NoWindow
    reduced = frozenset(nest.params) - kept
    inside = [p for p in nest.params if p in reduced and _is_tap(code, p, nest.params, kept)]
    outside = [p for p in nest.params if p in kept and _is_tap(code, p, nest.params, reduced)]
    few_inside, few_outside = (math.prod(estimate(p.size) for p in ps) for ps in (inside, outside))
    fewer = few_inside <= few_outside or few_outside > MAX_TAPS or not outside
    if inside and len(inside) == len(reduced) and few_inside <= MAX_TAPS and fewer:  # every reduced parameter is a tap
        return _taps_inside(nest, code, combining, inside, nested), False
    if outside and len(outside) < len(kept) and few_outside <= MAX_TAPS:
        return nest, True
    raise NoWindow


def _taps_inside(nest: Nest, code: Code, combining: Sequence[Group], small: list[Symbol], nested: bool) -> Nest:
    """The flat nest with its taps in a nest of their own, whose sums are scalars that a second tasklet stores."""
    if not all(isinstance(p.size, int) for p in small) or math.prod(estimate(p.size) for p in small) > MAX_TAPS:
        raise NoWindow
    outer = [p for p in nest.params if p not in small]
    local, inner_writes, values, writes = {}, {}, {}, {}
    for g in combining:
        (name,) = g.names
        ref = code.writes[name]
        key = f"window sum#{next(_serial)}"
        local[key] = Container(key, ref.dtype.compute, (), storage="register")
        inner_writes[name] = Ref(key, ref.dtype.compute, 0, combine=ref.combine, local=True)
        values[name] = cast(read(name, ref.dtype.compute), ref.dtype)
        writes[name] = ref if nested else replace(ref, combine=None)
    body: list[Nest | Code] = [Nest(small, [Code(code.reads, inner_writes, {n: widened(code.code[n]) for n in inner_writes}, code.origin)]),
                               Code({n: replace(inner_writes[n], combine=None) for n in writes}, writes, values)]  # fmt: skip
    return Nest(outer, body, local, nest.name)


def widened(value: Scalar) -> Scalar:
    """A summand without its last rounding to 16 bits."""
    if value.op == "cast" and value.dtype.is_float and value.dtype.bits < 32:
        return cast(value.args[0], value.dtype.compute)
    return cast(value, value.dtype.compute)


def _is_tap(code: Code, p: Symbol, params: Sequence[Symbol], among: frozenset[Symbol]) -> bool:
    """Whether p shares its coordinates with one of the parameters `among`."""
    return bool(_partners(code, p, params, among))


def _partners(code: Code, tap: Symbol, params: Sequence[Symbol], among: frozenset[Symbol]) -> set[tuple[Symbol, int, int]]:
    """(position, s, d) of the coordinates s * position + d * tap that the reads use, for positions `among` the parameters; steps are 0
    where a quotient hides them.

    Conditions tell which parameters form a coordinate; without any, the parameter whose step in memory is next to the tap's does.
    """
    every = frozenset(params)
    found: set[tuple[Symbol, int, int]] = set()
    for r in code.reads.values():
        for c in r.guard:
            coefficients, _, nonlinear = decompose(c.expr, every)
            if tap in nonlinear:
                for atom in _atoms(c.expr):
                    if isinstance(atom, (FloorDiv, Mod)) and tap in free_symbols(atom):
                        others = [q for q in among if q is not tap and q in free_symbols(atom)]
                        found |= {(q, 0, 0) for q in others if len(others) == 1}
            elif tap in coefficients and len(coefficients) == 2:
                (q,) = (q for q in coefficients if q is not tap)
                if q in among:
                    _add_steps(found, q, coefficients[q], coefficients[tap])
    if found:
        return found
    for r in code.reads.values():
        coefficients, _, _ = decompose(r.address, every)
        d = coefficients.get(tap)
        near = [(abs(s) / abs(d), q) for q, s in coefficients.items()
                if isinstance(d, int) and isinstance(s, int) and q is not tap and q in among
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
                    raise NoWindow
                return _phases(tree, n, atoms[0].dividend, atoms[0].divisor, known)
    return [(tree, known)]


def _phases(tree: Nest, inner: Nest, dividend: IntLike, m: int, known: Known) -> list[tuple[Nest, Known]]:
    coefficients, rest, nonlinear = decompose(dividend, frozenset((*tree.params, *inner.params)))
    taps = [p for p in coefficients if p in inner.params]
    positions = [p for p in coefficients if p in tree.params]
    if (
        nonlinear
        or len(taps) != 1
        or len(positions) != 1
        or not isinstance(rest, int)
        or len([n for n in tree.body if isinstance(n, Nest)]) > 1
    ):
        raise NoWindow
    (u,), (a,) = taps, positions
    ca, cu = coefficients[a], coefficients[u]
    if not isinstance(ca, int) or not isinstance(cu, int) or math.gcd(cu, m) != 1 or not isinstance(u.size, int):
        raise NoWindow
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
class Stage:
    """A value that depends on coordinates: `code` computes it from coordinate symbols; `axes` and `offsets` place it."""

    key: str
    node: Scalar
    nest: Nest
    axes: list[Axis]
    offsets: list[int]
    signature: tuple[object, ...] = ()


class Window:
    """One tree of positions and taps: its axes, its lanes, and the values to stage."""

    def __init__(self, tree: Nest, taps_kept: bool, known: Known) -> None:
        self.tree, self.taps_kept = tree, taps_kept
        kept_taps: set[Symbol] = set()
        among = frozenset(tree.params)
        if taps_kept:
            assert tree.leaf is not None
            kept = groups(tree.leaf, frozenset(tree.params))[0].kept
            among -= kept
            kept_taps = {u for u in kept if _is_tap(tree.leaf, u, tree.params, among)}
        self.inner = [tree] if taps_kept else [n for n in tree.body if isinstance(n, Nest)]
        self.axes: dict[Symbol, Axis] = {}
        for n in self.inner:
            code = n.leaf
            assert code is not None
            scope = [*tree.params, *(p for p in n.params if p not in tree.params)]
            for u in n.params:
                if taps_kept and u not in kept_taps:
                    continue
                self.axes[u] = known[u] if u in known else self._axis(code, u, scope, among)
        if not self.axes:
            raise NoWindow
        self.positions = list(dict.fromkeys(a.position for a in self.axes.values()))
        self.taps = list(self.axes)
        self.lanes = self._lanes()
        self.outer = [p for p in tree.params if p not in self.positions and p not in self.taps and p is not self.lanes]
        if len(self.positions) > 2 or not all(isinstance(p.size, int) for p in (*self.positions, *self.taps)):
            raise NoWindow
        every = frozenset((*tree.params, *self.taps))
        if any(depends(p.size, every) for p in every):
            raise NoWindow
        self.stages = [s for n in self.inner for s in self._stages(n)]

    def _axis(self, code: Code, u: Symbol, scope: Sequence[Symbol], among: frozenset[Symbol]) -> Axis:
        found = _partners(code, u, scope, among)
        if len(found) != 1:
            raise NoWindow
        ((q, s, d),) = found
        if s == 0:
            raise NoWindow
        return Axis(q, u, s, d)

    def _lanes(self) -> Symbol:
        reads: dict[str, Ref] = {}
        writes: dict[str, Ref] = {}
        for k, c in enumerate(self.tree.codes()):
            reads.update({f"{k}.{n}": r for n, r in c.reads.items() if depends(r.address, frozenset(self.positions))})
            writes.update({f"{k}.{n}": r for n, r in c.writes.items() if depends(r.address, frozenset(self.positions))})
        params = [p for p in self.tree.params if p not in self.taps]
        v = choose_vector(Code(reads, writes, {}), params)
        if v is None or v in self.positions or v in self.taps:
            raise NoWindow
        return v

    def _stages(self, n: Nest) -> list[Stage]:
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
                elif (ref is None or not ref.indirect) and self._by_coordinates(ref.expressions if ref is not None else [node.attr], used):  # type: ignore[list-item]
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
                plain = node.op == "read" and not code.reads[node.attr].guard  # type: ignore[index]
                if not plain and any(x.op == "read" for x in walk(node)):
                    out.append(self._stage(n, node))
        return out

    def _by_coordinates(self, expressions: Sequence[IntLike], used: frozenset[Symbol]) -> bool:
        axes = [a for a in self.axes.values() if a.tap in used]
        if frozenset(p for a in axes for p in (a.position, a.tap)) != used or len({a.position for a in axes}) != len(axes):
            return False
        for e in expressions:
            coefficients, _, nonlinear = decompose(e, used)
            if nonlinear:
                return False
            for a in axes:
                x, y = coefficients.get(a.position, 0), coefficients.get(a.tap, 0)
                if not isinstance(x, int) or not isinstance(y, int) or x * a.d != y * a.s:
                    return False
        return True

    def _stage(self, n: Nest, node: Scalar) -> Stage:
        code = n.leaf
        assert code is not None
        used = frozenset((*self.positions, *self.taps))
        names = [x.attr for x in walk(node) if x.op == "read"]
        refs: dict[str, Ref] = {name: code.reads[name] for name in names}  # type: ignore[index,misc]
        indices = [x.attr for x in walk(node) if x.op == "index"]
        touched = frozenset().union(*(ref_params(code, r, used) for r in refs.values()), *(depends(e, used) for e in indices))  # type: ignore[arg-type]
        axes = [a for a in self.axes.values() if a.tap in touched]
        offsets = []
        for a in axes:  # absolute coordinates, if a condition tells them: Y = s*a + d*u + k >= 0
            lows = []
            for r in refs.values():
                for c in r.guard:
                    coefficients, rest, _ = decompose(c.expr, used)
                    if (
                        c.relation == "ge"
                        and set(coefficients) == {a.position, a.tap}
                        and coefficients[a.position] == a.s
                        and isinstance(rest, int)
                    ):
                        lows.append(rest)
            offsets.append(min(lows, default=0))
        return Stage(f"tile#{next(_serial)}", node, n, axes, offsets)
