"""The interpreter: what a program means, computed with NumPy.

Slow and plain on purpose: it is the oracle of tests and the check behind each transformation. It also enforces what the verifier
cannot prove: every access in range, every element written once and before it is read. Sums of floats accumulate in float64
and are rounded once. `count` collects the element accesses of each top-level node, which the movement analysis must agree with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shorthaul.symbolic import Symbol

from .blocks import block, grid, place
from .containers import Container
from .interpret_map import UNDEFINED, WRITTEN, Cell, InterpretError, MapRun
from .interpret_values import Arithmetic, evaluate_index
from .memlet import Indirect, Memlet, Span
from .nodes import Branch, LibraryCall, Loop, Map, Node, Operator
from .program import Program
from .sizes import runtime_sizes

__all__ = ["Counts", "InterpretError", "interpret"]

Library = Mapping[str, Callable[[LibraryCall, dict[str, np.ndarray]], Mapping[str, np.ndarray]]]
Expand = Callable[[Program, Operator], None]


class Counts:
    """Element accesses of top-level nodes to global containers, keyed by (node id, container, "read" or "write").

    `accesses`: how many a body executed with one element at a time makes, guards honoured. `elements`: distinct elements
    touched; a node that combines also writes the identity to the elements that no point reaches.
    """

    def __init__(self) -> None:
        self.accesses: dict[tuple[int, str, str], int] = {}
        self._touched: dict[tuple[int, str, str], np.ndarray] = {}

    @property
    def elements(self) -> dict[tuple[int, str, str], int]:
        return {k: int(np.count_nonzero(v)) for k, v in self._touched.items()}

    def touched(self, key: tuple[int, str, str], shape: tuple[int, ...]) -> np.ndarray:
        return self._touched.setdefault(key, np.zeros(shape, bool))

    def add(self, key: tuple[int, str, str], accesses: int) -> None:
        self.accesses[key] = self.accesses.get(key, 0) + accesses


def interpret(program: Program, inputs: Mapping[str, Any], sizes: Mapping[Any, int] | None = None, phase: str | None = None,
              count: Counts | None = None, library: Library | None = None, expand: Expand | None = None,
              wide: bool = False) -> dict[str, np.ndarray]:  # fmt: skip
    """Run a program and return the value of every global container that was given or written, by name.

    inputs: values by container name: inputs, parameters, buffers, cotangents; for phase "backward" alone also what the forward phase
    saved. Their shapes give the sizes that are plain symbols; `sizes` gives others, by Symbol or name. phase: run its nodes only.
    count: filled with element accesses. library: function name to fn(node, inputs by connector) -> outputs by connector.
    expand: called with (program, operator) for each Operator of a copy of the program, which it replaces through an edit.
    wide: hold and compute every float in float64, without rounding to its dtype.

    Raises InterpretError naming node and memlet where the program is wrong, ValueError for wrong inputs.
    """
    if any(isinstance(n, Operator) for n in program.nodes):
        if expand is None:
            op = next(n for n in program.nodes if isinstance(n, Operator))
            raise InterpretError(
                f"{op} ({op.origin}) is not expanded: the interpreter runs maps and library calls; expand it first or pass `expand`"
            )
        program = expanded(program, expand)
    return Interpreter(program, inputs, sizes or {}, count, library or {}, expand, wide).run(phase)


def expanded(program: Program, expand: Expand) -> Program:
    """A copy of the program in which `expand` replaced every operator."""
    program = program.clone()
    for _ in range(64):
        ops = [n for n in program.nodes if isinstance(n, Operator)]
        if not ops:
            return program
        for op in ops:
            expand(program, op)
    raise InterpretError(f"{ops[0]} is still there after 64 rounds of expansion")


class Interpreter:
    """The state of one run: sizes, and a cell per container that has a value."""

    def __init__(self, program: Program, inputs: Mapping[str, Any], sizes: Mapping[Any, int], counts: Counts | None,
                 library: Library, expand: Expand | None, wide: bool) -> None:  # fmt: skip
        self.program = program
        self.containers = program.containers
        self.counts = counts
        self.library = library
        self.expand = expand
        self.arithmetic = Arithmetic(wide)
        self.cells: dict[str, Cell] = {}
        self.aliased = {self._root(c)[0] for c in self.containers.values() if c.alias is not None}
        values = {**program.constants, **inputs}
        unknown = sorted(set(values) - set(self.containers))
        if unknown:
            raise ValueError(
                f"program {program.name} has no container {unknown[0]}; inputs are {', '.join(program.signature.inputs)}"
            )
        arrays = {k: np.asarray(v) for k, v in values.items()}
        self.sizes = self._sizes(arrays, sizes)
        for name, array in arrays.items():
            c = self.containers[name]
            shape = self.shape(c)
            if array.shape != shape:
                raise ValueError(
                    f"{name} has shape {array.shape}, the program expects {shape} ({', '.join(map(str, c.shape))})"
                )
            # external memory is never written by a node, except through the aliases of a memory plan
            state = np.full(shape, WRITTEN, np.uint8) if name in self.aliased else None
            held = np.array(self.arithmetic.store(array, c.dtype))
            self.cells[name] = Cell(c, held, state, exclusive=name not in self.aliased)

    def _sizes(self, arrays: Mapping[str, np.ndarray], given: Mapping[Any, int]) -> dict[Symbol, int]:
        sizes: dict[Symbol, int] = {}
        for s in self.program.symbols:
            if s in given or s.name in given:
                sizes[s] = int(given[s] if s in given else given[s.name])
        for name, array in arrays.items():
            for n, actual in zip(self.containers[name].shape, array.shape, strict=False):
                if isinstance(n, Symbol) and n not in sizes:
                    sizes[n] = actual
        late = runtime_sizes(self.program)
        for s in self.program.symbols:
            if s not in sizes and s not in late:
                raise ValueError(f"size {s} of program {self.program.name} is not known: pass sizes={{'{s}': ...}}")
        for s in sizes:
            self._check_size(s, sizes)
        return sizes

    def _check_size(self, s: Symbol, sizes: Mapping[Symbol, int]) -> None:
        value = sizes[s]
        low, high = (None if e is None else evaluate_index(e, sizes, {}) for e in (s.lower, s.upper))
        if (low is not None and value < low) or (high is not None and value > high) or value % s.multiple_of:
            raise ValueError(f"size {s} = {value} is outside its bounds [{low}, {high}], multiple of {s.multiple_of}")

    def shape(self, c: Container) -> tuple[int, ...]:
        return tuple(int(evaluate_index(n, self.sizes, {})) for n in c.shape)

    # cells -------------------------------------------------------------------------------------------------------------
    def new_cell(self, c: Container, shape: tuple[int, ...], outer: int = 0) -> Cell:
        """A container without a value: poisoned with NaN or a strange integer, every element undefined."""
        dtype = self.arithmetic.numpy(c.dtype)
        poison = math.nan if dtype.kind == "f" else True if dtype.kind == "b" else 101
        exclusive = c.name not in self.aliased or outer > 0
        return Cell(c, np.full(shape, poison, dtype), np.full(shape, UNDEFINED, np.uint8), outer, exclusive)

    def cell(self, name: str, reader: str) -> Cell:
        """The cell of a container that has a value."""
        if name not in self.cells:
            c = self.containers.get(name)
            if c is None:
                raise InterpretError(f"{reader} reads {name}, which is no container of the program")
            if (c.alias is None or self._root(c)[0] not in self.cells) and 0 not in self.shape(c):
                if c.is_external or c.role == "saved":
                    raise InterpretError(f"{reader} reads the {c.role} {name}, for which no value was given")
                if 0 not in self.shape(c):
                    raise InterpretError(f"{reader} reads {name}, which was never written")
            return self.cell_to_write(name)
        return self.cells[name]

    def cell_to_write(self, name: str) -> Cell:
        """The cell of a container, made where it has none."""
        found = self.cells.get(name)
        if found is None:
            c = self.containers.get(name)
            if c is None:
                raise InterpretError(f"program {self.program.name} has no container {name}")
            found = self.cells[name] = self._view(c) if c.alias is not None else self.new_cell(c, self.shape(c))
        return found

    def _root(self, c: Container) -> tuple[str, Any]:
        offset: Any = 0
        while c.alias is not None:
            offset = offset + c.alias.offset
            c = self.containers[c.alias.base]
        return c.name, offset

    def _view(self, c: Container) -> Cell:
        root, offset = self._root(c)
        base = self.cell_to_write(root)
        if base.container.dtype is not c.dtype:
            what = f"{c.name} ({c.dtype}) lies in {root} ({base.container.dtype})"
            raise InterpretError(f"{what}: the interpreter has no views across dtypes")
        start = int(evaluate_index(offset, self.sizes, {}))
        strides = [int(evaluate_index(s, self.sizes, {})) for s in c.actual_strides]
        shape = self.shape(c)

        def view(a: np.ndarray) -> np.ndarray:
            flat = a.reshape(-1)
            last = start + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            if math.prod(shape) and not 0 <= last < flat.size:
                raise InterpretError(f"{c.name} reaches element {last} of {root}, which has {flat.size}")
            return np.lib.stride_tricks.as_strided(flat[start:], shape, [s * a.itemsize for s in strides])

        return Cell(c, view(base.array), None if base.state is None else view(base.state), exclusive=False)

    # nodes -------------------------------------------------------------------------------------------------------------
    def run(self, phase: str | None) -> dict[str, np.ndarray]:
        for node in self.program.nodes:
            if phase is None or node.phase == phase:
                self.node(node)
        self._check_results(phase)
        return {name: cell.array for name, cell in self.cells.items()}

    def node(self, node: Node) -> None:
        if isinstance(node, Map):
            MapRun(self, node).run()
        elif isinstance(node, LibraryCall):
            if node.function not in self.library:
                raise InterpretError(f"{node}: no implementation of {node.function} was given to the interpreter")
            self._store(node, self.library[node.function](node, self._load(node)))
        elif isinstance(node, Loop):
            self._loop(node)
        elif isinstance(node, Branch):
            values = self._load(node)
            body = node.then if bool(values.pop("condition")) else node.otherwise
            self._store(node, self._call(body, values))
        else:
            raise InterpretError(f"the interpreter does not run {node.kind} {node} outside a map")

    def _loop(self, node: Loop) -> None:
        if node.tile is not None:
            self._rows(node, node.tile)
            return
        state = self._load(node)
        scanned = {k: state.pop(k) for k in node.scanned}
        results: dict[str, np.ndarray] = {out: state[inp] for inp, out in node.carried}
        rows: dict[str, list[np.ndarray]] = {k: [] for k in node.stacked}
        limit = None if node.count is None else int(evaluate_index(node.count, self.sizes, {}))
        step = 0
        while (limit is None or step < limit) and (node.condition is None or bool(state[node.condition])):
            if limit is None and node.reverse:
                raise InterpretError(f"{node} runs in reverse without a count")
            at = limit - 1 - step if node.reverse and limit is not None else step
            given = {k: v[at] for k, v in scanned.items()}
            if node.index is not None:
                given[node.index] = np.asarray(at, np.int64)
            results = self._call(node.body, {**state, **given})
            state.update({inp: results[out] for inp, out in node.carried})
            for k, found in rows.items():
                found.append(results[k])
            step += 1
        for k, found in rows.items():
            c = node.body.containers[k]
            empty = np.zeros((0, *self.shape(c)), self.arithmetic.numpy(c.dtype))
            results[k] = np.stack(found[::-1] if node.reverse else found) if found else empty
        self._store(node, results)

    def _rows(self, node: Loop, tile: tuple[int, ...]) -> None:
        """A loop over blocks of rows."""
        given = self._load(node)
        scanned = {k: given.pop(k) for k in node.scanned}
        whole = {k: self.shape(self.containers[m.container]) for k, m in node.writes.items()}
        results = {k: np.zeros(whole[k], self.arithmetic.numpy(self.containers[m.container].dtype)) for k, m in node.writes.items()}
        blocks = grid(tile, [*(v.shape for v in scanned.values()), *(whole[k] for k in node.stacked if k in whole)])
        for i in range(math.prod(blocks)):
            at = place(i, blocks)
            index = {} if node.index is None else {node.index: np.asarray(i, np.int64)}
            found = self._call(node.body, {**given, **{k: v[block(v.shape, tile, at)] for k, v in scanned.items()}, **index})
            for k, result in results.items():
                if k in node.summed:
                    result += found[k]
                else:
                    result[block(result.shape, tile, at)] = found[k]
        self._store(node, results)

    def _call(self, body: Program, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        named = {k: v for k, v in values.items() if k in body.containers}
        late = runtime_sizes(body)
        sizes = {s: self.sizes[s] for s in body.symbols if s in self.sizes and s not in late}
        return interpret(body, named, sizes, None, None, self.library, self.expand, self.arithmetic.wide)

    def _slices(self, m: Memlet) -> tuple[slice, ...]:
        out = []
        for s in m.subset:
            if isinstance(s, Indirect) or m.guard:
                raise InterpretError(f"{m}: only a tasklet may read indirectly or under a guard")
            span = s if isinstance(s, Span) else Span(s, 1)
            start, n, step = (int(evaluate_index(e, self.sizes, {})) for e in (span.start, span.size, span.step))
            out.append(slice(start, start + (n - 1) * step + 1 if n else start, step))
        return tuple(out)

    def _load(self, node: Node) -> dict[str, np.ndarray]:
        values = {}
        for name, m in node.reads.items():
            cell, where = self.cell(m.container, str(node)), self._slices(m)
            if cell.state is not None and (cell.state[where] == UNDEFINED).any():
                raise InterpretError(f"{node}: {m} reads an element that was never written")
            values[name] = cell.array[where].copy()
            self.count_slice(node, cell, "read", where)
        return values

    def _define(self, node: Node, values: Mapping[str, np.ndarray]) -> None:
        """The sizes that the node's results define."""
        for d in node.defines:
            value = np.asarray(values[d.connector])
            n = int(value.reshape(-1)[0]) if d.dim is None else value.shape[d.dim]
            if self.sizes.setdefault(d.symbol, n) != n:
                raise InterpretError(f"{node} defines the size {d.symbol} = {n}, which is {self.sizes[d.symbol]} already")
            if problem := d.violated(self.sizes):
                raise InterpretError(f"{node}: {problem}")

    def _store(self, node: Node, values: Mapping[str, np.ndarray]) -> None:
        self._define(node, values)
        for name, m in node.writes.items():
            cell, where = self.cell_to_write(m.container), self._slices(m)
            if name not in values:
                raise InterpretError(f"{node} gave no value for {name}")
            if cell.exclusive and (cell.state is None or (cell.state[where] >= WRITTEN).any()):
                raise InterpretError(f"{node}: {m} writes an element that is written already")
            value = np.asarray(values[name])
            if value.shape != cell.array[where].shape:
                raise InterpretError(f"{node}: {name} has shape {value.shape}, {m} has {cell.array[where].shape}")
            cell.array[where] = self.arithmetic.store(value, cell.container.dtype)
            if cell.state is not None:
                cell.state[where] = WRITTEN
            self.count_slice(node, cell, "write", where)

    def _check_results(self, phase: str | None) -> None:
        signature = self.program.signature
        wanted: list[str] = []
        if phase in (None, "forward"):
            wanted += [*signature.outputs, *(u for _, u in signature.updates)]
        if phase in (None, "backward"):
            wanted += [g for _, g in signature.gradients]
        for name in wanted:
            cell = self.cell(name, f"the signature of {self.program.name}")
            if cell.state is not None and (cell.state == UNDEFINED).any():
                missing = int(np.count_nonzero(cell.state == UNDEFINED))
                raise InterpretError(f"{missing} of {cell.array.size} elements of the result {name} were never written")

    # counting ----------------------------------------------------------------------------------------------------------
    def count(
        self, node: Node, cell: Cell, side: str, idx: list[np.ndarray], mask: np.ndarray | None, sizes: tuple[int, ...]
    ) -> None:
        """Record the accesses of one memlet over a domain."""
        if self.counts is None:
            return
        key = (node.id, cell.name, side)
        where = np.ones(sizes, bool) if mask is None else np.broadcast_to(mask, sizes)
        self.counts.add(key, int(np.count_nonzero(where)))
        self.counts.touched(key, cell.array.shape)[tuple(np.broadcast_to(i, sizes)[where] for i in idx)] = True

    def count_mask(self, node: Node, cell: Cell, side: str, mask: np.ndarray) -> None:
        """Record elements that are touched without an access of the body."""
        if self.counts is not None:
            self.counts.touched((node.id, cell.name, side), cell.array.shape)[mask] = True

    def count_slice(self, node: Node, cell: Cell, side: str, where: tuple[slice, ...]) -> None:
        if self.counts is not None:
            touched = self.counts.touched((node.id, cell.name, side), cell.array.shape)
            touched[where] = True
            self.counts.add((node.id, cell.name, side), int(touched[where].size))
