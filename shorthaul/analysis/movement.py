"""Data movement: the bytes that each kernel moves to and from memory, beside what eager PyTorch and the lower bound would.

The bytes of a kernel (a top-level map) are the footprint of its outer memlets, each container once, plus the re-reads that its schedule's
reuse cannot hold in the cache of a described machine. What a kernel wrote itself and reads again is not read from memory, and locals never
count. A library call counts operands, results, and the workspace and layout reorders that its attributes state, convolutions also
those of images (`reorders`). Operators, before
expansion, count operands and results; views count nothing.

The lower bound is the compulsory traffic: every element of an external input that some kernel needs is read once, every result written
once. Nothing is said about what a finite cache forces between (matrix products, tensors saved from forward to backward).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Node, Operator
from shorthaul.ir.program import Program, program_nodes
from shorthaul.symbolic import Expr, maximum, minimum, product

from .eager import GATHERS, VIEWS, eager_bytes
from .footprint import footprints
from .liveness import hints, value
from .reorders import reorder_bytes
from .rereads import rereads
from .roofline import Machine
from .roofline import machine as machine_called
from .tiles import loop_working_set, outer_bytes
from .waves import product_rereads

IntLike = Union[int, Expr]
BAR = 24  # characters
BY_ROW = frozenset({"row_step", "lazy_rows"})  # operators that read of each operand at most as many elements as a result has
IN_PLACE = {"write_rows": ("x", "rows", "values", "y")}  # library calls that change rows where their result lies in their operand
ROWS = 12


@dataclass(frozen=True)
class Row:
    """Bytes of one kernel, module or memlet.

    kernels: how many top-level nodes it sums up. exact: whether the footprint is a number of elements, not an upper bound. node: the
    kernel's id, where there is one.
    """

    name: str
    phase: str
    bytes_read: IntLike
    bytes_written: IntLike
    kernels: int = 1
    exact: bool = True
    node: int | None = None

    @property
    def bytes(self) -> IntLike:
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class Moved:
    """What one node moves of one container: its footprint in bytes, and the bytes that are read again. repeats: of a loop."""

    node: Node
    container: str
    side: str
    footprint: IntLike
    again: IntLike = 0
    exact: bool = True

    @property
    def bytes(self) -> IntLike:
        return self.footprint + self.again


@dataclass
class Movement:
    """The report. Each number is an int, or an expression in the program's sizes (`at` evaluates it).

    eager_bytes: what eager PyTorch moves for the network, None where the program does not know (it was built by hand).
    """

    name: str
    moved: list[Moved]
    nodes: list[Node]
    eager_bytes: IntLike | None
    lower_bound: IntLike
    machine: Machine
    hints: Mapping[str, int] = field(default_factory=dict)
    evaluated: bool = False

    @property
    def bytes_read(self) -> IntLike:
        return _total(m.bytes for m in self.moved if m.side == "read")

    @property
    def bytes_written(self) -> IntLike:
        return _total(m.bytes for m in self.moved if m.side == "write")

    @property
    def bytes(self) -> IntLike:
        return _total(m.bytes for m in self.moved)

    @property
    def is_exact(self) -> bool:
        """Whether no row is an upper bound."""
        return all(m.exact for m in self.moved)

    def phase(self, phase: str) -> IntLike:
        """Bytes of the nodes of one phase."""
        return _total(m.bytes for m in self.moved if m.node.phase == phase)

    def at(self, sizes: Mapping[Any, int] | None = None) -> Movement:
        """Every number evaluated at sizes (by Symbol or name), the program's size hints where none is given.

        Raises KeyError naming a size that is missing.
        """
        known = {**self.hints, **{str(getattr(k, "name", k)): int(v) for k, v in (sizes or {}).items()}}

        def now(e: IntLike) -> int:
            return value(e, known)

        moved = [Moved(m.node, m.container, m.side, now(m.footprint), now(m.again), m.exact) for m in self.moved]
        eager = None if self.eager_bytes is None else now(self.eager_bytes)
        return Movement(self.name, moved, self.nodes, eager, now(self.lower_bound), self.machine, known, True)

    def rows(self, by: str = "kernel") -> list[Row]:
        """Bytes summed by "kernel", "module" (where the kernel's first operator comes from), "memlet" (kernel and container) or "level"
        of memory ("global", and what maps access of their locals: "shared", "register"), the most bytes first (in program order where they
        are symbolic)."""
        if by == "level":
            return self._levels()
        keys: dict[str, Callable[[Moved], tuple]] = {
            "kernel": lambda m: (m.node.id,),
            "module": lambda m: (m.node.origin.module, m.node.phase),
            "memlet": lambda m: (m.node.id, m.container, m.side),
        }
        if by not in keys:
            raise ValueError(f"rows by {by!r}: choose one of {', '.join(keys)}, level")
        groups: dict[tuple, list[Moved]] = {}
        if by == "kernel":
            groups = {(n.id,): [] for n in self.nodes}
        for m in self.moved:
            groups.setdefault(keys[by](m), []).append(m)
        nodes = {n.id: n for n in self.nodes}
        rows = []
        for key, group in groups.items():
            node = group[0].node if group else nodes[key[0]]
            name = kernel_name(node)
            if by == "module":
                name = key[0] or "<model>"
            elif by == "memlet":
                name = f"{name}  {group[0].side} {group[0].container}"
            read, written = (_total(m.bytes for m in group if m.side == s) for s in ("read", "write"))
            kernels = len({m.node.id for m in group}) or 1
            rows.append(Row(name, node.phase, read, written, kernels, all(m.exact for m in group), None if by == "module" else node.id))
        if all(isinstance(r.bytes, int) for r in rows):
            rows.sort(key=lambda r: -value(r.bytes, {}))
        return rows

    def _levels(self) -> list[Row]:
        """Locals are counted by access, not by footprint: what moves between the level and the arithmetic."""
        rows = [Row("global", "", self.bytes_read, self.bytes_written, len(self.nodes), self.is_exact)]
        for storage in ("shared", "register"):
            sides: dict[bool, IntLike] = {False: 0, True: 0}
            users = set()
            for node in self.nodes:
                if isinstance(node, Map) and any(isinstance(n, Map) for n in node.body):
                    local = {c.name: c for n in program_nodes([node]) if isinstance(n, Map) for c in n.locals.values()}
                    for a in node.accesses():
                        if a.is_local and local[a.memlet.container].storage == storage:
                            number = product(p.size for p in a.params) * local[a.memlet.container].dtype.itemsize
                            sides[a.is_write] = sides[a.is_write] + (value(number, self.hints) if self.evaluated else number)
                            users.add(node.id)
            if users:
                rows.append(Row(storage, "", sides[False], sides[True], len(users)))
        return rows

    def table(self, by: str = "kernel", limit: int = ROWS) -> str:
        """The report as text: the largest rows with bars, the rest summed, totals and ratios."""
        try:
            m = self.at()
        except KeyError:
            return "\n".join([f"movement of {self.name} (symbolic)", f"  read     {self.bytes_read}", f"  written  {self.bytes_written}",
                              f"  eager    {self.eager_bytes}", f"  at least {self.lower_bound}"])  # fmt: skip
        rows = m.rows(by)
        top, rest = rows[:limit], rows[limit:]
        if rest:
            summed = Row(f"{len(rest)} more", "", _total(r.bytes_read for r in rest), _total(r.bytes_written for r in rest), len(rest))
            top = [*top, summed]
        most = max((value(r.bytes, {}) for r in top[:limit]), default=0) or 1
        width = min(56, max([len(_label(r, by)) for r in top] + [20]))
        lines = [f"movement of {self.name}: {len(m.nodes)} kernels", f"{'':{width}}  {'read':>10} {'written':>10} {'bytes':>10}"]
        for i, r in enumerate(top):
            number = value(r.bytes, {})
            bar = ("█" * round(BAR * number / most) or ("▏" if number else "")) if i < limit else ""
            mark = "" if r.exact else " (at most)"
            label = _label(r, by)
            label = label if len(label) <= width else label[: width - 1] + "…"
            lines.append(f"{label:{width}}  {human(r.bytes_read):>10} {human(r.bytes_written):>10} {human(r.bytes):>10}  {bar}{mark}")
        total = value(m.bytes, {})
        lines.append(f"{'total':{width}}  {human(m.bytes_read):>10} {human(m.bytes_written):>10} {human(total):>10}")
        if m.eager_bytes is not None:
            eager = value(m.eager_bytes, {})
            lines.append(f"{'eager PyTorch':{width}}  {'':>10} {'':>10} {human(eager):>10}  {_ratio(total, eager)} of eager")
        bound = value(m.lower_bound, {})
        lines.append(f"{'lower bound (compulsory)':{width}}  {'':>10} {'':>10} {human(bound):>10}  {_ratio(total, bound)} times the bound")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def movement(program: Program, sizes: Mapping[Any, int] | None = None, machine: Machine | str | None = None,
             view_ops: frozenset[str] = VIEWS) -> Movement:  # fmt: skip
    """The bytes that a program of any form moves.

    sizes: evaluate at these (by Symbol or name); else the numbers are expressions where sizes are symbolic. machine: whose cache
    decides what is read again (a Machine, or a name of `roofline.MACHINES`). view_ops: operators that move nothing. `eager_bytes` comes
    from `program.attributes["eager_bytes"]`, or is computed where the program has form OPERATORS.
    """
    target = machine_called(machine)
    known = hints(program, sizes)
    moved: list[Moved] = []
    for node in program.nodes:
        moved += node_movement(node, program, target, known, view_ops)
    nodes = [n for n in program.nodes if not (isinstance(n, Operator) and n.op in view_ops)]
    report = Movement(program.name, moved, nodes, _eager(program), _lower_bound(program, moved), target, known)
    totals = (report.eager_bytes, report.lower_bound, *(m.bytes for m in moved))
    if all(e is None or isinstance(e, int) for e in totals):
        report.evaluated = True
        return report
    return report.at(sizes) if sizes is not None else report


def _eager(program: Program) -> IntLike | None:
    found = program.attributes.get("eager_bytes")
    if found is None and program.nodes and any(isinstance(n, Operator) for n in program.nodes if n.phase == "forward"):
        return eager_bytes(program)
    return found


def node_movement(node: Node, program: Program, machine: Machine | None = None, sizes: Mapping[str, int] | None = None,
                  view_ops: frozenset[str] = VIEWS) -> list[Moved]:  # fmt: skip
    """What one top-level node moves, a row per container and side."""
    if isinstance(node, Map):
        return _map(node, program, machine_called(machine), hints(program) if sizes is None else sizes)
    if isinstance(node, Operator) and node.op in view_ops:
        return []
    if isinstance(node, Loop) and node.tile is not None:
        return _tiles(node, program, machine_called(machine), sizes or hints(program), view_ops)
    if isinstance(node, (Loop, Branch)):
        return _body(node, program, machine_called(machine), sizes or {}, view_ops)
    if isinstance(node, LibraryCall) and node.function in IN_PLACE and (found := _rows_in_place(node, program)):
        return found
    moved = []
    again = product_rereads(node, program, machine_called(machine), hints(program, sizes)) if isinstance(node, LibraryCall) else {}
    for side, names in (("read", program.reads_of(node)), ("write", program.writes_of(node))):
        for name in sorted(names):
            repeated = again.get(name, 0) if side == "read" else 0
            moved.append(Moved(node, name, side, _whole(node, side, program, name, view_ops), repeated))
    extra = node.attributes if isinstance(node, LibraryCall) else {}
    inside = reorder_bytes(node, program) if isinstance(node, LibraryCall) else 0
    for what, more in (("workspace_bytes", 0), ("reorder_bytes", inside)):  # written and read back once
        number = extra.get(what, 0) + more
        if not isinstance(number, int) or number:
            moved += [Moved(node, what.removesuffix("_bytes"), side, number) for side in ("write", "read")]
    return moved


def _rows_in_place(node: LibraryCall, program: Program) -> list[Moved]:
    """What a call moves that changes rows of its operand where they are: the rows; nothing where its result has memory of its own."""
    x, rows, values, y = IN_PLACE[node.function]
    alias = program.containers[node.writes[y].container].alias
    if alias is None or alias.base != node.reads[x].container:
        return []
    names = [node.reads[rows].container, node.reads[values].container]
    read = [Moved(node, n, "read", program.containers[n].bytes) for n in names]
    return [*read, Moved(node, node.writes[y].container, "write", program.containers[names[1]].bytes, exact=False)]


def _map(node: Map, program: Program, machine: Machine, sizes: Mapping[str, int]) -> list[Moved]:
    found = footprints(node, program.containers)
    again = rereads(node, found, program.containers, machine, sizes)
    written = {name for name, side in found if side == "write"}
    moved = []
    for (name, side), f in found.items():
        if side == "read" and name in written:
            continue
        c = program.containers[name]
        elements = f.elements if c.strides is None else distinct(c, f.elements)
        moved.append(Moved(node, name, side, elements * c.dtype.itemsize, again.get(name, 0) if side == "read" else 0, f.exact))
    return moved


def distinct(c: Container, elements: IntLike) -> IntLike:
    """At most the elements that exist in memory: a stride of zero repeats one."""
    strides = c.actual_strides
    if all(not isinstance(s, int) or s != 0 for s in strides):
        return elements
    return minimum(elements, product(n for n, s in zip(c.shape, strides, strict=True) if not (isinstance(s, int) and s == 0)))


def _whole(node: Node, side: str, program: Program, name: str, view_ops: frozenset[str]) -> IntLike:
    """Bytes of an operand or result of an operator or library call; a gather reads the rows it names at most."""
    c = program.containers[name]
    if side == "read" and isinstance(node, Operator) and node.op in BY_ROW:
        return minimum(c.size, program.containers[next(iter(node.writes.values())).container].size) * c.dtype.itemsize
    if side == "read" and isinstance(node, Operator) and node.op in GATHERS and c.dtype.is_float:
        result = program.containers[next(iter(node.writes.values())).container]
        return minimum(c.bytes, result.size * c.dtype.itemsize) if node.op != "nll_loss" else _rows(node, program, c)
    if side == "read":
        return minimum(distinct(c, c.size) * c.dtype.itemsize, stored(program, c, view_ops))
    return c.bytes


def _rows(node: Node, program: Program, c: Container) -> IntLike:
    index = next((program.containers[m.container] for m in node.reads.values() if not program.containers[m.container].dtype.is_float), None)
    return c.bytes if index is None else minimum(c.bytes, index.size * c.dtype.itemsize)


def stored(program: Program, c: Container, view_ops: frozenset[str] = VIEWS) -> IntLike:
    """Bytes behind a container: those of what it is a view of, where they are fewer."""
    for w in program.writers(c.name):
        if isinstance(w, Operator) and w.op in view_ops:
            source = program.containers[next(iter(w.reads.values())).container]
            return minimum(c.bytes, stored(program, source, view_ops))
    return c.bytes


def _tiles(node: Loop, program: Program, machine: Machine, sizes: Mapping[str, int], view_ops: frozenset[str]) -> list[Moved]:
    """A loop over parts of a batch: what passes between its nodes stays in the cache, if it fits."""
    inside = [m for n in node.body.nodes for m in node_movement(n, node.body, machine, sizes, view_ops)]
    fits = loop_working_set(node, sizes) <= machine.cache
    total = outer_bytes(node, program.containers, [(m.node, m.container, m.side, m.bytes) for m in inside], fits)
    outer = {k: m.container for k, m in (*node.reads.items(), *node.writes.items())}
    exact = all(m.exact for m in inside)
    return [Moved(node, outer.get(name, f"{name} (inside)"), side, number, exact=exact) for (name, side), number in total.items()]


def _body(node: Loop | Branch, program: Program, machine: Machine, sizes: Mapping[str, int], view_ops: frozenset[str]) -> list[Moved]:
    """A loop moves what its body does, every time; a branch what the dearer side does."""
    times: IntLike = node.trips if isinstance(node, Loop) else 1
    totals: list[dict[str, IntLike]] = []
    for body in node.bodies:
        total: dict[str, IntLike] = {"read": 0, "write": 0}
        for n in body.nodes:
            for m in node_movement(n, body, machine, sizes, view_ops):
                total[m.side] = total[m.side] + m.bytes * times
        totals.append(total)
    return [Moved(node, "body", side, maximum(*(t[side] for t in totals)) if len(totals) > 1 else totals[0][side], exact=len(totals) == 1)
            for side in ("read", "write")]  # fmt: skip


def _lower_bound(program: Program, moved: list[Moved]) -> IntLike:
    read: dict[str, IntLike] = {}
    for m in moved:
        c = program.containers.get(m.container)
        if m.side == "read" and c is not None and c.is_external:
            known = read.get(c.name)
            # the reader that needs most; that two readers need different elements is not counted
            read[c.name] = m.footprint if known is None or known is m.footprint else maximum(known, m.footprint)
    results = [program.containers[r] for r in sorted(program.results) if r in program.containers]
    written = [c.bytes for c in results if not c.is_external]
    return _total(read.values()) + _total(written)


def kernel_name(node: Node) -> str:
    """A kernel's name in tables: its label and where it comes from."""
    where = node.origin.module
    label = node.label if not isinstance(node, Map) or node.name else node.origin.operator or "map"
    return f"{label} @ {where}" if where else label


def _label(r: Row, by: str) -> str:
    if by == "module":
        return f"{r.name} {r.phase} ({r.kernels} kernels)"
    return f"{r.name}" + (f" [{r.phase}]" if r.phase and r.phase != "forward" else "")


def _total(values: Any) -> IntLike:
    total: IntLike = 0
    for v in values:
        total = total + v
    return total


def _ratio(a: int, b: int) -> str:
    return f"{a / b:.2f}" if b else "-"


def human(number: IntLike) -> str:
    """Bytes in a readable unit (powers of 1024)."""
    if not isinstance(number, int):
        return str(number)
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError

