"""`TrainStep`: forward, loss, backward and the optimizer as one program."""

from __future__ import annotations

import functools
import inspect
import itertools
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from shorthaul.api import backend, real_input, reason_of, recompile_reason
from shorthaul.config import Options
from shorthaul.errors import DeviceError, DifferentiationError, FallbackWarning
from shorthaul.frontends.functional import FunctionalGraph, Unsupported, functionalize
from shorthaul.frontends.optimizers import flat_parameters
from shorthaul.ir.program import Program
from shorthaul.modules import RECOMPILATIONS, global_hooks
from shorthaul.runtime.build import NoCompiler
from shorthaul.runtime.report import Record
from shorthaul.runtime.sequential import is_plain_sequential, unroll_containers, unrolled_call
from shorthaul.runtime.target import TARGETS

from .lazy import LazyTables, watch
from .program import LossError
from .report import StepReport
from .site import Site

_calls = itertools.count()
SPARSE = ("exact", "lazy", "off")
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel")


class SparseGradients(Unsupported):
    """Gradients would be sparse: only eager mode makes such."""


class TrainStep:
    """A whole training step as one program: forward, loss, backward and the optimizer's update.

        step = sh.TrainStep(model, loss_fn, optimizer)
        for inputs, target in data:
            loss = step(inputs, target)

    The call. The last `targets` positional arguments (one, if nothing else is said) go to the loss; all others, and all keyword
    arguments, to the model: `loss_fn(model(*args[:-targets], **kwargs), *args[-targets:])`. `loss_fn` returns the loss (a tensor of one
    element), or a tuple (loss, metrics); `step` returns the same, without gradients. With `loss_fn=None` everything goes to the model,
    which computes the loss itself: it returns the loss, or something with an attribute or a key `loss`, or a tuple whose first
    element is the loss.

    Parameters, buffers and the optimizer's state are updated where they are: `model.state_dict()` and `optimizer.state_dict()` are true
    after every call, so the ordinary loop can take over at any time, and give back. Learning rates and all other numbers are read from
    `optimizer.param_groups` at every call. `.grad` is NOT filled, and what it holds is not read, unless `grads=True`.

    targets: how many positional arguments go to the loss. level, strict, cuda_graphs, target: as in `optimize`; `strict` also refuses an
    optimizer that cannot be captured. scaler: a GradScaler; the step scales the loss, skips the update where a gradient is not finite, and
    calls `scaler.update()`. clip_grad_value, clip_grad_norm: limits for `torch.nn.utils.clip_grad_value_` and `clip_grad_norm_`
    (2-norm), which may be set anew between calls. accumulate: calls whose gradients are averaged before each update. grads: leave the
    gradients that the optimizer saw in `.grad`, as new tensors. sparse: "exact" updates the touched rows of an embedding alone where that
    gives the same numbers (SGD without momentum and weight decay, Adagrad); "lazy" also where an untouched row changes in a linear way
    (momentum, weight decay, RMSprop), and makes up for missed steps when a row is read: up to rounding the same; "off" never.

    With `sparse="lazy"` rows that no lookup touched are behind between calls. `sync()` brings them up to date; it runs by itself before
    `state_dict()` of model and optimizer and loading one, `model.eval()`, any forward call outside of the step, copying or pickling the
    model, at the end of a `with step:` block, and when the step is deleted. Call it before reading parameters or state directly.

    What cannot be one program runs as the ordinary loop with a compiled forward and backward, or with PyTorch's own optimizer behind a
    compiled program; both give a FallbackWarning and stand in `step.report()`.
    Raises TypeError and ValueError for arguments that do not fit each other, LossError (a ValueError) at the call for a loss that is no
    scalar, Unsupported for data-parallel wrappers and, with `strict`, for every fallback.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: Callable[..., Any] | None,
        optimizer: torch.optim.Optimizer,
        *,
        targets: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        accumulate: int = 1,
        grads: bool = False,
        level: int = 4,
        strict: bool = False,
        cuda_graphs: bool = True,
        target: str = "auto",
        sparse: str = "exact",
    ) -> None:
        _check(model, loss_fn, optimizer, scaler)
        if accumulate < 1 or targets < 0:
            raise ValueError(f"accumulate is at least 1 and targets at least 0, not {accumulate} and {targets}")
        if sparse not in SPARSE:
            raise ValueError(f"sparse is one of {', '.join(map(repr, SPARSE))}, not {sparse!r}")
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self.sparse, self.lazy = sparse, LazyTables() if sparse == "lazy" else None
        if self.lazy is not None:
            watch(model, optimizer, self.lazy)
            weakref.finalize(self, self.lazy.sync).atexit = False
        self.targets = targets if loss_fn is not None else 0
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.clip_grad_norm, self.clip_grad_value = clip_grad_norm, clip_grad_value
        self._clips = clip_grad_value is not None, clip_grad_norm is not None
        self.accumulate, self.grads = accumulate, grads
        self.options = Options(level, strict, target=target, cuda_graphs=cuda_graphs, sparse=sparse != "off")
        if target != "auto":
            TARGETS.get(target)  # UnknownName for one that none has
        self.record = Record(owner=weakref.ref(model))
        self._report = StepReport(self.record, type(optimizer).__name__)
        self._done = 0  # calls since the last update
        self.outside_steps = 0  # of PyTorch's own optimizer
        self._sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._again: Callable[[], Any] | None = None
        self._failure: Exception | None = None
        unroll_containers(model)
        self._call = _captured_call(model, loss_fn, self.targets, accumulate)
        known = inspect.signature(torch.compile).parameters
        limits: dict[str, Any] = {"recompile_limit": RECOMPILATIONS} if "recompile_limit" in known else {}
        self._compiled = torch.compile(self._call, backend=self._backend, fullgraph=True, **limits)
        if any(isinstance(m, torch.nn.RNNBase) for m in model.modules()):
            self._compiled = torch._dynamo.config.patch(allow_rnn=True)(self._compiled)
        self._loop: Callable[..., Any] | None = None

    def sync(self) -> None:
        """Bring every row of lazy tables, and its optimizer state, up to date."""
        if self.lazy is not None:
            self.lazy.sync()

    def __enter__(self) -> TrainStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()

    # calling ----------------------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) < self.targets:
            raise TypeError(f"the loss takes the last {self.targets} positional arguments (targets={self.targets}), and only {len(args)} "
                            "are given")  # fmt: skip
        if (self.clip_grad_value is not None, self.clip_grad_norm is not None) != self._clips:
            raise ValueError("clip_grad_value and clip_grad_norm can be changed between calls, but not be added or taken away: "
                             "make a new TrainStep")  # fmt: skip
        if self._loop is None and (why := self._hooked()):
            self._fall_back(why)
        with torch.enable_grad():
            if self._loop is not None:
                loss, rest = self._ordinary(args, kwargs)
            else:
                loss, rest = self._whole(args, kwargs)
        self._done = (self._done + 1) % self.accumulate
        return loss if rest is None else (loss, rest)

    def _whole(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        scale = self._scale()
        try:
            objective, loss, rest = self._compiled(self._trained(), scale, args, kwargs)
        except torch._dynamo.exc.TorchDynamoException as e:
            failure, self._failure = self._failure, None
            if isinstance(failure, LossError) or (failure is not None and self.options.strict):
                raise failure from None
            if self.options.strict:
                raise Unsupported(f"the step cannot be captured as one program: {e}") from e
            expected = (Unsupported, DifferentiationError, DeviceError, NoCompiler, OSError)
            reason = str(failure) if isinstance(failure, expected) else reason_of(failure) if failure is not None else _first_lines(e)
            return self._ordinary(args, kwargs, reason, eager=isinstance(failure, SparseGradients))
        if objective is None:
            raise LossError(_described(loss))
        if self._again is not None:
            again, self._again = self._again, None
            self._finish(lambda: again()[1])
        return loss, rest

    def _ordinary(self, args: tuple, kwargs: dict[str, Any], reason: str = "", eager: bool = False) -> tuple[Any, Any]:
        """The ordinary loop. reason: why it begins now; an error of the user's own code is raised instead. eager: nothing is compiled."""
        self.sync()
        run = self._loop or (self._call if eager else _loop(self._call, self.options, self.record))
        scale = self._scale()
        if not self._done:
            for p in self._parameters():
                p.grad = None
        try:
            objective, loss, rest = run(self._trained(), scale, args, kwargs)
        except torch._dynamo.exc.TorchDynamoException:
            if not reason:
                raise
            run = self._call  # eager mode: its own error, if it is the user's
            objective, loss, rest = run(self._trained(), scale, args, kwargs)
        if not isinstance(objective, torch.Tensor) or loss.numel() != 1:
            raise LossError(_described(loss))
        if reason:
            self._fall_back(reason, run)
        objective.backward()

        def again() -> Any:
            for p in self._parameters():
                p.grad = None
            objective, loss, _ = run(self._trained(), scale, args, kwargs)
            objective.backward()
            return loss

        if self.completes:
            self._finish(again)
        return tree_map_only(torch.Tensor, torch.Tensor.detach, (loss, rest))

    def _finish(self, again: Callable[[], Any]) -> None:
        """What follows the gradients in the ordinary loop: PyTorch's own clipping, scaler and optimizer."""
        optimizer, scaler = self.optimizer, self.scaler
        trained = [p for p in self._parameters() if p.grad is not None]

        def clip() -> None:
            if self.clip_grad_value is not None:
                torch.nn.utils.clip_grad_value_(trained, self.clip_grad_value)
            if self.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, self.clip_grad_norm)

        def closure() -> Any:
            loss = again()
            clip()
            return loss.detach()

        if scaler is not None:
            scaler.unscale_(optimizer)
        self.outside_steps += 1
        if _needs_closure(optimizer):
            optimizer.step(closure)
        else:
            clip()
            if scaler is not None:
                scaler.step(optimizer)
            else:
                optimizer.step()
        if scaler is not None:
            scaler.update()
        if not self.grads:
            for p in trained:
                p.grad = None

    def _scale(self) -> torch.Tensor | None:
        if self.scaler is None:
            return None
        if self.scaler._scale is None:  # made at its first use
            device = next(iter(self._parameters())).device
            self.scaler.scale(torch.zeros(1, device=device))
        return self.scaler._scale

    def _parameters(self) -> Iterator[torch.Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _trained(self) -> str:
        """Which parameters are trained, as text that Dynamo compares (PyTorch 2.11 takes no notice of a parameter that was frozen)."""
        return "".join("1" if p.requires_grad else "0" for p in self._parameters())

    def _hooked(self) -> str:
        """Why the gradients cannot stay in a program: somebody wants to see them."""
        for p in self._parameters():
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                return "a parameter has a gradient hook, which eager mode calls with the gradient"
        return ""

    # what compiled steps ask ------------------------------------------------------------------------------------------
    @property
    def completes(self) -> bool:
        """Whether this call ends with an update, or only adds to the gradients."""
        return self._done + 1 >= self.accumulate

    @property
    def optimizer_name(self) -> str:
        return type(self.optimizer).__name__

    def setting_of(self, name: str) -> tuple | None:
        """The expression of a number that is set on the step, None where it is not used."""
        return ("setting", name) if getattr(self, name) is not None else None

    @property
    def lazy_step(self) -> int:
        """The number of the step that is being taken, since the last `sync`."""
        return 0 if self.lazy is None else self.lazy.now + 1

    def accumulator(self, p: torch.Tensor) -> torch.Tensor:
        """The sum of gradients of a parameter."""
        found = self._sums.get(id(p))
        if found is None or found[0] is not p:
            found = self._sums[id(p)] = (p, torch.zeros_like(p, requires_grad=False, memory_format=torch.preserve_format))
        return found[1]

    def stepped(self, found: torch.Tensor | None) -> None:
        """After an update in the program: what schedulers and the scaler look at. found: whether a gradient was not finite."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        if self.scaler is not None and found is not None:
            state = self.scaler._per_optimizer_states[id(self.optimizer)]
            state["found_inf_per_device"] = {found.device: found}
            self.scaler.update()

    def outside(self, again: Callable[[], Any]) -> None:
        """Gradients are in `.grad`: PyTorch's optimizer steps when the program has returned. again: computes loss and gradients anew."""
        self._again = again

    def stepped_outside(self, reason: str) -> None:
        """Say, once, that the update is not in the program."""
        self._report.outside = reason
        warnings.warn(f"the step of {self.optimizer_name} runs outside of the program, by PyTorch: {reason}", FallbackWarning, stacklevel=2)

    def note(self, text: str) -> None:
        """Add a line to the report."""
        self._report.notes.append(text)

    def _fall_back(self, reason: str, run: Callable[..., Any] | None = None) -> None:
        if self.options.strict:
            raise Unsupported(f"the step cannot be one program: {reason}")
        self._loop = run or _loop(self._call, self.options, self.record)
        self._report.loop = reason
        warnings.warn(f"the step runs as the ordinary loop, not as one program: {reason}", FallbackWarning, stacklevel=3)

    # seeing -----------------------------------------------------------------------------------------------------------
    @property
    def program(self) -> Program | None:
        """The program compiled last (of the whole step, where there is no fallback); None before the first call."""
        return next((r.program for r in reversed(self.record.regions) if r.program is not None), None)

    def report(self) -> StepReport:
        """What was compiled, what the optimizer became, and every fallback with its reason."""
        return self._report

    def __reduce__(self) -> tuple:
        raise TypeError("a TrainStep holds compiled code and cannot be copied or pickled; "
                        "copy model and optimizer, and make a new one of them")  # fmt: skip

    # compiling --------------------------------------------------------------------------------------------------------
    def _backend(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        try:
            region = self.record.region(recompile_reason())
            with region.timed("functionalize"):
                graph = functionalize(gm, example_inputs)
            _refuse_sparse(graph)
            places = {id(p): i for i, (p, _) in enumerate(flat_parameters(self.optimizer))}
            real = [real_input(n) for n in gm.graph.find_nodes(op="placeholder")]
            parameters = {i: places[id(t)] for i, t in enumerate(real)
                          if id(t) in places and t.requires_grad and graph.inputs[i].duplicate_of is None}  # fmt: skip
            scale = None if self.scaler is None else next(i for i, t in enumerate(real) if t is self.scaler._scale)
            self.record.uses(t for t in real if isinstance(t, torch.nn.Parameter))
            return Site(self, graph, parameters, scale, region)
        except Exception as e:
            self._failure = e
            raise


def _check(model: Any, loss_fn: Any, optimizer: Any, scaler: Any) -> None:
    """Refuse arguments that do not fit each other."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"the model is a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"the optimizer is a torch.optim.Optimizer, not {type(optimizer).__name__}; "
                        "the order is TrainStep(model, loss_fn, optimizer)")  # fmt: skip
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn is a callable, or None where the model computes the loss itself, not {type(loss_fn).__name__}")
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler is a torch.amp.GradScaler, not {type(scaler).__name__}")
    for m in model.modules():
        if any(c.__name__ in _WRAPPERS for c in type(m).__mro__):
            raise Unsupported(f"the model is wrapped in {type(m).__name__}, whose communication runs between the parts of a step",
                              remedy="Use shorthaul.optimize and the ordinary loop, which work with it.")  # fmt: skip
    known = {id(p) for m in (model, loss_fn) if isinstance(m, torch.nn.Module) for p in m.parameters()}
    for p, group in flat_parameters(optimizer):
        if type(p) not in (torch.Tensor, torch.nn.Parameter):
            raise Unsupported(f"a parameter is a {type(p).__name__}", remedy="Use shorthaul.optimize and the ordinary loop.")
        if id(p) not in known:
            raise ValueError(f"the optimizer's group {group} holds a parameter of shape {tuple(p.shape)} that is neither in the model "
                             "nor in loss_fn: was the optimizer made for another model, or before parameters were replaced?")  # fmt: skip


def _refuse_sparse(graph: FunctionalGraph) -> None:
    for node in graph.graph.nodes:
        if node.op == "call_function" and "embedding" in str(node.target):
            names = [a.name for a in node.target._schema.arguments] if isinstance(node.target, torch._ops.OpOverload) else []
            given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            if given.get("sparse") is True:
                raise SparseGradients("sparse=True gives sparse gradients, which programs do not hold", node.meta.get("origin"),
                                      "Use sparse=False.")  # fmt: skip


def _captured_call(model: torch.nn.Module, loss_fn: Callable[..., Any] | None, targets: int, accumulate: int) -> Callable[..., Any]:
    """The function that is captured, from (which parameters are trained, loss scale, arguments of a step) to (what is differentiated,
    loss, metrics or None)."""
    unrolled = unrolled_call(model) if is_plain_sequential(model) else None  # type: ignore[arg-type]

    def call(trained: str, scale: torch.Tensor | None, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        for hooks in global_hooks:
            len(hooks)  # makes it a guard: Dynamo takes no notice of them by itself
        count = len(args) - targets if trained else 0  # reading it makes it a guard
        given = args[:count]
        outputs = model._call_impl(*given, **kwargs) if unrolled is None else unrolled(model, *given, **kwargs)
        loss, rest = own_loss(outputs) if loss_fn is None else with_metrics(loss_fn(outputs, *args[count:]))
        if not isinstance(loss, torch.Tensor):
            return None, type(loss).__name__, None
        objective = loss.sum() if accumulate == 1 else loss.sum() / accumulate
        return objective if scale is None else objective * scale, loss, rest

    code = call.__code__.replace(co_name=f"step_{type(model).__name__}_{next(_calls)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def _loop(call: Callable[..., Any], options: Options, record: Record) -> Callable[..., Any]:
    """The call for the ordinary loop: compiled in parts, where Dynamo finds them, behind autograd."""
    return torch.compile(call, backend=functools.partial(backend, options=options, record=record))


def with_metrics(found: Any) -> tuple[Any, Any]:
    """What a loss function returned: a loss, or a tuple of a loss and metrics."""
    if isinstance(found, tuple) and found:
        return found[0], found[1] if len(found) == 2 else found[1:]
    return found, None


def own_loss(outputs: Any) -> tuple[Any, Any]:
    """The loss that the model computed itself: its only output, its output's `loss`, or the first of a tuple."""
    if isinstance(outputs, torch.Tensor):
        return outputs, None
    if isinstance(outputs, dict):
        return outputs.get("loss"), None
    if isinstance(outputs, tuple) and not hasattr(outputs, "loss"):
        return with_metrics(outputs)
    return getattr(outputs, "loss", None), None


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _described(loss: Any) -> str:
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"of type {loss}"
    return f"the loss is {what}: a tensor of one element is needed"


def _first_lines(e: Exception) -> str:
    lines = [line.strip() for line in str(e).strip().split("\n") if line.strip()]
    return " ".join(lines[:3])
