"""A session: one program, every state it went through, and what can be asked of each and done to it. The page uses nothing else.

States form a tree. Applying, running a level or replaying a recipe makes a child of the current state; undo goes to the parent, redo to
the child last visited, and doing something else after an undo is a branch: nothing is ever lost. A state's program is not changed once
the state exists, so questions need no lock and may be asked from any thread.

All answers are plain JSON types. `version` grows with every change; `expect(version)` refuses a change that was decided on an older one.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shorthaul import workbench
from shorthaul.analysis.roofline import MACHINES
from shorthaul.analysis.roofline import machine as machine_called
from shorthaul.ir.edit import EditError
from shorthaul.ir.location import isomorphic_modules
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Form, Program
from shorthaul.transforms.base import Refusal
from shorthaul.transforms.catalog import UnknownTransformation, catalog, make
from shorthaul.transforms.explain import Place, place_of
from shorthaul.transforms.recipe import Recipe, RecipeError, parse

from . import details as panel
from . import graph as graphs
from . import measuring
from .load import SessionError, Subject, load, lowered, machine_of, target_of
from .overlays import overlays
from .state import State

Json = Any
Listener = Callable[[Json], None]
FAILURES = (Refusal, EditError, UnknownTransformation, RecipeError, workbench.TransformationError, TypeError, ValueError)


class Session:
    """See the module's page. checks: whether every new state is checked numerically in the background (`settle` waits for it)."""

    def __init__(self, program: Program, *, machine: str = "cpu", checks: bool = True, subject: Subject | None = None) -> None:
        machine_called(machine)
        self.name = program.name
        self.key = secrets.token_hex(8)  # which session it is, for a page that comes back and finds another
        self.earlier: Json = None  # what an earlier session on this program had reached (see `kept`), for `restore`
        self.version = 0
        self.machine = machine
        self.subject = subject
        self.checks = checks
        self.states: list[State] = []
        self.job: str = ""  # what runs in the background now
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="studio")
        self._jobs: list[Future[Any]] = []
        self._faults: set[str] = set()  # transformations of which it was said that they fail
        self.root = self.current = self._add(None, program, "captured" if program.form is Form.OPERATORS else "opened", "start")

    @classmethod
    def of(cls, what: Any, inputs: tuple | None = None, *, level: int | None = 0, train: bool = True, **options: Any) -> Session:
        """A session on anything that can be opened (a Session is returned as it is). Raises SessionError."""
        if isinstance(what, Session):
            return what
        program, subject = load(what, inputs, train=train)
        if subject is not None and options.get("machine") is None:
            options["machine"] = machine_of(subject[1])
        session = cls(program, subject=subject, **options)
        if level is not None and session.current.program.form is Form.OPERATORS:
            session.run_level(level)
        return session

    @classmethod
    def open(cls, what: Any, **options: Any) -> Session:
        """A session on "model.onnx", "program.json", "FILE.py:function" or "package.module:function". Raises SessionError."""
        return cls.of(what, **options)

    # --- states -------------------------------------------------------------------------------------------------------
    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` at every change and progress, from whatever thread it happens in; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def tell(self, **event: Json) -> None:
        """An event for every listener."""
        for listener in list(self._listeners):
            listener(event)

    def _add(self, parent: State | None, program: Program, step: str, kind: str = "step") -> State:
        made = frozenset[int]()
        if parent is not None:
            made = frozenset(n.id for n in program.nodes if not parent.program.node_is_current(n))
        state = State(len(self.states), parent, program, step, kind, made, machine=self.machine, checked=self.checks,
                      closed=self._closed)  # fmt: skip
        state.totals  # noqa: B018  computed now: a program that cannot be counted is refused before it is a state
        self.states.append(state)
        if parent is not None:
            parent.children.append(state)
        return state

    def _move(self, state: State, *, new: bool = False) -> State:
        self.current = state
        below = state
        while below.parent is not None:
            below.parent.next = below
            below = below.parent
        self.version += 1
        self.tell(event="changed", version=self.version, current=state.id)
        if new and self.checks and state.parent is not None and state.kind != "lowered":
            self._start("checking the numbers", lambda: self._check(state))
        return state

    def expect(self, version: int | None) -> None:
        """Raise SessionError where the session is not at that version (None: do not ask)."""
        if version is not None and version != self.version:
            raise SessionError(f"the session changed meanwhile, in another tab perhaps (it is at version {self.version}, this was decided "
                               f"at {version}); nothing was done: look again and repeat it")  # fmt: skip

    def state(self, id: int | None = None) -> State:
        """A state by its number; the current one without."""
        if id is None:
            return self.current
        if not isinstance(id, int) or not 0 <= id < len(self.states):
            raise SessionError(f"there is no state {id}; they are numbered 0 to {len(self.states) - 1}")
        return self.states[id]

    def describe(self) -> Json:
        """Version, states with totals and badges, overlays, machines: what a page needs first."""
        redo = self.current.next
        return {"version": self.version, "session": self.key, "name": self.name,
                "current": self.current.id, "states": [s.describe() for s in self.states],
                "overlays": [o.describe() for o in overlays().values()], "machine": self.machine, "machines": list(MACHINES),
                "devices": workbench.devices(), "device": self.device,
                "earlier": None if self.earlier is None else {k: v for k, v in self.earlier.items() if k != "recipe"},
                "undo": self.current.parent is not None, "tunes": self.subject is not None, "job": self.job,
                "redo": None if redo is None else redo.id,
                "transformations": [{"name": n, "level": t.level, "summary": (t.__doc__ or "").strip().split("\n")[0]}
                                    for n, t in catalog().items()]}  # fmt: skip

    # --- questions ----------------------------------------------------------------------------------------------------
    def graph(self, state: int | None = None) -> Json:
        """The whole graph of a state, see `gui.graph.graph`."""
        found = self.state(state)
        return {**found.graph, "state": found.id, "version": self.version}

    def graph_text(self, state: int | None = None) -> str:
        """The same without containers, which the page does not need, as JSON text, which a state keeps: it takes longer to write than to
        send."""
        found = self.state(state)
        return f'{found.graph_text[:-1]}, "state": {found.id}, "version": {self.version}}}'

    def modules(self, inside: str = "", state: int | None = None) -> Json:
        """One level of the module hierarchy with bytes, kernels and saved tensors."""
        return graphs.modules(self.state(state).view, inside)

    def overlay(self, name: str, state: int | None = None) -> Json:
        """{overlay, values: {node id: number or word}, error}: an overlay that raises gives no values, and the error."""
        known = overlays()
        if name not in known:
            raise SessionError(f"there is no overlay {name!r}; there are {', '.join(known)}")
        try:
            values = {str(k): v for k, v in known[name].function(self.state(state).view).items() if v is not None}
        except Exception as e:  # an overlay is anyone's code
            return {"overlay": name, "values": {}, "error": f"overlay {name} failed: {type(e).__name__}: {e}"}
        return {"overlay": name, "values": values, "error": ""}

    def node(self, what: int | str, state: int | None = None) -> Json:
        """Everything about a node (id or reference): memlets, origins with source lines, code, places that apply and that do not."""
        found = self.state(state)
        inner = found.inner.get(what)
        if inner is not None:
            above, view, node = inner
            return panel.details(view, node, (), above)
        node = self._node(found.program, what)
        return panel.details(found.view, node, found.places_of(node))

    def body(self, what: int | str, state: int | None = None) -> Json:
        """What is inside a kernel, nested."""
        found = self.state(state)
        inner = found.inner.get(what)
        return graphs.body(self._node(found.program, what) if inner is None else inner[2])

    def module(self, path: str, state: int | None = None) -> Json:
        """Totals of a module, its costliest nodes, and the modules that are built alike."""
        found = self.state(state)
        try:
            alike = isomorphic_modules(self.root.program, path)
        except KeyError:
            alike = []
        try:
            return panel.module_details(found.view, path, alike)
        except KeyError as e:
            raise SessionError(str(e.args[0])) from e

    def opportunities(self, limit: int = 200, inside: str = "", refused: bool = False, state: int | None = None) -> list[Json]:
        """Places where transformations apply, most bytes first; `refused`: where they do not, with the reasons. inside: of a module."""
        rows = []
        found = self.state(state)
        for p in found.places:
            modules = [o.module for n in p.match.nodes for o in n.origins]
            if p.applies is not refused and (not inside or any(m == inside or m.startswith(inside + ".") for m in modules)):
                rows.append(panel.place(p))
                if len(rows) == limit:
                    break
        for name in found.faults.keys() - self._faults:  # once a session
            self._faults.add(name)
            self.tell(event="failed", what=found.faults[name])
        return rows

    def costliest(self, limit: int = 500, state: int | None = None) -> list[Json]:
        """Kernels and library calls with bytes, share, predicted and measured seconds, most bytes first."""
        view = self.state(state).view
        total = max(1, int(view.movement.bytes))  # type: ignore[arg-type]
        rows = []
        for n in sorted(view.program.nodes, key=lambda n: -view.bytes.get(n.id, 0))[:limit]:
            t, b = view.times.get(n.id), view.bytes.get(n.id, 0)
            rows.append({"id": n.id, "label": graphs.label(n), "module": n.origin.module, "phase": n.phase,
                         "kind": "kernel" if isinstance(n, Map) else n.kind, "bytes": b, "share": b / total,
                         "flops": None if t is None else t.flops, "predicted": None if t is None else t.seconds,
                         "measured": view.seconds.get(n.id)})  # fmt: skip
        return rows

    def roofline(self, state: int | None = None) -> Json:
        """The machine's lines, and a point for every kernel whose operations are known."""
        view = self.state(state).view
        m = view.machine
        points = [{"id": t.node, "name": t.name, "bytes": t.bytes, "flops": t.flops, "predicted": t.seconds, "bound": t.bound,
                   "measured": view.seconds.get(t.node)} for t in view.times.values() if t.flops and t.bytes]  # fmt: skip
        return {"machine": m.name, "bandwidth": m.bandwidth, "peak": m.peak("float32"), "contraction": m.peak("float32", True),
                "points": points, "without": len(view.times) - len(points)}  # fmt: skip

    def memory(self, state: int | None = None) -> Json:
        """Bytes of transients at every node in order, and the tensors that live longest and largest."""
        view = self.state(state).view
        lives = sorted(view.liveness.lifetimes.values(), key=lambda x: -panel.hint_value(view.program, x.container.bytes))[:80]
        return {"at": view.liveness.at, "ids": [n.id for n in view.program.nodes], "phases": [n.phase for n in view.program.nodes],
                "saved": view.liveness.saved_bytes, "peak": view.liveness.peak,
                "tensors": [{"name": x.container.name, "bytes": panel.hint_value(view.program, x.container.bytes), "first": x.first,
                             "last": x.last, "saved": x.is_saved} for x in lives]}  # fmt: skip

    def diff(self, before: int, after: int) -> Json:
        """Two states: totals, bytes and kernels by module, nodes that only one of them has, and the steps as a diff of recipes."""
        a, b = self.state(before), self.state(after)
        rows: dict[str, list[int]] = {}
        for i, s in enumerate((a, b)):
            for n in s.program.nodes:
                row = rows.setdefault(n.origin.module, [0, 0, 0, 0])
                row[i] += s.view.bytes.get(n.id, 0)
                row[2 + i] += 1
        table = [{"module": m, "before": r[0], "after": r[1], "kernels_before": r[2], "kernels_after": r[3]} for m, r in rows.items()
                 if r[0] != r[1] or r[2] != r[3]]  # fmt: skip
        only = [[{"id": n.id, "label": graphs.label(n), "module": n.origin.module, "phase": n.phase, "bytes": s.view.bytes.get(n.id, 0)}
                 for n in s.program.nodes if not o.program.node_is_current(n)] for s, o in ((a, b), (b, a))]  # fmt: skip
        return {"before": a.describe(), "after": b.describe(), "modules": sorted(table, key=lambda r: r["after"] - r["before"]),
                "removed": only[0], "added": only[1], "recipe": Recipe.of(a.program).diff(Recipe.of(b.program))}  # fmt: skip

    def _node(self, program: Program, what: int | str) -> Node:
        try:
            return workbench.node_of(program, what)
        except KeyError as e:
            raise SessionError(str(e.args[0])) from e

    # --- changes ------------------------------------------------------------------------------------------------------
    def preview(self, transformation: str, where: Mapping[str, str], parameters: Mapping[str, Any] | None = None) -> Json:
        """What applying would do, without doing it: bytes, kernels, the text before and after. Raises SessionError with the reason."""
        before = self.current
        program, _ = self._applied(before.program, transformation, where, parameters)
        after = State(-1, before, program, "preview", machine=self.machine)
        from shorthaul.ir.printer import print_node

        gone = [n for n in before.program.nodes if not program.node_is_current(n)]
        new = [n for n in program.nodes if not before.program.node_is_current(n)]
        return {"before": before.totals, "after": after.totals, "removed": [n.id for n in gone],
                "text_before": "\n".join(print_node(n, before.program.containers) for n in gone[:6]),
                "text_after": "\n".join(print_node(n, program.containers) for n in new[:6]),
                "check": str(_checked(before.program, program))}  # fmt: skip

    def apply(self, transformation: str, where: Mapping[str, str], parameters: Mapping[str, Any] | None = None, *,
              version: int | None = None) -> Json:  # fmt: skip
        """Apply at a place (of `opportunities` or `node`) as a new state. Raises SessionError with the reason where it does not apply."""
        with self._lock:
            self.expect(version)
            program, place = self._applied(self.current.program, transformation, where, parameters)
            self._move(self._add(self.current, program, f"{transformation} at {_words(place)}"), new=True)
            return self.current.describe()

    def apply_alike(self, transformation: str, where: Mapping[str, str], parameters: Mapping[str, Any] | None = None, *,
                    version: int | None = None) -> Json:  # fmt: skip
        """Apply there and in every module that is built alike, as one state."""
        with self._lock:
            self.expect(version)
            program = self.current.program.clone()
            try:
                t = make(transformation, **(parameters or {}))
                done = workbench.apply_alike(program, place_of(t, t.match_at(program, where)))
            except FAILURES as e:
                raise SessionError(f"{transformation} cannot be applied here: {e}") from e
            if not done:
                self._applied(self.current.program, transformation, where, parameters)  # says why
                raise SessionError(f"{transformation} applies nowhere alike: it was done already, or is refused everywhere")
            more = f" and {len(done) - 1} alike" if len(done) > 1 else ""
            self._move(self._add(self.current, program, f"{transformation} at {_words(done[0])}{more}"), new=True)
            return {**self.current.describe(), "places": [dict(p.where) for p in done]}

    def _applied(self, old: Program, transformation: str, where: Mapping[str, str],
                 parameters: Mapping[str, Any] | None) -> tuple[Program, Place]:  # fmt: skip
        program = old.clone()
        try:
            return program, workbench.apply(program, transformation, where, **(parameters or {}))
        except FAILURES as e:
            raise SessionError(f"{transformation} cannot be applied here: {e}") from e

    def run_level(self, level: int, *, version: int | None = None) -> Json:
        """Run the pipeline up to a level (0 only lowers) from the nearest state that consists of operators, as a new branch. Where the
        described machine is a GPU, the pipeline chooses as for one."""
        with self._lock:
            self.expect(version)
            if level not in range(5):
                raise SessionError(f"a level is 0, 1, 2, 3 or 4, not {level}")
            start: State | None = self.current
            while start is not None and start.program.form is not Form.OPERATORS:
                start = start.parent
            if start is None:
                raise SessionError("this program was opened already lowered: levels start from operators; open the captured program")
            try:
                program = lowered(start.program, level, target_of(self.machine))
            except FAILURES as e:
                raise SessionError(f"level {level} failed: {e}") from e
            step, kind = (f"level {level}", "level") if level else ("lowered (level 0)", "lowered")
            step += "" if self.machine == "cpu" else f" for {self.machine}"
            self._move(self._add(start, program, step, kind), new=True)
            return self.current.describe()

    def replay(self, recipe: str, *, missing: str = "raise", version: int | None = None) -> Json:
        """Replay a recipe (its text) on the state that the session began with, as a new branch."""
        with self._lock:
            self.expect(version)
            program = self.root.program.clone()
            try:
                done = workbench.replay(program, parse(recipe), missing=missing, target=target_of(self.machine))
            except FAILURES as e:
                raise SessionError(str(e)) from e
            self._move(self._add(self.root, program, f"recipe ({done.applied} steps)", "recipe"), new=True)
            return {**self.current.describe(), "replay": str(done)}

    def restore(self, *, version: int | None = None) -> Json:
        """Take up what an earlier session on this program had reached: its steps are replayed as one branch of the first state."""
        with self._lock:
            self.expect(version)
            if self.earlier is None:
                raise SessionError("there is nothing of an earlier session to take up, or it was taken up already; nothing was done")
            earlier, program = self.earlier, self.root.program.clone()
            try:
                workbench.replay(program, parse(earlier["recipe"]), target=target_of(earlier["machine"]))
            except FAILURES as e:
                raise SessionError(f"what the earlier session had done does not fit this program any more: {e}") from e
            self.earlier = None
            self._describe_as(earlier["machine"])
            self._move(self._add(self.root, program, f"taken up: {earlier['step']}", "recipe"), new=True)
            return self.current.describe()

    def undo(self, *, version: int | None = None) -> Json:
        """Back to the state before; it stays, for `redo`."""
        with self._lock:
            self.expect(version)
            if self.current.parent is None:
                raise SessionError("there is nothing to undo: this is the state that the session began with")
            back = self.current
            self._move(back.parent)  # type: ignore[arg-type]
            self.current.next = back
            return self.current.describe()

    def redo(self, *, version: int | None = None) -> Json:
        """Forward to the state last visited behind this one."""
        with self._lock:
            self.expect(version)
            if self.current.next is None:
                raise SessionError("there is nothing to redo")
            return self._move(self.current.next).describe()

    def goto(self, state: int, *, version: int | None = None) -> Json:
        """Make any state the current one; what is done then is a branch of it."""
        with self._lock:
            self.expect(version)
            return self._move(self.state(state)).describe()

    def reset(self, *, version: int | None = None) -> Json:
        """Back to the first state (or the first lowered one); the others stay in the history."""
        with self._lock:
            self.expect(version)
            first = next((s for s in self.root.children if s.kind in ("lowered", "level")), self.root)
            return self._move(first).describe()

    def set_machine(self, machine: str, *, version: int | None = None) -> Json:
        """Describe another machine: predicted times and re-reads follow it."""
        with self._lock:
            self.expect(version)
            if machine not in MACHINES:
                raise SessionError(f"no machine is called {machine!r}; known are {', '.join(MACHINES)}")
            self._describe_as(machine)
            return self._move(self.current).describe()

    def _describe_as(self, machine: str) -> None:
        self.machine = machine
        for s in self.states:
            s.machine = machine
            s.changed()

    # --- in the background --------------------------------------------------------------------------------------------
    def _start(self, what: str, job: Callable[[], None]) -> Future[Any]:
        def run() -> None:
            self.job = what
            self.tell(event="progress", job=what, what=what, part=0.0)
            try:
                job()
            finally:
                self.job = ""
                self.tell(event="progress", job="", what="", part=1.0)

        future = self._worker.submit(run)
        self._jobs = [j for j in self._jobs if not j.done()] + [future]
        return future

    def settle(self, timeout: float | None = None) -> None:
        """Wait until what runs in the background is done; raises what a job raised."""
        for job in list(self._jobs):
            job.result(timeout)

    def _check(self, state: State) -> None:
        before = state.parent
        assert before is not None
        reference = before.program
        if reference.form is Form.OPERATORS and state.program.form is not Form.OPERATORS:
            reference = lowered(reference, 0)  # its meaning: every operator by its maps, nothing fused
        state.check = _checked(reference, state.program)
        for s in self.states:
            s.changed()
        self.tell(event="checked", state=state.id, version=self.version)

    @property
    def device(self) -> str:
        """What is measured on where nobody says: a GPU, if there is one and one is described; else this CPU."""
        gpus = [d for d in workbench.devices() if d != "cpu"]
        return gpus[0] if gpus and self.machine != "cpu" else "cpu"

    def measure(self, runs: int = 15, *, device: str = "", wait: bool = True) -> Json:
        """Time the current state's step and kernels on this CPU ("cpu") or a GPU ("cuda:0"), by default on `device`; with `wait=False` the
        result comes as an event."""
        state, device = self.current, device or self.device
        if device not in workbench.devices():
            raise SessionError(f"there is no device {device!r} here; there are {', '.join(workbench.devices())}")
        if state.program.form is Form.OPERATORS:
            raise SessionError("operators have no code to time; run a level first")
        self._stop.clear()

        def progress(what: str, part: float) -> None:
            self.tell(event="progress", job="measuring", what=what, part=part)

        def job() -> None:
            try:
                state.measured = measuring.measure(state.program, runs=runs, device=device, progress=progress, stop=self._stop)
            except measuring.Stopped:
                self.tell(event="stopped", what="The measurement was stopped; nothing of it is kept.")
                raise SessionError("the measurement was stopped") from None
            except measuring.MeasuringFailed as e:  # a kernel that does not build or run, or crashes: said, and the session goes on
                self.tell(event="failed", what=f"measuring failed: {e}")
                raise SessionError(f"measuring failed: {e}") from e
            state.changed()
            self.tell(event="measured", state=state.id, version=self.version)

        future = self._start("measuring", job)
        if not wait:
            future.add_done_callback(lambda f: f.exception())
            return {"state": state.id}
        future.result()
        return state.totals["measured"]

    def tune(self, budget: float = 60.0, *, wait: bool = True) -> Json:
        """Search for a faster plan by measuring, for `budget` seconds; what wins is a new branch of the first state. `stop` ends it early
        and keeps what was found. Raises SessionError where the session was not opened on a model (a program has no inputs)."""
        if self.subject is None or self.root.program.form is not Form.OPERATORS:
            raise SessionError("tuning runs the model, and this session was opened on a program alone: open the module, or its ONNX file")
        model, inputs, train = self.subject
        self._stop.clear()

        def report(run: Any) -> None:
            last = run.trials[-1]
            self.tell(event="progress", job="tuning", what=f"best {1 / run.ratio:.2f}x, {len(run.trials)} tried, last: {last.what}",
                       part=min(1.0, run.spent / budget))  # fmt: skip
            if self._stop.is_set():
                raise KeyboardInterrupt  # the tuner ends and returns what it found

        def job() -> None:
            from shorthaul.tuner import tune

            try:
                found = tune(model, inputs, budget=budget, train=train, progress=report)
                target = target_of(machine_of(inputs))  # the tuner follows the tensors
                program = workbench.optimize(self.root.program.clone(), recipe=found.recipe, target=target)
            except Exception as e:  # whatever a model or a candidate raises: said, and the session goes on
                self.tell(event="failed", what=f"tuning failed: {e}")
                raise SessionError(f"tuning failed: {e}") from e
            with self._lock:
                step = f"tuned, {found.speedup:.2f} times as fast ({len(found.measured)} plans measured)"
                self._move(self._add(self.root, program, step, "tuned"), new=True)

        future = self._start("tuning", job)
        if not wait:
            future.add_done_callback(lambda f: f.exception())
            return {}
        future.result()
        return self.current.describe()

    def stop(self) -> Json:
        """Stop what runs in the background at its next step."""
        self._stop.set()
        return {}

    # --- out ----------------------------------------------------------------------------------------------------------
    def export(self, kind: str, state: int | None = None) -> str:
        """The text of "recipe" (Python), "json" (program), "trace" (Chrome and Perfetto), "svg" or "html" (a page that works offline)."""
        from .export import export

        return export(self, kind, self.state(state))

    def save(self, path: str | os.PathLike[str], kind: str = "", state: int | None = None) -> Path:
        """Write an export; its kind follows from the name: .py, .trace.json, .json, .svg, .html. Raises SessionError for another."""
        target = Path(path)
        kinds = {".py": "recipe", ".trace.json": "trace", ".json": "json", ".svg": "svg", ".html": "html"}
        kind = kind or next((k for end, k in kinds.items() if target.name.endswith(end)), "")
        if not kind:
            raise SessionError(f"{target.name}: what to write? Names end in {', '.join(kinds)}")
        text = self.export(kind, state)
        try:
            target.write_text(text)
        except OSError as e:
            raise SessionError(f"cannot write {target}: {e.strerror or e}") from e
        return target

    def close(self) -> None:
        """End what runs in the background, and what is still looked for."""
        self._stop.set()
        self._closed.set()
        self._worker.shutdown(wait=False, cancel_futures=True)


def _checked(before: Program, after: Program) -> workbench.NumericCheck:
    try:
        return workbench.check_numbers(before, after)
    except Exception as e:  # it is said that there is no answer; the state stays
        return workbench.NumericCheck(reason=f"the interpreter failed: {type(e).__name__}: {e}")


def _words(place: Place) -> str:
    return " → ".join(v for v in place.where.values() if ": " in v) or "the whole program"
