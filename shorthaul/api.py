"""The public functions. See docs for how they are used together."""

from __future__ import annotations

import dataclasses
import functools
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import register_backend
from torch._dynamo.utils import get_metrics_context

from shorthaul import pipeline
from shorthaul.autodiff import differentiate
from shorthaul.codegen.library import LIBRARY
from shorthaul.config import Options
from shorthaul.errors import DeviceError, DifferentiationError, FallbackWarning
from shorthaul.extension import foreign_sources
from shorthaul.frontends.dependence import dependences
from shorthaul.frontends.dynamo import capture_graph
from shorthaul.frontends.functional import FunctionalGraph, OutputSpec, Unsupported, functionalize, rebuilder
from shorthaul.frontends.importer import RANDOM_INPUTS, Imported, import_graph
from shorthaul.frontends.sparse_lookups import sparse_lookups
from shorthaul.frontends.traced_gradient import traced_gradient
from shorthaul.ir.collection import uncollected
from shorthaul.ir.nodes import Operator
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import runtime_sizes
from shorthaul.modules import disable, optimize
from shorthaul.ops.registry import REGISTRY
from shorthaul.runtime.artifact import artifact_key, load, store
from shorthaul.runtime.bridge import CompiledGraph, Interface
from shorthaul.runtime.build import NoCompiler
from shorthaul.runtime.compile import Compiled
from shorthaul.runtime.executable import CallError
from shorthaul.runtime.graphs import graphed, in_place_inputs
from shorthaul.runtime.report import Record, Region
from shorthaul.runtime.target import TARGETS, Target
from shorthaul.symbolic import Symbol
from shorthaul.transforms.catalog import catalog
from shorthaul.warm.entry import Entry
from shorthaul.warm.record import Capture
from shorthaul.workbench import install

__all__ = ["CallError", "DifferentiationError", "FallbackWarning", "Options", "Program", "Unsupported",
           "backend", "capture", "disable", "import_training", "optimize"]  # fmt: skip

# gradients that a part of the backward phase completes at least, where processes train together: sooner ready is sooner sent
DISTRIBUTED_PART_BYTES = 1 << 14
# Dynamo's default takes no notice of a hook that a submodule gets after it was compiled, and would leave it uncalled
torch._dynamo.config.skip_nnmodule_hook_guards = False


def capture(
    model: Callable[..., Any],
    inputs: tuple,
    *,
    train: bool = True,
    kwargs: dict[str, Any] | None = None,
    strict: bool = False,
) -> Program:
    """The program of operators of one call of a model.

    inputs: a tuple of positional arguments. train: add the backward phase (gradients of all floating outputs with respect to
    every parameter, and input, that requires grad). Nothing is executed. Raises Unsupported with the source line.
    """
    gm, example_inputs, _ = capture_graph(model, inputs, kwargs)
    return import_training(functionalize(gm, example_inputs), train=train, strict=strict, name=type(model).__name__).program


def import_training(graph: FunctionalGraph, *, train: bool, strict: bool, name: str) -> Imported:
    """Import a functional graph and, with `train`, differentiate it."""
    imported = import_graph(graph, name, strict=strict)
    if train:
        wrt = [n for spec, n in zip(graph.inputs, imported.inputs, strict=True) if n is not None and spec.requires_grad]
        outputs = _differentiable(graph, imported)
        if wrt and outputs:
            traced = functools.partial(traced_gradient, library=LIBRARY)
            reached = [n for n, found in _dependences(graph, imported).items() if not found.isdisjoint(outputs)]
            differentiate(imported.program, outputs, list(dict.fromkeys(wrt)), traced, reached)
    return imported


