"""What is at fault in a compiled region: the operator, the rewrite or the kernel that is the first to be wrong.

    1. the captured operators, by their maps, against ATen in float64: an operator or its gradient is wrong
    2. the program before and after each rewrite of its log, by the interpreter, by bisection: a transformation or an expansion is wrong
    3. each kernel by itself against the interpreter: the generated code is wrong
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shorthaul.ir.edit import Rewrite
from shorthaul.ir.interpreter import InterpretError
from shorthaul.ir.nodes import Node, Operator, Origin
from shorthaul.ir.program import Program
from shorthaul.runtime.compile import Compiled
from shorthaul.runtime.report import Region
from shorthaul.transforms.base import describe

from .kernels import distance, kernel_errors
from .reference import Values, aten, meaning, to_numpy, to_torch

EXACT = 1e-9  # float64 in another order
OF_ANOTHER_FORMULA = 1e-6  # float64 by another formula, with constants that are float32 in both
ROUNDED = 1e-5  # where constants were folded in float32


@dataclass
class Fault:
    """What is wrong in one region. stage: "operator", "transformation", "kernel" or "runtime". name: of the operator, transformation or
    kernel. where: the node in the user's words. node: the node (after the rewrite). detail: how far off, and where in the log."""

    region: int
    stage: str
    name: str
    where: str
    origin: Origin
    detail: str
    node: Node | None = None

    def __str__(self) -> str:
        place = f"\n  from {self.origin}" if str(self.origin) != "<model> ()" else ""
        return f"at fault in region {self.region}: {self.stage} {self.name}, at {self.where}{place}\n  {self.detail}"


@dataclass
class Recorded:
    """One call of a region's program: inputs, results and gradients by container, as the runtime had them."""

    region: Region
    layout: Any
    values: Values
    results: Values
    cotangents: Values = field(default_factory=dict)
    gradients: Values = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        symbols = self.region.compiled.executable.host.symbols
        return {s.name: int(n) for s, n in zip(symbols, self.layout.sizes, strict=False)}


@contextlib.contextmanager
def record(regions: Sequence[Region], calls: list[Recorded]) -> Iterator[None]:
    """Note every call of the regions' programs while it is open."""
    ready = [r for r in regions if r.compiled is not None]
    for region in ready:
        _listen(region, calls)
    try:
        yield
    finally:
        for region in ready:
            for name in ("forward", "backward", "part"):
                vars(region.compiled.executable).pop(name, None)


def _listen(region: Region, calls: list[Recorded]) -> None:
    executable = region.compiled.executable
    forward, backward, part = executable.forward, executable.backward, executable.part
    by_run: dict[int, Recorded] = {}

    def noted_forward(layout: Any, inputs: Mapping[str, torch.Tensor], keep: bool) -> Any:
        values = {n: to_numpy(t) for n, t in inputs.items()}
        results, run = forward(layout, inputs, keep)
        call = Recorded(region, layout, values, {n: to_numpy(t) for n, t in results.items()})
        calls.append(call)
        if run is not None:
            by_run[id(run)] = call
        return results, run

    def noted_backward(run: Any, tensors: Mapping[str, torch.Tensor], again: bool = True) -> Any:
        names = {c for _, c in executable.signature.cotangents}
        by_run[id(run)].cotangents.update((n, to_numpy(t)) for n, t in tensors.items() if n in names)
        return backward(run, tensors, again)

    def noted_part(state: Any) -> Any:
        call = by_run[id(state.run)]
        found = part(state)
        gradients = dict(executable.signature.gradients)
        call.gradients.update((gradients[n], to_numpy(t)) for n, t in found.items() if t is not None)
        return found

    executable.forward, executable.backward, executable.part = noted_forward, noted_backward, noted_part


def locate(call: Recorded) -> Fault | None:
    """The fault of one call of a region, None where it computed what it should."""
    region, program = call.region, call.region.program
    assert program is not None
    # a forward call without a backward one: gradients of zero
    zeros = {c: np.zeros(call.layout.shapes[c], program.containers[c].dtype.numpy) for _, c in program.signature.cotangents
             if c in call.layout.shapes}  # fmt: skip
    values = {**zeros, **call.values, **call.cotangents}
    start = next((i + 1 for i, r in enumerate(program.log) if r.name == "Differentiate"), 1)
    try:
        reference = meaning(_state(program, start), values, call.sizes)
    except (InterpretError, NotImplementedError, ValueError) as e:
        return Fault(region.index, "operator", "?", "the captured program", Origin(), f"it cannot be interpreted: {e}")
    fault = _wrong_operator(call, _state(program, start), program.log[start - 1], values, reference)
    return fault or _wrong_rewrite(call, program, start, values, reference) or _wrong_kernel(call, program, values, reference)


