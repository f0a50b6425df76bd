"""Every ATen overload that the registry imports against PyTorch in float64: results, and gradients against autograd."""

from __future__ import annotations

import contextlib
from typing import Any

import aten_cases_indexing
import aten_cases_more
import aten_cases_nn
import numpy as np
import pytest
import torch
from aten_cases import BEYOND_PYTORCH, CASES, FROZEN, INCOMPARABLE, LOOSE, NO_PYTORCH_GRADIENT, cases
from operator_cases import cotangents_for, differentiated, prefer, program_of, run, same

import shorthaul.frontends.functional_record
import shorthaul.ops
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import NotDifferentiable
from shorthaul.ir.dtypes import DTYPES, DType
from shorthaul.ops.registry import ATEN, AtenCall, TensorType

assert shorthaul.ops
assert shorthaul.frontends.functional_record  # defines our own overloads
assert aten_cases_nn.CASES is CASES
assert aten_cases_more and aten_cases_indexing

# outputs that PyTorch saves for its own backward kernels, which ours does not use
OWN_RESULTS = {"batch_norm": (1, 2), "attention": (1,), "layer_norm": (1, 2), "group_norm": (1, 2)}
ALL = [
    pytest.param(target, i, id=f"{target.removeprefix('aten.')}-{i}")
    for target in sorted(CASES)
    if target in ATEN
    for i in range(len(cases(target)))
]


def of_torch(d: torch.dtype) -> DType:
    return DTYPES[str(d).removeprefix("torch.")]


def overload(target: str) -> Any:
    value: Any = torch.ops
    for part in target.split("."):
        value = getattr(value, part)
    return value


