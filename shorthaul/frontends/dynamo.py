"""Capture with Dynamo: a module or function becomes one torch-level graph, without running it."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from shorthaul.frontends.functional import Unsupported

_captures = itertools.count()


class _Captured(BaseException):
    """Ends the call after compilation, before anything runs. Not an `Exception`: the user's code must not catch it."""

    def __init__(self, inputs: tuple) -> None:
        self.inputs = inputs


def _entry(self, *args, **kwargs):  # type: ignore[no-untyped-def]
    return self(*args, **kwargs)


def capture_graph(
    module_or_fn: Callable, args: tuple, kwargs: dict[str, Any] | None = None, *, dynamic: bool | None = None
) -> tuple[fx.GraphModule, list[Any], list[Any]]:
    """Dynamo's graph of one call, with parameters and buffers as inputs.

    Returns `(gm, example_inputs, real_inputs)`; both lists are in the order of the placeholders,
    `example_inputs` as a backend sees them (SymInts for symbolic sizes), `real_inputs` the real tensors and ints.
    Nothing of the user's model runs and no buffer changes. `dynamic` as in `torch.compile`.
    Raises `Unsupported` with the user's source line where one whole graph cannot be made.
    """
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of positional arguments, got {type(args).__name__}")
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable:
        found.append((gm, list(example_inputs)))

        def stop(*inputs: Any) -> Any:
            raise _Captured(inputs)

        return stop

    if torch._dynamo.config.disable:
        raise Unsupported("Dynamo is disabled (TORCHDYNAMO_DISABLE)", remedy="Unset it to capture a graph.")
    # A code object of its own: Dynamo's caches and its memory of sizes are kept per code object, and die with it.
    code = _entry.__code__.replace(co_name=f"capture_{next(_captures)}")
    entry = types.FunctionType(code, _entry.__globals__, code.co_name)
    compiled = torch._dynamo.optimize(backend, nopython=True, dynamic=dynamic)(entry)
    try:
        # a "force_eager" stance of the caller would run the model
        with torch.compiler.set_stance("default"), torch._dynamo.config.patch(allow_rnn=True):
            compiled(module_or_fn, *args, **(kwargs or {}))
    except _Captured as captured:
        gm, example_inputs = found[-1]
        return gm, example_inputs, list(captured.inputs)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise Unsupported(f"Dynamo cannot capture this call as one graph: {error}") from error
    finally:
        torch._dynamo.reset_code(code)
    raise Unsupported(
        "the call does no tensor computation, so there is nothing to capture",
        remedy="Call the module with tensors that it computes on.",
    )