def _state(program: Program, count: int) -> Program:
    """The program after the first `count` rewrites of its log."""
    state = program.clone()
    state.undo(len(state.log) - count)
    return state


def _results(program: Program) -> list[str]:
    s = program.signature
    return list(dict.fromkeys([*s.outputs, *(u for _, u in s.updates), *(g for _, g in s.gradients)]))


def _typical(values: Iterable[np.ndarray]) -> float:
    """The median of the root mean squares of the values that are not zero."""
    sizes = [float(np.sqrt(np.mean(np.square(v, dtype=np.float64)))) for v in values if v.size and v.dtype.kind == "f"]
    return float(np.median([s for s in sizes if s] or [0.0]))


def _worst(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], names: Sequence[str]) -> tuple[float, str]:
    """The largest error; of values that are small beside the others of the program only what exceeds those counts."""
    typical = _typical(reference[n] for n in names)
    errors = [(_scaled(found[n], reference[n], typical), n) for n in names]
    return max(errors, default=(0.0, ""))


def _scaled(found: np.ndarray, reference: np.ndarray, typical: float) -> float:
    error = distance(found, reference)
    size = float(np.linalg.norm(np.asarray(reference, np.float64)))
    floor = 1e-3 * typical * np.sqrt(max(reference.size, 1))
    if not np.isfinite(error):
        off = float(np.linalg.norm(np.asarray(found, np.float64) - np.asarray(reference, np.float64)))
        return off / floor if size == 0 and floor and np.isfinite(off) else error
    return error * size / max(size, floor) if size else error


# operators --------------------------------------------------------------------------------------------------------------


def _wrong_operator(call: Recorded, program: Program, rewrite: Rewrite, values: Values, reference: Values) -> Fault | None:
    graph = call.region.graph
    if graph is None or any(n.op in _RANDOM for n in program.nodes if isinstance(n, Operator)):
        return None
    inputs: list[Any] = []
    by_name = {spec.name: spec for spec in graph.inputs}
    containers = dict(zip((s.name for s in graph.inputs), _containers_of_inputs(graph, program), strict=True))
    for node in graph.graph.find_nodes(op="placeholder"):
        name = containers.get(node.name)
        if name is None or name not in values:
            inputs.append(call.sizes.get(str(node.meta["val"].node.expr)) if hasattr(node.meta.get("val"), "node") else None)
            continue
        t = to_torch(values[name])
        t = t.double() if t.is_floating_point() else t
        inputs.append(t.requires_grad_(bool(by_name[node.name].requires_grad) and t.is_floating_point()))
    cotangents = dict(program.signature.cotangents)
    results = [r.name if hasattr(r, "name") else None for r in graph.results]
    given = [to_torch(values[cotangents[r]]).double() if r in cotangents else None for r in results]
    try:
        found, gradients = aten(graph, inputs, given)
    except Exception:  # an operator without a kernel for float64 on this device, or a size that is not known: no reference
        return None
    return _first_wrong_value(call, program, found, reference) or _first_wrong_gradient(call, program, rewrite, gradients, reference)


_RANDOM = {"dropout", "native_dropout", "bernoulli", "bernoulli_of", "uniform", "normal", "randint"}


def _containers_of_inputs(graph: Any, program: Program) -> list[str | None]:
    """The container of each input of the graph, by the order of the signature."""
    names = iter(program.signature.inputs)
    known: list[str | None] = []
    for spec in graph.inputs:
        if spec.role == "size":
            known.append(None)
        elif spec.duplicate_of is not None:
            known.append(known[spec.duplicate_of])
        else:
            known.append(next(names, None))
    return known


def _first_wrong_value(call: Recorded, program: Program, found: Mapping[str, torch.Tensor], reference: Values) -> Fault | None:
    typical = _typical(t.numpy() for t in found.values())
    for node in program.nodes:
        if node.phase == "forward":
            for k, m in node.writes.items():
                fault = _compared(call, node, m.container, found, reference, f"result {k}", typical)
                if fault is not None:
                    return fault
    return None


def _first_wrong_gradient(call: Recorded, program: Program, rewrite: Rewrite, gradients: Mapping[str, torch.Tensor],
                          reference: Values) -> Fault | None:  # fmt: skip
    of = rewrite.notes.get("gradient of", {})
    typical = _typical(t.numpy() for t in gradients.values())
    for node in reversed([n for n in program.nodes if n.phase == "forward"]):
        for k, m in node.reads.items():
            name = of.get(m.container)
            readers = program.readers(m.container)
            if name is None or name not in reference or m.container not in gradients or any(
                r.phase == "forward" and program.position(r) < program.position(node) for r in readers
            ):
                continue  # the sum of contributions is known at the first reader
            expected = gradients[m.container].numpy()
            error = _scaled(reference[name], expected, typical)
            if error > OF_ANOTHER_FORMULA:
                detail = f"the gradient of operand {k} is off by {error:.1e} from PyTorch's in float64"
                return Fault(call.region.index, "operator", f"gradient of {node.label}", describe(node), node.origin, detail, node)
    return None