def _differentiable(graph: FunctionalGraph, imported: Imported) -> list[str]:
    found: list[str] = []

    def of(spec: OutputSpec) -> int | None:
        if spec.kind in ("tensor", "view") and spec.graph_output is not None:
            return spec.graph_output
        if spec.kind in ("view", "same") and spec.output is not None:
            return of(graph.outputs[spec.output])
        return None

    for spec in graph.outputs:
        r = of(spec)
        if spec.differentiable and r is not None:
            name = imported.results[r]
            if name is not None and imported.program.containers[name].dtype.is_float:
                found.append(name)
    for m in graph.mutations:
        if m.differentiable:
            raise Unsupported(f"input {graph.inputs[m.input].name} is changed in place and gradients flow through the change",
                              remedy="Return a new tensor instead of writing into the argument.")  # fmt: skip
    return list(dict.fromkeys(found))


def backend(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Options | None = None,
    record: Record | None = None,
    entry: Entry | None = None,
) -> Callable[..., Any]:
    """The Dynamo backend: `torch.compile(model, backend="shorthaul")`.

    entry: the optimized module's, which keeps a capture record where it can.

    What cannot be compiled runs in eager mode, with a FallbackWarning that names operator and source line, and stands in the report.
    """
    options = options or Options()
    record = record if record is not None else Record()
    region = record.region(recompile_reason(), graph_break=_graph_break(gm))
    try:
        lookups = sparse_lookups(gm, example_inputs, options.strict)
        with region.timed("compile"):
            if lookups is None:
                captured = _compile(gm, example_inputs, options, region)
            else:
                captured = _compile(lookups.gm, lookups.examples, options, region)
                region.fallbacks += lookups.calls
        record.uses(t for t in map(real_input, gm.graph.find_nodes(op="placeholder")) if isinstance(t, torch.nn.Parameter))
        if lookups is not None:
            if entry is not None:
                entry.compiled(gm, region, None)
            return _unless_unfrozen(lookups.around(captured.graph), gm, example_inputs)
        observed = entry.compiled(gm, region, captured) if entry is not None else None
        return _unless_unfrozen(observed or captured.graph, gm, example_inputs)
    except NoCompiler as e:
        reason = str(e)
    except Exception as e:
        if options.strict:
            raise
        reason = reason_of(e)
    region.fallback = reason
    if entry is not None:
        entry.compiled(gm, region, None)
    warnings.warn(f"part of the model runs in eager mode: {reason}", FallbackWarning, stacklevel=2)
    return gm.forward


