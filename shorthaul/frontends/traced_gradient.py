"""The gradient of an operator that the registry does not know: PyTorch's own, traced.

PyTorch's autograd runs the call and its vector-Jacobian product once under fake tensors while `make_fx` listens; the recorded ATen
graph goes through the front door and becomes a program of operators like any other.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from shorthaul.errors import DifferentiationError
from shorthaul.frontends.functional import Unsupported, functionalize
from shorthaul.frontends.importer import import_graph
from shorthaul.frontends.sizes import Sizes
from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.ops.registry import ATEN
from shorthaul.symbolic import Expr, Symbol, free_symbols
from shorthaul.symbolic.printing import to_python

IntLike = Union[int, Expr]

_CACHE: OrderedDict[tuple, Program] = OrderedDict()
_CACHE_SIZE = 1024


def traced_gradient(call: LibraryCall, operands: Mapping[str, Container], wanted: Sequence[str], results: Sequence[str], *,
                    library: Mapping[str, Callable[..., dict[str, Any]]]) -> Program:  # fmt: skip
    """The vector-Jacobian product of an ATen call as a program of operators.

    call: a LibraryCall "aten::call" (see `codegen.library.generic`). operands: its operands' containers by connector, in order.
    wanted: operands whose gradients are asked for. results: results that have a cotangent.
    library: what the function names of library calls mean (`codegen.library.LIBRARY`).
    The program's inputs are all operands in order, then the cotangents of `results` in order; its outputs the gradients of `wanted` in
    order, without those that PyTorch leaves undefined (None): attribute "undefined" of the program names them. Forward values that the
    gradient needs are computed again from the operands. Raises DifferentiationError naming operator and source line where PyTorch has no
    derivative, where the gradient needs random numbers that the forward phase drew, and where it holds for one size only.
    """
    if call.function != "aten::call":
        raise DifferentiationError(f"no gradient for the library call {call.function} of {call.origin}")
    signature = tuple((k, c.dtype, c.shape, c.actual_strides) for k, c in operands.items())
    attributes = {k: call.attributes.get(k) for k in ("target", "arguments", "keywords")}
    key = (repr(attributes), signature, tuple(wanted), tuple(results))
    found = _CACHE.get(key)
    if found is None:
        found = _CACHE[key] = _Trace(call, operands, library[call.function]).run(list(wanted), list(results))
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return found


class _Trace:
    def __init__(self, call: LibraryCall, operands: Mapping[str, Container], function: Callable[..., dict[str, Any]]) -> None:
        self.call = call
        self.function = function
        self.operands = operands
        self.target = str(call.attributes["target"])
        symbols = {s for c in operands.values() for e in (*c.shape, *c.actual_strides) if isinstance(e, Expr) for s in free_symbols(e)}
        symbols |= {s for e in _expressions(call.attributes) for s in free_symbols(e)}
        self.symbols: list[Symbol] = sorted(symbols, key=lambda s: s.name)
        self.env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
        self.fake_mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)  # derivatives may hold constants
        self.values = self._symbolic_values()
        self.undefined: tuple[str, ...] = ()

    def _symbolic_values(self) -> dict[Symbol, Any]:
        """A SymInt of our own shape environment for every symbol of the operands."""
        if not self.symbols:
            return {}
        # distinct large values: a branch taken because two sizes are equal, or small, would not hold for others
        carrier = torch.empty(tuple(101 + 2 * i for i in range(len(self.symbols))), device="meta")
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * len(self.symbols))
        fake = self.fake_mode.from_tensor(carrier, symbolic_context=context)
        values: dict[Symbol, Any] = dict(zip(self.symbols, fake.shape, strict=True))
        for s in self.symbols:
            if _least(s) < 2:  # it depends on data: PyTorch's kernels have rules of their own where 0 and 1 are possible
                values[s] = self.env.create_unbacked_symint()
            torch._check(values[s] >= _least(s))
        return values

    def run(self, wanted: list[str], results: list[str]) -> Program:
        try:
            # PyTorch's Python kernels replace some derivatives by those of decompositions: only where symbolic sizes need them
            python_kernels = enable_python_dispatcher() if self.symbols else contextlib.nullcontext()
            with torch.enable_grad(), torch._C._DisableAutocast(), python_kernels:
                graph, examples = self._record(wanted, results)
        except Exception as e:  # whatever PyTorch raises, the operator has no gradient here
            raise self._error(_first_line(e)) from e
        self._refuse_random(graph)
        try:
            functional = functionalize(graph, examples, grad_enabled=False)
            sizes = Sizes({str(v.node.expr): s for s, v in self.values.items()})
            imported = import_graph(functional, f"gradient_of_{self.target.replace('.', '_')}", sizes=sizes)
        except Unsupported as e:
            raise self._error(str(e)) from e
        self._refuse_guards()
        program = imported.program
        program.attributes.pop("stop_gradient", None)
        outputs = [n for n in imported.results if n is not None]
        if len(outputs) != len(wanted) - len(self.undefined):
            raise self._error("its gradient is not a tensor")
        program.attributes["undefined"] = self.undefined
        program.signature = program.signature.with_(outputs=tuple(outputs))
        return program

    # tracing ----------------------------------------------------------------------------------------------------------
    def _record(self, wanted: list[str], results: list[str]) -> tuple[fx.GraphModule, list[Any]]:
        attributes = self._numbers(self.call.attributes)

        def forward(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
            return self.function(tensors, attributes, {})

        def gradient(*inputs: torch.Tensor) -> list[torch.Tensor]:
            tensors = dict(zip(self.operands, inputs, strict=False))
            leaves = {k: tensors[k].detach().requires_grad_() for k in wanted}
            values = forward({**tensors, **leaves})
            pairs = [(values[r], g) for r, g in zip(results, inputs[len(self.operands) :], strict=True)]
            pairs = [(y, g) for y, g in pairs if y.requires_grad]
            found: Sequence[torch.Tensor | None] = [None] * len(leaves)
            if pairs:
                found = torch.autograd.grad([y for y, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True)
            self.undefined = tuple(k for k, g in zip(wanted, found, strict=True) if g is None)
            # each a tensor of its own: not an operand, nor a view of one, nor another gradient
            return [g.clone() for g in found if g is not None]

        with self.fake_mode:
            fakes = {k: self._fake(c) for k, c in self.operands.items()}
            with torch.no_grad():
                shapes = forward(fakes)
            cotangents = [torch.empty_like(shapes[r]) for r in results]
        examples = [*fakes.values(), *cotangents]
        return make_fx(gradient, decomposition_table=_decompositions())(*examples), examples

    def _fake(self, c: Container) -> torch.Tensor:
        shape, strides = [self._number(n) for n in c.shape], [self._number(n) for n in c.actual_strides]
        return torch.empty_strided(shape, strides, dtype=getattr(torch, c.dtype.name))

    def _number(self, e: IntLike) -> Any:
        if not isinstance(e, Expr):
            return e
        names = {s.name: f"s{i}" for i, s in enumerate(self.symbols)}
        values = {names[s.name]: v for s, v in self.values.items()}
        return eval(to_python(e, lambda s: names[s.name]), {"min": torch.sym_min, "max": torch.sym_max}, values)

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, Expr):
            return self._number(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._numbers(v) for v in value)
        if isinstance(value, Mapping):
            return {k: self._numbers(v) for k, v in value.items()}
        return value

    # refusals ---------------------------------------------------------------------------------------------------------
    def _refuse_random(self, graph: fx.GraphModule) -> None:
        graph.graph.eliminate_dead_code()
        for node in graph.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
                raise self._error("it draws random numbers, which the backward phase would draw again")

    def _refuse_guards(self) -> None:
        for guard in self.env.guards:
            if not self._holds_anyway(guard.expr):
                raise self._error(f"PyTorch's gradient holds only where {guard.expr} for the sizes {', '.join(map(str, self.symbols))}")
        if any(v.node.maybe_as_int() is not None for v in self.values.values()):
            raise self._error("PyTorch's gradient holds for one size only")

    def _holds_anyway(self, condition: Any) -> bool:
        """Whether a guard only says what the least values of the sizes say already."""
        import torch.utils._sympy.value_ranges as ranges

        least = {v.node.expr: _least(s) for s, v in self.values.items()}
        bounds = {s: ranges.ValueRanges(least.get(s, 0), ranges.int_oo) for s in condition.free_symbols}
        try:
            return bool(ranges.bound_sympy(condition, bounds).lower)
        except Exception:  # what PyTorch cannot bound is not known to hold
            return False

    def _error(self, reason: str) -> DifferentiationError:
        return DifferentiationError(f"no gradient for {self.target} of {self.call.origin}: {reason}")


def _least(s: Symbol) -> int:
    """The least value of a size. A caller's size is none of 0 and 1: its guards say so. One that depends on data may be both."""
    return max(s.lower, 0) if isinstance(s.lower, int) else 0


def _decompositions() -> dict[Any, Callable]:
    """Into core ATen, except what the registry knows as it is."""
    return {op: f for op, f in core_aten_decompositions().items() if str(op) not in ATEN}


def _expressions(value: Any) -> list[Expr]:
    if isinstance(value, Expr):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [e for v in value for e in _expressions(v)]


def _first_line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0]
