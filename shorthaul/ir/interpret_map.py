"""How the interpreter runs a map: the body is evaluated for the whole domain at once, one array axis per parameter.

Index expressions become integer arrays that broadcast over the domain, reads are fancy indexing, and a local container gets
the axes of the parameters around it in front of its own. Large domains are cut into blocks of the leading parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from shorthaul.symbolic import Expr, Symbol, free_symbols

from .containers import Container
from .interpret_values import Merge, Value, accumulator_dtype, evaluate_index
from .memlet import Guard, Indirect, Memlet, Span
from .nodes import Map, Node, Tasklet
from .scalar_ops import COMBINERS

if TYPE_CHECKING:
    from .interpreter import Interpreter

IntLike = Union[int, Expr]
BLOCK = 4_000_000  # points of a domain that are evaluated at once

# what is known of an element of a container: nothing, that it has a combiner's identity, that it was written, or that
# the running node combines into it
UNDEFINED, IDENTITY, WRITTEN, COMBINING = 0, 1, 2, 3


class InterpretError(RuntimeError):
    """The program is wrong: an access out of range, an element written twice, or read and never written."""


class Cell:
    """The value of a container: its elements and what is known of each (`state` None: all are written)."""

    def __init__(self, container: Container, array: np.ndarray, state: np.ndarray | None, outer: int = 0,
                 exclusive: bool = True) -> None:  # fmt: skip
        self.container = container
        self.array = array
        self.state = state
        self.outer = outer  # leading axes that belong to the parameters around a local
        self.exclusive = exclusive  # an element may be written once only
        self.accumulator: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.container.name


@dataclass
class Scope:
    """The parameters in scope with their values as arrays of `len(sizes)` axes; `mask` excludes points of ragged domains."""

    values: dict[Symbol, Value]
    sizes: tuple[int, ...] = ()
    axes: tuple[Symbol, ...] = ()
    mask: np.ndarray | None = None
    cells: Mapping[str, Cell] | None = None

    def inner(self, more: int) -> Scope:
        """The scope with `more` axes behind, all of size one in the arrays there are."""

        def widen(v: Value) -> Value:
            return v if isinstance(v, int) else v.reshape(v.shape + (1,) * more) if v.ndim else v

        mask = None if self.mask is None else widen(self.mask)
        return Scope({s: widen(v) for s, v in self.values.items()}, self.sizes, self.axes, mask, self.cells)  # type: ignore[arg-type]


class MapRun:
    """One execution of a top-level map."""

    def __init__(self, interpreter: Interpreter, node: Map) -> None:
        self.interpreter = interpreter
        self.arithmetic = interpreter.arithmetic
        self.node = node
        self.place = ""

    def run(self) -> None:
        root = Scope(dict(self.interpreter.sizes), cells={})
        with np.errstate(all="ignore"):
            self._start_combining((self.node,), None)
            self._map(self.node, root)
            self._finish_combining((self.node,), None)

    # domains -----------------------------------------------------------------------------------------------------------
    def _hull(self, m: Map, scope: Scope) -> tuple[list[tuple[int, int]], Scope]:
        """The least and greatest value of each parameter, and the scope with all of them (for their bounds)."""
        inner = scope.inner(len(m.params))
        rank = len(scope.sizes) + len(m.params)
        ranges = []
        for i, p in enumerate(m.params):
            low, high = self._number(p.lower, inner, np.min), self._number(p.upper, inner, np.max)
            ranges.append((low, high))
            inner.values[p] = _axis(np.arange(low, high + 1), len(scope.sizes) + i, rank)
        inner.sizes += tuple(max(0, b - a + 1) for a, b in ranges)
        inner.axes += m.params
        return ranges, inner

    def _number(self, e: IntLike | None, scope: Scope, pick: Callable[..., Any]) -> int:
        if e is None:
            raise InterpretError(f"{self.node}: a map parameter has no bounds")
        value = evaluate_index(e, scope.values, {})
        return int(value) if isinstance(value, int) else int(pick(value)) if value.size else 0

    def _points(self, m: Map, scope: Scope) -> int:
        _, inner = self._hull(m, scope)
        n = math.prod(inner.sizes[len(scope.sizes) :])
        return n * max([1, *(self._points(c, inner) for c in m.body if isinstance(c, Map))]) if n else 0

    def _blocks(self, m: Map, scope: Scope) -> Iterator[tuple[tuple[int, int], ...]]:
        ranges, _ = self._hull(m, scope)
        total = math.prod(scope.sizes) * self._points(m, scope)
        if total == 0:
            return
        held = _unsplittable(m)
        cuts = []
        for p, (low, high) in zip(m.params, ranges, strict=True):
            n = high - low + 1
            step = n
            if total > BLOCK and p not in held:
                step = -(-n // min(n, -(-total // BLOCK)))
                total = -(-total * step // n)
            cuts.append([(a, min(a + step - 1, high)) for a in range(low, high + 1, step)])
        yield from itertools.product(*cuts)

    def _map(self, m: Map, scope: Scope) -> None:
        for block in self._blocks(m, scope):
            inner = scope.inner(len(m.params))
            rank = len(scope.sizes) + len(m.params)
            for i, (p, (low, high)) in enumerate(zip(m.params, block, strict=True)):
                inner.values[p] = _axis(np.arange(low, high + 1), len(scope.sizes) + i, rank)
            inner.sizes += tuple(b - a + 1 for a, b in block)
            inner.axes += m.params
            mask = inner.mask
            for p in m.params:
                if not _constant_range(p, inner):
                    v = np.asarray(inner.values[p])
                    least, most = (evaluate_index(e, inner.values, {}) for e in (p.lower, p.upper))  # type: ignore[arg-type]
                    within: np.ndarray = np.asarray((v >= least) & (v <= most))
                    mask = within if mask is None else mask & within
            inner.mask = mask
            inner.cells = {**scope.cells, **{k: self._local(c, inner) for k, c in m.locals.items()}}  # type: ignore[dict-item]
            for child in m.body:
                self._start_combining((child,), inner, m.locals)
                if isinstance(child, Map):
                    self._map(child, inner)
                elif isinstance(child, Tasklet):
                    TaskletRun(self, child, inner).run()
                else:
                    raise InterpretError(f"{self.node}: a map's body holds maps and tasklets, not {child}")
                self._finish_combining((child,), inner, m.locals)

    def _local(self, c: Container, scope: Scope) -> Cell:
        shape = scope.sizes + tuple(self._number(n, scope, np.max) for n in c.shape)
        return self.interpreter.new_cell(c, shape, len(scope.sizes))

    # combining writes --------------------------------------------------------------------------------------------------
    def _combining(
        self, nodes: tuple[Node, ...], scope: Scope | None, declared: Mapping[str, Container] | None
    ) -> Iterator[tuple[Cell, str, str]]:
        """(cell, combiner, connector) of what the nodes combine into: containers declared here, global ones without a scope."""
        for node in nodes:
            tasklets = (
                [node]
                if isinstance(node, Tasklet)
                else [t for _, t in node.tasklets()]
                if isinstance(node, Map)
                else []
            )
            inner = frozenset() if not isinstance(node, Map) else _declared_inside(node)
            for t in tasklets:
                for name, w in t.writes.items():
                    if not w.combine or w.scan is not None:
                        continue
                    if scope is None and w.container in self.interpreter.containers and w.container not in inner:
                        yield self.interpreter.cell_to_write(w.container), w.combine, name
                    elif scope is not None and declared and w.container in declared and w.container not in inner:
                        yield scope.cells[w.container], w.combine, name  # type: ignore[index]

    def _start_combining(
        self, nodes: tuple[Node, ...], scope: Scope | None, declared: Mapping[str, Container] | None = None
    ) -> None:
        for cell, combiner, name in self._combining(nodes, scope, declared):
            if cell.accumulator is not None:
                continue
            dtype = accumulator_dtype(cell.container.dtype)
            start = Merge(combiner, (dtype,) * len(COMBINERS[combiner].identity)).identity[component(combiner, name)]
            if cell.state is None:
                raise InterpretError(f"{self.node}: combines into {cell.name}, which is written already")
            cell.accumulator = np.full(cell.array.shape, start, dtype.numpy)
            if cell.exclusive:
                filled = cell.state == UNDEFINED
                cell.state[filled] = IDENTITY
            else:
                filled = np.ones(cell.state.shape, bool)
                cell.state[...] = IDENTITY
            if not cell.outer:
                self.interpreter.count_mask(self.node, cell, "write", filled)

    def _finish_combining(
        self, nodes: tuple[Node, ...], scope: Scope | None, declared: Mapping[str, Container] | None = None
    ) -> None:
        for cell, _, _ in self._combining(nodes, scope, declared):
            if cell.accumulator is not None and cell.state is not None:
                mine = (cell.state == COMBINING) | (cell.state == IDENTITY)
                np.copyto(cell.array, self.arithmetic.store(cell.accumulator, cell.container.dtype), where=mine)
                cell.state[cell.state == COMBINING] = WRITTEN
                cell.accumulator = None


class TaskletRun:
    """One tasklet over the whole domain in scope."""

    def __init__(self, run: MapRun, tasklet: Tasklet, scope: Scope) -> None:
        self.interpreter = run.interpreter
        self.arithmetic = run.arithmetic
        self.node = run.node
        self.tasklet = tasklet
        self.scope = scope
        self.memo: dict[Expr, Value] = {}
        self.values: dict[str, np.ndarray] = {}
        self.pending: set[str] = set()

    def run(self) -> None:
        t = self.tasklet
        for name in t.reads:
            self.value(name)
        results = self.arithmetic.code(t.code, self.value, self.index)
        groups: dict[str, list[str]] = {}
        for name, w in t.writes.items():
            if w.combine is None:
                self.write(w, results[name])
            elif len(COMBINERS[w.combine].components) == 1:
                self.combine(w.combine, (w,), [results[name]])
            else:
                groups.setdefault(w.combine, []).append(name)
        for combiner, names in groups.items():
            parts = COMBINERS[combiner].components
            if set(names) != set(parts):
                raise InterpretError(
                    f"{self.node}: the combiner {combiner} writes {', '.join(parts)}, not {', '.join(names)}"
                )
            self.combine(combiner, tuple(t.writes[p] for p in parts), [results[p] for p in parts])

    # accesses ------------------------------------------------------------------------------------------------------------
    def index(self, e: IntLike) -> Value:
        return evaluate_index(e, self.scope.values, self.memo)

    def cell(self, name: str, write: bool) -> Cell:
        local = self.scope.cells.get(name)  # type: ignore[union-attr]
        if local is not None:
            return local
        return self.interpreter.cell_to_write(name) if write else self.interpreter.cell(name, f"{self.node}")

    def guard(self, conditions: Guard) -> np.ndarray | None:
        found: np.ndarray | None = None
        for c in conditions:
            v = self.index(c.expr)
            holds = np.asarray(v >= 0 if c.relation == "ge" else v == 0)
            found = holds if found is None else found & holds
        return found

    def subscripts(self, m: Memlet, cell: Cell, mask: np.ndarray | None) -> list[np.ndarray]:
        """One integer array per axis of the cell, checked against its bounds; 0 where the mask excludes a point."""
        rank = len(self.scope.sizes)
        out = [_axis(np.arange(self.scope.sizes[a]), a, rank) for a in range(cell.outer)]
        sizes = cell.array.shape[cell.outer :]
        if len(sizes) != len(m.subset):
            raise InterpretError(
                f"{self.node}: {m} has {len(m.subset)} subscripts, the container {len(sizes)} dimensions"
            )
        for s, n in zip(m.subset, sizes, strict=True):
            if isinstance(s, Span):
                raise InterpretError(f"{self.node}: a tasklet reads and writes single elements, not {m}")
            idx = np.asarray(self.value(s.name) if isinstance(s, Indirect) else self.index(s))
            if idx.dtype.kind not in "iu":
                raise InterpretError(f"{self.node}: subscript {s} of {m} is not an integer")
            idx = idx.astype(np.int64, copy=False)
            bad = (idx < 0) | (idx >= n)
            if bad.any():
                wrong = bad if mask is None else bad & mask
                if wrong.any():
                    example = np.broadcast_to(idx, wrong.shape)[wrong][0]
                    raise InterpretError(f"{self.node}: {m} is out of range: subscript {s} is {example}, the size {n}")
                idx = np.where(bad, 0, idx)
            out.append(idx)
        return out

    def value(self, name: str) -> np.ndarray:
        """The value of a read, as an array that broadcasts over the domain."""
        if name in self.values:
            return self.values[name]
        if name not in self.tasklet.reads or name in self.pending:
            raise InterpretError(f"{self.node}: the tasklet has no read {name}" if name not in self.pending else
                                 f"{self.node}: read {name} is subscripted by itself")  # fmt: skip
        self.pending.add(name)
        m = self.tasklet.reads[name]
        cell = self.cell(m.container, write=False)
        guard = self.guard(m.guard)
        mask = _both(self.scope.mask, guard)
        idx = self.subscripts(m, cell, mask)
        if cell.accumulator is not None:
            raise InterpretError(f"{self.node}: reads {m} while it combines into it")
        if cell.array.size == 0:
            value = np.zeros(
                (1,) * len(self.scope.sizes), cell.array.dtype
            )  # only reached where the mask excludes all points
        else:
            value = np.asarray(cell.array[tuple(idx)])
            if cell.state is not None:
                missing = np.asarray(cell.state[tuple(idx)] == UNDEFINED)
                if mask is not None:
                    missing = missing & mask
                if missing.any():
                    raise InterpretError(f"{self.node}: {m} reads an element that was never written")
        if guard is not None:
            if m.fill is None:
                raise InterpretError(f"{self.node}: the guarded read {m} has no fill")
            value = np.where(guard, value, np.asarray(m.fill).astype(value.dtype))
        if not cell.outer and self.interpreter.counts is not None:
            self.interpreter.count(self.node, cell, "read", idx, mask, self.scope.sizes)
        self.pending.discard(name)
        self.values[name] = value
        return value

    def write(self, m: Memlet, value: np.ndarray) -> None:
        cell = self.cell(m.container, write=True)
        mask = _both(self.scope.mask, self.guard(m.guard))
        idx = self.subscripts(m, cell, mask)
        if not cell.outer and self.interpreter.counts is not None:
            self.interpreter.count(self.node, cell, "write", idx, mask, self.scope.sizes)
        self.assign(m, cell, idx, mask, value, self.scope.sizes)

    def assign(
        self,
        m: Memlet,
        cell: Cell,
        idx: list[np.ndarray],
        mask: np.ndarray | None,
        value: np.ndarray,
        sizes: tuple[int, ...],
    ) -> None:
        """Write elements that are written nowhere else."""
        where, values = _select(idx, mask, sizes), _pick(value, mask, sizes)
        array, state = cell.array, cell.state
        if not idx:
            array, state = array.reshape(1), None if state is None else state.reshape(1)
            where = (np.zeros(values.shape, np.int64),)
        if cell.exclusive:
            if state is None or (state[where] >= WRITTEN).any():
                raise InterpretError(f"{self.node}: {m} writes an element that is written already")
            before = np.count_nonzero(state == WRITTEN)
            state[where] = WRITTEN
            if np.count_nonzero(state == WRITTEN) - before != values.size:
                raise InterpretError(f"{self.node}: {m} writes an element twice")
        elif state is not None:
            state[where] = WRITTEN
        array[where] = self.arithmetic.store(values, cell.container.dtype)

    def combine(self, combiner: str, memlets: tuple[Memlet, ...], values: list[np.ndarray]) -> None:
        m = memlets[0]
        if any((w.subset, w.guard, w.scan) != (m.subset, m.guard, m.scan) for w in memlets):
            raise InterpretError(f"{self.node}: the components of {combiner} are written to different elements")
        cells = [self.cell(w.container, write=True) for w in memlets]
        dtypes = tuple(accumulator_dtype(c.container.dtype) for c in cells)
        merge = Merge(combiner, dtypes)
        guard = self.guard(m.guard)
        mask = _both(self.scope.mask, guard)
        idx = self.subscripts(m, cells[0], mask)
        sizes = self.scope.sizes
        for c in cells:
            if not c.outer and self.interpreter.counts is not None:
                self.interpreter.count(self.node, c, "write", idx, mask, sizes)
        wide = [np.asarray(v).astype(d.numpy, copy=False) for v, d in zip(values, dtypes, strict=True)]
        if m.scan is not None:
            self.scan(m, merge, cells, memlets, idx, mask, wide)
            return
        ufunc = merge.combiner.numpy
        if ufunc is not None:
            wide, idx, mask, sizes = self.reduce(merge, wide, idx, mask, ())
        where = _select(idx, mask, sizes)
        parts = [_pick(v, mask, sizes) for v in wide]
        for c in cells:
            if c.state is None or c.accumulator is None or (c.state[where] == WRITTEN).any():
                raise InterpretError(f"{self.node}: {m} combines into an element that is written already")
            c.state[where] = COMBINING
        shape = cells[0].array.shape
        keys = np.ravel_multi_index(where, shape) if shape else np.zeros(parts[0].shape, np.int64)
        flat = [c.accumulator.reshape(-1) for c in cells]  # type: ignore[union-attr]
        if ufunc is not None:
            ufunc.at(flat[0], keys.reshape(-1), parts[0].reshape(-1))
        else:
            unique, merged = merge.segments(keys.reshape(-1), [np.array(p).reshape(-1) for p in parts])
            for f, new in zip(flat, merge([f[unique] for f in flat], merged), strict=True):
                f[unique] = new

    def reduce(self, merge: Merge, values: list[np.ndarray], idx: list[np.ndarray], mask: np.ndarray | None,
               keep: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None, tuple[int, ...]]:  # fmt: skip
        """Combine along the axes that no subscript depends on (but those to `keep`)."""
        sizes = self.scope.sizes
        axes = tuple(a for a in range(len(sizes)) if a not in keep and all(i.ndim == 0 or i.shape[a] == 1 for i in idx))
        value = np.broadcast_to(values[0], sizes)
        if mask is not None:
            value = np.where(mask, value, np.asarray(merge.identity[0], value.dtype))
            mask = np.asarray(np.broadcast_to(mask, sizes).any(axis=axes, keepdims=True))
        if axes:
            value = merge.combiner.numpy.reduce(value, axis=axes, keepdims=True)  # type: ignore[union-attr]
        return [value.astype(values[0].dtype, copy=False)], idx, mask, value.shape

    def scan(self, m: Memlet, merge: Merge, cells: list[Cell], memlets: tuple[Memlet, ...], idx: list[np.ndarray],
             mask: np.ndarray | None, values: list[np.ndarray]) -> None:  # fmt: skip
        if m.scan not in self.scope.axes:
            raise InterpretError(f"{self.node}: {m} scans along {m.scan}, which is not a parameter in scope")
        axis = self.scope.axes.index(m.scan)
        sizes = self.scope.sizes
        if merge.combiner.numpy is not None:
            values, idx, mask, sizes = self.reduce(merge, values, idx, mask, (axis,))
        else:
            values = [np.broadcast_to(v, sizes) for v in values]
            if mask is not None:
                values = [
                    np.where(mask, v, np.asarray(e, v.dtype)) for v, e in zip(values, merge.identity, strict=True)
                ]
        for c, w, prefix in zip(cells, memlets, merge.accumulate(values, axis), strict=True):
            self.assign(w, c, idx, mask, prefix, sizes)


def component(combiner: str, connector: str) -> int:
    """Which component of its combiner a write is: by name for tuples."""
    parts = COMBINERS[combiner].components
    return parts.index(connector) if len(parts) > 1 and connector in parts else 0


def _declared_inside(m: Map) -> frozenset[str]:
    found = frozenset(m.locals)
    for child in m.body:
        if isinstance(child, Map):
            found |= _declared_inside(child)
    return found


def _unsplittable(m: Map) -> frozenset[Symbol]:
    """Parameters that a scan runs along or reduces: all their values are needed at once."""
    held: set[Symbol] = set()
    for params, t in m.tasklets():
        for w in t.writes.values():
            if w.scan is not None:
                used = frozenset().union(*(free_symbols(s) for s in w.subset if isinstance(s, (int, Expr))))
                held |= {p for p in (*m.params, *params) if p is w.scan or p not in used}
    return frozenset(held)


def _constant_range(p: Symbol, scope: Scope) -> bool:
    return all(not isinstance(e, Expr) or free_symbols(e).isdisjoint(scope.axes) for e in (p.lower, p.upper))


def _axis(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = values.size
    return values.astype(np.int64).reshape(shape)


def _both(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a & b


def _pick(value: np.ndarray, mask: np.ndarray | None, sizes: tuple[int, ...]) -> np.ndarray:
    whole = np.broadcast_to(value, sizes)
    return whole if mask is None else whole[np.broadcast_to(mask, sizes)]


def _select(idx: list[np.ndarray], mask: np.ndarray | None, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(_pick(i, mask, sizes) for i in idx)
