"""Overlays: numbers or words by node, which the page turns into colours and a sortable column.

    @overlay("depth", title="Loop depth", unit="", aggregate="max")
    def depth(view):                       # view: a View
        return {n.id: len(n.params) for n in view.program.nodes if isinstance(n, Map)}

Another package registers its own with the entry point group `shorthaul.overlays` (name = "package.module:function", the function
decorated with `overlay`), or by importing it. An overlay that fails is reported by name and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import entry_points
from typing import Union

from shorthaul.analysis.liveness import Liveness, liveness
from shorthaul.analysis.movement import Movement, movement
from shorthaul.analysis.roofline import Machine
from shorthaul.analysis.roofline import machine as machine_called
from shorthaul.analysis.times import KernelTime, roofline
from shorthaul.ir.location import references
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Node, Operator
from shorthaul.ir.program import Program

GROUP = "shorthaul.overlays"
Values = Mapping[int, Union[float, str, None]]


@dataclass
class View:
    """What an overlay sees: one state of a session. Each analysis is computed once.

    seconds: measured median seconds by node id, empty where nothing was measured. errors: the largest relative difference that a numeric
    check found, by id of the nodes that the checked step made.
    """

    program: Program
    machine: Machine = field(default_factory=machine_called)
    seconds: Mapping[int, float] = field(default_factory=dict)
    errors: Mapping[int, float] = field(default_factory=dict)
    _bodies: dict[int, View] = field(default_factory=dict, repr=False)

    def of(self, body: Program) -> View:
        """The same of the body of a loop or branch: one round of it."""
        found = self._bodies.get(id(body))
        if found is None:
            known = body.clone()  # sizes are the same inside, so their hints are
            known.attributes = {"size_hints": self.program.attributes.get("size_hints", {}), **body.attributes}
            found = self._bodies[id(body)] = View(known, self.machine)
        return found

    @cached_property
    def movement(self) -> Movement:
        """Bytes at the program's size hints (64 where none is known)."""
        hints = dict(self.program.attributes.get("size_hints", {}))
        return movement(self.program, {s.name: hints.get(s.name, 64) for s in self.program.symbols}, self.machine)

    @cached_property
    def bytes(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for m in self.movement.moved:
            found[m.node.id] = found.get(m.node.id, 0) + int(m.bytes)  # type: ignore[arg-type]
        return found

    @cached_property
    def times(self) -> dict[int, KernelTime]:
        """The roofline of every kernel."""
        hints = dict(self.program.attributes.get("size_hints", {}))
        sizes = {s.name: hints.get(s.name, 64) for s in self.program.symbols}
        return {t.node: t for t in roofline(self.program, self.machine, sizes)}

    @cached_property
    def liveness(self) -> Liveness:
        hints = dict(self.program.attributes.get("size_hints", {}))
        return liveness(self.program, {s.name: hints.get(s.name, 64) for s in self.program.symbols})


def bodies(n: Node) -> list[tuple[str, Program]]:
    """The bodies of a loop (without a name) or a branch; of another node none."""
    if isinstance(n, Branch):
        return [("then", n.then), ("otherwise", n.otherwise)]
    return [("", b) for b in n.bodies] if isinstance(n, Loop) else []


def nodes_of_bodies(view: View, above: str = "") -> Iterator[tuple[str, str, View, Node]]:
    """Every node of every body, at any depth: what its reference begins with and ends with, the view of its body, the node."""
    refs = references(view.program)
    for n in view.program.nodes:
        for name, body in bodies(n):
            inner, around = view.of(body), f"{above}{refs[n.id]} / " + (f"{name} / " if name else "")
            own = references(body)
            yield from ((around, own[m.id], inner, m) for m in body.nodes)
            yield from nodes_of_bodies(inner, around)


@dataclass(frozen=True)
class Overlay:
    """kind: "heat" (numbers) or "category" (words). unit: "B", "s", "flop/B", "x", "" (how numbers are written). aggregate: what a
    collapsed module shows: "sum", "max" or "uniform" (its word where all nodes agree)."""

    name: str
    title: str
    description: str
    function: Callable[[View], Values]
    kind: str = "heat"
    unit: str = ""
    aggregate: str = "sum"

    def describe(self) -> dict[str, str]:
        return {k: getattr(self, k) for k in ("name", "title", "description", "kind", "unit", "aggregate")}


_registered: dict[str, Overlay] = {}


def overlay(name: str, *, title: str = "", kind: str = "heat", unit: str = "",
            aggregate: str = "sum") -> Callable[[Callable[[View], Values]], Callable[[View], Values]]:  # fmt: skip
    """Register a function of a View as an overlay. Raises ValueError for a kind or aggregate that is not known, or a name taken."""
    if kind not in ("heat", "category") or aggregate not in ("sum", "max", "uniform"):
        raise ValueError(f"overlay {name}: kind is heat or category, aggregate is sum, max or uniform, not {kind!r} and {aggregate!r}")

    def register(function: Callable[[View], Values]) -> Callable[[View], Values]:
        known = _registered.get(name)
        if known is not None and known.function is not function:
            raise ValueError(f"an overlay called {name} is registered already ({known.function.__module__})")
        _registered[name] = Overlay(name, title or name, (function.__doc__ or "").strip().split("\n")[0], function, kind, unit, aggregate)
        return function

    return register


@cache
def _load_entry_points() -> None:
    for point in entry_points(group=GROUP):
        point.load()


def overlays() -> dict[str, Overlay]:
    """Every overlay by name: the package's, then those of others."""
    _load_entry_points()
    return dict(_registered)


# --- the package's own -------------------------------------------------------------------------------------------------------------


@overlay("bytes", title="Bytes moved", unit="B")
def _bytes(view: View) -> Values:
    """Bytes between memory and the last cache; in the body of a loop, of one round."""
    return {**view.bytes, **{n.id: inner.bytes.get(n.id, 0) for _, _, inner, n in nodes_of_bodies(view)}}


@overlay("predicted", title="Predicted time", unit="s")
def _predicted(view: View) -> Values:
    """The least time on the described machine: its bytes over the bandwidth, or its operations over the peak."""
    return {n: t.seconds for n, t in view.times.items()}


@overlay("measured", title="Measured time", unit="s")
def _measured(view: View) -> Values:
    """Median wall-clock time of the last measurement of this state."""
    return view.seconds


@overlay("distance", title="Distance from the roofline", unit="x", aggregate="max")
def _distance(view: View) -> Values:
    """Measured over predicted time: 1 is the roofline, 10 ten times slower than it. Empty until measured."""
    return {n: s / view.times[n].seconds for n, s in view.seconds.items() if n in view.times and view.times[n].seconds}


@overlay("intensity", title="Arithmetic intensity", unit="flop/B", aggregate="max")
def _intensity(view: View) -> Values:
    """Operations per byte moved; where it is low, time is spent waiting for memory."""
    return {n: t.flops / t.bytes for n, t in view.times.items() if t.flops is not None and t.bytes}


@overlay("saved", title="Saved tensors", unit="B")
def _saved(view: View) -> Values:
    """Bytes that a node writes in the forward phase for the backward phase."""
    saved = dict(view.liveness.saved)
    return {n.id: total for n in view.program.nodes if (total := sum(saved.get(c, 0) for c in view.program.writes_of(n)))}


@overlay("kind", title="Kernels and library calls", kind="category", aggregate="uniform")
def _kind(view: View) -> Values:
    """What runs it: a generated kernel, one fused from several operators, a library call."""
    inner = (n for *_, n in nodes_of_bodies(view))
    return {n.id: _kind_of(n) for n in (*view.program.nodes, *inner)}


def _kind_of(n: Node) -> str:
    if isinstance(n, Map):
        return "fused kernel" if len({(o.module, o.operator) for o in n.origins}) > 1 else "kernel"
    return "library call" if isinstance(n, LibraryCall) else "operator" if isinstance(n, Operator) else n.kind


@overlay("layout", title="Layout of the result", kind="category", aggregate="uniform")
def _layout(view: View) -> Values:
    """How the largest result lies in memory."""
    return {n.id: _layout_of(view.program, n) for n in view.program.nodes if view.program.writes_of(n)}


def _layout_of(program: Program, node: Node) -> str:
    found = [program.containers[c] for c in program.writes_of(node)]
    c = max(found, key=lambda c: len(c.shape))
    if c.alias is not None:
        return "alias"
    if c.is_contiguous:
        return "row-major"
    strides = c.actual_strides
    return "channels last" if len(strides) >= 3 and strides[1] == 1 else "strided"


@overlay("dtype", title="Type of the result", kind="category", aggregate="uniform")
def _dtype(view: View) -> Values:
    """The type of the first result."""
    return {n.id: view.program.containers[min(w)].dtype.name for n in view.program.nodes if (w := view.program.writes_of(n))}


@overlay("error", title="Numeric difference", aggregate="max")
def _error(view: View) -> Values:
    """The largest relative difference that the check of the step found which made the node."""
    return view.errors
