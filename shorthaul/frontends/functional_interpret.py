"""Run a torch-level graph once, on functional fake tensors, while the recorder listens.

PyTorch's own functionalization (the C++ dispatch key) turns in-place operations and writes through views into
values. The interpreter adds what lies above the dispatcher: grad mode, autocast, checkpoint regions, custom
`autograd.Function`, and the meaning for gradients of writes that autograd does not see.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from shorthaul.frontends.functional import FunctionalGraph, InputSpec, Origin, Unsupported
from shorthaul.frontends.functional_control import CONTROL_FLOW
from shorthaul.frontends.functional_hops import HIGHER_ORDER, INLINED
from shorthaul.frontends.functional_origin import dotted_path, origin_of, readable_name, source_name
from shorthaul.frontends.functional_outputs import finish
from shorthaul.frontends.functional_record import Recorder, ours
from shorthaul.frontends.functional_vmap import (
    any_batched,
    associative_scan,
    innermost,
    is_batched,
    levels_closed,
    redirected,
    transformation,
)

_REFUSED_CALLS = {
    "requires_grad_": "Set requires_grad before the call.",
    "register_hook": "Register the hook outside of the captured region.",
    "retain_grad": "Call retain_grad outside of the captured region.",
    "backward": "Call backward outside of the captured region.",
    "set_": "",
    "resize_": "",
    "resize_as_": "",
    "item": "The value of a tensor is needed while capturing.",
    "tolist": "The value of a tensor is needed while capturing.",
}
_checkpoint_ids = itertools.count()


def trace(gm: fx.GraphModule, example_inputs: Sequence[Any], grad_enabled: bool) -> FunctionalGraph:
    """See `functional.functionalize`."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(example_inputs):
        raise ValueError(f"the graph takes {len(placeholders)} inputs, {len(example_inputs)} example inputs given")
    fake_mode = _fake_mode(placeholders, example_inputs)
    specs: list[InputSpec] = []
    fakes: list[Any] = []
    first: dict[int, int] = {}
    for index, (node, example) in enumerate(zip(placeholders, example_inputs, strict=True)):
        value = _fake_input(fake_mode, node, example)
        specs.append(_input_spec(node, example, value))
        fakes.append(value)
        if isinstance(example, torch.Tensor):
            specs[index].duplicate_of = first.setdefault(id(example), index) if id(example) in first else None
            first.setdefault(id(example), index)
    symbolic = any(isinstance(size, torch.SymInt) for value in fakes for size in getattr(value, "shape", (value,)))
    interpreter = Interpreter(fake_mode, grad_enabled, symbolic)
    with interpreter.active():
        wrapped: list[Any] = []
        for node, spec, value in zip(placeholders, specs, fakes, strict=True):
            name = node.name if spec.role == "size" else readable_name(node)
            if spec.duplicate_of is not None:
                spec.name = interpreter.recorder.placeholder(name, None, False, origin_of(node)).name
                wrapped.append(wrapped[spec.duplicate_of])
                continue
            origin = origin_of(node)
            spec.name = interpreter.recorder.placeholder(name, value, spec.requires_grad, origin, spec.is_leaf).name
            wrapped.append(interpreter.wrap(value))
        results = interpreter.run(gm, wrapped, Origin())
        return finish(interpreter, specs, wrapped, fakes, results)


def _fake_mode(placeholders: Sequence[fx.Node], example_inputs: Sequence[Any]) -> FakeTensorMode:
    known = (node.meta.get("example_value", node.meta.get("val")) for node in placeholders)
    for value in itertools.chain(known, example_inputs):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)


def _fake_input(fake_mode: FakeTensorMode, node: fx.Node, example: Any) -> Any:
    if isinstance(example, torch.Tensor):
        plain = type(example) is torch.Tensor or isinstance(example, (torch.nn.Parameter, FakeTensor))
        if not plain or is_traceable_wrapper_subclass(example):
            raise Unsupported(
                f"input {node.name} is a {type(example).__module__}.{type(example).__qualname__}; "
                "tensor subclasses are not supported",
                origin_of(node),
                "Pass plain tensors, or leave this region to eager.",
            )
        known = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(known, FakeTensor) and known.fake_mode is fake_mode:
            if any(a != b for a, b in zip(known.shape, example.shape) if isinstance(a, int) and isinstance(b, int)):
                raise Unsupported(f"input {node.name} changes its shape in place", origin_of(node), "Return a view.")
            return known
        return example if isinstance(example, FakeTensor) else fake_mode.from_tensor(example, static_shapes=True)
    if isinstance(example, int) and isinstance(node.meta.get("example_value"), torch.SymInt):
        return node.meta["example_value"]
    return example


