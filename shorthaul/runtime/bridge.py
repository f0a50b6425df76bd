"""The bridge to PyTorch's autograd: a compiled program behaves like the graph that it was captured from.

The backward phase runs as a chain of autograd nodes, one for each part of the compiled backward phase, so that the hooks of a gradient fire
when it is ready. The node that makes the outputs (`_Forward`) runs the first part; the others (`_Link`) hang on it by empty tensors:

    inputs whose gradients come last ─► _Link ─► token ─► _Link ─► token ─► _Forward ─► outputs
    inputs whose gradients come earlier ────────────────────┴─────────────────┘
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol, evaluate

from .executable import Backward, CallError, Executable, Layout, Run, copy_all, torch_dtype, with_strides

HIGHER_ORDER = (
    "gradients of gradients (create_graph=True) are not supported through the compiled graph {name}{where}; "
    "leave that part of the model to eager mode with shorthaul.disable(module)"
)
AGAIN = (
    "Trying to backward through the compiled graph {name}{where} a second time, after its saved values have been freed. "
    "Specify retain_graph=True if you need to backward through the graph a second time."
)
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


@dataclass
class Interface:
    """How a program meets the graph it came from.

    inputs: for every input of the graph its container, None for a size or a repeated input. sizes: (input index, dimension or None) that
    gives each symbol. results: for every result of the graph its container, None for a constant. size_results: expressions of results
    that are sizes. rebuild: the caller's outputs from (results as tensors or numbers, inputs). mutations: (input, result) written back.
    random: the containers of seed and offset. depends: for every input with a gradient the outputs whose cotangents it comes from (all,
    where it is not listed). where: where the graph begins in the user's code. watched: outputs and buffers that the gradient formulas
    read: changing one in place before backward is an error, as in eager mode, also where the compiled backward phase recomputes it. A
    buffer that only the compiled backward phase reads, for computing again what was made of it, may change: it is copied.
    """

    inputs: list[str | None]
    sizes: dict[Symbol, tuple[int, int | None]]
    results: list[str | None]
    size_results: dict[int, Any]
    rebuild: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    mutations: list[tuple[int, int]]
    random: tuple[str, ...] = ()
    depends: Mapping[str, frozenset[str]] = field(default_factory=dict)
    where: str = ""
    watched: frozenset[str] = frozenset()


class CompiledGraph:
    """A callable with the calling convention of the captured graph: tensors and sizes in, the list of outputs out."""

    def __init__(self, name: str, program: Program, interface: Interface, executable: Executable) -> None:
        self.name = name
        self.program = program
        self.interface = interface
        self.executable = executable
        self._where = f" ({interface.where})" if interface.where else ""
        signature = program.signature
        self._cotangents = dict(signature.cotangents)
        self._first = {n: i for i, n in reversed(list(enumerate(interface.inputs))) if n is not None}
        self._tensors = [(n, self._first[n], torch_dtype(program.containers[n].dtype)) for n in signature.inputs if n in self._first]
        self._differentiable = list(self._cotangents)
        backward_reads = {c for node in program.nodes if node.phase == "backward" for c in program.reads_of(node)}
        backward_reads |= {_base(program, c) for c in backward_reads}
        written = {interface.inputs[i] for i, _ in interface.mutations}
        named = [n for n, _, _ in self._tensors] + [n for n in interface.random if n in program.containers]
        written |= {n for n in named if program.containers[n].role == "buffer" and n not in interface.watched}
        self._saved_inputs = [n for n in named if n in backward_reads and n not in written]
        self._copied_inputs = [n for n in named if n in backward_reads and n in written]
        outputs = dict.fromkeys((*signature.outputs, *(u for _, u in signature.updates)))
        self._saved_outputs = [
            n
            for n in outputs
            if n in backward_reads | interface.watched and n not in self._first and program.containers[n].role != "constant"
        ]
        self._results = [(n, None) if n is not None else (None, interface.size_results.get(i)) for i, n in enumerate(interface.results)]
        self._groups = self._group_inputs()
        self._indices = self._addressing() if executable.device.type == "cuda" else []
        self._plain = all(n is not None for n, _ in self._results) and not program.symbols
        self.token = torch.empty(0, device=executable.device)
        self._static = executable.layout({}) if not program.symbols else None

    def _addressing(self) -> list[tuple[str, str, int, str]]:
        """Inputs whose values address another container: (input, container, dimension, where). What a lazy table's rows remember is ours,
        and not the caller's."""
        found: dict[tuple[str, str, int], str] = {}
        ours = {c for of_table in self.program.attributes.get("lazy_tables", {}).values() for c in of_table}
        for node in self.program.nodes:
            if not isinstance(node, Map):
                continue
            for x in node.accesses():
                for d, s in enumerate(x.memlet.subset):
                    if isinstance(s, Indirect):
                        index = x.tasklet.reads[s.name]
                        mine = index.container in self._first and index.container not in ours
                        if mine and not index.guard and not x.is_local:
                            found.setdefault((index.container, x.memlet.container, d), str(x.tasklet.origin))
        return [(i, c, d, where) for (i, c, d), where in found.items()]

    def _check_indices(self, tensors: Mapping[str, torch.Tensor], layout: Layout) -> None:
        """Kernels on a GPU do not check addresses that are data: what comes from outside is checked in front of them, as PyTorch's
        own kernels do it, on the device and without waiting for it. (Kernels on a CPU check every index.)"""
        for index, container, d, where in self._indices:
            t = tensors[index]
            if t.numel() and container in layout.shapes:  # of some the sizes are not known yet
                low, high = torch.aminmax(t)
                inside = (low >= 0) & (high < layout.shapes[container][d])
                torch._assert_async(inside, f"{self.name}: an index in input {index} is out of range at {where}")

    def _group_inputs(self) -> list[list[str]]:
        """The inputs with gradients by the part that completes them; inputs that require grad but get none join the first part."""
        groups = [list(p) for p in self.executable.parts] or [[]]
        known = {n for g in groups for n in g}
        groups[0] += [n for n in self.interface.depends if n not in known and n in self._first]
        return groups

    # calling ----------------------------------------------------------------------------------------------------------
    def __call__(self, *inputs: Any) -> list[Any]:
        layout = self._static
        if layout is None:
            layout = self.executable.layout(self._sizes(inputs))
        tensors = self._bind(inputs, layout)
        if self._indices:
            self._check_indices(tensors, layout)
            if self.executable.host.late:
                layout.watch = functools.partial(self._check_indices, tensors)
        if self._cotangents and torch.is_grad_enabled():
            by_name = self._differentiably(inputs, tensors, layout)
        else:
            by_name, _ = self.executable.forward(layout, tensors, False)
        if self._plain:
            results: list[Any] = [by_name[str(n)] for n, _ in self._results]
        else:
            results = [
                by_name[n]
                if n is not None
                else e
                if e is None or isinstance(e, (int, float, bool))
                else evaluate(e, layout.known)
                for n, e in self._results
            ]
        if self.interface.mutations:
            self._write_back(inputs, results)
        return self.interface.rebuild(results, inputs)

    def _write_back(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        with torch.no_grad():
            copy_all([inputs[i] for i, _ in self.interface.mutations], [results[r] for _, r in self.interface.mutations])

    def _sizes(self, inputs: Sequence[Any]) -> dict[Symbol, int]:
        sizes: dict[Symbol, int] = {}
        for s, (i, d) in self.interface.sizes.items():
            sizes[s] = int(inputs[i]) if d is None else int(inputs[i].shape[d])
        return sizes

    def _bind(self, inputs: Sequence[Any], layout: Layout) -> dict[str, torch.Tensor]:
        """The inputs by container, checked against what the program was compiled for, with the strides that it was compiled for."""
        checks = layout.checks
        if checks is None:
            checks = layout.checks = [
                (n, i, d, torch.Size(layout.shapes[n]) if n in layout.shapes else None, layout.strides.get(n))
                for n, i, d in self._tensors
            ]
        tensors = {}
        device = self.executable.device
        on_host = device.type == "cpu"
        for n, i, dtype, shape, strides in checks:
            t = inputs[i]
            if shape is None:
                continue  # the program does not read it
            if t.dtype is not dtype or t.shape != shape:
                raise CallError(
                    f"{self.name}: input {n} has dtype {t.dtype} and shape {tuple(t.shape)}, compiled for {dtype} and {tuple(shape)}"
                )
            if t.stride() != strides:
                with torch.no_grad():
                    t = with_strides(t, strides)
            tensors[n] = t if on_host else self._placed(n, t)
        if self.interface.random:
            seed, offset = self.interface.random
            # one draw a forward from PyTorch's generator: manual_seed and set_rng_state reproduce it
            tensors[seed] = torch.empty((), dtype=torch.int64, device=device).random_()
            tensors[offset] = torch.zeros((), dtype=torch.int64, device=device)
        return tensors

    def _placed(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """The tensor where the kernels of a GPU expect it: on the program's device, beginning at a multiple of 16 bytes."""
        if t.device != self.executable.device:
            raise CallError(f"{self.name}: input {name} is on {t.device}, compiled for {self.executable.device}")
        return t if t.data_ptr() % 16 == 0 else t.detach().clone(memory_format=torch.preserve_format)

    def _differentiably(self, inputs: Sequence[Any], tensors: dict[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
        call = _Call(self, tensors, layout)
        token = None
        for part in range(len(self._groups) - 1, 0, -1):
            token = _Link.apply(call, part, token, *[inputs[self._first[n]] for n in self._groups[part]])
        found = _Forward.apply(call, token, *[inputs[self._first[n]] for n in self._groups[0]])
        by_name, call.others = call.others, {}
        by_name.update(zip(self._differentiable, found, strict=True))
        return by_name

    # backward ---------------------------------------------------------------------------------------------------------
    def cotangents(self, layout: Layout, grads: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """The incoming gradients by container, laid out as the program wants them, zeros where there is none."""
        found: dict[str, torch.Tensor] = {}
        for n, g in zip(self._differentiable, grads, strict=True):
            name = self._cotangents[n]
            if name in layout.shapes:
                shape, strides = layout.shapes[name], layout.strides[name]
                if g is None:
                    dtype = torch_dtype(self.program.containers[name].dtype)
                    g = torch.empty_strided(shape, strides, dtype=dtype, device=self.executable.device).zero_()
                g = with_strides(g, strides)
                found[name] = g if g.device.type == "cpu" else self._placed(name, g)
        return found

    def silent(self, grads: Sequence[torch.Tensor | None]) -> frozenset[str]:
        """Inputs that no given cotangent reaches: their gradient is None, as in eager mode, not zero."""
        if all(g is not None for g in grads):
            return frozenset()
        given = {n for n, g in zip(self._differentiable, grads, strict=True) if g is not None}
        return frozenset(n for n, outputs in self.interface.depends.items() if outputs.isdisjoint(given))

    def error(self, text: str) -> RuntimeError:
        return RuntimeError(text.format(name=self.name, where=self._where))


class _Call:
    """What the autograd nodes of one call share. It holds no inputs and outputs: those are saved by autograd, which notices changes."""

    __slots__ = ("copies", "graph", "layout", "others", "run", "silent", "state", "tensors")

    def __init__(self, graph: CompiledGraph, tensors: dict[str, torch.Tensor], layout: Layout) -> None:
        self.graph = graph
        self.layout = layout
        self.tensors = tensors
        self.others: dict[str, torch.Tensor] = {}
        self.copies: dict[str, torch.Tensor] = {}
        self.run: Run | None = None
        self.state: Backward | None = None
        self.silent: frozenset[str] = frozenset()

    def start(self, saved: Sequence[torch.Tensor], grads: Sequence[torch.Tensor | None]) -> None:
        """Begin a backward pass."""
        graph = self.graph
        if self.run is None or self.run.spent:
            raise graph.error(AGAIN)
        tensors = dict(self.copies)
        tensors.update(zip([*graph._saved_inputs, *graph._saved_outputs], saved, strict=True))
        for n, t in tensors.items():
            strides = self.layout.strides.get(n)
            if strides is not None and t.stride() != strides:
                tensors[n] = with_strides(t, strides)
        tensors.update(graph.cotangents(self.layout, grads))
        self.silent = graph.silent(grads)
        self.state = graph.executable.backward(self.run, tensors, again=_keeps_graph())

    def gradients(self, part: int) -> list[torch.Tensor | None]:
        """Run one part; gradients of its inputs in order. After the last one what was saved is freed, unless the graph is kept."""
        graph, state = self.graph, self.state
        if state is None or state.next != part:
            raise graph.error(AGAIN)
        found = graph.executable.part(state)
        if part == len(graph._groups) - 1:
            self.state = None
            if not _keeps_graph():
                assert self.run is not None
                self.run.release()
                self.run, self.copies = None, {}
        return [None if n in self.silent else found.get(n) for n in graph._groups[part]]


class _Forward(torch.autograd.Function):
    """The forward phase, and the first part of the backward phase."""

    @staticmethod
    def forward(ctx: Any, call: _Call, token: torch.Tensor | None, *inputs: torch.Tensor) -> Any:
        graph, tensors = call.graph, call.tensors
        ctx.set_materialize_grads(False)
        call.copies = {n: tensors[n].clone() for n in graph._copied_inputs}
        results, call.run = graph.executable.forward(call.layout, tensors, True)
        ctx.save_for_backward(*[tensors[n] for n in graph._saved_inputs], *[results[n] for n in graph._saved_outputs])
        call.tensors = {}
        outputs = tuple([results.pop(n) for n in graph._differentiable])
        call.others = results
        ctx.call = call
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        call: _Call = ctx.call
        if torch.is_grad_enabled():
            raise call.graph.error(HIGHER_ORDER)
        call.start(ctx.saved_tensors, grads)
        token = call.graph.token if len(call.graph._groups) > 1 else None
        return (None, token, *call.gradients(0))


class _Link(torch.autograd.Function):
    """A later part of the backward phase. It makes an empty tensor, by which the node of the part before it comes to this one."""

    @staticmethod
    def forward(ctx: Any, call: _Call, part: int, token: torch.Tensor | None, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.part = call, part
        return torch.empty(0, device=call.graph.executable.device)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        call: _Call = ctx.call
        token = call.graph.token if ctx.part + 1 < len(call.graph._groups) else None
        return (None, None, token, *call.gradients(ctx.part))


def _base(program: Program, name: str) -> str:
    while (alias := program.containers[name].alias) is not None:
        name = alias.base
    return name