def _unless_unfrozen(graph: Callable[..., Any], gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The compiled graph; eager mode, with a warning, for a call in which an input requires grad that did not when it was compiled.

    PyTorch compiles anew for such a call, but 2.11 takes no notice of parameters, which then would get no gradient. (A parameter that was
    frozen afterwards is no matter: autograd drops its gradient.)
    """
    fixed = [i for i, t in enumerate(example_inputs)
             if isinstance(t, torch.Tensor) and not t.requires_grad and (t.is_floating_point() or t.is_complex())]  # fmt: skip
    if not fixed or not torch.is_grad_enabled():
        return graph

    def call(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(inputs[i].requires_grad for i in fixed):
            text = "a parameter was unfrozen after it was compiled, and PyTorch did not notice: this part of the model runs in eager mode"
            warnings.warn(f"{text}; torch.compiler.reset() has it compiled anew", FallbackWarning, stacklevel=2)
            return gm.forward(*inputs)
        return graph(*inputs)

    return call


def _graph_break(gm: torch.fx.GraphModule) -> str:
    """Why Dynamo ended the graph before the function did, with the user's line; an empty string where it did not."""
    found = getattr(gm, "compile_subgraph_reason", None)
    if found is None or not getattr(found, "graph_break", False):
        return ""
    where = f" at {found.user_stack[-1].filename}:{found.user_stack[-1].lineno}" if found.user_stack else ""
    lines = [line.strip() for line in str(found.reason).split("\n")]
    return ". ".join([lines[0], *(line.removeprefix("Explanation: ") for line in lines[1:] if line.startswith("Explanation"))]) + where


def real_input(node: torch.fx.Node) -> Any:
    return getattr(node.meta.get("grapharg"), "example", None)


def reason_of(e: Exception) -> str:
    if isinstance(e, (DeviceError, Unsupported, DifferentiationError)):
        return str(e)
    if isinstance(e, OSError):
        return f"the compiled library cannot be written ({e}); make room, or name another directory in SHORTHAUL_CACHE_DIR"
    where = traceback.extract_tb(e.__traceback__)[-1]
    return f"an error inside Shorthaul, please report it: {type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"


def recompile_reason() -> str:
    """Why Dynamo compiles this frame again (the guard that failed), an empty string the first time."""
    try:
        reason = get_metrics_context()._metrics.get("recompile_reason")
    except AttributeError:  # an internal name of PyTorch: without it the report only lacks the reason
        return ""
    return str(reason).strip().split("\n")[0].split(": ", 1)[-1] if reason else ""


@uncollected()
def _compile(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], options: Options, region: Region) -> Capture:
    with region.timed("functionalize"):
        graph = functionalize(gm, example_inputs)
    device = device_of(graph)
    name = options.target if options.target != "auto" else "cpp" if device.type == "cpu" else "triton"
    target = TARGETS.get(name)()
    options = dataclasses.replace(options, target=target.base)
    if options.trace:
        region.graph = graph
    train = torch.is_grad_enabled()
    with region.timed("import"):
        imported = import_training(graph, train=train, strict=options.strict, name=f"region_{region.index}")
    program = imported.program
    depends = _dependences(graph, imported)
    watched = _watched(program)
    region.captured(program, imported.fallbacks)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        program.attributes["part_bytes"] = DISTRIBUTED_PART_BYTES
    program, compiled, key = built(program, target, name, options, device, region)
    interface = interface_of(graph, imported, depends, watched)
    in_place: frozenset[str] | None = None
    if device.type == "cuda" and options.cuda_graphs:
        written = frozenset(str(interface.inputs[i]) for i, _ in interface.mutations)
        roles = {n: program.containers[n].role for n in program.signature.inputs}
        in_place = in_place_inputs(program.signature.inputs, roles, written)
    compiled = graphed(compiled, in_place)
    region.finished(program, compiled)
    foreign = [t for t in graph.targets if t.count(".") == 2 and not t.startswith(("aten.", "prims.", "shorthaul."))]
    ready = CompiledGraph(program.name, program, interface, compiled.executable)
    return Capture(ready, key, graph.outputs, region.operators, region.fallbacks, foreign, device, in_place)


def built(program: Program, target: Target, name: str, options: Options, device: torch.device,
          region: Region) -> tuple[Program, Compiled, str]:  # fmt: skip
    """A captured program optimized and compiled for the target of that name, from the cache where it is there, and its key in the cache:
    empty for what is not kept (other packages' targets, programs for Triton's interpreter, and with the option `trace`)."""
    kept = not options.trace and (name == "cpp" or (name == "triton" and device.type == "cuda"))
    key = ""
    if kept:
        with region.timed("cache"):
            key = artifact_key(program, options, foreign_sources(_definitions()), device=device)
            found = load(key, device)
        if found is not None:
            return *found, key
    target.expect(device)
    with region.timed("optimize"):
        pipeline.optimize(program, options)
    with region.timed("build"):
        compiled = target.compile(program, device)
    if kept:
        with region.timed("cache"):
            store(key, program, compiled)
    return program, compiled, key


install()  # gives Program the methods that need other parts of the package (`ir` knows none of them)


def _definitions() -> list[Any]:
    """What decides how a program is compiled, where other packages may have a part in it."""
    return [*map(type, REGISTRY.values()), *catalog().values()]


def device_of(graph: FunctionalGraph) -> torch.device:
    """The device of all tensors of a graph. Raises Unsupported, with the place, where there are several or one without a target."""
    found: torch.device | None = None
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        for t in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(t, torch.Tensor):
                if t.device.type not in ("cpu", "cuda"):
                    raise Unsupported(
                        f"{node.name} is on device {t.device}",
                        node.meta.get("origin"),
                        "CPUs and NVIDIA GPUs are supported; move module and inputs there.",
                    )
                if found is not None and t.device != found:
                    raise Unsupported(
                        f"{node.name} is on {t.device}, other tensors are on {found}",
                        node.meta.get("origin"),
                        "Put module, inputs and the tensors that it makes on one device.",
                    )
                found = t.device
    return found or torch.device("cpu")