def _input_spec(node: fx.Node, example: Any, value: Any) -> InputSpec:
    source = source_name(node)
    if not isinstance(example, torch.Tensor):
        return InputSpec(name=node.name, role="size", source=source)
    role = "input"
    if isinstance(example, torch.nn.Parameter):
        role = "parameter"
    elif "_buffers" in source:
        role = "buffer"
    layout = "strided"
    if example.layout is not torch.strided:
        layout = "sparse" if "sparse" in str(example.layout) else "mkldnn"
    elif example.is_quantized:
        layout = "quantized"
    elif example.dtype.is_complex:
        layout = "complex"
    return InputSpec(
        name=node.name,
        role=role,
        dtype=example.dtype,
        shape=tuple(value.shape),
        strides=tuple(value.stride()) if example.layout is torch.strided else (),
        device=example.device,
        requires_grad=example.requires_grad,
        is_leaf=example.is_leaf,
        fqn=dotted_path(source) if source and role != "input" else None,
        layout=layout,
        source=source,
    )


class Interpreter:
    """Holds the recorder and the modes; runs graphs and sub graphs."""

    def __init__(self, fake_mode: FakeTensorMode, grad_enabled: bool, symbolic: bool = False) -> None:
        self.fake_mode, self.symbolic = fake_mode, symbolic
        self.recorder = Recorder(fake_mode, grad_enabled)
        self.current: Any = None  # the node of the torch-level graph being run
        self._hidden_storages: set[int] = set()  # storages with a detached view of a differentiable tensor

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Functionalization and the recorder on; autocast state restored at the end."""
        autocast_depth, state = _autocast_depth(), _autocast_state()
        self._autocast_changed()
        torch._enable_functionalization(reapply_views=True)
        try:
            with torch.no_grad(), self.recorder, self._symbolic_kernels(), levels_closed():
                yield
        finally:
            torch._disable_functionalization()
            _restore_autocast(state, autocast_depth)

    def _symbolic_kernels(self) -> contextlib.AbstractContextManager:
        """Some shape checks of PyTorch's functionalization know symbolic sizes only in their Python versions."""
        return enable_python_dispatcher() if self.symbolic else contextlib.nullcontext()

    # Functional tensors --------------------------------------------------------------------------------------

    @staticmethod
    def wrap(value: Any) -> Any:
        return torch._to_functional_tensor(value) if isinstance(value, torch.Tensor) else value

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The current fake value of a functional tensor, pending writes through its views applied."""
        if is_batched(tensor):
            raise Unsupported(f"{self.recorder.origin.call} inside a vmap is not supported", self.recorder.origin)
        if not torch._is_functional_tensor(tensor):
            return tensor
        torch._sync(tensor)
        return torch._from_functional_tensor(tensor)

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        return self.recorder.node_of(self.value_of(tensor))

    # Running -------------------------------------------------------------------------------------------------

    def run(self, gm: fx.GraphModule, args: Sequence[Any], outer: Origin) -> Any:
        """Interpret `gm` on functional tensors; returns what its output node holds."""
        env: dict[fx.Node, Any] = {}
        inputs = iter(args)
        recorder = self.recorder
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(inputs)
                continue
            if node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            recorder.origin, self.current = origin_of(node, outer), node
            try:
                env[node] = self._run_node(gm, node, env)
            except (Unsupported, KeyboardInterrupt):
                raise
            except Exception as error:
                first = str(error).strip().split("\n")[0]
                raise Unsupported(f"{recorder.origin.call} failed while capturing: {first}", recorder.origin) from error
        raise AssertionError("a graph without an output node")

    def _run_node(self, gm: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        target = node.target
        if node.op == "get_attr":
            value: Any = gm
            for step in str(target).split("."):
                value = getattr(value, step)
            if isinstance(value, torch.Tensor):
                if value.requires_grad:
                    raise Unsupported(
                        f"{target} requires grad but is no input of the graph",
                        self.recorder.origin,
                        "Parameters must be lifted to inputs (torch._dynamo.config.inline_inbuilt_nn_modules).",
                    )
                return self.wrap(self.recorder._constant(value))
            return value
        args: Any = fx.node.map_arg(node.args, env.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, env.__getitem__) if node.kwargs else {}
        if node.op == "call_module":
            submodule = gm.get_submodule(str(target))
            if isinstance(submodule, fx.GraphModule):
                return self.run(submodule, args, self.recorder.origin)
            raise Unsupported(
                f"the graph calls the module {target} ({type(submodule).__name__}) as a whole",
                self.recorder.origin,
                "Capture with parameters lifted to inputs (torch._dynamo.config.inline_inbuilt_nn_modules=True).",
            )
        if node.op == "call_method":
            assert isinstance(target, str)
            if target == "item" and isinstance(known := node.meta.get("example_value"), (torch.SymInt, torch.SymFloat)):
                return self.recorder.scalar(self.node_of(args[0]), known)
            if target in _REFUSED_CALLS:
                raise Unsupported(f"Tensor.{target} cannot be captured", self.recorder.origin, _REFUSED_CALLS[target])
            if target == "detach_":
                return self._detach_in_place(args[0])
            return self.call(getattr(type(args[0]), target, None) or getattr(args[0], target), args, kwargs)
        if isinstance(target, torch._ops.HigherOrderOperator):
            handler = _HANDLERS.get(target._name)
            if handler is None:
                raise Unsupported(
                    f"the higher-order operator {target._name} is not supported",
                    self.recorder.origin,
                    "Leave this region to eager.",
                )
            if any_batched((args, kwargs)) and target._name not in INLINED:
                raise Unsupported(f"the higher-order operator {target._name} inside a vmap is not supported", self.recorder.origin)
            return handler(self, args, kwargs)
        assert callable(target)
        marker = _MARKERS.get(target)
        if marker is not None:
            return marker(self, *args, **kwargs)
        if getattr(target, "__module__", None) in ("torch._C._functorch", "torch._functorch.predispatch"):
            return transformation(self, target, args, kwargs)
        return self.call(target, args, kwargs)

    def call(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Call a torch-level function; keep the gradient's meaning where it writes or views outside of autograd."""
        function = redirected(self, function, args, kwargs)
        if self.recorder.grad_enabled and not self._hidden_storages and function not in _DETACHING:
            return function(*args, **kwargs)
        tensors = [inner for leaf in tree_leaves((args, kwargs)) if _is_functional(inner := innermost(leaf))]
        before = [self.node_of(tensor) for tensor in tensors]
        out = function(*args, **kwargs)
        for tensor, old in zip(tensors, before, strict=True):
            if self.node_of(tensor) is not old:
                self._hidden_write(tensor, old)
        return self._hide_views(out, tensors, before)

    def _hidden_write(self, tensor: torch.Tensor, old: fx.Node) -> None:
        """A write into `tensor` that autograd may not have seen."""
        if old.meta["requires_grad"] and not self.recorder.grad_enabled:
            if not torch._is_functional_tensor_base(tensor):
                raise Unsupported(
                    "a view of a tensor that requires grad is written under no_grad",
                    self.recorder.origin,
                    "Write the whole tensor, or compute the new value without writing in place.",
                )
            # The value changes, the autograd history does not.
            self.recorder.grad_enabled = True
            try:
                new = ours.with_value.default(self.wrap(old.meta["val"]), self.wrap(self.value_of(tensor)))
            finally:
                self.recorder.grad_enabled = False
            self.replace(tensor, self.value_of(new))
        elif _storage(tensor) in self._hidden_storages and not old.meta["requires_grad"]:
            raise Unsupported(
                "a detached view of a tensor that requires grad is written",
                self.recorder.origin,
                "Write a clone (`x.detach().clone()`), or write the tensor itself under no_grad.",
            )

    def _hide_views(self, out: Any, tensors: list[torch.Tensor], nodes: list[fx.Node]) -> Any:
        """A view made under no_grad stays non-differentiable when it is made again after a write to its base."""
        storages = {_storage(t) for t, node in zip(tensors, nodes, strict=True) if node.meta["requires_grad"] is True}
        if not storages and not self._hidden_storages:
            return out
        own = {id(tensor) for tensor in tensors}

        def hide(value: Any) -> Any:
            inner = innermost(value)
            if not _is_functional(inner) or id(inner) in own:
                return value
            storage = _storage(inner)
            if storage not in storages and storage not in self._hidden_storages:
                return value
            node = self.node_of(inner)
            if node.target is torch.ops.aten.detach.default:
                self._hidden_storages.add(storage)
            elif not self.recorder.grad_enabled:
                self._hidden_storages.add(storage)
                return value.detach()
            return value

        if isinstance(out, torch.Tensor):
            return hide(out)
        if isinstance(out, (list, tuple)) and any(_is_functional(innermost(item)) for item in out):
            items = [hide(item) for item in out]
            return tuple(items) if type(out) is not list else items
        return out

    def _detach_in_place(self, tensor: torch.Tensor) -> torch.Tensor:
        if not torch._is_functional_tensor_base(tensor):
            raise Unsupported("detach_() of a view", self.recorder.origin, "Use detach().")
        self.replace(tensor, self.value_of(torch.ops.aten.detach.default(self.wrap(self.value_of(tensor)))))
        return tensor

    def replace(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Write `value` (a fake tensor that the recorder knows) into the functional `tensor`."""
        torch._functionalize_replace(tensor, value)
        torch._functionalize_commit_update(tensor)
        torch._sync(tensor)

    # Markers -------------------------------------------------------------------------------------------------

    def _set_grad_enabled(self, enabled: bool) -> None:
        self.recorder.grad_enabled = bool(enabled)

    def assert_size(self, condition: Any, message: str) -> None:
        """What the user or Dynamo asserts of sizes that depend on data."""
        self.recorder.check(condition, message)

    def _get_data(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.call(torch.Tensor.detach, (tensor,), {})

    def enter_autocast(self, *args: Any) -> Any:
        mode = torch.amp.autocast_mode._enter_autocast(*args)
        self._autocast_changed()
        return mode

    def exit_autocast(self, mode: Any) -> None:
        torch.amp.autocast_mode._exit_autocast(mode)
        self._autocast_changed()

    def _autocast_changed(self) -> None:
        """Tell the recorder; the end of the outermost region empties the cache of cast parameters, as in eager."""
        self.recorder.autocast = frozenset(name for name in _AUTOCAST_DEVICES if torch.is_autocast_enabled(name))
        if _autocast_depth() == 0:
            self.recorder.autocast_cache.clear()

    def _enter_inference_mode(self, enabled: bool) -> bool:
        previous = self.recorder.grad_enabled
        if enabled:
            self.recorder.grad_enabled = False
        return previous

    def _exit_inference_mode(self, previous: bool) -> None:
        self.recorder.grad_enabled = previous

    @contextlib.contextmanager
    def checkpoint_region(self) -> Iterator[None]:
        """Nodes made inside carry the id of this activation checkpointing region (the innermost wins)."""
        previous, self.recorder.checkpoint = self.recorder.checkpoint, next(_checkpoint_ids)
        try:
            yield
        finally:
            self.recorder.checkpoint = previous


def _is_functional(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and torch._is_functional_tensor(value)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


_HANDLERS: dict[str, Callable] = {**HIGHER_ORDER, **CONTROL_FLOW, "associative_scan": associative_scan}
_DETACHING = {torch.Tensor.detach, torch.detach, torch.ops.aten.detach.default}
_MARKERS: dict[Any, Callable] = {
    torch.ops.aten._assert_scalar.default: Interpreter.assert_size,
    torch._C._set_grad_enabled: Interpreter._set_grad_enabled,
    getattr(torch._C._autograd, "_get_data_attr", None): Interpreter._get_data,
    torch.amp.autocast_mode._enter_autocast: Interpreter.enter_autocast,
    torch.amp.autocast_mode._exit_autocast: Interpreter.exit_autocast,
    torch.autograd.grad_mode._enter_inference_mode: Interpreter._enter_inference_mode,
    torch.autograd.grad_mode._exit_inference_mode: Interpreter._exit_inference_mode,
    torch.autograd.grad_mode.set_grad_enabled: Interpreter._set_grad_enabled,
}


_AUTOCAST_DEVICES = ("cpu", "cuda")


def _autocast_depth() -> int:
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def _autocast_state() -> list[tuple[str, bool, torch.dtype]]:
    return [(name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in _AUTOCAST_DEVICES]


def _restore_autocast(state: list[tuple[str, bool, torch.dtype]], depth: int) -> None:
    """After an error inside an autocast region the thread's autocast state must not stay changed."""
    for name, enabled, dtype in state:
        torch.set_autocast_enabled(name, enabled)
        torch.set_autocast_dtype(name, dtype)
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
