"""Control flow of Dynamo's graphs: `torch.cond`, `torch.while_loop`, `scan` and `map`.

Each becomes one node `control_flow(get_attr, *operands)`. Its bodies are functional graphs of their own, traced before autograd like the
graph around them, from all operands to the results; what they take from outside (parameters too) Dynamo has made operands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shorthaul.frontends.functional import FunctionalGraph, Unsupported
from shorthaul.frontends.functional_hops import sub_graph, suspended
from shorthaul.frontends.functional_record import any_requires_grad, is_differentiable_dtype

if TYPE_CHECKING:
    from shorthaul.frontends.functional_interpret import Interpreter

REMEDY = "Leave this region to eager mode with shorthaul.disable, or write it without that."


@dataclasses.dataclass
class ControlFlow:
    """A branch: two bodies from the operands behind the first, which decides, to the results.

    A loop: one body from (carried, slices of scanned, the others) to (carried, stacked), and behind them, where the loop is a while
    loop, whether to go on. carried, scanned: how many of the operands these are; a while loop's first operand says whether to begin.
    """

    kind: str  # "branch" | "loop" | "while"
    bodies: tuple[FunctionalGraph, ...]
    carried: int = 0
    scanned: int = 0


def control_flow(flow: ControlFlow, *operands: Any) -> tuple:
    """Run it eagerly: the meaning of its node."""
    if flow.kind == "branch":
        decides, *given = operands
        return tuple(flow.bodies[0 if bool(decides) else 1].module()(*given))
    body = flow.bodies[0].module()
    goes_on, operands = (operands[0], operands[1:]) if flow.kind == "while" else (None, operands)
    state, xs = list(operands[: flow.carried]), operands[flow.carried : flow.carried + flow.scanned]
    others, rows, at = operands[flow.carried + flow.scanned :], [], 0
    while bool(goes_on) if goes_on is not None else at < len(xs[0]):
        found = list(body(*state, *(x[at] for x in xs), *others))
        goes_on = found.pop() if goes_on is not None else None
        state, at = found[: flow.carried], at + 1
        rows.append(found[flow.carried :])
    return (*state, *(torch.stack(column) for column in zip(*rows, strict=True)))


def cond(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    """`torch.cond(decides, then, otherwise, operands)`."""
    decides, then, otherwise, *rest = args
    operands = list(rest[0]) if rest else []
    if not isinstance(decides, torch.Tensor):  # known while tracing; of sizes it is a guard
        return interpreter.run(then if decides else otherwise, operands, interpreter.recorder.origin)
    fakes, flags = _values(interpreter, operands, "torch.cond")
    traced = [sub_graph(interpreter, body, fakes, flags=flags, what="a branch of torch.cond") for body in (then, otherwise)]
    (first, a), (second, b) = traced
    outputs = _flat(a)
    for x, y in zip(outputs, _flat(b), strict=True):
        if _kind(x) != _kind(y):
            raise Unsupported(f"the branches of torch.cond give {_kind(x)} and {_kind(y)}", interpreter.recorder.origin, REMEDY)
    required = [p or q for p, q in zip(_required(first), _required(second), strict=True)]
    values = _record(interpreter, ControlFlow("branch", (first, second)), [interpreter.value_of(decides), *fakes], outputs, required)
    return _like(a, values)


def while_loop(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    """`torch.while_loop(goes_on, body, carried, others)`: the body also says whether to go on, for what it has computed."""
    goes_on, body, carried, *rest = args
    others = list(rest[0]) if rest else []
    origin = interpreter.recorder.origin
    begin = interpreter.run(goes_on, (*carried, *others), origin)
    interpreter.recorder.origin = origin
    if not isinstance(begin, torch.Tensor):
        raise Unsupported("the condition of torch.while_loop is no tensor", interpreter.recorder.origin, "Carry the counter as a tensor.")
    begin = begin.to(torch.bool).reshape(())

    def run(inner: Interpreter, wrapped: Sequence[Any]) -> list[Any]:
        found = _flat(inner.run(body, wrapped, inner.recorder.origin))
        more = inner.run(goes_on, (*found, *wrapped[len(carried) :]), inner.recorder.origin)
        return [*found, more.to(torch.bool).reshape(())]

    operands = [*carried, *others]
    graph, outputs, fakes = _loop_body(interpreter, body, operands, len(carried), "torch.while_loop", run=run)
    flow = ControlFlow("while", (graph,), len(carried))
    return tuple(_record(interpreter, flow, [interpreter.value_of(begin), *fakes], outputs[:-1], _required(graph)[:-1]))


def scan(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    """`scan(body, carried, scanned, others)`: (carried, slices, others) -> (carried, stacked)."""
    body, carried, xs, *rest = args
    others = list(rest[0]) if rest else []
    return _over_slices(interpreter, body, list(carried), list(xs), others, "scan")


def mapped(interpreter: Interpreter, args: tuple, kwargs: dict) -> Any:
    """`map(body, xs, *others)`: a scan that carries nothing."""
    body, xs, *rest = args
    return _over_slices(interpreter, body, [], list(xs), list(rest[0]) if rest else [], "map")


def _over_slices(interpreter: Interpreter, body: Any, carried: list, xs: list, others: list, what: str) -> tuple:
    if not xs:
        raise Unsupported(f"{what} over no tensor", interpreter.recorder.origin)
    operands = [*carried, *xs, *others]
    with suspended(), interpreter.fake_mode:
        slices = [torch.empty(v.shape[1:], dtype=v.dtype, device=v.device) for v in (interpreter.value_of(x) for x in xs)]
    graph, outputs, fakes = _loop_body(interpreter, body, operands, len(carried), what, slices)
    count = fakes[len(carried)].shape[0]
    with suspended(), interpreter.fake_mode:
        stacked = [torch.empty((count, *y.shape), dtype=y.dtype, device=y.device) for y in outputs[len(carried) :]]
    results = [*outputs[: len(carried)], *stacked]
    return tuple(_record(interpreter, ControlFlow("loop", (graph,), len(carried), len(xs)), fakes, results, _required(graph)))


def _loop_body(interpreter: Interpreter, body: Any, operands: list, carried: int, what: str, slices: Sequence[Any] = (),
               run: Callable[..., Any] | None = None) -> tuple[FunctionalGraph, list[Any], list[Any]]:  # fmt: skip
    """The body as a graph, its results, and the fake operands. What is carried requires grad where any iteration's value does.

    slices: fake tensors that the body takes instead of the operands behind the carried ones.
    """
    fakes, flags = _values(interpreter, operands, what)
    inner = [*fakes[:carried], *slices, *fakes[carried + len(slices) :]]
    while True:
        graph, results = sub_graph(interpreter, body, inner, flags=flags, what=f"the body of {what}", run=run)
        outputs = _flat(results)
        for i in range(carried):
            if _kind(outputs[i]) != _kind(inner[i]):
                text = f"{what} carries {_kind(inner[i])}, and then {_kind(outputs[i])}"
                raise Unsupported(text, interpreter.recorder.origin, "Keep shape and dtype.")
        more = [a or (i < carried and b) for i, (a, b) in enumerate(zip(flags, [*_required(graph), *flags], strict=False))]
        if more == flags:
            return graph, outputs, fakes
        flags = more


def _values(interpreter: Interpreter, operands: Sequence[Any], what: str) -> tuple[list[Any], list[bool]]:
    """Fake values of operands, and which of them require grad."""
    fakes: list[Any] = []
    flags: list[bool] = []
    for x in operands:
        if isinstance(x, torch.Tensor):
            value = interpreter.value_of(x)
            fakes.append(value)
            flags.append(interpreter.recorder.grad_enabled and any_requires_grad([interpreter.recorder.node_of(value)]))
        elif isinstance(x, torch.SymInt):
            fakes.append(x)
            flags.append(False)
        else:
            raise Unsupported(f"{what} takes the {type(x).__name__} {x}", interpreter.recorder.origin, "Pass a tensor.")
    return fakes, flags


def _record(interpreter: Interpreter, flow: ControlFlow, operands: list[Any], results: Sequence[Any],
            required: Sequence[bool]) -> list[Any]:  # fmt: skip
    """Append the node; the results as functional tensors."""
    recorder = interpreter.recorder
    for y in results:
        if not isinstance(y, torch.Tensor):
            raise Unsupported(f"a body returns {_kind(y)}", recorder.origin, "Return a tensor.")
    with suspended(), interpreter.fake_mode:
        values = tuple(torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in results)
    reference = recorder.attribute("_control_flow", flow, None)
    flags = tuple(bool(r) and recorder.grad_enabled and is_differentiable_dtype(v) for r, v in zip(required, values, strict=False))
    node = recorder.call(control_flow, (reference, *(recorder.argument(x) for x in operands)), {}, values, flags)
    recorder.bind_results(node, values, flags)
    return [interpreter.wrap(value) for value in values]


def _flat(results: Any) -> list[Any]:
    return [results] if isinstance(results, torch.Tensor) else list(results)


def _like(results: Any, values: list[Any]) -> Any:
    return values[0] if isinstance(results, torch.Tensor) else tuple(values)


def _required(graph: FunctionalGraph) -> list[bool]:
    return [isinstance(r, fx.Node) and r.meta["requires_grad"] is True for r in graph.results]


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"the {type(value).__name__} {value}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"


CONTROL_FLOW: dict[str, Callable] = {"cond": cond, "while_loop": while_loop, "scan": scan, "map_impl": mapped}