class Call:
    """An ATen call made both ways: PyTorch's results, and the program of the registry's operator."""

    def __init__(self, target: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        op = overload(target)

        def leaf(a: Any, name: str) -> Any:
            if isinstance(a, torch.Tensor):
                return (
                    a.detach()
                    .clone()
                    .requires_grad_(a.is_floating_point() and not any(f in target for f in FROZEN.get(name, ())))
                )
            return [leaf(x, name) for x in a] if isinstance(a, list) else a

        names = [a.name for a in op._schema.arguments]
        arguments = tuple(leaf(a, n) for a, n in zip(arguments, names, strict=False))
        keywords = {k: leaf(v, k) for k, v in keywords.items()}
        result = op(*arguments, **keywords)
        self.results = list(result) if isinstance(result, (tuple, list)) else [result]
        named: dict[str, Any] = {}
        tensor_names = set()
        containers: dict[int, Container] = {}

        def value(a: Any) -> Any:
            if isinstance(a, torch.Tensor):
                if id(a) not in containers:
                    name = f"t{len(containers)}"
                    containers[id(a)] = Container(name, of_torch(a.dtype), tuple(a.shape), role="input")
                    self.tensors[name] = a
                return containers[id(a)]
            if isinstance(a, list):
                return [value(x) for x in a]
            return of_torch(a) if isinstance(a, torch.dtype) else a

        for i, a in enumerate(op._schema.arguments):
            raw = arguments[i] if i < len(arguments) else keywords.get(a.name, a.default_value)
            if "Tensor" in str(a.type):
                tensor_names.add(a.name)
            named[a.name] = value(raw)
        numbers = [a for a in (*arguments, *keywords.values()) if isinstance(a, (torch.Tensor, int, float))][:2]
        compute = None
        if any(isinstance(a, torch.Tensor) for a in numbers):
            compute = of_torch(torch.result_type(numbers[0], numbers[-1]))
        types = [TensorType(of_torch(r.dtype), tuple(r.shape)) for r in self.results]
        self.definition = ATEN[target]
        layouts = lambda name: tuple(self.tensors[named[name].name].stride())  # noqa: E731
        call = AtenCall(target, named, tuple(named), list(types), compute, frozenset(tensor_names), layouts)
        self.definition = self.definition.of_call(call)
        operands, attributes = self.definition.from_aten(call)
        self.operands = {k: v for k, v in operands.items() if v is not None}
        self.program = program_of(
            self.definition.name, {k: TensorType(c.dtype, c.shape) for k, c in self.operands.items()}, attributes
        )
        self.values = {k: self.tensors[c.name].detach().numpy() for k, c in self.operands.items()}
        self.types = types
        # results that both have
        own = OWN_RESULTS.get(self.definition.name, ())
        self.compared = [i for i in range(min(len(types), len(self.program.signature.outputs))) if i not in own]


@pytest.mark.parametrize("target", sorted(set(ATEN) - INCOMPARABLE))
def test_every_overload_has_a_case(target: str) -> None:
    assert target in CASES, f"{target} is imported by {ATEN[target].name} but compared with PyTorch nowhere"


def test_no_case_is_left_over() -> None:
    assert not set(CASES) - set(ATEN)


@pytest.mark.parametrize(("target", "i"), ALL)
def test_results(target: str, i: int) -> None:
    call = Call(target, *cases(target)[i])
    found = run(call.program, call.values)
    assert call.compared
    for k in call.compared:
        name = call.program.signature.outputs[k]
        c, expected = call.program.containers[name], call.results[k]
        assert (c.dtype, tuple(c.shape)) == (call.types[k].dtype, call.types[k].shape)
        same(found[name], expected.detach().numpy(), 1e-7 if expected.dtype is torch.float32 else LOOSE.get(target, 1e-10), name)


@pytest.mark.parametrize(("target", "i"), ALL)
def test_gradients(target: str, i: int) -> None:
    if (target, i) in NO_PYTORCH_GRADIENT:
        pytest.skip(NO_PYTORCH_GRADIENT[target, i])
    if (target.removeprefix("aten."), i) == ("trace.default", 1) and torch.__version__ < "2.12":
        pytest.skip("before 2.12 PyTorch's gradient of the trace of a tall matrix has elements beside the diagonal")
    call = Call(target, *cases(target)[i])
    differentiable = [k for k in call.compared if call.results[k].requires_grad]
    if not differentiable:  # neither do ours pass a gradient on
        names = [n for n in call.program.signature.outputs if call.program.containers[n].dtype.is_float]
        floats = [k for k, c in call.operands.items() if c.dtype.is_float]
        if call.definition.name not in BEYOND_PYTORCH:
            with contextlib.suppress(NotDifferentiable):  # refused by name
                assert differentiated(call.program, names, floats).signature.gradients == ()
        return
    wrt = [k for k, c in call.operands.items() if call.tensors[c.name].requires_grad]
    program = differentiated(call.program, [call.program.signature.outputs[k] for k in differentiable], wrt)
    incoming = cotangents_for(program)
    given = [torch.from_numpy(np.array(incoming[name])) for _, name in program.signature.cotangents]
    try:
        torch.autograd.backward([call.results[k] for k in differentiable], given)
    except (RuntimeError, NotImplementedError) as e:
        if "is not implemented" not in str(e):
            raise
        pytest.skip(f"PyTorch {torch.__version__}: {e}")  # a later one has it
    expansions = {"maps", *(e for n in program.nodes if hasattr(n, "op") for e in _definition(n.op).more_expansions())}
    for expansion in sorted(expansions):
        found = run(program, {**call.values, **incoming}, prefer(expansion))
        ours = {name: found[g] for name, g in program.signature.gradients}
        for k in wrt:
            tensor = call.tensors[call.operands[k].name]
            expected = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            tolerance = (
                1e-7 if any(call.results[r].dtype is torch.float32 for r in differentiable) else LOOSE.get(target, 1e-9)
            )
            same(
                ours.get(k, np.zeros(tuple(tensor.shape))), expected.numpy(), tolerance, f"{expansion}: gradient by {k}"
            )


def _definition(op: str) -> Any:
    from shorthaul.ops.registry import definition

    return definition(op)
