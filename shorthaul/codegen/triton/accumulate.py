"""Accumulators of combining writes: started before the loops they sum over, finished after them.

The state of a combiner is kept for each element of the block while the loops run (no exchange between threads), then merged across the
block once. In a contraction the block is the matrix product's own tile; there the tile is merged first and a state of one row is kept.
A write that sums over something that the grid divides stores its state as a partial result, one row a program, and a second
kernel merges the rows in a fixed order: deterministic, without atomics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shorthaul.ir.dtypes import DType, bool_, float32, int32
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.scalar import Scalar, walk
from shorthaul.ir.scalar_ops import COMBINERS, identity
from shorthaul.symbolic import Symbol

from .contraction import strip_cast
from .text import TRITON_TYPES, literal

if TYPE_CHECKING:
    from .emit import Emitter
    from .plan import Axis, Write


class Accumulator:
    """The running state of one combining write (one entry a component)."""

    def __init__(self, e: Emitter, w: Write, taps: dict[Symbol, int]) -> None:
        self.e, self.w, self.taps = e, w, taps
        t = w.tasklet
        self.components = COMBINERS[w.combine].components
        # a tuple combiner's writes are named after its components
        self.connectors = (
            w.connectors if len(self.components) == 1 else tuple(c for c in self.components if c in t.writes)
        )
        if len(self.connectors) != len(self.components):
            raise ValueError(f"{t}: combiner {w.combine} needs the writes {', '.join(self.components)}")
        self.code = [strip_cast(t.code[c]) for c in self.connectors]
        self.memlets: list[Memlet] = [t.writes[c] for c in self.connectors]
        self.dtypes: tuple[DType, ...] = tuple(wide_type(c.dtype) for c in self.code)
        self.reduced = e.reduced_axes(w)
        self.blocked = [a for a in self.reduced if a.dim is not None]
        self.kept = [a for a in e.plan.axes if a.dim is not None and a not in self.blocked]
        self.is_dot = id(t) in e.plan.contractions
        self.fold = bool(e.plan.contractions) and not self.is_dot
        self.names = [e.fresh(self._hint(c)) for c in self.connectors]
        self.deps: list[frozenset[Symbol]] = []

    def _hint(self, connector: str) -> str:
        taps = "".join(f"_{v}" for v in self.taps.values())
        return f"{connector}_acc{taps}"

    def start(self) -> None:
        """Set the state to the combiner's identity."""
        e = self.e
        self.deps = self._state_deps()
        for name, deps, at, dtype in zip(self.names, self.deps, range(9), self.dtypes, strict=False):
            value = identity(self.w.combine, at, bool_ if self.w.combine in ("any", "all") else dtype).attr
            value = int(value) if dtype is int32 and isinstance(value, bool) else value
            e.line(f"{name} = tl.full({e.shape(deps)}, {literal(value)}, {TRITON_TYPES[dtype.name]})")

    def _state_deps(self) -> list[frozenset[Symbol]]:
        e, w = self.e, self.w
        axes = {a.index for a in e.plan.axes if a.dim is not None}
        if self.is_dot:
            return [frozenset(a.index for a in e.plan.axes if a.dim is not None)]
        masked = {a.index for a in self.blocked}
        deps = [frozenset((self._element_deps(c) & axes) | masked) for c in self.code]
        if self.fold:
            deps = [d - masked for d in deps]
        if len(deps) == 1:
            return deps
        # a component of the merged state varies along whatever its merge reads
        left = [Scalar("read", (), d, f"l{i}") for i, d in enumerate(self.dtypes)]
        right = [Scalar("read", (), d, f"r{i}") for i, d in enumerate(self.dtypes)]
        merged = COMBINERS[w.combine].merge(tuple(left), tuple(right))
        for _ in deps:
            named = {f"{s}{i}": deps[i] for i in range(len(deps)) for s in "lr"}
            deps = [frozenset().union(*(named[n.attr] for n in walk(m) if n.op == "read")) | d  # type: ignore[index]
                    for m, d in zip(merged, deps, strict=True)]  # fmt: skip
        return deps

    def _element_deps(self, code: Scalar) -> frozenset[Symbol]:
        """Axes of an element, also where locals that it reads are not computed yet (they vary along every kept axis)."""
        t = self.w.tasklet
        found = self.e.deps(t, code)
        for n in walk(code):
            if n.op == "read" and t.reads[n.attr].container in self.e.plan.local_names:  # type: ignore[index]
                found |= {a.index for a in self.e.plan.axes if a.dim is not None}
        return found

    def _elements(self) -> list[str]:
        e, t = self.e, self.w.tasklet
        masks = e.mask(a.index for a in self.blocked)
        guards = [e.condition(c) for c in self.memlets[0].guard]
        texts = []
        for at, (code, dtype) in enumerate(zip(self.code, self.dtypes, strict=True)):
            text = e.value(t, code, self.connectors[at])
            neutral = identity(self.w.combine, at, bool_ if self.w.combine in ("any", "all") else dtype).attr
            if dtype is int32 and code.dtype is bool_:
                text, neutral = f"{text}.to(tl.int32)", int(neutral)  # type: ignore[call-overload]
            elif code.dtype is not dtype and code.op != "const":
                text = f"{text}.to({TRITON_TYPES[dtype.name]})"
            is_neutral = code.op == "const" and code.attr == neutral
            if (masks or guards) and not is_neutral:
                if code.op == "const":
                    text = f"tl.full([], {text}, {TRITON_TYPES[dtype.name]})"
                text = f"tl.where({' & '.join(masks + guards)}, {text}, {literal(neutral)})"
            elif code.op == "const":
                text = f"tl.full([], {text}, {TRITON_TYPES[dtype.name]})"
            texts.append(text)
        return texts

    def add(self) -> None:
        """Merge the elements of the current block into the state."""
        e = self.e
        if self.fold and self.blocked:
            self._add_tile()
            return
        elements = self._elements()
        if len(self.names) == 1:
            e.line(f"{self.names[0]} = {self._merge_one(self.names[0], elements[0])}")
            return
        fn = e.combiner_function(self.w.combine, self.dtypes)
        e.line(f"{', '.join(self.names)} = {fn}({', '.join([*self.names, *elements])})")

    def _merge_one(self, a: str, b: str) -> str:
        if self.w.combine == "sum":
            return f"{a} + {b}"
        return f"merge_{self.w.combine}({a}, {b})"

    def _add_tile(self) -> None:
        """Merge across the tile first: the state of a contraction's epilogue is one row."""
        e = self.e
        if len(self.names) == 1:
            merged = self._across(self._elements(), self.blocked)[0]
            e.line(f"{self.names[0]} = {self._merge_one(self.names[0], merged)}")
            return
        if (
            self.w.combine == "welford"
            and self.code[0].op == "const"
            and self.code[2].op == "const"
            and len(self.blocked) == 1
        ):
            tile = self._tile_statistics(self.blocked[0])
        else:
            tile = self._across(self._elements(), self.blocked)
        fn = e.combiner_function(self.w.combine, self.dtypes)
        e.line(f"{', '.join(self.names)} = {fn}({', '.join([*self.names, *tile])})")

    def _tile_statistics(self, axis: Axis) -> list[str]:
        """Count, mean and squared deviations of a tile in two passes over registers."""
        e, t = self.e, self.w.tasklet
        x = e.value(t, self.code[1], "sample")
        mask, dim = e.masks[axis.index], axis.dim
        n, mean, off, m2 = (e.fresh(f"tile_{s}") for s in ("count", "mean", "deviation", "m2"))
        e.line(f"{n} = tl.sum(tl.where({mask}, 1.0, 0.0), axis={dim}, keep_dims=True)")
        e.line(f"{mean} = tl.sum(tl.where({mask}, {x}, 0.0), axis={dim}, keep_dims=True) / tl.maximum({n}, 1.0)")
        e.line(f"{off} = tl.where({mask}, {x} - {mean}, 0.0)")
        e.line(f"{m2} = tl.sum({off} * {off}, axis={dim}, keep_dims=True)")
        return [n, mean, m2]

    def _across(self, texts: list[str], axes: list[Axis]) -> list[str]:
        """Merge along block dimensions."""
        e = self.e
        if len(texts) == 1:
            text = texts[0]
            for a in axes:
                if self.w.combine == "sum":
                    text = f"tl.sum({text}, axis={a.dim}, keep_dims=True)"
                else:
                    text = f"tl.reduce({text}, {a.dim}, merge_{self.w.combine}, keep_dims=True)"
            return [text]
        fn = e.combiner_function(self.w.combine, self.dtypes)
        shape = e.shape(frozenset().union(*self.deps) | {a.index for a in axes})
        names = []
        for text, c in zip(texts, self.connectors, strict=True):
            names.append(e.fresh(f"{c}_block"))
            e.line(f"{names[-1]} = tl.broadcast_to({text}, {shape})")
        for a in axes:
            e.line(f"{', '.join(names)} = tl.reduce(({', '.join(names)}), {a.dim}, {fn}, keep_dims=True)")
        return names

    def finish(self) -> None:
        """Merge across the block and write the result: a local block, the container, or a partial result."""
        e = self.e
        results = list(self.names)
        if self.blocked and not self.is_dot and not self.fold:
            merged = self._across(results, self.blocked)
            if len(merged) == 1:
                e.line(f"{results[0]} = {merged[0]}")
            else:
                results = merged
        kept = frozenset().union(*self.deps) - {a.index for a in self.blocked}
        if self.w.is_local:
            for memlet, text, code in zip(self.memlets, results, self.code, strict=True):
                subset = tuple(e.plan.expr(s) for s in memlet.subset)  # type: ignore[arg-type]
                if code.dtype is bool_:
                    text = f"({text} != 0)"
                e.locals[memlet.container] = (text, kept, subset)
            return
        grid = self.partial_axes()
        if grid:
            e.partials.append(self)
        for memlet, text, code in zip(self.memlets, results, self.code, strict=True):
            if code.dtype is bool_ and not grid:
                text = f"({text} != 0)"
            place = e._place(self.w.tasklet, memlet)
            deps = e.memlet_deps(self.w.tasklet, memlet)
            if grid:
                part = self.partial_name(memlet)
                whole = e.plan.container(memlet.container)
                size = e.ix(whole.size)
                row = self._partial_row(grid)
                memlet = memlet.with_(container=part)
                place = f"({row}) * ({size}) + {self._dense(place, whole)}"
            e.store(memlet, place, text, deps)

    def _dense(self, place: str, container: object) -> str:
        """A partial result has its container's own layout, which must be dense."""
        return place if place.isidentifier() or place.isdigit() else f"({place})"

    def partial_axes(self) -> list[tuple[Axis, str]]:
        """Reduced axes that the grid divides, slowest last."""
        from .emit import grid_axes

        return [(a, kind) for a, kind in grid_axes(self.e.plan) if a in self.reduced and kind != "tile"]

    def partial_name(self, memlet: Memlet) -> str:
        return f"{memlet.container}_partial"

    def _partial_row(self, grid: list[tuple[Axis, str]]) -> str:
        text = ""
        for axis, kind in reversed(grid):
            here = "chunk" if kind == "chunk" else self.e.names[axis.index]
            text = here if not text else f"({text}) * ({self.e.ix(axis.size)}) + {here}"
        return text


def wide_type(dtype: DType) -> DType:
    """Accumulate in float32 or better; booleans as integers."""
    if dtype is bool_:
        return int32
    return float32 if dtype.is_float and dtype.bits < 32 else dtype