def _dependences(graph: FunctionalGraph, imported: Imported) -> dict[str, frozenset[str]]:
    """For every input that requires grad the results (by container) whose cotangents its gradient comes from."""
    found: dict[str, set[str]] = {n: set() for spec, n in zip(graph.inputs, imported.inputs, strict=True) if n and spec.requires_grad}
    for name, inputs in zip(imported.results, dependences(graph), strict=True):
        for n in (imported.inputs[i] for i in inputs):
            if name is not None and n is not None:
                found[n].add(name)
    return {n: frozenset(names) for n, names in found.items()}


def compiled_interface(graph: FunctionalGraph, imported: Imported) -> Interface:
    """The interface of a captured graph whose program is still as it was imported: what `CompiledGraph` needs of any program
    that is lowered from it."""
    return interface_of(graph, imported, _dependences(graph, imported), _watched(imported.program))


def _watched(program: Program) -> frozenset[str]:
    """Outputs that the gradient formulas read, and buffers that they read, also through views: what eager mode saves, too."""
    outputs = {n for n in program.signature.outputs if any(r.phase == "backward" for r in program.readers(n))}
    read = {c for n in program.nodes if n.phase == "backward" for c in program.reads_of(n)}
    for n in reversed(program.nodes):
        if isinstance(n, Operator) and n.op in _VIEWS and not read.isdisjoint(program.writes_of(n)):
            read |= set(program.reads_of(n))
    return frozenset(outputs | {n for n in program.signature.inputs if n in read and program.containers[n].role == "buffer"})


_VIEWS = {"reshape", "permute", "expand", "slice", "select", "diagonal"}


def interface_of(
    graph: FunctionalGraph, imported: Imported, depends: Mapping[str, frozenset[str]], watched: frozenset[str]
) -> Interface:
    sizes: dict[Symbol, tuple[int, int | None]] = {}
    wanted = {s.name: s for s in imported.program.symbols}
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    for i, (spec, node) in enumerate(zip(graph.inputs, placeholders, strict=True)):
        value = node.meta["val"]
        if spec.role == "size":
            name = str(value.node.expr) if isinstance(value, torch.SymInt) else ""
            if name in wanted:
                sizes[wanted[name]] = (i, None)
    for i, (spec, node) in enumerate(zip(graph.inputs, placeholders, strict=True)):
        if spec.role != "size":
            for d, n in enumerate(node.meta["val"].shape):
                name = str(n.node.expr) if isinstance(n, torch.SymInt) else ""
                if name in wanted and wanted[name] not in sizes:
                    sizes[wanted[name]] = (i, d)
    for node in graph.graph.nodes:  # an integer tensor of one element that is given and used as a size
        if node.target is torch.ops.aten._local_scalar_dense.default and node.args[0] in placeholders:
            name = str(node.meta["val"].node.expr) if isinstance(node.meta["val"], torch.SymInt) else ""
            if name in wanted and wanted[name] not in sizes:
                sizes[wanted[name]] = (placeholders.index(node.args[0]), None)
    missing = [s.name for s in wanted.values() if s not in sizes and s not in runtime_sizes(imported.program)]
    if missing:
        raise Unsupported(f"the size {missing[0]} is not the size of an input")
    mutations = [(m.input, m.graph_output) for m in graph.mutations]
    random = tuple(n for n in RANDOM_INPUTS if n in imported.program.containers)
    where = next((n.origin.source for n in imported.program.nodes if n.origin.source), "")
    rebuild = rebuilder(graph.outputs)
    return Interface(imported.inputs, sizes, imported.results, imported.sizes, rebuild, mutations, random, depends, where, watched)


# PyTorch registers the backend of an installed package itself, and refuses a second registration.
if "shorthaul" not in entry_points(group="torch_dynamo_backends").names:
    register_backend(backend, name="shorthaul")
