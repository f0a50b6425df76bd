"""From functional ATen (`FunctionalGraph`) to a Program of operators."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from shorthaul.frontends.functional import CustomFunction, FunctionalGraph, Unsupported
from shorthaul.frontends.functional import Origin as SourceOrigin
from shorthaul.frontends.functional_control import control_flow
from shorthaul.frontends.functional_hops import custom_function
from shorthaul.frontends.importer_control import import_control
from shorthaul.frontends.sizes import Sizes
from shorthaul.ir.containers import Container, contiguous_strides
from shorthaul.ir.dtypes import DTYPES, DType, dtype, float64, int64
from shorthaul.ir.memlet import Condition, full
from shorthaul.ir.nodes import Defines, LibraryCall, Node, Operator, Origin
from shorthaul.ir.program import Program, Signature
from shorthaul.ir.sizes import used_sizes
from shorthaul.ops.builder import OpBuilder
from shorthaul.ops.registry import ATEN, AtenCall, OperatorError, TensorType, definition, load_extensions
from shorthaul.symbolic import Symbol, free_symbols, prove_eq, prove_le

RANDOM_INPUTS = ("rng_seed", "rng_offset")
# Functions of Python floats that follow from sizes, as operators.
_NUMBERS = {torch.sym_float: "", operator.add: "add", operator.mul: "mul", operator.truediv: "div", operator.pow: "pow",
            torch.sym_max: "maximum", torch.sym_min: "minimum", torch._sym_sqrt: "sqrt", torch._sym_log2: "log2"}  # type: ignore[attr-defined]  # fmt: skip
Late = tuple[int, int, Any]  # (result, dimension, SymInt): a size that depends on data and appears here first


@dataclass
class Imported:
    """A program with what links it to the graph it came from.

    results: for every result of the graph the container, None for a constant or a size. sizes: for results that are sizes, their
    expression. inputs: for every input of the graph the container (that of the first of identical ones), None for a size.
    fallbacks: ATen operators without a registry entry, with their origins.
    """

    program: Program
    results: list[str | None]
    sizes: dict[int, Any]
    inputs: list[str | None]
    fallbacks: list[tuple[str, Origin]] = field(default_factory=list)


def import_graph(graph: FunctionalGraph, name: str = "program", *, strict: bool = False, sizes: Sizes | None = None) -> Imported:
    """The program of operators that computes the graph's results.

    Operators without a registry entry become library calls, listed in `fallbacks`; with `strict` they raise Unsupported naming operator
    and source line. sizes: the conversion of sizes to go on with (that of an enclosing graph).
    Raises Unsupported for dtypes and layouts that programs do not have.
    """
    load_extensions()
    return _Importer(graph, name, strict, sizes).run()


class _Importer:
    random_names = RANDOM_INPUTS
    iteration = "iteration"  # the input of a loop's body that numbers its iterations

    def __init__(self, graph: FunctionalGraph, name: str, strict: bool, sizes: Sizes | None = None) -> None:
        self.graph = graph
        self.strict = strict
        self.sizes = Sizes() if sizes is None else sizes
        self.program = Program(name)
        self.env: dict[fx.Node, Any] = {}
        self.nodes: list[Node] = []
        self.streams = 0
        self.depth = 0  # of loops around this graph, where it is a body of one
        self.random: dict[str, Container] = {}
        self.fallbacks: list[tuple[str, Origin]] = []
        self.stop: list[str] = []
        self.checkpoint: dict[str, Any] = {}

    def run(self) -> Imported:
        p = self.program
        inputs: list[str | None] = []
        placeholders = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        with p.edit("Import") as edit:
            self.edit = edit
            for spec, node in zip(self.graph.inputs, placeholders, strict=True):
                if spec.role == "size":
                    self.env[node] = self.sizes.convert(node.meta["val"])
                    inputs.append(None)
                elif spec.duplicate_of is not None:
                    first = inputs[spec.duplicate_of]
                    self.env[node] = p.containers[first] if first is not None else None
                    inputs.append(first)
                else:
                    if spec.layout != "strided":
                        raise Unsupported(f"input {spec.name} is {spec.layout}, which programs do not hold", node.meta.get("origin"))
                    c = self._declare(spec.fqn or spec.name, node.meta["val"], spec.role, node.meta.get("origin"))
                    self.env[node] = c
                    inputs.append(c.name)
            for node in self.graph.graph.nodes:
                if node.op == "get_attr":
                    self.env[node] = self._attribute(node)
                elif node.op == "call_function":
                    self.env[node] = self._call(node)
            edit.add(*self.nodes)
            results: list[str | None] = []
            sizes: dict[int, Any] = {}
            for i, r in enumerate(self.graph.results):
                value = self.env[r] if isinstance(r, fx.Node) else r
                results.append(value.name if isinstance(value, Container) else None)
                if not isinstance(value, Container) and value is not None:
                    sizes[i] = value
            inputs_used = list(dict.fromkeys(n for n in inputs if n is not None))
            extra = [n for n in (*RANDOM_INPUTS, self.iteration) if n in p.containers]
            self._mark_outputs(edit, results)
            edit.set_signature(Signature(tuple(inputs_used + extra), tuple(dict.fromkeys(n for n in results if n is not None))))
        used = used_sizes(p) if self.sizes.late else frozenset[Symbol]()
        p.symbols = tuple(s for s in self.sizes.symbols if s not in self.sizes.late or s in used)  # those of bodies are theirs
        p.attributes["size_hints"] = self.sizes.hints
        p.attributes["stop_gradient"] = self.stop
        if self.checkpoint:
            p.attributes["checkpoint"] = self.checkpoint
        if torch.are_deterministic_algorithms_enabled():
            p.attributes["deterministic"] = True
        return Imported(p, results, sizes, inputs, self.fallbacks)

    # containers -------------------------------------------------------------------------------------------------------
    def _dtype(self, t: torch.dtype, origin: SourceOrigin | None) -> DType:
        name = str(t).removeprefix("torch.")
        if name not in DTYPES:
            raise Unsupported(f"dtype {name} is not supported", origin, f"Supported dtypes: {', '.join(DTYPES)}.")
        return dtype(name)

    def _declare(self, hint: str, fake: torch.Tensor, role: str, origin: SourceOrigin | None) -> Container:
        shape = tuple(self.sizes.convert(n) for n in fake.shape)
        strides = tuple(self.sizes.convert(n) for n in fake.stride())
        plain = contiguous_strides(shape)
        same = all(a is b or a == b or n == 1 for a, b, n in zip(strides, plain, shape, strict=True))
        name = self.program.fresh(re.sub(r"\W+", "_", hint).strip("_") or "t")
        kept = None if same or role == "transient" else strides
        return self.edit.add_container(Container(name, self._dtype(fake.dtype, origin), shape, kept, role=role))

    def _mark_outputs(self, edit: Any, results: Sequence[str | None]) -> None:
        """Outputs take the strides that eager gives them."""
        for r, name in zip(self.graph.results, results, strict=True):
            if name is None or self.program.containers[name].role != "transient":
                continue
            c = self.program.containers[name]
            strides = tuple(self.sizes.convert(n) for n in r.meta["val"].stride())
            dense = all(a is b or a == b or n == 1 for a, b, n in zip(strides, contiguous_strides(c.shape), c.shape, strict=True))
            edit.set_container(c.with_(role="output", strides=None if dense or 0 in strides else strides))

    def _attribute(self, node: fx.Node) -> Any:
        value = self.graph.attributes[str(node.target)]
        if isinstance(value, torch.Tensor):
            c = self._declare(str(node.target), value, "constant", node.meta.get("origin"))
            self.edit.set_container(c.with_(strides=None))
            plain = value.detach().cpu()
            self.edit.set_constant(c.name, np.asarray((plain.float() if value.dtype is torch.bfloat16 else plain).numpy(), order="C"))
            return self.program.containers[c.name]
        return value

    # nodes ------------------------------------------------------------------------------------------------------------
    def _value(self, a: Any) -> Any:
        if isinstance(a, fx.Node):
            return self.env[a]
        if isinstance(a, (list, tuple)):
            return [self._value(x) for x in a]
        if isinstance(a, torch.SymInt):
            return self.sizes.convert(a)
        if isinstance(a, torch.dtype):
            return DTYPES.get(str(a).removeprefix("torch."), a)
        return a

    def _call(self, node: fx.Node) -> Any:
        fake = node.meta.get("val")
        if node.target is torch.ops.aten._assert_scalar.default:
            for condition in self.sizes.condition(fake):  # type: ignore[arg-type]
                self._require(condition, f"{node.args[1]}, at {node.meta['origin']}")
            return None
        if isinstance(fake, (int, torch.SymInt)) and not isinstance(fake, bool):
            if node.target is torch.ops.aten._local_scalar_dense.default and isinstance(fake, torch.SymInt):
                self._item(node, fake)
            return self.sizes.convert(fake)
        if node.target is torch.ops.aten._local_scalar_dense.default and isinstance(fake, (float, torch.SymFloat)):
            return self._number(node)
        if isinstance(fake, torch.SymFloat) and node.target in _NUMBERS:
            return self._number_of_sizes(node)
        name = str(getattr(node.target, "__name__", node.target))
        if name == "getitem":
            source, i = self.env[node.args[0]], node.args[1]  # type: ignore[index]
            if not node.users:  # a result that PyTorch saves for itself may be none of ours
                return None
            return source[i]  # type: ignore[index]
        source_origin = node.meta.get("origin")
        if node.target is custom_function:
            return self._custom(node)
        if node.target is control_flow:
            return import_control(self, node)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Unsupported(f"cannot import the call {name}", source_origin)
        target = str(node.target)
        origin = Origin(source_origin.module, source_origin.source, target) if source_origin is not None else Origin(operator=target)
        definition = ATEN.get(target)
        if definition is None and target.startswith("shorthaul."):
            definition = ATEN.get("aten." + target.removeprefix("shorthaul."))
        fakes = list(fake) if isinstance(fake, (list, tuple)) else [fake]
        tensors = [(i, f) for i, f in enumerate(fakes) if isinstance(f, torch.Tensor)]
        late = [(i, d, n) for i, f in tensors for d, n in enumerate(f.shape) if self.sizes.undefined(n)]
        if definition is not None:
            try:
                return self._operator(node, definition, fakes, origin, not isinstance(fake, torch.Tensor), late)
            except (OperatorError, NotImplementedError) as e:
                reason = f"{target}: {e}"
            if definition.reads_memory:  # PyTorch's call would read the memory that the operand has here
                raise Unsupported(reason, source_origin)
        else:
            reason = f"{target} has no registry entry"
        if self.strict:
            raise Unsupported(f"strict=True refuses the fallback of {reason}", source_origin, "Register the operator, or allow fallbacks.")
        self.fallbacks.append((reason, origin))
        return self._fallback(node, fakes, origin, not isinstance(fake, torch.Tensor), late)

    def _item(self, node: fx.Node, fake: torch.SymInt) -> None:
        """An integer that the program uses as a size: a node reads it from its tensor, and defines the size."""
        symbol, conditions = self.sizes.item(fake)
        if symbol is None:
            return
        source_origin = node.meta["origin"]
        x = self.env[node.args[0]]  # type: ignore[index]
        y = self.edit.add_container(Container(self.program.fresh(node.name), int64, ()))
        self._append(LibraryCall("item", reads={"x": full(x)}, writes={"y": full(y)}, defines=(Defines(symbol, "y"),),
                                 origins=(Origin(source_origin.module, source_origin.source, "item"),)), node, [y])  # fmt: skip
        for c in conditions:
            self._require(c, f"the size {symbol} is not {fake}, which a check says it equals")

    def _number(self, node: fx.Node) -> Container:
        """A Python float that changes between calls, or is read from a tensor, stays a tensor, without its gradient."""
        x = self.env[node.args[0]]  # type: ignore[index]
        b = OpBuilder(self.edit, "forward", hint=node.name)
        value = b.reshape(b.op("detach", x=x), ())
        self.nodes += b.nodes
        return value  # type: ignore[no-any-return]

    def _number_of_sizes(self, node: fx.Node) -> Container:
        """A Python float that follows from sizes is computed as a tensor, in double precision as Python does."""
        origin = node.meta["origin"]
        b = OpBuilder(self.edit, "forward", (Origin(origin.module, origin.source, str(node.target)),), hint=node.name)
        parts = [v if isinstance(v, Container) else b.full((), v, float64) for v in map(self._value, node.args)]
        name = _NUMBERS[node.target]
        if name:
            d = definition(name)
            parts = [b.op(name, **dict(zip(d.operands, parts, strict=True)))]
        self.nodes += b.nodes
        return parts[0]  # type: ignore[no-any-return]

    def _require(self, condition: Condition, text: str) -> None:
        """Check a condition on sizes that depend on data where the last of them is defined, unless their bounds prove it."""
        symbols = free_symbols(condition.expr) & self.sizes.late
        if (prove_le(0, condition.expr) if condition.relation == "ge" else prove_eq(condition.expr, 0)) is True:
            return
        for at in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[at]
            if any(d.symbol in symbols for d in node.defines):
                *others, last = sorted(node.defines, key=lambda d: d.symbol in symbols)
                self.nodes[at] = node.with_(defines=(*others, replace(last, checks=(*last.checks, (condition, text)))))
                return

    def _schema_call(self, node: fx.Node, fakes: list[Any]) -> AtenCall:
        schema = node.target._schema  # type: ignore[union-attr]
        arguments: dict[str, Any] = {}
        tensor_names = set()
        given: dict[str, Any] = {}
        compute_of = []
        for i, a in enumerate(schema.arguments):
            if i < len(node.args):
                raw = node.args[i]
            elif a.name in node.kwargs:
                raw = node.kwargs[a.name]
            else:
                raw = a.default_value
            if "Tensor" in str(a.type):
                tensor_names.add(a.name)
            if isinstance(raw, fx.Node) and isinstance(raw.meta.get("val"), torch.Tensor):
                compute_of.append(raw.meta["val"])
            elif isinstance(raw, (int, float, bool)):
                compute_of.append(raw)
            given[a.name] = raw
            arguments[a.name] = self._value(raw)
        compute = None
        tensors = [v for v in compute_of if isinstance(v, torch.Tensor)]
        if 1 <= len(tensors) <= 2:
            other = compute_of[1] if len(compute_of) > 1 else tensors[0]
            first = compute_of[0]
            if isinstance(first, torch.Tensor) or isinstance(other, torch.Tensor):
                compute = DTYPES.get(str(torch.result_type(first, other)).removeprefix("torch."))
        results = [TensorType(self._dtype(f.dtype, node.meta.get("origin")), tuple(self.sizes.convert(n) for n in f.shape))
                   if isinstance(f, torch.Tensor) else None for f in fakes]  # fmt: skip
        return AtenCall(str(node.target), arguments, tuple(a.name for a in schema.arguments), results, compute, frozenset(tensor_names),
                        lambda name: self._traced_strides(node, given[name].meta["val"]))  # fmt: skip

    def _operator(self, node: fx.Node, definition: Any, fakes: list[Any], origin: Origin, several: bool, late: list[Late]) -> Any:
        call = self._schema_call(node, [None] * len(fakes) if late else fakes)
        if definition.defines_sizes and late:
            most = definition.most(call)
            for _, _, n in late:
                if most is not None:
                    self.sizes.bound(n, most)
            call = self._schema_call(node, fakes)
        definition = definition.of_call(call)
        operands, attributes = definition.from_aten(call)
        operands = {k: v for k, v in operands.items() if v is not None}
        bad = [k for k, v in operands.items() if not isinstance(v, Container)]
        if bad:
            raise OperatorError(f"operand {bad[0]} is {type(operands[bad[0]]).__name__}, not a tensor")
        if definition.uses_random({**definition.attributes, **attributes}):
            operands.update(seed=self._random_input(RANDOM_INPUTS[0]), offset=self._random_input(RANDOM_INPUTS[1]))
            attributes = {**attributes, "stream": self.streams}
            self.streams += 1
        attrs = {**definition.attributes, **attributes}
        given = {k: TensorType(v.dtype, v.shape) for k, v in operands.items()}
        types = definition.infer(given, attrs)
        if late and not definition.defines_sizes:  # PyTorch has symbols of their own for what follows from other sizes
            for i, d, n in late:
                self.sizes.stand_for(n, list(types.values())[i].shape[d])
            call = self._schema_call(node, fakes)
        if self.sizes.late:
            for condition, text in definition.conditions(given, attrs):
                self._require(condition, f"{text}, at {node.meta['origin']}")
        outputs = []
        for i, (k, t) in enumerate(types.items()):
            expected = call.results[i] if i < len(call.results) else None
            if expected is not None and (t.dtype is not expected.dtype or not self.sizes.same(t.shape, expected.shape)):
                # results that PyTorch shapes otherwise (saved statistics) are the definition's own business
                if i == 0 or definition.aten_results_match(i):
                    raise OperatorError(f"infers {t} for result {k} where PyTorch computes {expected}")
            hint = f"{node.name}_{k}" if len(types) > 1 and i else node.name
            outputs.append(
                self.edit.add_container(
                    Container(self.program.fresh(hint), t.dtype, expected.shape if i == 0 and expected else t.shape)
                )
            )
        self._append(Operator(definition.name, attrs, reads={k: full(v) for k, v in operands.items()},
                              writes=dict(zip(types, map(full, outputs), strict=True)), origins=(origin,),
                              defines=self._defined(late, list(types)) if definition.defines_sizes else ()), node, outputs)  # fmt: skip
        return outputs if several else outputs[0]

    def _defined(self, late: list[Late], connectors: list[str]) -> tuple[Defines, ...]:
        """The sizes of results that a new node defines."""
        found = {self.sizes.convert(n): (connectors[i], d) for i, d, n in reversed(late)}
        return tuple(Defines(s, *place) for s, place in found.items())  # type: ignore[arg-type]

    def _random_input(self, name: str) -> Container:
        if name not in self.random:
            self.random[name] = self.edit.add_container(Container(name, int64, (), role="input"))
            if self.depth and name == RANDOM_INPUTS[1]:  # iterations draw different numbers: streams are 2**32 offsets apart
                i = self.edit.add_container(Container(self.iteration, int64, (), role="input"))
                b = OpBuilder(self.edit, "forward", hint="offset")
                self.random[name] = b.pointwise(lambda offset, at: offset + at * 2 ** (16 * (self.depth - 1)), self.random[name], i)
                self.nodes += b.nodes
        return self.random[name]

    def _fallback(self, node: fx.Node, fakes: list[Any], origin: Origin, several: bool, late: list[Late]) -> Any:
        """A visible library call: PyTorch's own operator, its gradient traced from PyTorch."""
        operands: dict[str, Container] = {}

        def template(a: Any) -> Any:
            if isinstance(a, fx.Node):
                value = self.env[a]
                if isinstance(value, Container):
                    k = f"x{len(operands)}"
                    operands[k] = value
                    return ("operand", k)
                return value
            if isinstance(a, (list, tuple)):
                return [template(x) for x in a]
            if isinstance(a, torch.SymInt):
                return self.sizes.convert(a)
            if isinstance(a, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
                return ("torch", str(a))
            return a

        arguments = [template(a) for a in node.args]
        keywords = {k: template(v) for k, v in node.kwargs.items()}
        outputs = []
        for i, f in enumerate(fakes):
            if not isinstance(f, torch.Tensor):
                raise Unsupported(f"{node.target} gives a {type(f).__name__}", node.meta.get("origin"))
            outputs.append(self._declare(node.name if i == 0 else f"{node.name}_{i}", f, "transient", node.meta.get("origin")))
        attributes: dict[str, Any] = {"target": str(node.target), "arguments": arguments, "keywords": keywords}
        if _allocates(node.target):
            attributes["allocates"] = True
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            attributes["random"] = True
        call = LibraryCall("aten::call", attributes,
                           reads={k: full(v) for k, v in operands.items()},
                           writes={f"y{i}": full(c) for i, c in enumerate(outputs)}, origins=(origin,),
                           defines=self._defined(late, [f"y{i}" for i in range(len(outputs))]))  # fmt: skip
        self._append(call, node, outputs)
        return outputs if several else outputs[0]

    def _traced_strides(self, node: fx.Node, x: torch.Tensor) -> tuple[Any, ...]:
        """Strides of an operand when the graph was traced: the operator counts in them, whatever layout the operand has here."""
        storage = x.untyped_storage().nbytes() - x.numel() * x.itemsize
        whole = statically_known_true(storage == 0) and statically_known_true(x.storage_offset() == 0)
        if not whole or not torch.ops.aten.is_non_overlapping_and_dense(x):
            raise Unsupported(f"{node.target} of a tensor that is a part of another one's memory", node.meta.get("origin"))
        return tuple(self.sizes.convert(n) for n in x.stride())

    def _append(self, new: Node, node: fx.Node, outputs: list[Container]) -> None:
        self.nodes.append(new)
        flags = node.meta.get("requires_grad", True)
        for i, c in enumerate(outputs):
            flag = (
                flags[i]
                if isinstance(flags, (tuple, list)) and i < len(flags)
                else flags
                if not isinstance(flags, (tuple, list))
                else False
            )
            if not flag:
                self.stop.append(c.name)
            if node.meta.get("checkpoint") is not None:
                self.checkpoint[c.name] = node.meta["checkpoint"]

    def _custom(self, node: fx.Node) -> list[Any]:
        function = self.graph.attributes[str(node.args[0].target)]  # type: ignore[union-attr]
        assert isinstance(function, CustomFunction)
        origin_ = node.meta.get("origin")
        origin = Origin(origin_.module, origin_.source, function.name) if origin_ is not None else Origin(operator=function.name)
        arguments = [self._value(a) for a in node.args[1:]]
        if not all(isinstance(a, Container) for a in arguments):
            raise Unsupported(f"custom autograd.Function {function.name} takes a non-tensor through the graph", origin_)
        forward, backward = (_Importer(g, function.name, self.strict, self.sizes).run() for g in (function.forward, function.backward))
        takes = [i for i, t in enumerate(function.takes_gradient) if t]
        wanted = [(i, r) for i, r in zip(takes, backward.results, strict=True) if r is not None]
        results = []
        for r in forward.results:
            if r is None:
                raise Unsupported(f"custom autograd.Function {function.name} returns or saves a non-tensor", origin_)
            results.append(r)
        forward.program.signature = forward.program.signature.with_(outputs=tuple(results))
        backward.program.signature = backward.program.signature.with_(outputs=tuple(r for _, r in wanted))
        self.fallbacks += forward.fallbacks + backward.fallbacks
        outputs = []
        for i, r in enumerate(results):
            c = forward.program.containers[r]
            outputs.append(self.edit.add_container(Container(self.program.fresh(f"{node.name}_{i}"), c.dtype, c.shape)))
        operator = Operator("custom_function", {"forward": forward.program, "backward": backward.program, "results": function.n_outputs,
                                                "gradients": tuple(i for i, _ in wanted)},
                            reads={f"x{i}": full(a) for i, a in enumerate(arguments)},
                            writes={f"y{i}": full(c) for i, c in enumerate(outputs)}, origins=(origin,))  # fmt: skip
        self._append(operator, node, outputs[: function.n_outputs])
        return outputs[: function.n_outputs]


def _allocates(target: Any) -> bool:
    """Whether an operator's results are always tensors of their own: its schema names no alias, and it is no composite, which may return an
    operand as it is."""
    schema = target._schema
    plain = all(r.alias_info is None for r in schema.returns) and not schema.is_mutable
    return plain and not torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
