"""The one front door for PyTorch: torch-level graphs become functional ATen, before autograd.

`functionalize` takes the `torch.fx.GraphModule` that Dynamo hands to a backend (torch-level calls, in-place
operations, grad-mode and autocast markers, higher-order operators) or a mutating ATen graph, and returns a
`FunctionalGraph`: no in-place operation, casts explicit, whole composites kept as single nodes, and a
description of how the caller's outputs and mutated inputs are rebuilt from the results of the graph.

What the nodes of `FunctionalGraph.graph` carry in `node.meta`:

===============  =====================================================================================
`val`            fake tensor(s) of the result: shape, strides, dtype, device (`torch.SymInt` where symbolic)
`origin`         `Origin`: module path, source file and line of the user's code, torch-level call
`grad_enabled`   whether grad mode was on where the user's code made the call
`requires_grad`  whether eager's result would require grad (a tuple of bools for several results)
`checkpoint`     id of the activation checkpointing region, or None
===============  =====================================================================================

Meaning of gradients: an edge of the graph carries a gradient exactly where the reading node's
`requires_grad` is true. `aten.detach` stays a node and is never differentiable, nor is any node with
`grad_enabled` false. `shorthaul.with_value(old, new)` has the value of `new` and the gradient of `old`:
it is what a write under `no_grad` into a tensor that requires grad means.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

__all__ = [
    "CustomFunction",
    "FunctionalGraph",
    "GraphRef",
    "InputSpec",
    "MutationSpec",
    "Origin",
    "OutputSpec",
    "Unsupported",
    "ViewSpec",
    "functionalize",
    "rebuilder",
]


class Unsupported(RuntimeError):
    """A construct that the front door refuses; the message names it, the user's source line and a remedy."""

    def __init__(self, what: str, origin: Origin | None = None, remedy: str = "") -> None:
        self.what, self.origin, self.remedy = what, origin, remedy
        place = f"\n  at {origin}" if origin is not None and str(origin) else ""
        super().__init__(f"{what}{place}" + (f"\n  {remedy}" if remedy else ""))


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a node comes from in the user's program."""

    module: str = ""  # path inside the captured module, for example "blocks.0.conv"
    module_type: str = ""  # class name of that module
    file: str = ""
    line: int = 0
    code: str = ""  # the source line
    call: str = ""  # the torch-level call, for example "conv2d"

    @property
    def source(self) -> str:
        """`file:line`, or an empty string where unknown."""
        return f"{self.file}:{self.line}" if self.file else ""

    def __str__(self) -> str:
        parts = [
            self.source,
            f"in {self.code!r}" if self.code else "",
            f"(module {self.module})" if self.module else "",
        ]
        return " ".join(part for part in parts if part)


@dataclasses.dataclass
class InputSpec:
    """One input of the graph, in the order of `example_inputs`."""

    name: str
    role: str  # "parameter" | "buffer" | "input" | "size"
    dtype: torch.dtype | None = None  # None for sizes
    shape: tuple = ()  # ints or SymInts
    strides: tuple = ()
    device: torch.device | None = None
    requires_grad: bool = False
    is_leaf: bool = True
    fqn: str | None = None  # module path of a parameter or buffer, where known
    duplicate_of: int | None = None  # index of an identical earlier input; this one is not read by the graph
    layout: str = (
        "strided"  # "strided" | "sparse" | "quantized" | "complex" | "mkldnn": what the input is, left as it is
    )
    source: str = ""  # how the caller reaches it, for example "L['x']"


@dataclasses.dataclass(frozen=True)
class GraphRef:
    """Stands for graph output `index` (a symbolic size) in a `ViewSpec`."""

    index: int


@dataclasses.dataclass
class ViewSpec:
    """A view of a base tensor, in two forms.

    `ops` is the chain of view operators `(target, args, kwargs)`, the base being the first argument of the
    first one, each result that of the next; None where the chain could not be read off. `size`, `stride` and
    `offset` (elements from the start of the base's storage) say the same for `torch.as_strided`. Symbolic
    entries are `GraphRef`.
    """

    size: tuple
    stride: tuple
    offset: Any
    ops: list[tuple[Any, tuple, dict]] | None = None

    def apply(self, base: torch.Tensor, results: Sequence[Any]) -> torch.Tensor:
        """Rebuild the view on `base`; `results` are the results of the graph."""

        def value(item: Any) -> Any:
            return results[item.index] if isinstance(item, GraphRef) else item

        if self.ops is None:
            size, stride = [value(s) for s in self.size], [value(s) for s in self.stride]
            return torch.as_strided(base, size, stride, value(self.offset))
        out: Any = base
        for target, args, kwargs in self.ops:
            args, kwargs = torch.utils._pytree.tree_map_only(GraphRef, value, (args, kwargs))
            out = target(out, *args, **kwargs)
        return out


