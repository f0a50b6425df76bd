"""A captured call and its compiled steps: one for each way that the optimizer's update was traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from shorthaul.api import built, device_of, interface_of
from shorthaul.frontends.functional import FunctionalGraph, Unsupported
from shorthaul.frontends.optimizers import FirstStep, NotTraced, Update, flat_parameters, initialize, trace_update
from shorthaul.ir.program import Program
from shorthaul.runtime.bridge import Interface
from shorthaul.runtime.graphs import graphed
from shorthaul.runtime.report import LOG, Region
from shorthaul.runtime.target import TARGETS
from shorthaul.runtime.train_step import Scalars, StepGraph, in_place_updates

from .numbers import HostNumbers
from .program import StepProgram, add_update, differentiated, set_outputs

if TYPE_CHECKING:
    from .step import TrainStep

VARIANTS = 16  # traced updates of one captured call that are kept
# what a program ends with: sums of gradients that stay for a later call, gradients for PyTorch's own step, or the update
MODES = ("accumulate", "gradients", "update")


class Variant:
    """One compiled step. numbers: what the host computes, None where there is no update."""

    def __init__(self, site: Site, graph: StepGraph, step: StepProgram, numbers: HostNumbers | None, outputs: int) -> None:
        self.site, self.graph, self.step, self.numbers, self.outputs = site, graph, step, numbers, outputs
        self.scalars = Scalars(len(step.scalars), graph.executable.device)
        listing = [p for p, _ in flat_parameters(site.owner.optimizer)]
        self._places = [(listing[i], name) for i, name in step.states]
        self._accumulated = [listing[i] for i in step.accumulators]
        self._given = [listing[i] for i in step.results]
        self._bound = self._states()
        updated = {old for old, _ in graph.program.signature.updates}
        self._lazy = {p: change for p, (change, _, last) in step.lazy.items() if last in updated}
        self._changes = {change.key: change for change in self._lazy.values()}
        self._parts = {p: [(listing[i], name) for i, name in states] for p, (_, states, _) in step.lazy.items()}
        self._unused: dict[str, torch.Tensor] = {}

    def _states(self) -> list[torch.Tensor]:
        state = self.site.owner.optimizer.state
        return [state[p][name] for p, name in self._places]

    def misfit(self) -> str:
        """Why this step does not serve the next call, an empty string where it does."""
        if self.numbers is None:
            return ""
        if why := self.numbers.misfit():
            return why
        now = self._states()
        for old, new, (_, name) in zip(self._bound, now, self._places, strict=True):
            if old is not new and (old.dtype, old.shape, old.stride(), old.device) != (new.dtype, new.shape, new.stride(), new.device):
                return f"state {name!r} of the optimizer changed its type or layout"
        self._bound = now
        return ""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        owner = self.site.owner
        if owner.lazy is not None:
            owner.lazy.prepare({p: (change, self._tensors(p)) for p, change in self._lazy.items()})
        values: list[float] = []
        if self.numbers is not None:
            values = self.numbers.values()
            self.scalars.set(values)
        sums = [owner.accumulator(p) for p in self._accumulated]
        results = self.graph(*inputs, *self._bound, *sums, *self.scalars.tensors, *self._lazy_inputs())
        extra = results[self.outputs :]
        found = extra.pop(0) if self.step.found is not None else None
        if self.numbers is not None:
            self.numbers.commit(found)
            if owner.lazy is not None and self._lazy:
                value = dict(zip(self.step.scalars, values, strict=True))
                owner.lazy.advance({key: change.matrix(value.__getitem__) for key, change in self._changes.items()})
            owner.stepped(found)
        for p, g in zip(self._given, extra, strict=True):
            p.grad = g
        return results[: self.outputs]


    def _tensors(self, place: int) -> Callable[[], list[torch.Tensor]]:
        """A lazy table and its state, as they are when asked for."""
        optimizer, parts = self.site.owner.optimizer, self._parts[place]  # not the owner, which must be free to go
        return lambda: [optimizer.state[p][name] if name else p.detach() for p, name in parts]

    def _lazy_inputs(self) -> list[torch.Tensor]:
        """Tensors for what was declared for lazy tables, in the order of the program's inputs; memory that is not read for a declaration
        without use."""
        lazy, step, containers = self.site.owner.lazy, self.step, self.graph.program.containers
        tables = {} if lazy is None else lazy.tables
        given = {last: tables[p].last for p, (_, _, last) in step.lazy.items() if p in self._lazy}
        given |= {step.decays[change.key]: tables[p].decay.tensor for p, change in self._lazy.items()}
        for name in step.lazy_inputs:
            if name not in given:
                if name not in self._unused:
                    c = containers[name]
                    shape = tuple(n for n in c.shape if isinstance(n, int))
                    self._unused[name] = torch.empty(shape, dtype=getattr(torch, c.dtype.name), device=self.graph.executable.device)
                given[name] = self._unused[name]
        return [given[name] for name in step.lazy_inputs]


class Site:
    """The callable that Dynamo gets for one captured call. parameters: place among the optimizer's parameters of inputs of the graph.

    outside: why PyTorch's own optimizer steps, an empty string where the update is in the program.
    """

    def __init__(self, owner: TrainStep, graph: FunctionalGraph, parameters: dict[int, int], scale: int | None, region: Region) -> None:
        self.owner, self.captured, self.region = owner, graph, region
        self.parameters, self.scale = parameters, scale
        self.outside = ""
        self.variants: dict[str, list[Variant]] = {m: [] for m in MODES}
        self._first = True
        self._first_step: int | None = None
        self._fitting()

    def __call__(self, *inputs: Any) -> list[Any]:
        variant = self._fitting()
        if not variant.step.results or variant.numbers is not None:
            return variant(inputs)
        self.owner.outside(lambda: variant(inputs))
        return variant(inputs)

    def _fitting(self) -> Variant:
        """The compiled step for this call, made now if need be."""
        if not self.owner.completes:
            return self._variant("accumulate")
        if not self.outside:
            try:
                return self._variant("update")
            except NotTraced as e:
                if isinstance(e, FirstStep) and self._first_step in (None, self.owner.outside_steps):
                    if self._first_step is None:
                        self.owner.note(f"the first step was PyTorch's own: {e}")
                    self._first_step = self.owner.outside_steps  # afterwards there is state
                    return self._variant("gradients")
                if self.owner.options.strict:
                    raise Unsupported(f"the update of {self.owner.optimizer_name} is not captured: {e}") from e
                self.outside = str(e)
                self.owner.stepped_outside(self.outside)
        return self._variant("gradients")

    def _variant(self, mode: str) -> Variant:
        reason = ""
        for v in self.variants[mode]:
            why = v.misfit()
            if not why:
                return v
            reason = reason or why
        if reason:
            LOG.info("the update of %s is traced again: %s", self.owner.optimizer_name, reason)
        region = self.region if self._first else self.owner.record.region(reason or f"a step that ends with: {mode}")
        with region.timed("compile"):
            made = self._compile(mode, region)
        self._first = False
        self.variants[mode].insert(0, made)
        del self.variants[mode][VARIANTS:]
        return made

    # compiling --------------------------------------------------------------------------------------------------------
    def _compile(self, mode: str, region: Region) -> Variant:
        owner, graph = self.owner, self.captured
        device = device_of(graph)
        chosen = owner.options.target
        name = chosen if chosen != "auto" else "cpp" if device.type == "cpu" else "triton"
        target = TARGETS.get(name)()
        options = dataclasses.replace(owner.options, target=target.base)
        update: Update | None = None
        with region.timed("import"):
            imported, gradients = differentiated(graph, f"step_{region.index}", options.strict, self.parameters)
            names = {place: str(imported.inputs[i]) for i, place in self.parameters.items()}
            region.captured(imported.program, imported.fallbacks)
            set_outputs(graph, imported)
            step = StepProgram(imported, device, names, {p: gradients[n] for p, n in names.items() if n in gradients})
        listing = [p for p, _ in flat_parameters(owner.optimizer)]
        if mode == "update":
            with region.timed("optimizer"):
                trained = [listing[place] for place in step.gradients]
                initialize(owner.optimizer, trained)
                update = trace_update(owner.optimizer, trained)
        if owner.accumulate > 1:
            step.accumulate(last=mode != "accumulate")
        if update is not None:
            if self.scale is not None:
                step.unscale(str(imported.inputs[self.scale]))
            step.clip(owner.setting_of("clip_grad_value"), owner.setting_of("clip_grad_norm"))
            with region.timed("optimizer"):
                add_update(step, update, {place: owner.optimizer.state.get(listing[place], {}) for place in step.gradients}, options,
                           self._may_be_lazy())  # fmt: skip
        if mode == "gradients" or (mode == "update" and owner.grads):
            step.results = dict(step.gradients)
            step.give(step.results.values())
        program, compiled, _ = built(step.program, target, name, options, device, region)
        interface, written, outputs = self._interface(step, program)
        if device.type == "cuda" and options.cuda_graphs:
            # parameters, buffers, state and scalars stay where they are; the rest of the inputs is copied to fixed places
            lasting = {n for n in program.signature.inputs if program.containers[n].role in ("parameter", "buffer")}
            compiled = graphed(compiled, frozenset(lasting | set(step.scalars.values())))
        region.finished(program, compiled)
        numbers = None
        if update is not None:
            numbers = HostNumbers(owner.optimizer, update, list(step.scalars), lambda name: getattr(owner, name))
        return Variant(self, StepGraph(program.name, program, interface, compiled.executable, written), step, numbers, outputs)

    def _may_be_lazy(self) -> bool:
        """Whether tables of this step may be lazy; a reason why not goes into the report."""
        owner = self.owner
        if owner.lazy is None:
            return False
        why = ""
        if owner.accumulate > 1:
            why = "accumulate= keeps the sums of gradients as whole tensors"
        elif owner.scaler is not None:
            why = "whether a GradScaler skips a step is known on the device only, and the host counts the steps"
        if why:
            owner.note(f'sparse="lazy" is off: {why}')
        return not why

    def _interface(self, step: StepProgram, program: Program) -> tuple[Interface, list[int], int]:
        """The interface of the compiled step, the places of inputs that it writes, and how many outputs are the caller's."""
        base = interface_of(self.captured, step.imported, {}, frozenset())
        in_place = in_place_updates(program)
        updates = program.signature.updates
        inputs = [*base.inputs, *step.states.values(), *step.accumulators.values(), *step.scalars.values(), *step.lazy_inputs]
        place_of = {n: i for i, n in reversed(list(enumerate(inputs))) if n is not None}
        aliased = {new for old, new in updates if old in in_place}
        copied = [(old, new) for old, new in updates if old not in in_place]
        results = [None if n in aliased else n for n in base.results]
        results += [new for _, new in copied]
        mutations = [(place_of[old], len(base.results) + k) for k, (old, _) in enumerate(copied)]
        at = len(results)
        results += [*([step.found] if step.found is not None else []), *step.results.values()]

        def rebuild(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
            return [*base.rebuild(values, given), *values[at:]]

        interface = dataclasses.replace(base, inputs=inputs, results=results, mutations=mutations, rebuild=rebuild)
        return interface, [place_of[old] for old, _ in updates], len(self.captured.outputs)
