"""The loops of a kernel, with what they do not change computed before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shorthaul.ir.nodes import Tasklet
from shorthaul.ir.scalar import Scalar, walk
from shorthaul.symbolic import Symbol

from .plan import Axis

if TYPE_CHECKING:
    from .emit import Emitter


class Nest:
    """Loops over axes with what does not vary along them computed before."""

    def __init__(self, e: Emitter, axes: list[Axis], tasks: list[Tasklet]) -> None:
        self.e, self.axes, self.tasks, self.stack = e, axes, tasks, []  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        e = self.e
        for at, axis in enumerate(self.axes):
            if axis.mode != "serial" or at == 0:
                self._hoist({a.index for a in self.axes[at:]})
            step = e.fresh(f"{axis.name}_step")
            if axis.mode == "serial":
                # the innermost loop over taps is unrolled; unrolling all of them would hold every tap's loads in registers
                static = isinstance(axis.size, int) and axis.size <= 32 and at == len(self.axes) - 1
                e.line(f"for {axis.name} in {'tl.static_range' if static else 'range'}({e.ix(axis.size)}):")
            elif axis.mode == "chunk" or axis.split:
                e.line(f"for {step} in range(CHUNK_BLOCKS):")
            else:
                e.line(f"for {step} in range({axis.name.upper()}_BLOCKS):")
            scope = e.body()
            scope.__enter__()
            self.stack.append(scope)
            e.opened.add(axis.name)
            chunked = axis.mode == "chunk" or axis.split
            offset = (
                f"(chunk.to(INDEX) * CHUNK_BLOCKS + {step}) * {axis.block}" if chunked else f"{step} * {axis.block}"
            )
            if axis.mode == "serial":
                e.names[axis.index] = axis.name
                e.taken.add(axis.name)
            elif axis.mode == "contract":
                e.open_contract(axis, offset)
            else:
                e.define(axis, offset)

    def _hoist(self, closed: set[Symbol]) -> None:
        """Compute what the loops do not change before them."""
        e = self.e
        inner = {a.index for a in e.plan.axes if a.name not in e.opened} | closed
        for t in self.tasks:
            c = e.plan.contractions.get(id(t))
            if c is not None and len(t.writes) == 1:
                k = e.plan.axis_of(next(iter(c.shared)))
                for view, side in zip("ab", (c.a, c.b), strict=True):
                    with e.oriented(k, view):
                        self._invariants(t, walk(side), inner)
                continue
            self._invariants(t, walk(*t.code.values()), inner)

    def _invariants(self, t: Tasklet, nodes: Iterator[Scalar], inner: set[Symbol]) -> None:
        e = self.e
        for n in nodes:
            if n.op in ("const", "index") or (not n.args and n.op != "read"):
                continue
            if any(r.op == "read" and t.reads[r.attr].container in e.plan.local_names for r in walk(n)):  # type: ignore[index]
                continue
            if not e.deps(t, n) & inner:
                e.value(t, n)

    def __exit__(self, *exc: object) -> None:
        for scope, axis in zip(reversed(self.stack), reversed(self.axes), strict=True):
            scope.__exit__(None, None, None)
            self.e.opened.discard(axis.name)
