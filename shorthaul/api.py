"""The public functions. See docs for how they are used together."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import os
import traceback
import types
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
from shorthaul.frontends.dynamo import capture_graph
from shorthaul.frontends.functional import FunctionalGraph, OutputSpec, Unsupported, functionalize
from shorthaul.frontends.importer import RANDOM_INPUTS, Imported, import_graph
from shorthaul.frontends.traced_gradient import traced_gradient
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import runtime_sizes
from shorthaul.runtime.artifact import artifact_key, load, store
from shorthaul.runtime.bridge import CompiledGraph, Interface
from shorthaul.runtime.build import NoCompiler
from shorthaul.runtime.compile import compile_program, compile_triton
from shorthaul.runtime.executable import CallError
from shorthaul.runtime.graphs import GraphedExecutable, in_place_inputs
from shorthaul.runtime.report import Record, Region, attach_report
from shorthaul.runtime.sequential import is_plain_sequential, unroll_containers, unrolled_call
from shorthaul.symbolic import Symbol
from shorthaul.transforms.base import Refused
from shorthaul.transforms.recipe import Recipe
from shorthaul.workbench import install

__all__ = ["CallError", "DifferentiationError", "FallbackWarning", "Options", "Program", "Unsupported",
           "backend", "capture", "disable", "import_training", "optimize"]  # fmt: skip

# graphs a module may have (sizes, modes, flags of parameters); after that PyTorch leaves it to eager mode with a warning
RECOMPILATIONS = 64
# gradients that a part of the backward phase completes at least, where processes train together: sooner ready is sooner sent
DISTRIBUTED_PART_BYTES = 1 << 14
_entries = itertools.count()
# Dynamo's default takes no notice of a hook that a submodule gets after it was compiled, and would leave it uncalled
torch._dynamo.config.skip_nnmodule_hook_guards = False
_DataParallel: Any = torch.nn.parallel.DistributedDataParallel if torch.distributed.is_available() else None
_ALL_MODULES = torch.nn.modules.module
_GLOBAL_HOOKS = (_ALL_MODULES._global_forward_pre_hooks, _ALL_MODULES._global_forward_hooks,
                 _ALL_MODULES._global_backward_pre_hooks, _ALL_MODULES._global_backward_hooks)  # fmt: skip
NOTHING_COMPILED = (
    "nothing of {name} was compiled: Dynamo left all of it to eager mode, as it does with code inside PyTorch that it does not trace; "
    "the environment variable TORCH_LOGS=graph_breaks makes it say why"
)


def optimize(
    module: torch.nn.Module, *, level: int = 4, strict: bool = False, recipe: Recipe | str | os.PathLike[str] | None = None
) -> torch.nn.Module:
    """Optimize a module for training, in place; returns the same object.

    Its parameters, buffers, state_dict, hooks and class stay as they are; it is compiled at its first call, and again when a size
    changes for the first time. level: how far transformations see (0 only expands, 4 the whole step). strict: an operator that would run
    through PyTorch instead of being compiled raises an error with its source line. recipe: a Recipe or the path of its file, whose steps
    take the place of the default choices; steps without a place here are skipped and reported. RecipeError for a file that is none.
    `module.report()` says what was compiled, fused, not fused and why.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"optimize takes a torch.nn.Module, not {type(module).__name__}; for a function use torch.compile(f, backend='shorthaul')"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("a TorchScript module holds no Python code to capture; optimize the nn.Module it was made from")
    plan = Recipe.load(recipe) if recipe is not None and not isinstance(recipe, Recipe) else recipe
    options = Options(level, strict, None if plan is None else str(plan))
    record = attach_report(module)
    unroll_containers(module)
    # the data-parallel wrapper's own code is for eager mode; what it wraps is compiled
    target = module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module
    # what `module.compile()` sets, for an entry of the module's own: `Module.__call__` goes there, hooks included
    limits: dict[str, Any] = {"recompile_limit": RECOMPILATIONS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    compiled = torch.compile(_entry_of(target), backend=functools.partial(backend, options=options, record=record), **limits)
    if any(isinstance(m, torch.nn.RNNBase) for m in target.modules()):
        # Dynamo leaves functions that call a recurrent module to eager mode, unless it is told otherwise
        compiled = torch._dynamo.config.patch(allow_rnn=True)(compiled)

    def run(*args: Any, **kwargs: Any) -> Any:
        wrapper = _DataParallel._active_ddp_module if _DataParallel is not None else None
        if wrapper is None:
            return compiled(*args, **kwargs)
        # Dynamo would cut the graph at the wrapper's buckets, to overlap communication; the parts of our backward phase do that already
        _DataParallel._active_ddp_module = None
        try:
            return compiled(*args, **kwargs)
        finally:
            _DataParallel._active_ddp_module = wrapper

    def first_call(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        target._compiled_call_impl = run  # type: ignore[assignment]
        if not record.regions and next(target.parameters(), None) is not None:
            text = NOTHING_COMPILED.format(name=type(target).__name__)
            if strict:
                raise Unsupported(text)
            warnings.warn(text, FallbackWarning, stacklevel=2)
        return result

    target._compiled_call_impl = first_call  # type: ignore[assignment]
    return module


def _entry_of(module: torch.nn.Module) -> Callable[..., Any]:
    """A function that calls the module. Dynamo keeps compiled code, and its memory of sizes, for each code object: this one is the
    module's own; and it is no function of PyTorch, whose frames (a plain nn.Sequential's) Dynamo would leave alone."""

    whole = unrolled_call(module) if is_plain_sequential(module) else module._call_impl  # type: ignore[arg-type]

    def call(*args: Any, **kwargs: Any) -> Any:
        for hooks in _GLOBAL_HOOKS:
            len(hooks)  # makes it a guard: Dynamo takes no notice of them by itself
        return whole(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{type(module).__name__}_{next(_entries)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def disable(target: Any) -> Any:
    """Leave a module or function to eager mode inside an optimized model."""
    if isinstance(target, torch.nn.Module):
        target.forward = _Eager(target)  # type: ignore[method-assign]
        return target
    return torch.compiler.disable(target)


class _Eager:
    """The `forward` of a module that is left to eager mode. Copies and pickles of the module get one of their own."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.__signature__ = inspect.signature(type(module).forward.__get__(module))

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def __reduce__(self) -> tuple:
        return _Eager, (self.module,)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Eager:
        return _Eager(memo.get(id(self.module), self.module))


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
            differentiate(imported.program, outputs, list(dict.fromkeys(wrt)), traced)
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
) -> Callable[..., Any]:
    """The Dynamo backend: `torch.compile(model, backend="shorthaul")`.

    What cannot be compiled runs in eager mode, with a FallbackWarning that names operator and source line, and stands in the report.
    """
    options = options or Options()
    record = record if record is not None else Record()
    region = Region(len(record.regions), _recompile_reason(), graph_break=_graph_break(gm))
    record.regions.append(region)
    try:
        with region.timed("compile"):
            compiled = _compile(gm, example_inputs, options, region)
        record.uses(t for t in map(_real_input, gm.graph.find_nodes(op="placeholder")) if isinstance(t, torch.nn.Parameter))
        return compiled
    except NoCompiler as e:
        reason = str(e)
    except Exception as e:
        if options.strict:
            raise
        reason = _reason(e)
    region.fallback = reason
    warnings.warn(f"part of the model runs in eager mode: {reason}", FallbackWarning, stacklevel=2)
    return gm.forward


def _graph_break(gm: torch.fx.GraphModule) -> str:
    """Why Dynamo ended the graph before the function did, with the user's line; an empty string where it did not."""
    found = getattr(gm, "compile_subgraph_reason", None)
    if found is None or not getattr(found, "graph_break", False):
        return ""
    where = f" at {found.user_stack[-1].filename}:{found.user_stack[-1].lineno}" if found.user_stack else ""
    lines = [line.strip() for line in str(found.reason).split("\n")]
    return ". ".join([lines[0], *(line.removeprefix("Explanation: ") for line in lines[1:] if line.startswith("Explanation"))]) + where


def _real_input(node: torch.fx.Node) -> Any:
    return getattr(node.meta.get("grapharg"), "example", None)


def _reason(e: Exception) -> str:
    if isinstance(e, (DeviceError, Unsupported, DifferentiationError)):
        return str(e)
    if isinstance(e, OSError):
        return f"the compiled library cannot be written ({e}); make room, or name another directory in SHORTHAUL_CACHE_DIR"
    where = traceback.extract_tb(e.__traceback__)[-1]
    return f"an error inside Shorthaul, please report it: {type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"


def _recompile_reason() -> str:
    """Why Dynamo compiles this frame again (the guard that failed), an empty string the first time."""
    try:
        reason = get_metrics_context()._metrics.get("recompile_reason")
    except AttributeError:  # an internal name of PyTorch: without it the report only lacks the reason
        return ""
    return str(reason).strip().split("\n")[0].split(": ", 1)[-1] if reason else ""


def _compile(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], options: Options, region: Region) -> Callable[..., Any]:
    with region.timed("functionalize"):
        graph = functionalize(gm, example_inputs)
    device = _device_of(graph)
    triton = options.target == "triton" or (options.target == "auto" and device.type != "cpu")
    options = dataclasses.replace(options, target="triton" if triton else "cpp")
    train = torch.is_grad_enabled()
    with region.timed("import"):
        imported = import_training(graph, train=train, strict=options.strict, name=f"region_{region.index}")
    program = imported.program
    depends = _dependences(
        program,
        [n for spec, n in zip(graph.inputs, imported.inputs, strict=True) if n is not None and spec.requires_grad],
    )
    watched = frozenset(n for n in program.signature.outputs if any(r.phase == "backward" for r in program.readers(n)))
    region.captured(program, imported.fallbacks)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        program.attributes["part_bytes"] = DISTRIBUTED_PART_BYTES
    if triton:
        with region.timed("optimize"):
            pipeline.optimize(program, options)
        with region.timed("build"):
            compiled = compile_triton(program, device)
        interface = _interface(graph, imported, depends, watched)
        executable: Any = compiled.executable
        if device.type == "cuda" and options.cuda_graphs:
            written = frozenset(str(interface.inputs[i]) for i, _ in interface.mutations)
            roles = {n: program.containers[n].role for n in program.signature.inputs}
            executable = GraphedExecutable(executable, in_place_inputs(program.signature.inputs, roles, written))
        region.finished(program, dataclasses.replace(compiled, executable=executable))
        return CompiledGraph(program.name, program, interface, executable)
    with region.timed("cache"):
        key = artifact_key(program, options)
        found = load(key)
    if found is not None:
        program, compiled = found
        program.attributes["refusals"] = [Refused(*r) for r in program.attributes["refusals"]]
    else:
        with region.timed("optimize"):
            pipeline.optimize(program, options)
        with region.timed("build"):
            compiled = compile_program(program)
        with region.timed("cache"):
            store(key, program, compiled)
    region.finished(program, compiled)
    return CompiledGraph(program.name, program, _interface(graph, imported, depends, watched), compiled.executable)


install()  # gives Program the methods that need other parts of the package (`ir` knows none of them)


def _device_of(graph: FunctionalGraph) -> torch.device:
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


def _dependences(program: Program, inputs: Sequence[str]) -> dict[str, frozenset[str]]:
    """For every input that requires grad the outputs whose cotangents its gradient comes from, before fusion mixes them."""
    reached: dict[str, frozenset[str]] = {c: frozenset([output]) for output, c in program.signature.cotangents}
    for node in program.nodes:
        if node.phase == "backward":
            found = frozenset[str]().union(*(reached.get(c, frozenset()) for c in program.reads_of(node)))
            reached.update((c, reached.get(c, frozenset()) | found) for c in program.writes_of(node))
    gradients = dict(program.signature.gradients)
    return {n: reached.get(gradients.get(n, ""), frozenset()) for n in inputs}


def _interface(
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
    missing = [s.name for s in wanted.values() if s not in sizes and s not in runtime_sizes(imported.program)]
    if missing:
        raise Unsupported(f"the size {missing[0]} is not the size of an input")
    mutations = [(m.input, m.graph_output) for m in graph.mutations]
    random = tuple(n for n in RANDOM_INPUTS if n in imported.program.containers)
    where = next((n.origin.source for n in imported.program.nodes if n.origin.source), "")
    rebuild = _rebuilder(graph)
    return Interface(imported.inputs, sizes, imported.results, imported.sizes, rebuild, mutations, random, depends, where, watched)


def _rebuilder(graph: FunctionalGraph) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    if all(spec.kind == "tensor" for spec in graph.outputs):
        order: list[int] = [spec.graph_output for spec in graph.outputs]  # type: ignore[misc]
        return lambda results, inputs: [results[i] for i in order]
    return functools.partial(_rebuild, graph)


def _rebuild(graph: FunctionalGraph, results: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The caller's outputs from the results of the graph: views and repeated outputs are made again."""
    outputs: list[Any] = [None] * len(graph.outputs)

    def make(i: int) -> Any:
        spec = graph.outputs[i]
        if outputs[i] is not None:
            return outputs[i]
        if spec.kind in ("tensor", "size"):
            assert spec.graph_output is not None
            value = results[spec.graph_output]
        elif spec.kind == "constant":
            return spec.value
        elif spec.kind == "input":
            assert spec.input is not None
            value = inputs[spec.input]
        elif spec.kind == "same":
            assert spec.output is not None
            value = make(spec.output)
        else:
            assert spec.view is not None
            if spec.input is not None:
                base = inputs[spec.input]
            elif spec.output is not None:
                base = make(spec.output)
            else:
                base = results[spec.graph_output]  # type: ignore[index]
            value = spec.view.apply(base, results)
        outputs[i] = value
        return value

    for i in range(len(graph.outputs)):
        outputs[i] = make(i)
    return outputs


# PyTorch registers the backend of an installed package itself, and refuses a second registration.
if "shorthaul" not in entry_points(group="torch_dynamo_backends").names:
    register_backend(backend, name="shorthaul")
