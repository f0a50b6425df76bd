"""What `model.report()` prints: captured operators, kernels, library calls, what was fused and what was not, and why."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Operator, Origin
from shorthaul.ir.program import Program, with_bodies

LOG = logging.getLogger("shorthaul")


def _graph_breaks() -> Counter[str]:
    """What Dynamo counted in this process; nothing where it is not loaded (a warm start needs none of it)."""
    utils = sys.modules.get("torch._dynamo.utils")
    return Counter(utils.counters["graph_break"]) if utils is not None else Counter()


@dataclass
class Region:
    """One compiled graph of a model (there are several after a graph break or a recompilation).

    reason: why it was compiled again, if it was. graph_break: why it ends before the model does, with the source line.
    start: whether it was traced or came from a capture record, and why. graph: what was captured, where the option `trace` was given.
    """

    index: int
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    fallbacks: list[tuple[str, Origin]] = field(default_factory=list)
    fallback: str = ""
    graph_break: str = ""
    program: Program | None = None
    compiled: Any = None
    start: str = ""
    graph: Any = None

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def captured_before(self, operators: Counter[str], fallbacks: list[tuple[str, Origin]]) -> None:
        """Note what came from the front end in another process."""
        self.operators, self.fallbacks = operators, fallbacks

    def captured(self, program: Program, fallbacks: list[tuple[str, Origin]]) -> None:
        """Note what came from the front end."""
        self.operators = Counter(n.op if isinstance(n, Operator) else n.kind for n in _captured(program))
        self.fallbacks = fallbacks

    def finished(self, program: Program, compiled: Any) -> None:
        """Note what was generated."""
        self.program, self.compiled = program, compiled

    @property
    def kernels(self) -> list[Map]:
        return [n for p in with_bodies(self.program) for n in p.nodes if isinstance(n, Map)] if self.program else []

    @property
    def library_calls(self) -> Counter[str]:
        nodes = (n for p in with_bodies(self.program) for n in p.nodes) if self.program else ()
        return Counter(n.function for n in nodes if isinstance(n, LibraryCall))


def _captured(program: Program) -> Iterator[Operator | Branch | Loop]:
    """The operators of the forward phase, those in bodies of branches and loops too."""
    for n in program.nodes:
        if n.phase == "forward" and isinstance(n, (Operator, Branch, Loop)):
            yield n
            for body in n.bodies if isinstance(n, (Branch, Loop)) else ():
                yield from _captured(body)


@dataclass(repr=False)
class Record:
    """All regions of a model."""

    regions: list[Region] = field(default_factory=list)
    owner: Any = None
    _used: dict[int, Any] = field(default_factory=dict)
    _breaks: Counter[str] = field(default_factory=_graph_breaks)

    def region(self, reason: str = "", *, graph_break: str = "", start: str = "") -> Region:
        """A new region. Why there is one more than the model has parts is logged, for the logger "shorthaul" at level INFO."""
        self.regions.append(Region(len(self.regions), reason, graph_break=graph_break, start=start))
        name = type(self.owner()).__name__ if self.owner is not None else "a function"
        if reason:
            LOG.info("region %d of %s is a recompilation: %s", len(self.regions) - 1, name, reason)
        if graph_break:
            LOG.info("region %d of %s ends at a graph break: %s", len(self.regions) - 1, name, graph_break)
        return self.regions[-1]

    @property
    def breaks(self) -> list[str]:
        """Why Dynamo ended or gave up graphs since the record exists, of all models of the process. Inside a loop it gives up the whole
        function, of which then no region tells."""
        new = _graph_breaks()
        new.subtract(self._breaks)
        found = []
        for text in (t for t, n in new.items() if n > 0):
            lines = [line.strip() for line in text.split("\n")]
            why = [line.removeprefix("Explanation: ") for line in lines[1:] if line.startswith("Explanation")]
            found.append(". ".join([lines[0], *why]))
        return found

    def uses(self, parameters: Iterable[Any]) -> None:
        """Note parameters that a compiled region takes."""
        self._used.update((id(p), weakref.ref(p)) for p in parameters)

    @property
    def unused(self) -> list[str]:
        """Names of the model's parameters that no compiled region takes: the model does not use them, or eager mode does."""
        owner = self.owner() if self.owner is not None else None
        known = {i for i, p in self._used.items() if p() is not None}
        return [] if owner is None else [n for n, p in owner.named_parameters() if id(p) not in known]

    def __str__(self) -> str:
        from .report_text import render

        return render(self)

    def __repr__(self) -> str:
        return str(self)


_RECORDS: weakref.WeakKeyDictionary[Any, Record] = weakref.WeakKeyDictionary()


class Reporter:
    """`model.report`: call it for the record. A copy or a pickle of the model gets an empty one."""

    def __init__(self, owner: Any = None) -> None:
        self._owner = weakref.ref(owner) if owner is not None else None

    def __call__(self) -> Record:
        owner = self._owner() if self._owner is not None else None
        return _RECORDS.get(owner, Record()) if owner is not None else Record()

    def __reduce__(self) -> tuple:
        return Reporter, ()

    def __deepcopy__(self, memo: dict) -> Reporter:
        return Reporter()


def attach_report(module: Any) -> Record:
    """Give the module a `report` method; returns the record that it shows."""
    record = Record(owner=weakref.ref(module))
    _RECORDS[module] = record
    module.__dict__["report"] = Reporter(module)
    return record
