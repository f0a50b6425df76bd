"""Optimizers: `step()` becomes functional ATen, as any other code does.

A stand-in of the optimizer's own class runs its own `step` on fake parameters, gradients and state. Calls on tensors are recorded as a
torch-level graph, which goes through the front door (`functionalize`); what happens to Python numbers and to step counters stays on the
host (`host_scalars`). Optimizers that treat every parameter alone are traced once for each kind of parameter.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from shorthaul.frontends.functional import FunctionalGraph, functionalize
from shorthaul.frontends.host_scalars import Expr, Guards, HostTensor, NotTraced, Traced, host_call

__all__ = ["FirstStep", "Kind", "NotTraced", "Update", "initialize", "option_values", "trace_update"]

# each parameter's update depends on nothing of another parameter: one trace serves all parameters of a kind
INDEPENDENT = frozenset({"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD", "RMSprop", "Rprop", "Muon"})
NARROW = (torch.bfloat16, torch.float16)


@dataclasses.dataclass
class Kind:
    """One traced update.

    inputs: for each input of the graph what it is: ("parameter", i), ("gradient", i), ("state", i, name) with i a place in a member,
    or ("scalar", expression) in terms of the first member. members: the parameters that it serves, as indices among all of the optimizer.
    """

    graph: FunctionalGraph
    inputs: list[tuple]
    members: list[tuple[int, ...]]


@dataclasses.dataclass
class Update:
    """The update of all parameters. guards: comparisons that it holds for. host: new values of step counters: (parameter, name,
    expression). lockstep: counters that must be equal: (parameter, name, the parameter that stands for it)."""

    kinds: list[Kind]
    guards: dict[Expr, bool]
    host: list[tuple[int, str, Expr]]
    lockstep: list[tuple[int, str, int]]


def option_values(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of every group that are no numbers: what an update is traced for."""
    return [{k: v for k, v in g.items() if k != "params" and not _is_number(v)} for g in optimizer.param_groups]


def _is_number(v: Any) -> bool:
    if isinstance(v, (tuple, list)):
        return bool(v) and all(_is_number(x) for x in v)
    if isinstance(v, torch.Tensor):
        return v.dim() == 0
    return isinstance(v, (int, float)) and not isinstance(v, bool)


def flat_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, int]]:
    """All parameters with the number of their group."""
    return [(p, g) for g, group in enumerate(optimizer.param_groups) for p in group["params"]]


