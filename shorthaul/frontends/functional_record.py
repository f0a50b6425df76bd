"""The recorder: every ATen operator that reaches it below functionalization becomes a node of a graph.

It is a `TorchDispatchMode` below PyTorch's functionalization and above the fake tensors, so each operator is
evaluated once, on fake tensors, to learn shapes and strides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._sympy.value_ranges import bound_sympy

from shorthaul.frontends.functional import Origin, Unsupported
from shorthaul.frontends.sizes import scaled

aten = torch.ops.aten

_LIBRARY = torch.library.Library("shorthaul", "FRAGMENT")
_LIBRARY.define("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")
_LIBRARY.define("matmul(Tensor self, Tensor other) -> Tensor")
_LIBRARY.define("dropout(Tensor input, float p, bool train) -> Tensor")
_LIBRARY.define(
    "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, "
    "float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"
)
_LIBRARY.define("with_value(Tensor old, Tensor new) -> Tensor")
_LIBRARY.impl("with_value", lambda old, new: new.clone(), "CompositeExplicitAutograd")
torch.library.register_autograd("shorthaul::with_value", lambda ctx, grad: (grad, None), lib=_LIBRARY)
_LIBRARY.define("lstm_cell(Tensor x, Tensor h, Tensor state) -> (Tensor, Tensor)")
_LIBRARY.define("gru_cell(Tensor x, Tensor h, Tensor state) -> Tensor")
_LIBRARY.define("pad_circular(Tensor self, SymInt[] pad) -> Tensor")
ours = torch.ops.shorthaul

# PyTorch decomposes these before functionalization sees them. The interpreter calls our operator of the same
# signature instead, and the recorder writes the ATen operator: a graph of standard names that eager can run.
# And operators that PyTorch chooses only because the capture runs without autograd.
PRESERVED = {
    aten._embedding_bag_forward_only.default: aten._embedding_bag.default,
    ours.linear.default: aten.linear.default,
    ours.matmul.default: aten.matmul.default,
    ours.dropout.default: aten.dropout.default,
    ours.scaled_dot_product_attention.default: aten.scaled_dot_product_attention.default,
    ours.pad_circular.default: aten._pad_circular.default,
}


def _define(name: str, function: Callable[..., Any]) -> None:
    """What our operator computes in eager mode, where a functional graph is run; its gradient is that of `function`."""

    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            outputs = function(*inputs)
        return torch.autograd.grad(outputs, inputs, grads)

    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_autograd(
        f"shorthaul::{name}", backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs), lib=_LIBRARY
    )


def _lstm_cell(x: torch.Tensor, h: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    i, f, g, o = (x + h).chunk(4, 1)
    c = f.sigmoid() * state + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: torch.Tensor, h: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (state - n) * (xz + hz).sigmoid() + n


_define("lstm_cell", _lstm_cell)
_define("gru_cell", _gru_cell)


def _packets(names: str) -> set:
    """The ATen operators of these names that this version of PyTorch has."""
    return {getattr(aten, name) for name in names.split() if hasattr(aten, name)}


# Questions about a tensor, not computations.
_QUERIES = _packets(
    "sym_size sym_stride sym_numel sym_storage_offset size stride numel storage_offset dim is_contiguous "
    "is_strides_like_format is_non_overlapping_and_dense is_coalesced sym_is_contiguous"
) | {torch.ops.prim.device, torch.ops.prim.layout}

# Results that eager's autograd does not track although an argument may require grad.
_NEVER_DIFFERENTIABLE = _packets(
    "detach zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones "
    "new_full new_empty new_empty_strided _local_scalar_dense"
)
_ASSUMPTIONS = _packets("sym_constrain_range sym_constrain_range_for_size")
_MASKS = (torch.bool, torch.uint8)
_ONLY_FIRST_DIFFERENTIABLE = {
    aten._native_batch_norm_legit_functional,
    aten._native_batch_norm_legit_no_training,
    aten._native_batch_norm_legit,
    aten.native_dropout,
    aten.nll_loss_forward,
    aten.nll_loss2d_forward,
}

_SIZE_FUNCTIONS = {
    "Add": (operator.add, None),
    "Mul": (operator.mul, None),
    "FloorDiv": (operator.floordiv, 2),
    "CleanDiv": (operator.floordiv, 2),
    "Mod": (operator.mod, 2),
    "PythonMod": (operator.mod, 2),
    "Max": (torch.sym_max, None),
    "Min": (torch.sym_min, None),
    "IntTrueDiv": (operator.truediv, 2),
    "FloatTrueDiv": (operator.truediv, 2),
    "ToFloat": (torch.sym_float, 1),
    "PowByNatural": (operator.pow, 2),
    "Pow": (operator.pow, 2),
    "FloatPow": (operator.pow, 2),
    "OpaqueUnaryFn_sqrt": (torch._sym_sqrt, 1),  # type: ignore[attr-defined]
    "OpaqueUnaryFn_log2": (torch._sym_log2, 1),  # type: ignore[attr-defined]
}


class Recorder(TorchDispatchMode):
    """Records ATen operators into `graph`. `origin`, `grad_enabled`, `checkpoint` are set by the interpreter."""

    def __init__(self, fake_mode: FakeTensorMode, grad_enabled: bool) -> None:
        super().__init__()
        self.fake_mode = fake_mode
        self.graph = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self.origin = Origin()
        self.grad_enabled = grad_enabled
        self.checkpoint: int | None = None
        self.autocast: frozenset[str] = frozenset()  # device types with autocast on (the dispatcher hides it below)
        self.autocast_cache: dict[tuple[fx.Node, torch.dtype], Any] = {}
        self._nodes: dict[int, fx.Node] = {}  # id of a fake tensor -> its node; the node's meta keeps it alive
        self._keep: list[Any] = []
        self._sizes: dict[Any, fx.Node] = {}  # sympy expression of a SymInt -> node
        self._symbols: dict[Any, tuple[fx.Node, int]] = {}  # symbol -> (tensor placeholder, dimension)
        self._constants: dict[int, FakeTensor] = {}

    # Nodes ---------------------------------------------------------------------------------------------------

    def placeholder(self, name: str, value: Any, requires_grad: bool, origin: Origin, is_leaf: bool = False) -> fx.Node:
        node = self.graph.placeholder(name)
        node.target = node.name  # unique, as parameters of one function
        node.meta["is_leaf"] = is_leaf
        node.meta.update(val=value, origin=origin, grad_enabled=True, requires_grad=requires_grad, checkpoint=None)
        if isinstance(value, torch.Tensor):
            self._bind(value, node)
            self._define_symbols(value, node)
        elif isinstance(value, (torch.SymInt, torch.SymFloat)):
            self._sizes[value.node.expr] = node
        return node

    def _bind(self, fake: torch.Tensor, node: fx.Node) -> None:
        self._nodes[id(fake)] = node
        self._keep.append(fake)

    def _define_symbols(self, value: torch.Tensor, node: fx.Node) -> None:
        """A size that nothing earlier knows (an input's, or the count of a nonzero) can be read off this tensor."""
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol and size.node.expr not in self._sizes:
                self._symbols.setdefault(size.node.expr, (node, dim))

    def node_of(self, fake: torch.Tensor) -> fx.Node:
        node = self._nodes.get(id(fake))
        return node if node is not None else self._nodes[id(self._constant(fake))]

    def call(self, target: Any, args: tuple, kwargs: dict, value: Any, requires_grad: Any) -> fx.Node:
        """Append a call node; `args` and `kwargs` already consist of nodes and constants."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(
            val=value,
            origin=self.origin,
            grad_enabled=self.grad_enabled,
            requires_grad=requires_grad,
            checkpoint=self.checkpoint,
        )
        return node

    def attribute(self, prefix: str, value: Any, fake: Any) -> fx.Node:
        """A get_attr node for `value`, kept in `attributes`."""
        name = f"{prefix}{sum(key.startswith(prefix) for key in self.attributes)}"
        self.attributes[name] = value
        node = self.graph.create_node("get_attr", name)
        node.meta.update(
            val=fake, origin=self.origin, grad_enabled=self.grad_enabled, requires_grad=False, checkpoint=None
        )
        return node

    def bind_results(self, node: fx.Node, value: Any, requires_grad: tuple) -> None:
        """Give each tensor of a tuple result its getitem node."""
        for index, item in enumerate(value):
            if item is None:
                continue
            if isinstance(item, (list, tuple)):
                raise Unsupported(f"{node.target} returns nested lists of tensors", self.origin)
            part = self.call(operator.getitem, (node, index), {}, item, requires_grad[index])
            if isinstance(item, torch.Tensor):
                self._bind(item, part)
                self._define_symbols(item, part)
            elif isinstance(item, torch.SymInt):
                self._sizes[item.node.expr] = part

    # Arguments -----------------------------------------------------------------------------------------------

    def argument(self, value: Any) -> Any:
        """Fake tensors, constants and symbolic sizes become nodes; containers keep their shape."""
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        if isinstance(value, (list, tuple)):
            return [self.argument(item) for item in value]
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            return self.size(value)
        if isinstance(value, torch.SymBool):
            return bool(value)
        if isinstance(value, dict):
            return {key: self.argument(item) for key, item in value.items()}
        return value

    def _constant(self, tensor: torch.Tensor) -> FakeTensor:
        """A real tensor that the program made (`torch.tensor([...])`) or holds becomes a constant."""
        fake = self._constants.get(id(tensor))
        if fake is not None:
            return fake
        if isinstance(tensor, FakeTensor):
            raise Unsupported(
                "a tensor appears that is neither an input nor computed by the graph",
                self.origin,
                "Pass it as an argument, or register it as a buffer of the module.",
            )
        fake = self.fake_mode.from_tensor(tensor, static_shapes=True)
        if tensor.numel() == 1 and tensor.layout is torch.strided and not tensor.is_quantized:
            options = {"dtype": tensor.dtype, "layout": torch.strided, "device": tensor.device, "pin_memory": False}
            node = self.call(aten.full.default, (list(tensor.shape), tensor.item()), options, fake, False)
        else:
            node = self.attribute("_constant", tensor.detach(), fake)
        self._constants[id(tensor)] = fake
        self._keep.append(tensor)
        self._bind(fake, node)
        return fake

    def size(self, value: Any) -> Any:
        """The node that computes a symbolic size (an int where it turned out constant)."""
        constant = value.node.maybe_as_int() if isinstance(value, torch.SymInt) else None
        if constant is not None:
            return constant
        return self._expression(value.node.expr, value)

    def _expression(self, expr: Any, value: Any = None) -> Any:
        node = self._sizes.get(expr)
        if node is not None:
            return node
        if expr.is_number:
            return int(expr) if expr.is_integer else float(expr)
        if expr.is_symbol:
            if expr not in self._symbols:
                raise Unsupported(
                    f"the size {expr} depends on data, not on the shape of an input",
                    self.origin,
                    "Sizes must be computable from the shapes of the inputs.",
                )
            source, dim = self._symbols[expr]
            value = source.meta["val"].shape[dim]
            node = self.call(aten.sym_size.int, (source, dim), {}, value, False)
        elif (product := scaled(expr)) is not None:
            node = self._expression(product[0])
            for function, part in ((operator.mul, product[1].numerator), (operator.floordiv, product[1].denominator)):
                node = self.call(function, (node, part), {}, _apply(function, node, part), False)
        else:
            name = type(expr).__name__
            if name not in _SIZE_FUNCTIONS:
                raise Unsupported(f"the size expression {expr} uses {name}, which is not supported", self.origin)
            function, arity = _SIZE_FUNCTIONS[name]
            parts = [self._expression(part) for part in expr.args]
            if arity is None:  # associative: fold from the left
                node = parts[0]
                for part in parts[1:]:
                    node = self.call(function, (node, part), {}, _apply(function, node, part), False)
            else:
                node = self.call(function, tuple(parts), {}, _apply(function, *parts), False)
        self._sizes[expr] = node
        return node

    def scalar(self, node: fx.Node, value: torch.SymInt | torch.SymFloat) -> Any:
        """Read the only element of a tensor: how Dynamo passes a Python float that changes between calls."""
        self._sizes[value.node.expr] = self.call(aten._local_scalar_dense.default, (node,), {}, value, False)
        return value

    # Dispatch ------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _QUERIES:
            if packet is torch.ops.prim.device:
                return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
            return func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            return args[0] if isinstance(args[0], FakeTensor) else self._constant(args[0])
        if func is aten.copy.default:
            return self._copy(*args[:2])
        if self.autocast and func is aten._to_copy.default:
            return self._autocast_copy(func, args, kwargs)
        if packet in _ASSUMPTIONS:  # tracing goes on from them; what they say of a symbol's range is checked with the symbol
            with self.fake_mode:
                return func(*args, **kwargs)
        if func is aten.masked_select.default:
            x, mask = (self.record(aten.expand.default, (t, list(torch.broadcast_shapes(*(a.shape for a in args)))), {}) for t in args)
            return self._by_position(x, [mask])
        if func is aten.index.Tensor and any(t is not None and t.dtype in _MASKS for t in args[1]):
            return self._by_position(*args)
        return self.record(func, args, kwargs)

    def _by_position(self, x: torch.Tensor, indices: list[Any]) -> Any:
        """Indexing by masks: a mask stands for the positions of its elements, one index a dimension (`nonzero`)."""
        found: list[Any] = []
        for index in indices:
            if index is None or index.dtype not in _MASKS:
                found.append(index)
                continue
            positions = self.record(aten.nonzero.default, (index,), {})
            found += [self.record(aten.select.int, (positions, 1, d), {}) for d in range(index.dim())]
        return self.record(aten.index.Tensor, (x, found), {})

    def check(self, condition: torch.SymBool, message: str) -> None:
        """A condition on sizes that holds or is an error at run time (`torch._check`, and what Dynamo concludes of its own)."""
        if isinstance(condition, bool) or not free_unbacked_symbols(condition):  # of sizes of inputs: a guard
            if not condition:
                raise Unsupported(f"a check of sizes fails: {message}", self.origin)
            return
        torch._check(condition)  # tracing goes on from it
        node = condition.node
        if not bool(bound_sympy(node.expr, node.shape_env.var_to_range).lower):  # bounds of single sizes are checked with the sizes
            self.call(aten._assert_scalar.default, (True, message), {}, condition, False)

    def record(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Evaluate `func` on fake tensors, append its node, return the fake result."""
        node_args = tuple(self.argument(arg) for arg in args)
        node_kwargs = {key: self.argument(arg) for key, arg in kwargs.items()} if kwargs else {}
        if self._constants:  # real tensors cannot be mixed with fake ones
            args, kwargs = self._fake(args), self._fake(kwargs)
        target = PRESERVED.get(func, func)
        if func._schema.is_mutable:
            raise Unsupported(
                f"{func} writes its arguments and has no functional form",
                self.origin,
                "Register a functional version of this operator.",
            )
        with torch._C._DisableAutocast(), self.fake_mode:
            if func is ours.dropout.default:
                value = torch.empty_like(args[0])
            elif func is ours.with_value.default:
                value = torch.empty_like(args[1])
            else:
                value = target(*args, **kwargs)
        differentiable = self.grad_enabled and target.overloadpacket not in _NEVER_DIFFERENTIABLE
        if differentiable:
            if func is ours.with_value.default:
                differentiable = node_args[0].meta["requires_grad"]
            else:
                differentiable = any_requires_grad(node_args) or any_requires_grad(node_kwargs.values())
        if isinstance(value, torch.Tensor):
            if id(value) in self._nodes:  # an operator that returns its argument: a value of its own here
                value = value.view_as(value) if value is not None else value
            node = self.call(target, node_args, node_kwargs, value, differentiable and is_differentiable_dtype(value))
            self._bind(value, node)
            self._define_symbols(value, node)
        elif isinstance(value, (list, tuple)):
            first_only = target.overloadpacket in _ONLY_FIRST_DIFFERENTIABLE
            flags = tuple(
                differentiable
                and isinstance(item, torch.Tensor)
                and is_differentiable_dtype(item)
                and (index == 0 or not first_only)
                for index, item in enumerate(value)
            )
            node = self.call(target, node_args, node_kwargs, value, flags)
            self.bind_results(node, value, flags)
        else:
            node = self.call(target, node_args, node_kwargs, value, False)
            if isinstance(value, (torch.SymInt, torch.SymFloat)):
                self._sizes[value.node.expr] = node
        return value

    def _fake(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value if isinstance(value, FakeTensor) else self._constants[id(value)]
        if isinstance(value, (list, tuple)):
            return type(value)(self._fake(item) for item in value)
        if isinstance(value, dict):
            return {key: self._fake(item) for key, item in value.items()}
        return value

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """`target.copy_(source)` as the value it produces: broadcast, then cast, then laid out as `target`."""
        out = source if isinstance(source, FakeTensor) else self._constant(source)
        if out.shape != target.shape:
            out = self.record(aten.expand.default, (out, list(target.shape)), {})
        if out.dtype != target.dtype or out.device != target.device:
            out = self.record(aten._to_copy.default, (out,), {"dtype": target.dtype, "device": target.device})
        if out.stride() != target.stride():
            contiguous = torch.contiguous_format if target.is_contiguous() else torch.preserve_format
            out = self.record(aten.clone.default, (out,), {"memory_format": contiguous})
        elif out is source:
            out = self.record(aten.clone.default, (out,), {})
        if self.grad_enabled and self.node_of(target).meta["requires_grad"] is True:
            # autograd goes on to what was overwritten, with a gradient of zeros
            out = self.record(aten.copy.default, (target, out), {})
        return out

    def _autocast_copy(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Autocast casts a leaf that requires grad once in a region: the same here, so gradients sum as in eager."""
        node = self.node_of(args[0])
        cacheable = (
            torch.is_autocast_cache_enabled()
            and node.op == "placeholder"
            and node.meta["requires_grad"]
            and node.meta["is_leaf"]
            and node.meta["val"].dtype is torch.float32
            and node.meta["val"].device.type in self.autocast
            and set(kwargs) == {"dtype"}
        )
        if not cacheable:
            return self.record(func, args, kwargs)
        key = (node, kwargs["dtype"])
        if key not in self.autocast_cache:
            self.autocast_cache[key] = self.record(func, args, kwargs)
        return self.autocast_cache[key]


def is_differentiable_dtype(value: torch.Tensor) -> bool:
    return value.dtype.is_floating_point or value.dtype.is_complex


def any_requires_grad(values: Any) -> bool:
    for value in values:
        if isinstance(value, fx.Node):
            flag = value.meta["requires_grad"]
            if flag is True or (flag and any(flag)):
                return True
        elif isinstance(value, (list, tuple)) and any_requires_grad(value):
            return True
    return False


def _apply(function: Any, *parts: Any) -> Any:
    return function(*(part.meta["val"] if isinstance(part, fx.Node) else part for part in parts))
