"""`torch.vmap` inside Dynamo's graphs.

Dynamo writes a vmap as calls that open a level, mark tensors as batched, and close the level again. They run as they are: PyTorch's
batching rules lie above functionalization, so what reaches the recorder are operators on whole batches, and nothing is left of the vmap.
The associative scans of PyTorch are written with it, too.

What the interpreter looks at itself (writes, storages, nodes) is the functional tensor inside of the batched ones (`innermost`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._higher_order_ops.associative_scan import generic_associative_scan
from torch.utils._pytree import tree_leaves

from shorthaul.frontends.functional import Origin, Unsupported
from shorthaul.frontends.functional_composites import (
    REDIRECTED,
    batch_norm,
    functional_batch_norm,
    functional_instance_norm,
    instance_norm,
    native_batch_norm,
)
from shorthaul.frontends.functional_origin import origin_of

if TYPE_CHECKING:
    from shorthaul.frontends.functional_interpret import Interpreter

_functorch = torch._C._functorch
_WITH_STATISTICS = {batch_norm, native_batch_norm, instance_norm, functional_batch_norm, functional_instance_norm}
# The calls of Dynamo's graphs that make up a vmap (in `torch._C._functorch` or around it, by version). They run as they are.
_CALLS = {"lazy_load_decompositions", "_vmap_increment_nesting", "_vmap_decrement_nesting", "_add_batch_dim", "_remove_batch_dim"}


def transformation(interpreter: Interpreter, target: Callable, args: tuple, kwargs: dict) -> Any:
    """A call of `torch.func`'s machinery. Unsupported where it belongs to another transformation than vmap."""
    origin = interpreter.recorder.origin
    name = getattr(target, "__name__", "")
    if name not in _CALLS:
        raise Unsupported(f"torch.func transformations ({origin.call}) are not supported", _line_of(interpreter.current))
    # The level is a number that Dynamo has counted: with other transformations around the capture it is another one here.
    if name == "_add_batch_dim" and args[2] != _functorch.maybe_current_level():
        raise Unsupported(f"torch.func transformations ({origin.call}) around a captured vmap are not supported", origin)
    return target(*args, **kwargs)


def _line_of(node: fx.Node) -> Origin:
    """The origin of a node, or of the next one that has a source line: what opens a level has none."""
    following: Any = node
    while following.op != "output":
        if (found := origin_of(following)).source:
            return found
        following = following.next
    return origin_of(node)


@contextlib.contextmanager
def levels_closed() -> Iterator[None]:
    """Levels that an error left open are closed, and what they forbid meanwhile is allowed again (hooks of saved tensors)."""
    depth = _functorch.get_dynamic_layer_stack_depth()
    forbidden = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    try:
        yield
    finally:
        if torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() != forbidden:
            if forbidden is None:
                torch._C._autograd._saved_tensors_hooks_enable()
            else:
                torch._C._autograd._saved_tensors_hooks_disable(forbidden)
        if _functorch.get_dynamic_layer_stack_depth() > depth:
            _functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


def is_batched(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and _functorch.is_batchedtensor(value)


def any_batched(tree: Any) -> bool:
    return any(is_batched(leaf) for leaf in tree_leaves(tree))


def innermost(value: Any) -> Any:
    """The tensor that a batched one holds."""
    while is_batched(value):
        value = _functorch.get_unwrapped(value)
    return value


def redirected(interpreter: Interpreter, function: Callable, args: tuple, kwargs: dict) -> Callable:
    """What to call for `function`: our composite, or, since only PyTorch's operators have batching rules, itself on batched tensors."""
    ours = REDIRECTED.get(function)
    if ours is None or not any_batched((args, kwargs)):
        return ours or function
    if ours in _WITH_STATISTICS:
        given = inspect.signature(ours).bind(*args, **kwargs)
        given.apply_defaults()
        training = given.arguments.get("training", given.arguments.get("use_input_stats"))
        if training and given.arguments["running_mean"] is not None:  # PyTorch's kernel writes them without saying so
            raise Unsupported("a vmap of a norm with running statistics is not supported", interpreter.recorder.origin)
    return function


def associative_scan(interpreter: Interpreter, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """`associative_scan(combine, xs, others)` along dimension 0: a tree of combinations of many slices at once, as PyTorch defines it."""
    combine, xs, *rest = args
    others = tuple(rest[0]) if rest else ()
    origin = interpreter.recorder.origin
    many = torch.vmap(lambda *slices: interpreter.run(combine, slices, origin), in_dims=(0,) * (2 * len(xs)) + (None,) * len(others))
    found = generic_associative_scan(many, list(xs), additional_inputs=others)
    interpreter.recorder.origin = origin
    return list(found)
