"""Optimizing modules in place. Nothing of the compiler is imported before a call has to be traced: a warm start needs none of it."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from shorthaul.config import Options
from shorthaul.errors import FallbackWarning
from shorthaul.frontends.functional import Unsupported
from shorthaul.ir.program import Program
from shorthaul.runtime.report import attach_report
from shorthaul.runtime.sequential import is_plain_sequential, unroll_containers, unrolled_call
from shorthaul.warm.entry import Entry

if TYPE_CHECKING:
    from shorthaul.transforms.recipe import Recipe

# graphs a module may have (sizes, modes, flags of parameters); after that PyTorch leaves it to eager mode with a warning
RECOMPILATIONS = 64
_entries = itertools.count()
_DataParallel: Any = torch.nn.parallel.DistributedDataParallel if torch.distributed.is_available() else None
_ALL_MODULES = torch.nn.modules.module
global_hooks = (_ALL_MODULES._global_forward_pre_hooks, _ALL_MODULES._global_forward_hooks,
                _ALL_MODULES._global_backward_pre_hooks, _ALL_MODULES._global_backward_hooks)  # fmt: skip
NOTHING_COMPILED = (
    "nothing of {name} was compiled: Dynamo left all of it to eager mode, as it does with code inside PyTorch that it does not trace and "
    "with functions that contain a loop in which the graph breaks (put the body of the loop into a method, which it can compile); "
    "the environment variable TORCH_LOGS=graph_breaks makes it say why"
)
TRANSFORMED = (
    "{name} was called inside torch.{transform}, around which PyTorch compiles nothing: this call runs in eager mode; put the "
    "transformation into the module that is optimized, where it is compiled with it"
)


def optimize(
    module: torch.nn.Module, *, level: int = 4, strict: bool = False, recipe: Recipe | str | os.PathLike[str] | None = None,
    cuda_graphs: bool = True, target: str = "auto", saved: str | None = None,
) -> torch.nn.Module:  # fmt: skip
    """Optimize a module for training, in place; returns the same object.

    Its parameters, buffers, state_dict, hooks and class stay as they are; it is compiled at its first call, and again when a size
    changes for the first time. level: how far transformations see (0 only expands, 4 the whole step). strict: an operator that would run
    through PyTorch instead of being compiled raises an error with its source line. recipe: a Recipe or the path of its file, whose steps
    take the place of the default choices; steps without a place here are skipped and reported. RecipeError for a file that is none.
    cuda_graphs: on a GPU, replay captured phases instead of launching kernel by kernel. target: what is compiled for: "auto" (the device's
    own), "cpp", "triton", or a target that another package adds (UnknownName for one that none has). saved: in what other form
    values are saved for the backward phase where fewer bytes move then: "bfloat16" or "float16" (gradients are those of rounded values),
    or "bits", of conditions on them (exact).
    `module.report()` says what was compiled, fused, not fused and why.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"optimize takes a torch.nn.Module, not {type(module).__name__}; for a function use torch.compile(f, backend='shorthaul')"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("a TorchScript module holds no Python code to capture; optimize the nn.Module it was made from")
    options = Options(level, strict, None if recipe is None else _text_of(recipe), target, cuda_graphs, saved=saved)
    if target not in ("auto", "cpp", "triton"):
        from shorthaul.runtime.target import TARGETS

        TARGETS.get(target)
    return optimize_with(module, options)


def optimize_with(module: torch.nn.Module, options: Options) -> torch.nn.Module:
    """`optimize` with every option."""
    record = attach_report(module)
    unroll_containers(module)
    # the data-parallel wrapper's own code is for eager mode; what it wraps is compiled
    target: Any = module.module if _DataParallel is not None and isinstance(module, _DataParallel) else module
    # what `module.compile()` sets, for an entry of the module's own: `Module.__call__` goes there, hooks included
    target._compiled_call_impl = Entry(target, options, record, _trace)
    return module


