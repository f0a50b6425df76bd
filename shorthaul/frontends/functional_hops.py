"""Higher-order operators of Dynamo's graphs."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from shorthaul.frontends.functional import CustomFunction, FunctionalGraph, InputSpec, Unsupported
from shorthaul.frontends.functional_outputs import flat_graph
from shorthaul.frontends.functional_record import any_requires_grad, is_differentiable_dtype

if TYPE_CHECKING:
    from shorthaul.frontends.functional_interpret import Interpreter


def _inline(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    return interpreter.run(args[0], args[1:], interpreter.recorder.origin)


def _checkpoint(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    if kwargs.get("context_fn") is not None:
        raise Unsupported(
            "checkpoint with context_fn (selective checkpointing) is not supported", interpreter.recorder.origin
        )
    with interpreter.checkpoint_region():
        return _inline(interpreter, args, kwargs)


def _wrap_with_set_grad_enabled(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    previous = interpreter.recorder.grad_enabled
    interpreter.recorder.grad_enabled = args[0]
    try:
        return interpreter.run(args[1], args[2:], interpreter.recorder.origin)
    finally:
        interpreter.recorder.grad_enabled = previous


def _wrap_with_autocast(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    device, dtype, enabled, cache, body, *rest = args
    mode = interpreter.enter_autocast(device, dtype, enabled, cache)
    try:
        return interpreter.run(body, rest, interpreter.recorder.origin)
    finally:
        interpreter.exit_autocast(mode)


def custom_function(function: CustomFunction, *args: Any) -> tuple:
    """Run a custom function eagerly, with its own backward (the meaning of its node)."""

    class Apply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            results = function.forward.module()(*inputs)
            outputs = tuple(
                out.view_as(out) if any(out is value for value in inputs) else out
                for out in results[: function.n_outputs]
            )
            ctx.saved = results[function.n_outputs :]
            ctx.mark_non_differentiable(*(outputs[index] for index in function.non_differentiable))
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            gradients = iter(function.backward.module()(*grads, *ctx.saved))
            return tuple(next(gradients) if takes else None for takes in function.takes_gradient)

    return Apply.apply(*args)


def _autograd_function(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    """One node `custom_function`, whose two directions are functional sub graphs.

    The operator's forward body returns (outputs, saved); its backward body takes the gradients of the outputs,
    then the saved values.
    """
    recorder = interpreter.recorder
    origin = recorder.origin
    forward_body, backward_body, *inputs = args
    if kwargs.get("dirty_idx"):
        raise Unsupported(
            "a custom autograd.Function that writes its input (mark_dirty) is not supported",
            origin,
            "Return a new tensor from forward.",
        )
    fakes = [interpreter.value_of(value) if isinstance(value, torch.Tensor) else value for value in inputs]

    forward, results = sub_graph(interpreter, forward_body, fakes)
    outputs, saved = results
    single = isinstance(outputs, torch.Tensor)
    outputs = [outputs] if single else list(outputs)
    saved = list(saved)
    non_differentiable = tuple(kwargs.get("non_differentiable_idx") or ())
    non_differentiable += tuple(
        index
        for index, out in enumerate(outputs)
        if isinstance(out, torch.Tensor) and not is_differentiable_dtype(out) and index not in non_differentiable
    )
    with suspended():
        grads = [fresh(recorder.fake_mode, out) if isinstance(out, torch.Tensor) else None for out in outputs]
        values = tuple(fresh(recorder.fake_mode, out) for out in outputs)
    backward, gradients = sub_graph(interpreter, backward_body, [*grads, *saved])
    gradients = list(gradients) if isinstance(gradients, (list, tuple)) else [gradients]
    takes_gradient = (True,) * len(inputs)
    if len(gradients) != sum(takes_gradient):
        raise Unsupported(
            f"the backward of a custom autograd.Function returns {len(gradients)} gradients for "
            f"{sum(takes_gradient)} arguments",
            origin,
        )
    recorder.origin = origin
    name = str(getattr(forward_body, "_shorthaul_name", "")) or origin.code
    function = CustomFunction(
        name, forward, backward, len(outputs), len(saved), tuple(sorted(non_differentiable)), takes_gradient
    )
    reference = recorder.attribute("_custom_function", function, None)
    arguments = tuple(recorder.argument(value) for value in fakes)
    differentiable = recorder.grad_enabled and any_requires_grad(arguments)
    flags = tuple(
        differentiable and isinstance(out, torch.Tensor) and index not in non_differentiable
        for index, out in enumerate(outputs)
    )
    node = recorder.call(custom_function, (reference, *arguments), {}, values, flags)
    recorder.bind_results(node, [v if isinstance(v, torch.Tensor) else None for v in values], flags)
    wrapped = tuple(interpreter.wrap(value) for value in values)
    return wrapped[0] if single else wrapped


def _register_hook(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    """A hook on an intermediate: a custom function that is the identity forward and the hook backward.

    The operator takes (tensor, hook body, *values that the hook reads).
    """
    node, origin = interpreter.current, interpreter.recorder.origin
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if source.op == "placeholder" or len(source.users) > 1:
        raise Unsupported(
            "a gradient hook on an input, or on a tensor that is used before the hook is registered, is not supported",
            origin,
            "Register the hook directly after the tensor is made.",
        )
    tensor, hook, *values = args
    forward = fx.Graph()
    places = [forward.placeholder(f"value{index}") for index in range(1 + len(values))]
    forward.output(((places[0],), tuple(places[1:])))
    backward = fx.Graph()
    places = [backward.placeholder(f"value{index}") for index in range(1 + len(values))]
    (returned,) = next(iter(reversed(hook.graph.nodes))).args
    changed: Any = backward.call_module("hook", tuple(places))
    if isinstance(returned, (tuple, list)):
        changed, returned = backward.call_function(operator.getitem, (changed, 0)), returned[0]
    backward.output((places[0] if returned is None else changed, *([None] * len(values))))
    module = torch.nn.Module()
    module.add_module("hook", hook)
    bodies = fx.GraphModule(module, forward), fx.GraphModule(module, backward)
    return _autograd_function(interpreter, (*bodies, tensor, *values), {})[0]


def _invoke_subgraph(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    return interpreter.run(args[0], args[2:], interpreter.recorder.origin)


def sub_graph(interpreter: Interpreter, body: fx.GraphModule, fakes: list, *, flags: Sequence[bool] | None = None,
              what: str = "a custom autograd.Function", run: Callable | None = None) -> tuple[FunctionalGraph, Any]:  # fmt: skip
    """Trace a body into a functional graph of its own. Returns it, and the structure of fake results.

    flags: which inputs require grad; they are called x0, x1, ... then. what: the body's name in errors. run: what to trace with (inner
    interpreter, functional tensors) instead of the body alone.
    """
    from shorthaul.frontends.functional_interpret import Interpreter

    outer = interpreter.recorder
    inner = Interpreter(outer.fake_mode, outer.grad_enabled if flags is not None else True, interpreter.symbolic)
    names = [node.name for node in body.graph.nodes if node.op == "placeholder"]
    if len(names) != len(fakes):
        raise Unsupported(f"a sub graph takes {len(names)} inputs, {len(fakes)} were found", outer.origin)
    if flags is not None:
        names = [f"x{i}" for i in range(len(fakes))]
    specs, wrapped = [], []
    with suspended():
        values = [fresh(outer.fake_mode, fake) for fake in fakes]  # the same tensor may be passed twice
    with suspended(), inner.active():
        for name, value, required in zip(names, values, flags or [False] * len(names), strict=True):
            inner.recorder.placeholder(name, value, required, outer.origin)
            wrapped.append(inner.wrap(value))
            if isinstance(value, torch.Tensor):
                spec = InputSpec(name, "input", value.dtype, tuple(value.shape), tuple(value.stride()), value.device)
            else:
                spec = InputSpec(name, "size")
            specs.append(spec)
        inner.recorder.origin = outer.origin
        results = inner.run(body, wrapped, outer.origin) if run is None else run(inner, wrapped)
        graph = flat_graph(inner, specs, wrapped, results, what)
        structure = torch.utils._pytree.tree_map_only(torch.Tensor, inner.value_of, results)
    return graph, structure


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """The outer functionalization and recorder are off: for sub graphs, and for fake tensors made by hand."""
    torch._disable_functionalization()
    try:
        with torch.utils._python_dispatch._disable_current_modes():
            yield
    finally:
        torch._enable_functionalization(reapply_views=True)


def fresh(fake_mode: FakeTensorMode, value: Any) -> Any:
    """A fake tensor like `value` that nothing else is; one that was expanded has memory for every element."""
    if not isinstance(value, torch.Tensor):
        return value
    with fake_mode:
        if 0 in value.stride():
            return torch.empty(value.shape, dtype=value.dtype, device=value.device)
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


INLINED = {"tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap", "wrap_with_set_grad_enabled", "wrap_with_autocast",
           "invoke_subgraph"}  # fmt: skip
HIGHER_ORDER: dict[str, Callable] = {
    "tag_activation_checkpoint": _checkpoint,
    "wrap_activation_checkpoint": _checkpoint,
    "wrap": _inline,
    "wrap_with_set_grad_enabled": _wrap_with_set_grad_enabled,
    "wrap_with_autocast": _wrap_with_autocast,
    "autograd_function_apply": _autograd_function,
    "register_hook": _register_hook,
    "invoke_subgraph": _invoke_subgraph,
}