@dataclasses.dataclass
class OutputSpec:
    """How one of the caller's outputs is made from the results of the graph.

    ==========  ==============================================================================
    kind        meaning
    ==========  ==============================================================================
    "tensor"    result `graph_output`, a fresh tensor
    "input"     input `input` itself (after its mutation, if it has one)
    "same"      the same tensor object as output `output`
    "view"      `view` of input `input`, of output `output`, or of result `graph_output`
    "size"      result `graph_output`, an int
    "constant"  `value`
    ==========  ==============================================================================
    """

    kind: str
    graph_output: int | None = None
    input: int | None = None
    output: int | None = None
    view: ViewSpec | None = None
    value: Any = None
    differentiable: bool = False


@dataclasses.dataclass
class MutationSpec:
    """Input `input` must receive the value of result `graph_output`.

    `differentiable`: the write is part of the autograd graph (eager's input would get a grad_fn); otherwise it
    happens under no_grad, also where the input is a leaf that requires grad.
    """

    input: int
    graph_output: int
    differentiable: bool = False


@dataclasses.dataclass
class FunctionalGraph:
    """A functional ATen graph, and how it meets the caller. See the module's docstring."""

    graph: fx.Graph
    inputs: list[InputSpec]
    outputs: list[OutputSpec]
    mutations: list[MutationSpec]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)  # targets of get_attr nodes
    fake_mode: Any = None

    @property
    def results(self) -> tuple:
        """The nodes (or constants) that the graph returns."""
        return next(iter(reversed(self.graph.nodes))).args[0]

    @property
    def targets(self) -> list[str]:
        """Distinct call targets, sorted."""
        return sorted({str(node.target) for node in self.graph.nodes if node.op == "call_function"})

    def module(self) -> fx.GraphModule:
        """The graph as a runnable `GraphModule`; takes every input, returns the tuple `results`."""
        return fx.GraphModule(self.attributes, self.graph)

    def __str__(self) -> str:
        return f"{self.graph}\ninputs: {self.inputs}\noutputs: {self.outputs}\nmutations: {self.mutations}"


@dataclasses.dataclass
class CustomFunction:
    """A custom `autograd.Function`: both directions as functional graphs without outside aliasing.

    `forward(*args)` returns `n_outputs` outputs, then `n_saved` saved values. `backward(*grads, *saved)`, with
    one gradient per output, returns one gradient (or None) per argument that has `takes_gradient`. A node
    `call_function custom_function(get_attr, *args)` returns the tuple of outputs.
    """

    name: str
    forward: FunctionalGraph
    backward: FunctionalGraph
    n_outputs: int
    n_saved: int
    non_differentiable: tuple[int, ...]  # indices of outputs
    takes_gradient: tuple[bool, ...]  # per argument


def rebuilder(outputs: Sequence[OutputSpec]) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """A function that makes the caller's outputs from (results of the graph, its inputs)."""
    if all(spec.kind == "tensor" for spec in outputs):
        order: list[int] = [spec.graph_output for spec in outputs]  # type: ignore[misc]
        return lambda results, inputs: [results[i] for i in order]
    return functools.partial(_rebuild, outputs)


def _rebuild(specs: Sequence[OutputSpec], results: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The caller's outputs from the results of the graph: views and repeated outputs are made again."""
    outputs: list[Any] = [None] * len(specs)

    def make(i: int) -> Any:
        spec = specs[i]
        if outputs[i] is not None:
            return outputs[i]
        if spec.kind in ("tensor", "size"):
            assert spec.graph_output is not None
            value = results[spec.graph_output]
        elif spec.kind == "constant":
            return spec.value
        elif spec.kind == "input":
            assert spec.input is not None
            value = inputs[spec.input]
        elif spec.kind == "same":
            assert spec.output is not None
            value = make(spec.output)
        else:
            assert spec.view is not None
            if spec.input is not None:
                base = inputs[spec.input]
            elif spec.output is not None:
                base = make(spec.output)
            else:
                base = results[spec.graph_output]  # type: ignore[index]
            value = spec.view.apply(base, results)
        outputs[i] = value
        return value

    for i in range(len(specs)):
        outputs[i] = make(i)
    return outputs


def functionalize(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, grad_enabled: bool | None = None
) -> FunctionalGraph:
    """Bring `gm` to functional ATen under fake tensors; nothing of the user's model is executed.

    `example_inputs`: tensors (real or fake) or SymInts, one per placeholder, as a Dynamo backend receives them.
    `grad_enabled`: grad mode at the entry of the graph, by default the current one.
    Raises `Unsupported` for what cannot be represented, with the user's source line.
    """
    from shorthaul.frontends.functional_interpret import trace  # the parts import the vocabulary above

    if grad_enabled is None:
        grad_enabled = torch.is_grad_enabled()
    return trace(gm, example_inputs, grad_enabled)