def _compared(call: Recorded, node: Node, container: str, found: Mapping[str, torch.Tensor], reference: Values, what: str,
              typical: float) -> Fault | None:  # fmt: skip
    if container not in found or container not in reference or tuple(found[container].shape) != reference[container].shape:
        return None
    error = _scaled(reference[container], found[container].numpy(), typical)
    if error <= OF_ANOTHER_FORMULA:
        return None
    detail = f"{what} ({container}) is off by {error:.1e} from ATen in float64: its meaning as maps, or its import, is wrong"
    return Fault(call.region.index, "operator", node.label, describe(node), node.origin, detail, node)


# rewrites ---------------------------------------------------------------------------------------------------------------


def _wrong_rewrite(call: Recorded, program: Program, start: int, values: Values, reference: Values) -> Fault | None:
    names = _results(program)
    kept: dict[int, Values | str] = {}

    def wrong(count: int) -> float:
        try:
            found = meaning(_state(program, count), values, call.sizes)
        except (InterpretError, IndexError, KeyError) as e:
            kept[count] = str(e)
            return float("inf")
        kept[count] = found
        return _worst(found, reference, names)[0]

    limit = EXACT if all(program.containers[n].dtype.bits == 64 for n in names if program.containers[n].dtype.is_float) else ROUNDED
    low, high = start, len(program.log)
    if wrong(high) <= limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(middle) > limit else (middle, high)
    rewrite = program.log[high - 1]
    before, after = kept.get(low, reference), kept.get(high)
    state = _state(program, high)
    node, container, error = _first_difference(state, before, after, limit)
    if isinstance(after, str):
        detail = f"after it the program cannot be interpreted: {after}"
    else:
        detail = f"{container} is off by {error:.1e}, where the program before it is right"
    detail += f"; rewrite {high} of {len(program.log)} in the log"
    made = [n for n in state.nodes if n.id in rewrite.created]
    node = node or next(iter(made), None)
    where = rewrite.notes.get("where") or (describe(node) if node is not None else "the whole program")
    origin = node.origin if node is not None else Origin()
    return Fault(call.region.index, "transformation", rewrite.name, str(where), origin, detail, node)


def _first_difference(state: Program, before: Any, after: Any, limit: float) -> tuple[Node | None, str, float]:
    if isinstance(before, str) or isinstance(after, str) or after is None:
        return None, "", float("inf")
    typical = _typical(before.values())
    for node in state.nodes:
        for c in sorted(state.writes_of(node)):
            if c in before and c in after and before[c].shape == after[c].shape:
                error = _scaled(after[c], before[c], typical)
                if error > limit:
                    return node, c, error
    error, name = _worst(after, before, [n for n in _results(state) if n in before and n in after])
    return next(iter(state.writers(name)), None) if name else None, name, error


# kernels ----------------------------------------------------------------------------------------------------------------


def _wrong_kernel(call: Recorded, program: Program, values: Values, reference: Values) -> Fault | None:
    produced = {**call.results, **call.gradients}
    compiled = call.region.compiled
    errors = list(kernel_errors(program, compiled, call.layout, values, call.sizes)) if isinstance(compiled, Compiled) else []
    bad = [e for e in errors if e.error > e.limit]
    if bad:
        worst = bad[0]
        detail = f"{worst.container} is off by {worst.error:.1e} from the interpreter on equal operands; rounding makes {worst.limit:.0e}"
        return Fault(call.region.index, "kernel", worst.kernel, describe(worst.node), worst.node.origin, detail, worst.node)
    names = [n for n in _results(program) if n in produced]
    error, name = _worst(produced, reference, names)
    narrow = max((_limit(program, n) for n in names), default=0.0)
    if error <= narrow:
        return None
    node = next(iter(program.writers(name)), None)
    detail = (f"{name} is off by {error:.1e}, though every kernel by itself is right: memory plan, library calls or layout; "
              "the worst kernel is " + (f"{max(errors, key=lambda e: e.error).kernel}" if errors else "none"))  # fmt: skip
    where, origin = (describe(node), node.origin) if node is not None else (name, Origin())
    return Fault(call.region.index, "runtime", "of the compiled program", where, origin, detail, node)


def _limit(program: Program, name: str) -> float:
    bits = program.containers[name].dtype.bits
    return EXACT if bits == 64 else 1e-3 if bits == 32 else 0.1
