"""The program of a whole step: forward, loss, backward and the optimizer's update in one graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shorthaul.analysis.eager import eager_bytes
from shorthaul.autodiff import differentiate
from shorthaul.codegen.library import LIBRARY
from shorthaul.config import Options
from shorthaul.frontends.functional import FunctionalGraph, GraphRef, OutputSpec, Unsupported
from shorthaul.frontends.host_scalars import Expr
from shorthaul.frontends.importer import Imported, import_graph
from shorthaul.frontends.optimizers import Kind, NotTraced, Update
from shorthaul.frontends.traced_gradient import traced_gradient
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import dtype, float64, int64
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Operator, Origin
from shorthaul.ir.pointwise_program import codes_of
from shorthaul.ir.program import Program
from shorthaul.pipeline import fused_maps

from .gradients import apply, clipped_by_norm, clipped_by_value, selected, unscaled
from .lazy import WINDOW, Change

LOSS = 1  # place of the loss among the outputs of the captured call; the first one is what is differentiated


class LossError(ValueError):
    """What should be the loss is none; the message says what it is and what a loss must be."""


@dataclass
class StepProgram:
    """A program of operators with what links it to the graph, the optimizer and the host.

    parameters, gradients: containers by place among the optimizer's parameters. states: (parameter, name) of each state tensor that it
    reads, with its container; accumulators: those of the sums of gradients. scalars: expressions with their containers. results: the
    containers of gradients that the caller gets, by parameter. found: the container that says that a gradient is not finite.
    lazy: by place of a table that may be lazy: its change, its state entries as (parameter, name), and the container that says after which
    step each row is up to date. decays: the containers of the matrices of each kind of change.
    """

    imported: Imported
    device: torch.device
    parameters: dict[int, str]
    gradients: dict[int, str]
    states: dict[tuple[int, str], str] = field(default_factory=dict)
    accumulators: dict[int, str] = field(default_factory=dict)
    scalars: dict[Expr, str] = field(default_factory=dict)
    results: dict[int, str] = field(default_factory=dict)
    found: str | None = None
    lazy: dict[int, tuple[Change, tuple[tuple[int, str], ...], str]] = field(default_factory=dict)
    decays: dict[tuple, str] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        return self.imported.program

    def scalar(self, expr: Expr) -> str:
        """The container of a number that the host computes."""
        if expr not in self.scalars:
            with self.program.edit("Scalar") as edit:
                c = edit.add_container(Container(self.program.fresh("scalar"), float64, (), role="input"))
                edit.set_signature(self.program.signature.with_(inputs=(*self.program.signature.inputs, c.name)))
            self.scalars[expr] = c.name
        return self.scalars[expr]

    def _state_input(self, hint: str, like: Container) -> str:
        with self.program.edit("State") as edit:
            c = edit.add_container(like.with_(name=self.program.fresh(hint), role="buffer"))
            edit.set_signature(self.program.signature.with_(inputs=(*self.program.signature.inputs, c.name)))
        return c.name

    def state(self, place: int, name: str, t: torch.Tensor) -> str:
        """The container of a state tensor."""
        if (place, name) not in self.states:
            strides = None if t.is_contiguous() else tuple(t.stride())
            c = Container("", dtype(str(t.dtype).removeprefix("torch.")), tuple(t.shape), strides)
            self.states[place, name] = self._state_input(f"{self.parameters[place]}_{name}", c)
        return self.states[place, name]

    def update(self, pairs: Mapping[str, str]) -> None:
        """Add (input, new value) to what is written back."""
        program = self.program
        with program.edit("Updates") as edit:
            for old, new in pairs.items():
                edit.set_container(program.containers[new].with_(role="output", strides=program.containers[old].strides))
            edit.set_signature(program.signature.with_(updates=(*program.signature.updates, *pairs.items())))

    def give(self, names: Iterable[str]) -> None:
        """Add containers to the outputs."""
        program = self.program
        with program.edit("Outputs") as edit:
            for n in names:
                if program.containers[n].role == "transient":
                    edit.set_container(program.containers[n].with_(role="output"))
            outputs = dict.fromkeys((*program.signature.outputs, *names))
            edit.set_signature(program.signature.with_(outputs=tuple(outputs)))

    @property
    def lazy_inputs(self) -> list[str]:
        """The containers of what lazy tables keep beside the optimizer's state."""
        return [*(last for _, _, last in self.lazy.values()), *self.decays.values()]

    def declare_lazy(self, place: int, change: Change, states: Sequence[tuple[int, str]]) -> None:
        """Let rows of a table without a gradient be stepped later (see `SparseUpdate`)."""
        program, table = self.program, self.program.containers[self.parameters[place]]
        last = self._state_input(f"{table.name}_last", Container("", int64, table.shape[:1]))
        if change.key not in self.decays:
            k = len(change.tables)
            self.decays[change.key] = self._state_input("decay", Container("", float64, (WINDOW + 1, k, k)))
        declared = dict(program.attributes.get("lazy_tables", {}))
        declared[table.name] = (last, self.decays[change.key], self.scalar(("setting", "lazy_step")))
        program.attributes["lazy_tables"] = declared
        self.lazy[place] = (change, tuple(states), last)

    # gradients --------------------------------------------------------------------------------------------------------
    def accumulate(self, last: bool) -> None:
        """Add the sums of earlier calls to the gradients; the new sums are kept, or zeros where this is the last call."""
        for place, g in self.gradients.items():
            self.accumulators[place] = self._state_input(f"{self.parameters[place]}_accumulated", self.program.containers[g])
        sums = self._apply(lambda *xs: [a + g for a, g in zip(xs[: len(xs) // 2], xs[len(xs) // 2 :], strict=True)],
                           [*self.accumulators.values(), *self.gradients.values()], "sum_")  # fmt: skip
        self.gradients = dict(zip(self.gradients, sums, strict=True))
        kept = sums
        if last:
            kept = self._apply(lambda *xs: [torch.zeros_like(x) for x in xs], list(self.accumulators.values()), "zero_")
        self.update(dict(zip(self.accumulators.values(), kept, strict=True)))

    def unscale(self, scale: str) -> None:
        """Divide gradients by the loss scale, and find out whether all of them are finite."""
        def function(factor: Any, *gradients: Any) -> list[Any]:
            found, bad = unscaled(gradients, factor)
            return [*found, bad]

        *found, self.found = self._apply(function, [scale, *self.gradients.values()], "unscaled_")
        self.gradients = dict(zip(self.gradients, found, strict=True))
        self.give([self.found])

    def clip(self, value: Expr | None, norm: Expr | None) -> None:
        """Clip gradients by value, then by their common norm."""
        types = [getattr(torch, self.program.containers[g].dtype.name) for g in self.gradients.values()]
        for limit, function in ((value, lambda x, *g: clipped_by_value(g, x)), (norm, lambda x, *g: clipped_by_norm(g, x, types)[0])):
            if limit is not None:
                found = self._apply(function, [self.scalar(limit), *self.gradients.values()], "clipped_")
                self.gradients = dict(zip(self.gradients, found, strict=True))

    def _apply(self, function: Callable[..., Sequence[Any]], operands: Sequence[str], hint: str) -> list[str]:
        return apply(self.program, function, operands, self.device, hint)


def differentiated(graph: FunctionalGraph, name: str, strict: bool, wanted: Iterable[int]) -> tuple[Imported, dict[str, str]]:
    """The graph as a program with the gradients of its first output, by the container of each wanted input (an index of the graph).

    The gradients are ordinary values of the program. Raises LossError where the first output is no scalar, or depends on none of them.
    """
    imported = import_graph(graph, name, strict=strict)
    program = imported.program
    objective = _objective(graph, imported)
    for m in graph.mutations:
        if m.differentiable:
            raise Unsupported(f"input {graph.inputs[m.input].name} is changed in place and gradients flow through the change",
                              remedy="Return a new tensor instead of writing into the argument.")  # fmt: skip
    wrt = list(dict.fromkeys(n for i in wanted if (n := imported.inputs[i]) is not None))
    differentiate(program, [objective], wrt, functools.partial(traced_gradient, library=LIBRARY))
    if not program.signature.gradients:
        raise LossError("the loss depends on no parameter of the optimizer: there is nothing to train")
    program.attributes["eager_bytes"] = eager_bytes(program)
    gradients = dict(program.signature.gradients)
    with program.edit("WholeStep") as edit:
        for _, c in program.signature.cotangents:
            edit.set_container(program.containers[c].with_(role="constant"))
            edit.set_constant(c, np.ones((), dtype=np.float64 if program.containers[c].dtype is float64 else np.float32))
        for g in gradients.values():
            edit.set_container(program.containers[g].with_(role="transient"))
        edit.set_signature(program.signature.with_(cotangents=(), gradients=()))
    return imported, gradients


def _objective(graph: FunctionalGraph, imported: Imported) -> str:
    if len(graph.outputs) <= LOSS:
        raise LossError("the loss is no tensor that the model computes: a scalar tensor is needed")
    spec = graph.outputs[0]
    shape = _shape(graph, graph.outputs[LOSS])
    if shape is None or any(n != 1 for n in shape):
        what = "no tensor that the model computes" if shape is None else f"a tensor of shape {tuple(shape)}"
        raise LossError(f"the loss is {what}: a scalar is needed; reduce it, for example by .mean()")
    name = None if spec.graph_output is None else imported.results[spec.graph_output]
    if name is None or not imported.program.containers[name].dtype.is_float:
        raise LossError("the loss is no floating-point tensor")
    if not spec.differentiable:
        raise LossError("the loss does not depend on any parameter that requires grad")
    return name


def _shape(graph: FunctionalGraph, spec: OutputSpec) -> Sequence[Any] | None:
    if spec.kind == "tensor" and spec.graph_output is not None:
        return graph.results[spec.graph_output].meta["val"].shape
    if spec.kind == "view" and spec.view is not None:
        return spec.view.size
    if spec.kind == "same":
        return _shape(graph, graph.outputs[spec.output or 0])
    return None


def add_update(step: StepProgram, update: Update, state: Mapping[int, Mapping[str, Any]], options: Options, lazy: bool = False) -> None:
    """Put the optimizer's update behind the gradients. state: the optimizer's, by place. Where a gradient is found not to be finite, all
    old values stay. lazy: declare tables that are read by rows. Raises NotTraced for what programs do not hold."""
    program = step.program
    pairs: dict[str, str] = {}
    for kind in update.kinds:
        body, moved = _body(kind, options)
        for member in kind.members:
            reads = [_operand(step, what, member, state) for what in kind.inputs]
            with program.edit("Optimizer") as edit:
                writes = {}
                for k, place in enumerate(body.written):
                    old = program.containers[reads[place]]
                    new = edit.add_container(old.with_(name=program.fresh(f"{old.name}_new"), role="transient"))
                    pairs[old.name] = new.name
                    writes[f"y{k}"] = full(new)
                edit.add(Operator("parameter_update", {"body": body.program},
                                  reads={f"x{k}": full(program.containers[n]) for k, n in enumerate(reads)}, writes=writes,
                                  origins=(Origin(step.parameters[member[0]], "", "optimizer"),), phase="backward"))  # fmt: skip
            program.attributes["eager_bytes"] = program.attributes["eager_bytes"] + moved
            if lazy and _is_table(program, step.parameters[member[0]]):
                _declare_lazy(step, kind, body, member)
    if step.found is not None:
        pairs = selected(program, pairs, step.found, step.device)
    step.update(pairs)


def _is_table(program: Program, name: str) -> bool:
    """Whether rows of a parameter are read by index."""
    return any(isinstance(r, Operator) and r.op in ("embedding", "index") for r in program.readers(name))


def _declare_lazy(step: StepProgram, kind: Kind, body: _Body, member: tuple[int, ...]) -> None:
    names = body.program.signature.inputs
    shape = step.program.containers[step.parameters[member[0]]].shape
    whole = all(body.program.containers[n].shape == shape for n, what in zip(names, kind.inputs, strict=True) if what[0] != "scalar")
    if len(member) > 1 or codes_of(body.program) is None or not whole:
        return  # `SparseUpdate` says why it does not apply
    of = dict(zip(names, kind.inputs, strict=True))
    tables = {n: "" if what[0] == "parameter" else what[2] for n, what in of.items() if what[0] in ("parameter", "state")}
    change = Change(body.program, tables, frozenset(n for n, what in of.items() if what[0] == "gradient"),
                    {n: what[1] for n, what in of.items() if what[0] == "scalar"}, tuple(names[i] for i in body.written))  # fmt: skip
    step.declare_lazy(member[0], change, [(member[0], name) for name in tables.values()])


@dataclass
class _Body:
    program: Program
    written: list[int]  # inputs of the body whose new values its outputs are


def _body(kind: Kind, options: Options) -> tuple[_Body, Any]:
    """The traced update as a program of fused maps, and the bytes that eager mode moves for it."""
    try:
        imported = import_graph(kind.graph, "update")
    except Unsupported as e:
        raise NotTraced(f"its step computes what programs do not hold: {e.what}") from e
    program = imported.program
    written = [m for m in kind.graph.mutations if kind.inputs[m.input][0] in ("parameter", "state")]
    outputs = [imported.results[m.graph_output] for m in written]
    if len(set(outputs)) != len(outputs) or None in outputs:
        raise NotTraced("it gives two tensors the same new value")
    with program.edit("Outputs") as edit:
        inputs = tuple(str(n) for n in imported.inputs)
        edit.set_signature(program.signature.with_(inputs=inputs, outputs=tuple(str(o) for o in outputs)))
    moved = eager_bytes(program)
    return _Body(fused_maps(program, options), [m.input for m in written]), moved


def _operand(step: StepProgram, what: tuple, member: tuple[int, ...], state: Mapping[int, Mapping[str, Any]]) -> str:
    """The container of an input of the traced update, declared where it is new."""
    if what[0] == "parameter":
        return step.parameters[member[what[1]]]
    if what[0] == "gradient":
        return step.gradients[member[what[1]]]
    if what[0] == "state":
        place, name = member[what[1]], what[2]
        return step.state(place, name, state[place][name])
    return step.scalar(what[1])


def set_outputs(graph: FunctionalGraph, imported: Imported) -> None:
    """Results that only buffers take are updates; outputs are what the caller gets."""
    program = imported.program
    wanted: set[int] = set()

    def use(item: Any) -> None:
        if isinstance(item, GraphRef):
            wanted.add(item.index)
        elif isinstance(item, (list, tuple)):
            for x in item:
                use(x)
        elif isinstance(item, dict):
            use(list(item.values()))

    for spec in graph.outputs:
        if spec.graph_output is not None:
            wanted.add(spec.graph_output)
        if spec.view is not None:
            use([spec.view.size, spec.view.stride, spec.view.offset, [list(op[1:]) for op in spec.view.ops or ()]])
    outputs = tuple(dict.fromkeys(n for i in sorted(wanted) if (n := imported.results[i]) is not None))
    updates = [(str(imported.inputs[m.input]), str(imported.results[m.graph_output])) for m in graph.mutations]
    program.attributes["whole_step"] = True
    with program.edit("Outputs") as edit:
        edit.set_signature(program.signature.with_(outputs=outputs, updates=tuple(updates)))
