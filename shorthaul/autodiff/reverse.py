"""Reverse mode on a program of operators.

Nodes are visited from the last to the first; each passes the gradients of its results on to its operands, in one of three ways:

1. the operator's registered gradient;
2. map reversal: the operator is expanded and its maps are differentiated;
3. the traced PyTorch gradient, for calls of operators that the registry does not know.

What the backward phase reads of the forward phase is decided later (stored or recomputed), not here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from shorthaul.errors import DifferentiationError
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import NotDifferentiable
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Node, Operator
from shorthaul.ir.program import Form, Program
from shorthaul.ir.rewrite import inline
from shorthaul.ops.builder import Gradient, OpBuilder
from shorthaul.ops.registry import definition
from shorthaul.symbolic import prove_eq

from .control import branch_gradient, loop_gradient
from .map_reversal import reverse_operator

TracedGradient = Callable[[LibraryCall, Mapping[str, Container], Collection[str], Collection[str]], Program]


def differentiate(program: Program, outputs: Sequence[str], wrt: Sequence[str], traced: TracedGradient | None = None,
                  reached: Collection[str] = ()) -> None:  # fmt: skip
    """Add the backward phase to a program of operators, in place, as one rewrite.

    outputs: differentiable outputs; each gets a cotangent input of its own shape. wrt: inputs whose gradients are wanted; those
    that the outputs do not depend on get no entry in `signature.gradients`, those among `reached` a gradient of zeros.
    traced: gives, for a LibraryCall without a registry entry, the operands' containers, the wanted operands and the results with
    a cotangent, a program from (operands, cotangents) to the wanted gradients (its attribute "undefined" names those that are missing).
    `program.attributes["stop_gradient"]` names containers through which no gradient flows (detach, no_grad).
    Raises DifferentiationError.
    """
    if program.form is not Form.OPERATORS:
        raise DifferentiationError("only a program of operators is differentiated; this one is expanded already")
    with program.edit("Differentiate", {"outputs": list(outputs), "wrt": list(wrt)}) as edit:
        _Reverse(program, edit, traced).run(list(outputs), list(wrt), reached)


class _Reverse:
    def __init__(self, program: Program, edit: Edit, traced: TracedGradient | None) -> None:
        self.program = program
        self.edit = edit
        self.traced = traced
        self.stopped = frozenset(program.attributes.get("stop_gradient", ()))
        self.partial: dict[str, list[Container]] = {}
        self.owned: set[str] = set()
        self.undefined: set[tuple[int, str]] = set()  # (node, operand) where PyTorch's gradient is none, not zeros

    def run(self, outputs: list[str], wrt: list[str], reached: Collection[str]) -> None:
        p = self.program
        forward = list(p.nodes)
        needed = self._depends_on(wrt, forward)
        cotangents = []
        for name in dict.fromkeys(outputs):
            c = p.containers[name]
            if not c.dtype.is_float:
                raise DifferentiationError(f"output {name} has dtype {c.dtype}: only floating outputs have gradients")
            g = self.edit.add_container(Container(p.fresh(f"cotangent_{name}"), c.dtype, c.shape, role="cotangent"))
            cotangents.append((name, g.name))
            if name in needed:
                self.partial.setdefault(name, []).append(g)
        self.edit.set_signature(p.signature.with_(cotangents=tuple(cotangents)))
        for node in reversed(forward):
            self._visit(node, needed)
        gradients = []
        reached = self._still_reached(outputs, reached, forward)
        for name in dict.fromkeys(wrt):
            total = self._total(name, name)
            if total is None and name in reached:
                total = self._zeros(p.containers[name])
            if total is not None:
                gradients.append((name, self._own(total, p.containers[name])))
        self.edit.set_signature(p.signature.with_(gradients=tuple(gradients)))
        self.edit.rewrite.notes["gradient of"] = {c: parts[0].name for c, parts in self.partial.items() if len(parts) == 1}

    def _still_reached(self, outputs: Sequence[str], reached: Collection[str], nodes: Sequence[Node]) -> Collection[str]:
        """The names among `reached` that outputs lead to on a way without an undefined gradient."""
        if not self.undefined:
            return reached
        found = set(outputs)
        for node in reversed(nodes):
            if not found.isdisjoint(self.program.writes_of(node)):
                found |= {m.container for k, m in node.reads.items()
                          if (node.id, k) not in self.undefined and m.container not in self.stopped}  # fmt: skip
        return found.intersection(reached)

    def _depends_on(self, wrt: Collection[str], nodes: Sequence[Node]) -> set[str]:
        needed = set(wrt)
        for node in nodes:
            if not needed.isdisjoint(self.program.reads_of(node)):
                needed |= {w for w in self.program.writes_of(node)
                           if self.program.containers[w].dtype.is_float and w not in self.stopped}  # fmt: skip
        return needed

    def _visit(self, node: Node, needed: set[str]) -> None:
        results = {k: m.container for k, m in node.writes.items()}
        if not any(c in self.partial for c in results.values()):
            return
        wanted = frozenset(k for k, m in node.reads.items()
                           if m.container in needed and self.program.containers[m.container].dtype.is_float)  # fmt: skip
        if not wanted:
            return
        incoming = {k: g for k, c in results.items() if (g := self._total(c, c)) is not None}
        for operand, g in self._gradients(node, incoming, wanted).items():
            if g is None or operand not in wanted:
                continue
            c = self.program.containers[node.reads[operand].container]
            if tuple(g.shape) != tuple(c.shape):
                # Sizes that only a guard of the capture knows to be equal, such as (n + 1)//2 and 3, are written differently.
                if len(g.shape) != len(c.shape) or any(prove_eq(a, b) is False for a, b in zip(g.shape, c.shape, strict=True)):
                    what = f"gradient of operand {operand} of {node.label} ({node.origin})"
                    raise DifferentiationError(f"{what} has shape {g.shape}, not {c.shape}")
                b = OpBuilder(self.edit, "backward", node.origins, hint="grad")
                g = b.op("expand", {"shape": c.shape}, x=g)
                self.edit.add(*b.nodes)
            if g.dtype is not c.dtype:
                b = OpBuilder(self.edit, "backward", node.origins, hint="grad")
                g = b.cast(g, c.dtype)
                self.edit.add(*b.nodes)
            self.partial.setdefault(c.name, []).append(g)

    def _gradients(self, node: Node, incoming: Mapping[str, Container], wanted: frozenset[str]) -> Mapping[str, Container | None]:
        if isinstance(node, Operator):
            d = definition(node)
            g = Gradient(self.edit, node, incoming, wanted)
            if d.gradient is not None:
                try:
                    result = d.gradient(g)
                except NotDifferentiable as e:
                    raise NotDifferentiable(f"{node.op} ({node.origin}): {e}") from e
                self.edit.add(*g.nodes)
                return result
            return reverse_operator(self.edit, node, incoming, wanted)
        if isinstance(node, LibraryCall) and self.traced is not None:
            operands = {k: self.program.containers[m.container] for k, m in node.reads.items()}
            body = self.traced(node, operands, sorted(wanted), sorted(incoming))
            given = [c.name for c in operands.values()] + [incoming[k].name for k in sorted(incoming)]
            bindings = dict(zip(body.signature.inputs, given, strict=True))
            nodes, outputs = inline(body, self.edit, bindings, phase="backward", origins=node.origins, hint="grad_")
            self.edit.add(*nodes)
            undefined = body.attributes.get("undefined", ())
            self.undefined |= {(node.id, k) for k in undefined}
            defined = [k for k in sorted(wanted) if k not in undefined]
            return {k: self.program.containers[o] for k, o in zip(defined, outputs, strict=True)}
        if isinstance(node, Branch):
            return branch_gradient(self.edit, node, incoming, sorted(wanted), self._differentiate)
        if isinstance(node, Loop):
            return loop_gradient(self.edit, node, incoming, sorted(wanted), self._differentiate)
        raise DifferentiationError(f"no gradient for {node.label} of {node.origin}")

    def _differentiate(self, body: Program, outputs: Sequence[str], wrt: Sequence[str]) -> None:
        differentiate(body, outputs, wrt, self.traced)

    def _total(self, container: str, hint: str) -> Container | None:
        """The sum of all contributions to the gradient of a container, as one operator."""
        parts = self.partial.get(container)
        if not parts:
            return None
        if len(parts) > 1:
            b = OpBuilder(self.edit, "backward", hint=f"grad_{hint}")

            def added(*xs):  # type: ignore[no-untyped-def]
                total = xs[0]
                for x in xs[1:]:
                    total = total + x
                return total

            # the order of addition is that of PyTorch's engine: contributions arrive from the last use to the first
            parts = [b.pointwise(added, *parts, dtype=parts[0].dtype)]
            self.edit.add(*b.nodes)
            self.partial[container] = parts
        return parts[0]

    def _zeros(self, like: Container) -> Container:
        b = OpBuilder(self.edit, "backward", hint=f"grad_{like.name}")
        zeros = b.full(like.shape, 0, like.dtype)
        self.edit.add(*b.nodes)
        return zeros

    def _own(self, gradient: Container, parameter: Container) -> str:
        """A gradient of the signature is a container of its own, laid out as its parameter."""
        external = gradient.role != "transient" or gradient.name in self.owned or gradient.name in self.program.results
        if external:
            b = OpBuilder(self.edit, "backward", hint="grad_copy")
            copy = b.op("cast", {"dtype": gradient.dtype}, x=gradient)
            self.edit.add(*b.nodes)
            gradient = copy
        self.owned.add(gradient.name)
        self.edit.set_container(gradient.with_(role="gradient", strides=parameter.strides))
        return gradient.name