def is_host_state(value: Any, parameter: torch.Tensor, name: str) -> bool:
    """Whether a state entry is a counter that eager mode computes with on the host."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return True
    if not isinstance(value, torch.Tensor) or value.dim() or value.device.type != "cpu":
        return False
    return parameter.dim() > 0 or name in ("step", "mu_product", "eta", "mu")


def trace_update(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> Update:
    """Trace the update of those parameters that get gradients; their state must exist (`initialize`). Raises NotTraced with the reason."""
    _require_traceable(optimizer)
    listing = flat_parameters(optimizer)
    chosen = {id(p) for p in parameters}
    wanted = [i for i, (p, _) in enumerate(listing) if id(p) in chosen]
    guards = Guards()
    lockstep: list[tuple[int, str, int]] = []
    if type(optimizer).__name__ in INDEPENDENT and type(optimizer).__module__.startswith("torch.optim"):
        groups: dict[tuple, list[int]] = {}
        for i in wanted:
            groups.setdefault(_signature(optimizer, *listing[i]), []).append(i)
        members: list[list[tuple[int, ...]]] = [[(i,) for i in same] for same in groups.values()]
    else:
        members = [[tuple(wanted)]]
    stands_for: dict[tuple[str, float], int] = {}
    for i in wanted:
        for name, value in optimizer.state.get(listing[i][0], {}).items():
            if is_host_state(value, listing[i][0], name):
                first = stands_for.setdefault((name, float(value)), i)
                if first != i:
                    lockstep.append((i, name, first))
    like = {(i, name): first for i, name, first in lockstep}
    kinds, host = [], []
    for alike in members:
        trace = _Trace(optimizer, alike[0], guards, like)
        trace.run()
        kinds.append(Kind(trace.functional(), trace.inputs, alike))
        host += [(i, name, expr) for member in alike for place, name, expr in trace.host_state() for i in (member[place],)]
    return Update(kinds, guards.outcomes, host, lockstep)


def _require_traceable(optimizer: torch.optim.Optimizer) -> None:
    if any(g.get("differentiable") for g in optimizer.param_groups):
        raise NotTraced("differentiable=True: gradients flow through its step")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise NotTraced("it has step hooks, which must run around its own step")
    step = optimizer.__dict__.get("step")
    if step is not None and not getattr(step, "_wrapped_by_lr_sched", False):
        raise NotTraced("its step method was replaced on the object")


def _signature(optimizer: torch.optim.Optimizer, p: torch.Tensor, group: int) -> tuple:
    """What parameters of one kind have in common."""
    state: list[tuple] = []
    for name, v in optimizer.state.get(p, {}).items():
        if is_host_state(v, p, name):
            state.append((name, float(v)))
        elif isinstance(v, torch.Tensor):
            state.append((name, v.dtype, v.shape, v.stride(), v.device))
        else:
            state.append((name, v))
    return group, p.shape, p.stride(), p.dtype, p.device, tuple(state)


class _Trace(TorchFunctionMode):
    """Runs the step of a stand-in on one member (parameters by index) and records it."""

    def __init__(self, optimizer: torch.optim.Optimizer, member: Sequence[int], guards: Guards,
                 like: Mapping[tuple[int, str], int] | None = None, with_state: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.like = like or {}  # counters that another parameter's of the same value stands for
        self.optimizer, self.member, self.guards = optimizer, member, guards
        self.listing = flat_parameters(optimizer)
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=False)
        self.graph = fx.Graph()
        self.fakes: list[torch.Tensor] = []
        self.inputs: list[tuple] = []
        self.nodes: dict[int, fx.Node] = {}
        self.keep: list[Any] = []
        self.scalars: dict[Expr, torch.Tensor] = {}
        self.calls: list[tuple[Callable[..., Any], tuple, dict[str, Any], list[int]]] = []
        self.last: fx.Node | None = None
        self.copies = False  # whether state begins with the values of the parameter itself
        self.device = self.listing[member[0]][0].device
        self.stand_in = object.__new__(type(optimizer))
        self.parameters: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []
        self._make(with_state)

    # the stand-in -----------------------------------------------------------------------------------------------------
    def _make(self, with_state: bool) -> None:
        state: collections.defaultdict[torch.Tensor, Any] = collections.defaultdict(dict)
        groups: list[dict[str, Any]] = [self._options(g) for g in range(len(self.optimizer.param_groups))]
        for place, i in enumerate(self.member):
            p, g = self.listing[i]
            if p.dtype.is_complex:
                raise NotTraced(f"parameter {i} is complex, which programs do not hold")
            with torch._C.DisableTorchFunction():
                fake = self.input(("parameter", place), p)
                with self.fake_mode:
                    gradient = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=p.device)
                fake.grad = self.input(("gradient", place), gradient)
            self.parameters.append(fake)
            self.gradients.append(gradient)
            groups[g]["params"].append(fake)
            if with_state:
                for name, value in self.optimizer.state.get(p, {}).items():
                    state[fake][name] = self._state(place, i, p, name, value)
        self.stand_in.__dict__.update(self.optimizer.__dict__)
        self.stand_in.__dict__.pop("step", None)
        self.stand_in.state = state
        self.stand_in.param_groups = groups

    def _options(self, group: int) -> dict[str, Any]:
        def number(name: str, v: Any, place: int | None = None) -> Any:
            expr = ("option", group, name, place)
            if isinstance(v, torch.Tensor):
                return HostTensor.of(Traced(self.guards, expr, v.item()), v.dtype)
            return Traced(self.guards, expr, v)

        found: dict[str, Any] = {}
        for name, v in self.optimizer.param_groups[group].items():
            if name == "params":
                found[name] = []
            elif not _is_number(v):
                found[name] = v
            elif isinstance(v, (tuple, list)):
                found[name] = type(v)(number(name, x, place) for place, x in enumerate(v))
            else:
                found[name] = number(name, v)
        on_gpu = self.device.type == "cuda"
        # the plain form of the update, one parameter at a time; counters on a GPU stay there
        found.update({k: v for k, v in (("foreach", False), ("fused", None)) if k in found})
        if on_gpu and self.optimizer.param_groups[group].get("fused") and "capturable" in found:
            found["capturable"] = True
        return found

    def _state(self, place: int, i: int, p: torch.Tensor, name: str, value: Any) -> Any:
        if is_host_state(value, p, name):
            tensor = isinstance(value, torch.Tensor)
            number = Traced(self.guards, ("state", self.like.get((i, name), i), name), value.item() if tensor else value)
            return HostTensor.of(number, value.dtype) if tensor else number
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided:
                raise NotTraced(f"its state {name!r} is {value.layout}")
            with torch._C.DisableTorchFunction():
                return self.input(("state", place, name), value)
        if value is None or isinstance(value, (bool, str)):
            return value
        raise NotTraced(f"its state {name!r} is a {type(value).__name__}")

    def input(self, what: tuple, value: torch.Tensor) -> torch.Tensor:
        """A new input of the graph, as a fake tensor."""
        fake = value if isinstance(value, FakeTensor) else self.fake_mode.from_tensor(value.detach(), static_shapes=True)
        place = self.graph.inserting_after(self.last) if self.last is not None else self.graph.inserting_before(_first(self.graph))
        with place:
            self.last = self.graph.placeholder("_".join(str(w) for w in what if isinstance(w, (str, int))))
        self.last.target = self.last.name
        self.nodes[id(fake)] = self.last
        self.inputs.append(what)
        self.fakes.append(fake)
        return fake

    def run(self) -> None:
        """Trace the step."""
        step = type(self.optimizer).step
        step = step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]
        autocast = [torch.autocast(d, enabled=False) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
        try:
            for a in autocast:
                a.__enter__()
            with _as_eager(), torch.no_grad(), self.fake_mode, self:
                step(self.stand_in)
        except NotTraced:
            raise
        except DataDependentOutputException as e:
            raise NotTraced("it reads the value of a tensor, on which its step depends") from e
        except Exception as e:
            text = str(e).strip().split("\n")[0]
            raise NotTraced(f"its step cannot be traced: {type(e).__name__}: {text}") from e
        finally:
            for a in reversed(autocast):
                a.__exit__(None, None, None)

    def functional(self) -> FunctionalGraph:
        """The recorded graph, brought to functional ATen; its mutations are the new parameters and states."""
        self.graph.output(())
        return functionalize(fx.GraphModule({}, self.graph), self.fakes, grad_enabled=False)

    def host_state(self) -> list[tuple[int, str, Expr]]:
        """Counters that the step changed: (place, name, expression)."""
        found = []
        for place, (i, fake) in enumerate(zip(self.member, self.parameters, strict=True)):
            for name, v in self.stand_in.state.get(fake, {}).items():
                expr = v.number.expr if isinstance(v, HostTensor) else v.expr if isinstance(v, Traced) else None
                if expr is not None and expr != ("state", self.like.get((i, name), i), name):
                    found.append((place, name, expr))
        return found

    # recording --------------------------------------------------------------------------------------------------------
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        flat = tree_flatten((args, kwargs))[0]
        tensors = [a for a in flat if isinstance(a, torch.Tensor)]
        if name in ("tensor", "as_tensor", "zeros", "ones", "full", "scalar_tensor") and not tensors:
            made = self._host_tensor(name, args, kwargs)
            if made is not None:
                return made
        if name.startswith("_foreach_"):
            return self._each(name.removeprefix("_foreach_"), args, kwargs)
        if tensors and all(isinstance(t, HostTensor) for t in tensors):
            if name == "as_tensor":
                return HostTensor.of(args[0].number, kwargs.get("dtype") or args[0].dtype)
            return host_call(func, args, kwargs)
        if any(isinstance(a, (Traced, HostTensor)) for a in flat):
            return _with_scalars(self, func, name, args, kwargs)
        if name == "__get__":  # a property
            return self._property(func, args)
        return self.record(func, *args, **kwargs)

    def _each(self, name: str, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        """A call on lists of tensors as a call on each."""
        function = getattr(torch.Tensor, name)
        found = []
        for k in range(len(args[0])):
            given = [a[k] if isinstance(a, (list, tuple)) else a for a in args]
            found.append(self.__torch_function__(function, (), tuple(given), kwargs))
        return found

    def _property(self, func: Any, args: tuple) -> Any:
        name = func.__self__.__name__
        with torch._C.DisableTorchFunction():
            out = func(*args)
        if not isinstance(out, torch.Tensor) or id(out) in self.nodes:
            return out
        if name == "data":
            return self.record(torch.Tensor.detach, args[0])
        return self.record(getattr, args[0], name)

    def _host_tensor(self, name: str, args: tuple, kwargs: dict[str, Any]) -> HostTensor | None:
        """A new tensor of one element on the CPU: a counter. None for any other."""
        device = torch.device(kwargs.get("device") or "cpu")
        if name in ("tensor", "as_tensor", "scalar_tensor"):
            value = args[0] if args else next(iter(kwargs.values()))
        else:
            shape = args[0] if args else kwargs.get("size")
            if tuple(shape if isinstance(shape, (tuple, list)) else (shape,)) != ():
                return None
            value = {"zeros": 0.0, "ones": 1.0}.get(name, args[1] if len(args) > 1 else kwargs.get("fill_value"))
        if device.type != "cpu" or not isinstance(value, (int, float, Traced)) or isinstance(value, bool):
            return None
        number = value if isinstance(value, Traced) else Traced(self.guards, ("const", value), value)
        whole = name in ("tensor", "as_tensor") and isinstance(number.value, int)
        made = HostTensor.of(number, kwargs.get("dtype") or (torch.int64 if whole else torch.get_default_dtype()))
        made.initial = number.expr  # type: ignore[attr-defined]
        return made

    def scalar(self, number: Traced, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The number as a tensor of the graph: an input, which every call fills."""
        fake = self.scalars.get(number.expr)
        if fake is None:
            with torch._C.DisableTorchFunction(), self.fake_mode:
                made = torch.empty((), dtype=torch.float64, device=self.device)
            fake = self.scalars[number.expr] = self.input(("scalar", number.expr), made)
        return fake if dtype is torch.float64 else self.record(torch.Tensor.to, fake, dtype)

    def record(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Call on fake tensors, and add the call to the graph where tensors come out of it."""
        name = getattr(func, "__name__", "")
        if name == "__setitem__":
            func = operator.setitem
        out_tensor = kwargs.pop("out", None)
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        results = [t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        fresh = [t for t in results if id(t) not in self.nodes]
        if (results and fresh) or (name.endswith("_") and not name.startswith("__")) or func is operator.setitem:
            if not all(isinstance(t, FakeTensor) for t in results):
                raise NotTraced(f"it calls {name or func} on tensors that are neither parameters nor state")
            node = self.graph.call_function(func, tree_map(self._node, args), tree_map(self._node, kwargs))
            self.keep.append((args, kwargs, out))
            self.calls.append((func, args, kwargs, [id(t) for t in fresh]))
            if isinstance(out, torch.Tensor):
                self.nodes.setdefault(id(out), node)
            elif out is not None:
                for k, t in enumerate(out):
                    if isinstance(t, torch.Tensor) and id(t) not in self.nodes:
                        self.nodes[id(t)] = self.graph.call_function(_item, (node, k))
        if out_tensor is not None:
            return self.record(torch.Tensor.copy_, out_tensor, out)
        return out

    def _node(self, a: Any) -> Any:
        if not isinstance(a, torch.Tensor):
            return a
        node = self.nodes.get(id(a))
        if node is None:
            raise NotTraced("it reads a tensor that is neither a parameter, a gradient nor state of a parameter")
        return node


@contextlib.contextmanager
def _as_eager() -> Iterator[None]:
    """Optimizers ask whether they are compiled, and then compute with counters on the device; we are called while Dynamo compiles."""
    flag = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = flag


def _item(values: Any, k: int) -> Any:
    return values[k]


def _first(graph: fx.Graph) -> fx.Node:
    return next(iter(graph.nodes), graph._root)


def _with_scalars(trace: _Trace, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A call on tensors with traced numbers among its arguments, in terms of scalar tensors.

    The number multiplies, as in PyTorch's kernels, in float32 at least, and the result is rounded once.
    """

    def tensor(a: Any, dtype: torch.dtype = torch.float64) -> Any:
        a = a.number if isinstance(a, HostTensor) else a
        return trace.scalar(a, dtype) if isinstance(a, Traced) else a

    def wide(t: Any) -> Any:
        return trace.record(torch.Tensor.float, t) if isinstance(t, torch.Tensor) and t.dtype in NARROW else t

    base, in_place = name.rstrip("_"), name.endswith("_") and not name.startswith("__")
    x = args[0]
    factor = kwargs.get("alpha", kwargs.get("value"))
    if base in ("add", "sub") and isinstance(factor, (Traced, HostTensor)):
        rest = {k: v for k, v in kwargs.items() if k != "alpha"}
        scaled = trace.record(torch.mul, wide(tensor(args[1])), tensor(factor))
        return _finish(trace, getattr(torch.Tensor, base), x, (scaled,), rest, in_place)
    if base in ("addcmul", "addcdiv") and isinstance(factor, (Traced, HostTensor)):
        scaled = trace.record(torch.mul, wide(args[1]), tensor(factor))
        combined = trace.record(torch.mul if base == "addcmul" else torch.div, scaled, wide(args[2]))
        return _finish(trace, torch.Tensor.add, x, (combined,), {}, in_place)
    if base == "lerp":
        weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
        a, b = wide(x), wide(args[1])
        moved = trace.record(torch.lerp, a, b, tensor(weight, a.dtype))
        return trace.record(torch.Tensor.copy_, x, moved) if in_place else trace.record(torch.Tensor.to, moved, x.dtype)
    if base in ("full_like", "new_full"):
        made = trace.record(torch.zeros_like, x)
        trace.calls[-1] = (func, args, kwargs, trace.calls[-1][3])
        return trace.record(torch.Tensor.fill_, made, tensor(args[1] if len(args) > 1 else kwargs["fill_value"]))
    flat, spec = tree_flatten((args, kwargs))
    if base not in _TAKE_TENSORS and name not in _TAKE_TENSORS:  # the number itself; a new one compiles again
        given_args, given_kwargs = tree_unflatten([_fixed(a) for a in flat], spec)
        return trace.record(func, *given_args, **given_kwargs)
    dtype = next(t.dtype for t in flat if isinstance(t, FakeTensor)) if base in ("clamp", "clip") else torch.float64
    given_args, given_kwargs = tree_unflatten([tensor(a, dtype) for a in flat], spec)
    return trace.record(func, *given_args, **given_kwargs)


# functions that take a tensor of one element where they take a number
_TAKE_TENSORS = frozenset({"mul", "multiply", "div", "divide", "true_divide", "add", "sub", "subtract", "rsub", "pow", "maximum", "minimum",
                           "clamp", "clip", "fill", "where", "__setitem__", "__rsub__", "__rdiv__", "__rtruediv__", "__rpow__",
                           "lt", "le", "gt", "ge", "eq", "ne"})  # fmt: skip


def _fixed(a: Any) -> Any:
    a = a.number if isinstance(a, HostTensor) else a
    if not isinstance(a, Traced):
        return a
    a.guards.fix(a)
    return a.value


def _finish(trace: _Trace, func: Any, x: Any, rest: tuple, kwargs: dict[str, Any], in_place: bool) -> Any:
    if in_place:
        return trace.record(getattr(torch.Tensor, func.__name__ + "_"), x, *rest, **kwargs)
    out = trace.record(func, x, *rest, **kwargs)
    return trace.record(torch.Tensor.to, out, x.dtype) if out.dtype is not x.dtype else out


class FirstStep(NotTraced):
    """The first step is unlike the later ones: it makes state in a way that only the optimizer itself can follow."""


def initialize(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> None:
    """Give parameters without state the state that the optimizer's first step begins with.

    The state is made by the calls that the first step makes it with (`zeros_like(p)`, ...). It is used only where the first step, those
    calls left out, is the same as any later one. Raises FirstStep where it is not, or where the first gradient goes into the state.
    """
    _require_traceable(optimizer)
    listing = flat_parameters(optimizer)
    chosen = {id(p) for p in parameters}
    missing = [i for i, (p, _) in enumerate(listing) if id(p) in chosen and not optimizer.state.get(p)]
    made: list[tuple[torch.Tensor, dict[str, Any], _Trace | None]] = []
    seen: dict[tuple, int] = {}
    for i in missing:
        p, g = listing[i]
        signature = (g, p.shape, p.stride(), p.dtype, p.device)
        if signature in seen and not made[seen[signature]][2].copies:  # type: ignore[union-attr]
            like = made[seen[signature]][1]
            entries = {k: v.clone(memory_format=torch.preserve_format) if isinstance(v, torch.Tensor) else v for k, v in like.items()}
            made.append((p, entries, None))
            continue
        trace = _Trace(optimizer, (i,), Guards(), with_state=False)
        trace.run()
        seen[signature] = len(made)
        made.append((p, _initial_state(optimizer, trace, p, g), trace))
    for p, entries, _ in made:
        if entries:
            optimizer.state[p] = entries
    try:
        for at in seen.values():
            first = made[at][2]
            if first is not None and made[at][1]:
                _check_first_step(optimizer, first)
    except NotTraced:
        for p, _, _ in made:
            optimizer.state.pop(p, None)
        raise


def _initial_state(optimizer: torch.optim.Optimizer, trace: _Trace, p: torch.Tensor, group: int) -> dict[str, Any]:
    (fake,) = trace.parameters
    like = {id(fake): p, id(trace.gradients[0]): p}
    creation = {i: (func, args, kwargs) for func, args, kwargs, results in trace.calls for i in results}
    entries: dict[str, Any] = {}

    def real(a: Any) -> Any:
        if isinstance(a, Traced):
            return a.value
        if isinstance(a, torch.Tensor):
            if id(a) not in like:
                raise FirstStep("it makes state from other tensors than the parameter")
            return like[id(a)].detach()
        return a

    for name, v in trace.stand_in.state.get(fake, {}).items():
        if isinstance(v, HostTensor):
            expr = getattr(v, "initial", None)
            if expr is None or expr[0] not in ("const", "option"):
                raise FirstStep(f"it makes state {name!r} in a way of its own")
            value = expr[1] if expr[0] == "const" else _option(optimizer, expr)
            entries[name] = torch.tensor(value, dtype=v.dtype)
        elif isinstance(v, torch.Tensor) and _begins_with_zeros(optimizer, group, name):
            entries[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        elif isinstance(v, torch.Tensor):
            func, args, kwargs = creation.get(id(v), (None, (), {}))
            called = getattr(func, "__name__", "")
            if called not in ("zeros_like", "ones_like", "full_like", "clone", "new_zeros", "new_full", "zeros", "ones", "full"):
                raise FirstStep(f"it makes state {name!r} by {called}")
            trace.copies |= called == "clone"
            if called == "clone" and id(args[0]) != id(fake):  # the gradient, for example
                raise FirstStep(f"it makes state {name!r} from other tensors than the parameter")
            entries[name] = func(*tree_map(real, args), **tree_map(real, kwargs))  # type: ignore[misc]
        elif isinstance(v, (Traced, int, float)) and not isinstance(v, bool):
            raise FirstStep(f"it makes the number {name!r}")
        else:
            entries[name] = v
    if optimizer.param_groups[group].get("fused") and p.device.type == "cuda":  # its kernels want the counters where the parameters are
        entries = {k: v.to(p.device) if isinstance(v, torch.Tensor) else v for k, v in entries.items()}
    return entries


def _begins_with_zeros(optimizer: torch.optim.Optimizer, group: int, name: str) -> bool:
    """SGD's first step sets the momentum to the gradient: what later steps make of zeros where nothing dampens the gradient."""
    return type(optimizer) is torch.optim.SGD and name == "momentum_buffer" and optimizer.param_groups[group]["dampening"] == 0


def _option(optimizer: torch.optim.Optimizer, expr: Expr) -> Any:
    _, group, name, place = expr
    v = optimizer.param_groups[group][name]
    v = v if place is None else v[place]
    return v.item() if isinstance(v, torch.Tensor) else v


def _check_first_step(optimizer: torch.optim.Optimizer, first: _Trace) -> None:
    """The first step, without the calls that make state, must be what any step is."""
    if type(optimizer) is torch.optim.SGD:
        return  # see _begins_with_zeros
    later = _Trace(optimizer, first.member, Guards())
    later.run()
    created = {id(v): name for name, v in first.stand_in.state.get(first.parameters[0], {}).items() if isinstance(v, FakeTensor)}
    if _listing(first, created) != _listing(later, {}) or _rules(first) != _rules(later):
        raise FirstStep("it differs from the later ones")


def _rules(trace: _Trace) -> dict[str, str]:
    """The values of counters after the step, computed from their values today."""
    state = trace.stand_in.state.get(trace.parameters[0], {})
    return {name: repr(v.number.value) for name, v in state.items() if isinstance(v, HostTensor)}


def _listing(trace: _Trace, created: dict[int, str]) -> list[tuple]:
    """The calls of a trace with tensors by what they are, those that made state left out."""
    names: dict[int, Any] = {id(f): w if w[0] != "scalar" else ("scalar",) for f, w in zip(trace.fakes, trace.inputs, strict=True)}
    names.update({i: ("state", 0, name) for i, name in created.items()})
    found: list[tuple] = []
    for func, args, kwargs, results in trace.calls:
        if results and all(i in created for i in results):
            continue
        shown = tree_map(lambda a: names.get(id(a), "?") if isinstance(a, torch.Tensor) else repr(a), (args, kwargs))
        for i in results:
            names[i] = ("call", len(found))
        found.append((getattr(func, "__name__", repr(func)), shown))
    return found
