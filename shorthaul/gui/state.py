"""One state of a session: a program, what made it, and what is known of it. Nothing is computed before it is asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shorthaul.analysis.roofline import machine as machine_called
from shorthaul.ir.nodes import LibraryCall, Node
from shorthaul.ir.program import Program
from shorthaul.transforms.base import Match, Transformation
from shorthaul.transforms.catalog import catalog
from shorthaul.transforms.explain import Place, place_of
from shorthaul.workbench import NumericCheck

from . import graph as graphs
from .load import SessionError
from .measuring import Measurement
from .overlays import View, nodes_of_bodies

Json = Any


@dataclass
class State:
    """One state. step: what made it, in words. made: ids of the nodes that the step made. check, measured: None until known."""

    id: int
    parent: State | None
    program: Program
    step: str
    kind: str = "step"
    made: frozenset[int] = frozenset()
    check: NumericCheck | None = None
    measured: Measurement | None = None
    children: list[State] = field(default_factory=list)
    next: State | None = None  # where redo goes
    machine: str = "cpu"
    checked: bool = True  # whether it is, or will be
    closed: threading.Event = field(default_factory=threading.Event)  # of the session
    faults: dict[str, str] = field(default_factory=dict)  # transformations that failed while they looked for places

    @property
    def depth(self) -> int:
        """How many steps lead from the first state (or the lowered one) to this one."""
        return 0 if self.parent is None or self.kind == "lowered" else 1 + self.parent.depth

    @cached_property
    def view(self) -> View:
        seconds = {} if self.measured is None else {i: t.median for i, t in self.measured.kernels.items()}
        return View(self.program, machine_called(self.machine), seconds, self.errors())

    def errors(self) -> dict[int, float]:
        found = {} if self.parent is None else self.parent.errors()
        if self.check is not None and self.check.ok is not None:
            found = {**found, **dict.fromkeys(self.made, self.check.error)}
        return found

    def changed(self) -> None:
        """Something new is known of the state: what was computed from the old is forgotten."""
        for name in ("view", "totals", "graph", "graph_text", "inner"):
            self.__dict__.pop(name, None)

    @cached_property
    def graph(self) -> Json:
        return graphs.graph(self.view)

    @cached_property
    def graph_text(self) -> str:
        return json.dumps({k: v for k, v in self.graph.items() if k != "containers"}, separators=(",", ":"))

    @cached_property
    def inner(self) -> dict[int | str, tuple[str, View, Node]]:
        """The nodes of bodies by id and by reference: what its reference begins with, the view of the body, the node."""
        found: dict[int | str, tuple[str, View, Node]] = {}
        for above, name, view, node in nodes_of_bodies(self.view):
            found[above + name] = above, view, node
            found.setdefault(node.id, (above, view, node))  # before it is lowered, a gradient's body shares nodes with the loop's
        return found

    @cached_property
    def places(self) -> list[Place]:
        """Every place of every transformation, those that apply first, most bytes first. Raises SessionError once the session is closed:
        of a large program there are many thousands, and nobody waits for them any more."""
        return self._look([make() for make in catalog().values()], lambda t: t.matches(self.program))

    def places_of(self, node: Node) -> list[Place]:
        """Those that a node is part of, of the transformations that can say by themselves whether they apply."""
        chosen = [t for t in (make() for make in catalog().values()) if not t.at_places]
        return self._look(chosen, lambda t: t.matches_from(self.program, node))

    def _look(self, transformations: list[Transformation], where: Callable[[Transformation], Iterable[Match]]) -> list[Place]:
        """Places in order. A transformation is anyone's code: where its check fails, that is the reason why it does not apply; where it
        fails while it looks for places, `faults` says so. The others are shown in any case."""
        found = []
        for t in transformations:
            try:
                matches = list(where(t))
            except Exception as e:
                self.faults[t.name] = f"{t.name} failed while it looked for places ({type(e).__name__}: {e}); it is left out"
                continue
            for m in matches:
                if self.closed.is_set():
                    raise SessionError("the session was closed")
                try:
                    found.append(place_of(t, m))
                except Exception as e:
                    found.append(Place(t, m, m.place(), None, 0, f"{t.name} failed while it was checked here ({type(e).__name__}: {e})"))
        return sorted(found, key=lambda p: (not p.applies, -(p.saves or 0), -p.at_stake))

    @cached_property
    def totals(self) -> Json:
        m, live = self.view.movement, self.view.liveness
        t = self.measured
        # a program made by replaying a recipe does not know what eager PyTorch moves: the one that it was captured as does
        eager: Json = m.eager_bytes
        if eager is None and self.parent is not None:
            eager = self.parent.totals["eager"]
        return {
            "bytes": int(m.bytes), "read": int(m.bytes_read), "written": int(m.bytes_written),  # type: ignore[arg-type]
            "eager": None if eager is None else int(eager), "bound": int(m.lower_bound),  # type: ignore[arg-type]
            "kernels": len(m.nodes), "calls": sum(isinstance(n, LibraryCall) for n in m.nodes),
            "predicted": sum(k.seconds for k in self.view.times.values()), "saved": live.saved_bytes, "peak": max(live.at, default=0),
            "measured": None if t is None else {"median": t.step.median, "low": t.step.low, "high": t.step.high, "runs": t.step.runs,
                                                "threads": t.threads, "device": t.device},
        }  # fmt: skip

    def describe(self) -> Json:
        c = self.check
        badge: Json = {"ok": None, "text": "not checked yet", "done": False, "word": ""}
        if self.kind == "lowered":
            badge |= {"text": "the meaning of the operators, by which later states are judged; sh.verify compares it with eager PyTorch",
                      "done": True, "word": "reference"}
        elif not self.checked:
            badge |= {"text": "not checked: this session was opened without checks", "done": True}
        elif c is not None:
            badge |= {"ok": c.ok, "text": str(c), "done": True}
        return {"id": self.id, "parent": None if self.parent is None else self.parent.id, "step": self.step, "kind": self.kind,
                "form": self.program.form.name.lower(), "check": badge if self.parent is not None else None, "totals": self.totals,
                "made": sorted(self.made)}  # fmt: skip