def _text_of(recipe: Recipe | str | os.PathLike[str]) -> str:
    from shorthaul.transforms.recipe import Recipe

    return str(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe))


def _trace(entry: Entry) -> tuple[Callable[..., Any], types.CodeType]:
    """The function that goes through Dynamo, and the code object that it traces."""
    from shorthaul.api import backend  # the compiler

    limits: dict[str, Any] = {"recompile_limit": RECOMPILATIONS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    call, record, module = _entry_of(entry.module), entry.report, entry.module
    compiled = torch.compile(call, backend=functools.partial(backend, options=entry.options, record=record, entry=entry), **limits)
    if any(isinstance(m, torch.nn.RNNBase) for m in module.modules()):
        # Dynamo leaves functions that call a recurrent module to eager mode, unless it is told otherwise
        compiled = torch._dynamo.config.patch(allow_rnn=True)(compiled)
    checked = told = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked, told
        transform = torch._C._functorch.peek_interpreter_stack()
        if transform is not None:  # Dynamo would leave it to eager mode, without a word
            text = TRANSFORMED.format(name=type(module).__name__, transform=_name_of(transform))
            if entry.options.strict:
                raise Unsupported(text)
            if not told:
                told = True
                warnings.warn(text, FallbackWarning, stacklevel=3)
            return module._call_impl(*args, **kwargs)
        wrapper = _DataParallel._active_ddp_module if _DataParallel is not None else None
        if wrapper is None:
            result = compiled(*args, **kwargs)
        else:
            # Dynamo would cut the graph at the wrapper's buckets, to overlap communication; the parts of our backward phase do that
            _DataParallel._active_ddp_module = None
            try:
                result = compiled(*args, **kwargs)
            finally:
                _DataParallel._active_ddp_module = wrapper
        if not checked:
            checked = True
            if not record.regions and next(module.parameters(), None) is not None:
                text = NOTHING_COMPILED.format(name=type(module).__name__)
                if entry.options.strict:
                    checked = False
                    raise Unsupported(text)
                warnings.warn(text, FallbackWarning, stacklevel=3)
        return result

    return run, call.__code__


def _name_of(transform: Any) -> str:
    """The function of PyTorch that a level of `torch.func` stands for."""
    name = transform.key().name.lower()
    return name if name == "vmap" else f"func.{name}"


def _entry_of(module: torch.nn.Module) -> types.FunctionType:
    """A function that calls the module. Dynamo keeps compiled code, and its memory of sizes, for each code object: this one is the
    module's own; and it is no function of PyTorch, whose frames (a plain nn.Sequential's) Dynamo would leave alone."""

    unrolled = unrolled_call(module) if is_plain_sequential(module) else None  # type: ignore[arg-type]

    def call(*args: Any, **kwargs: Any) -> Any:
        for hooks in global_hooks:
            len(hooks)  # makes it a guard: Dynamo takes no notice of them by itself
        return module._call_impl(*args, **kwargs) if unrolled is None else unrolled(module, *args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{type(module).__name__}_{next(_entries)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def disable(target: Any) -> Any:
    """Leave a module or function to eager mode inside an optimized model."""
    if isinstance(target, torch.nn.Module):
        from shorthaul.disabled import Eager  # imports Dynamo

        target.forward = Eager(target)  # type: ignore[method-assign]
        return target
    return torch.compiler.disable(target)


class _Late:
    """A method of programs that needs the compiler: the first use imports `workbench`, which puts the method itself here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, program: Program | None, owner: type) -> Any:
        importlib.import_module("shorthaul.workbench").install()
        return getattr(owner if program is None else program, self.name)


for _name in ("optimize", "movement", "explain", "places", "apply", "apply_alike", "replay", "history", "isomorphic_modules", "recipe"):
    if not hasattr(Program, _name):
        setattr(Program, _name, _Late(_name))
