"""BatchKernels: small kernels that compute the same thing for different arrays are launched as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shorthaul.ir.edit import Edit
from shorthaul.ir.flat import flat_form
from shorthaul.ir.launches import MARKS, fresh_mark
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Form, Program

from ..base import Match, Transformation, hint_value, require


class BatchKernels(Transformation):
    """Put small flat maps of one form side by side and have the target launch them together (multi-tensor apply).

    before:  map i in 0:1152: w' = w - lr*g;  ...;  map j in 0:80: v' = v - lr*h         two launches
    after:   map i in 0:1152 batch=1: ...;    map j in 0:80 batch=1: ...                 one launch

    A network has hundreds of kernels that take longer to launch than to run: the update of every bias, the cast of every weight. Bytes
    stay the same. They must not depend on each other; what lies between them and needs one of them runs afterwards. Targets that call
    kernels as functions (C++) run them one after the other, as before.

    most: kernels in one launch. largest: bytes that each of them moves at most; longer ones fill the machine by themselves.
    """

    level = 2
    allowed = {"most": range(2, 65), "largest": range(1 << 30)}
    tunable = {"largest": (1 << 18, 1 << 22)}

    def __init__(self, most: int = 32, largest: int = 1 << 20) -> None:
        self.most = most
        self.largest = largest

    def matches(self, program: Program) -> Iterator[Match]:
        """As many kernels as one launch takes, from the first on."""
        yield from self._groups(program, [n for n in program.nodes if isinstance(n, Map)])

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        if isinstance(node, Map) and node.tasklet is not None:
            alike = [n for n in program.nodes if isinstance(n, Map) and n.tasklet is not None and _operands(n) == _operands(node)]
            yield from (m for m in self._groups(program, alike) if node in m.nodes)

    def _groups(self, program: Program, maps: Sequence[Map]) -> Iterator[Match]:
        if program.form is not Form.SCHEDULED:
            return
        kinds: dict[tuple, list[Map]] = {}
        for node in maps:
            if all(node.schedule.get(k) is None for k in MARKS):
                form = flat_form(node, program.containers)
                if form is not None and self._bytes(program, form.names) <= self.largest:
                    kinds.setdefault((form.key, node.phase), []).append(node)
        for group in kinds.values():
            while len(group) > 1:
                chosen = _order(program, group, self.most).chosen
                if len(chosen) > 1:
                    yield Match(program, {f"kernel_{i}": n for i, n in enumerate(chosen)})
                group = [n for n in group if n not in chosen]

    def _bytes(self, program: Program, names: Sequence[str]) -> int:
        return sum(hint_value(program, program.containers[c].bytes) for c in set(names))

    def check(self, m: Match) -> None:
        forms = []
        for node in m.nodes:
            require(isinstance(node, Map) and node.schedule.kind != "auto", "it is no scheduled kernel")
            marked = any(node.schedule.get(k) is not None for k in MARKS)  # type: ignore[attr-defined]
            require(not marked, f"{node.label} is launched together with others already")
            form = flat_form(node, m.program.containers)  # type: ignore[arg-type]
            require(form is not None, f"{node.label} is not elementwise over memory without gaps")
            assert form is not None
            moved = self._bytes(m.program, form.names)
            require(moved <= self.largest, f"{node.label} moves {moved} bytes, and fills the machine by itself")
            forms.append((form.key, node.phase))
        require(len(set(forms)) == 1, "they compute different things")
        require(not any(n.defines for n in m.program.nodes), "sizes are known only while it runs")
        m.derived["order"] = order = _order(m.program, m.nodes)
        require(len(order.chosen) == len(m.nodes), "one of them needs another one")

    def apply(self, m: Match, edit: Edit) -> None:
        p, order = m.program, m.order
        batch = fresh_mark(p, "batch")
        anchor = order.before[-1] if order.before else None
        first = p.position(order.chosen[0])
        for n in (*order.chosen, *order.behind):
            edit.remove(n)
        new = [*(n.with_(schedule=n.schedule.with_options(batch=batch)) for n in order.chosen), *order.behind]
        if anchor is not None:
            edit.add(*new, after=anchor)
        elif first < len(p.nodes):
            edit.add(*new, before=p.nodes[first])
        else:
            edit.add(*new)


def _operands(node: Map) -> tuple[int, int]:
    t = node.tasklet
    return (len(t.reads), len(t.writes)) if t is not None else (0, 0)


@dataclass
class _Order:
    """What becomes of the nodes from the first candidate to the last: those launched together, what runs before, what runs behind."""

    chosen: list[Node] = field(default_factory=list)
    before: list[Node] = field(default_factory=list)
    behind: list[Node] = field(default_factory=list)


def _order(program: Program, nodes: Sequence[Node], most: int | None = None) -> _Order:
    """Choose those of the nodes, the first one included, that need nothing of one another, not by way of others either.

    In a scheduled program memory is written again, so a node also has to stay behind what reads the memory that it writes.
    """
    wanted = {n.id for n in nodes}
    at = sorted(program.position(n) for n in nodes)
    found, read, written = _Order(), set[str](), set[str]()  # memory used by the chosen ones and by what runs behind them
    for node in program.nodes[at[0] : at[-1] + 1]:
        reads, writes = program.roots(program.reads_of(node)), program.roots(program.writes_of(node))
        free = written.isdisjoint(reads | writes) and read.isdisjoint(writes)
        if free and node.id in wanted and (most is None or len(found.chosen) < most):
            found.chosen.append(node)
        elif free:
            found.before.append(node)
            continue
        else:
            found.behind.append(node)
        read |= reads
        written |= writes
    return found
