"""Gradients of branches and loops: nodes of the same kind whose bodies are the differentiated bodies.

A body of the gradient computes the forward values of its body again, and saves none of them but what a loop carries: the forward loop
also stacks what enters each iteration, and the backward loop reads these stacks from the last iteration to the first. Of a branch that
was not taken nothing is saved or computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shorthaul.errors import DifferentiationError
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Memlet, full
from shorthaul.ir.nodes import Branch, Defines, LibraryCall, Loop, Node, Operator
from shorthaul.ir.program import Form, Program
from shorthaul.ops.builder import OpBuilder
from shorthaul.symbolic import Symbol

Differentiate = Callable[[Program, Sequence[str], Sequence[str]], None]


def branch_gradient(edit: Edit, node: Branch, incoming: Mapping[str, Container], wanted: Sequence[str],
                    differentiate: Differentiate) -> dict[str, Container | None]:  # fmt: skip
    """Gradients of the operands `wanted`: a branch by the same condition."""
    bodies = tuple(_gradient_body(b, list(incoming), wanted, (), differentiate) for b in node.bodies)
    reads = {k: m for k, m in node.reads.items() if k == "condition" or any(k in b.signature.inputs for b in bodies)}
    reads.update((_cotangent(k), full(g)) for k, g in incoming.items())
    found = {k: _declare(edit, f"grad_{k}", _operand(edit, node, k)) for k in wanted}
    edit.add(Branch(*bodies, reads=reads, writes={_grad(k): full(c) for k, c in found.items()}, origins=node.origins, phase="backward"))
    return dict(found)


def loop_gradient(edit: Edit, node: Loop, incoming: Mapping[str, Container], wanted: Sequence[str],
                  differentiate: Differentiate) -> dict[str, Container | None]:  # fmt: skip
    """Gradients of the operands `wanted`: a loop from the last iteration to the first.

    It carries the gradient of what is carried, and the sums for operands that all iterations read; it stacks those of slices.
    """
    p, inner = edit.program, node.body.containers
    starts = [start for start, _ in node.carried]
    carried = [(start, end) for start, end in node.carried if inner[start].dtype.is_float]
    saved = [k for k in starts if node.body.readers(k)]
    loop, stacks = _saving(edit, node, saved)
    trips = loop.trips
    shared = [k for k in wanted if k not in starts and k not in node.scanned]
    slices = [k for k in wanted if k in node.scanned]
    ends = [end for _, end in carried]
    stacked = [k for k in node.stacked if k in incoming]
    body = _gradient_body(node.body, [*ends, *stacked], [*(s for s, _ in carried), *slices, *shared], shared, differentiate)
    b = OpBuilder(edit, "backward", node.origins, hint="grad")
    reads: dict[str, Memlet] = {k: m for k, m in node.reads.items() if k in body.signature.inputs and k not in starts}
    reads.update((k, full(c)) for k, c in stacks.items() if k in body.signature.inputs)
    for start, end in carried:
        c = _operand(edit, node, start)
        reads[_cotangent(end)] = full(incoming[end] if end in incoming else b.full(c.shape, 0, c.dtype))
    reads.update((_cotangent(k), full(incoming[k])) for k in stacked)
    for k in shared:
        c = _operand(edit, node, k)
        reads[_sum(k)] = full(b.full(c.shape, 0, c.dtype))
    edit.add(*b.nodes)
    found = {k: _declare(edit, f"grad_{k}", _operand(edit, node, k)) for k in wanted}
    goes_round = [(_cotangent(end), _grad(start)) for start, end in carried] + [(_sum(k), _grad(k)) for k in shared]
    scanned = [k for k in (*node.scanned, *saved) if k in body.signature.inputs] + [_cotangent(k) for k in stacked]
    index = node.index if node.index in body.signature.inputs else None
    edit.add(Loop(body, trips, tuple(goes_round), tuple(scanned), tuple(_grad(k) for k in slices), None, index, True, reads=reads,
                  writes={_grad(k): full(c) for k, c in found.items()}, origins=node.origins, phase="backward"))  # fmt: skip
    assert p.node_is_current(loop)
    return dict(found)


def _saving(edit: Edit, node: Loop, saved: Sequence[str]) -> tuple[Loop, dict[str, Container]]:
    """The loop in the program, now also with the stacks of what enters each iteration, and counting these where it does not know."""
    p, inner = edit.program, node.body.containers
    trips, defines = node.trips, node.defines
    counted = node.condition is None or any(d.dim == 0 for d in defines)
    if not counted:
        taken = {s.name for s in p.symbols}
        name = next(n for n in (f"trips{i}" for i in range(len(taken) + 1)) if n not in taken)
        trips = edit.add_symbol(Symbol(name, 0, node.count))
    stacks = {k: edit.add_container(Container(p.fresh(f"each_{k}"), inner[k].dtype, (trips, *inner[k].shape))) for k in saved}
    if not counted:
        if not saved:
            raise DifferentiationError(f"no gradient for the loop of {node.origin}: its body uses nothing that it carries")
        defines = (*defines, Defines(trips, saved[0], 0))  # type: ignore[arg-type]
    body = node.body.clone()
    body.signature = body.signature.with_(outputs=(*body.signature.outputs, *(k for k in saved if k not in body.signature.outputs)))
    loop = node.with_(body=body, stacked=(*node.stacked, *saved), defines=defines,
                      writes={**node.writes, **{k: full(c) for k, c in stacks.items()}})  # fmt: skip
    edit.replace(node, loop)
    return loop, stacks


def _gradient_body(body: Program, outputs: Sequence[str], wanted: Sequence[str], summed: Sequence[str],
                   differentiate: Differentiate) -> Program:  # fmt: skip
    """The program from the body's inputs and a cotangent for each of `outputs` to a gradient for each of `wanted`.

    summed: inputs whose gradient is added to one that comes in.
    """
    _refuse_random(body)
    kept = {k: v for k, v in body.attributes.items() if k in ("size_hints", "stop_gradient")}
    p = Program(f"gradient_of_{body.name}", Form.OPERATORS, dict(body.containers), list(body.nodes), body.signature, body.symbols,
                dict(body.constants), attributes=kept)  # fmt: skip
    differentiate(p, outputs, wanted)
    cotangents, gradients = dict(p.signature.cotangents), dict(p.signature.gradients)
    with p.edit("Gradient") as edit:
        b = OpBuilder(edit, "forward", hint="")
        renamed = []
        for k in outputs:
            given = p.containers[cotangents[k]]
            outer = edit.add_container(given.with_(name=_cotangent(k), role="input"))
            edit.set_container(given.with_(role="transient"))
            renamed.append(_copy(given.dtype, outer, given))
        for k in wanted:
            c = p.containers[k]
            y = edit.add_container(Container(_grad(k), c.dtype, c.shape, role="output"))
            found = p.containers[gradients[k]] if k in gradients else b.full(c.shape, 0, c.dtype)
            if k in gradients:
                edit.set_container(found.with_(role="transient", strides=None))
                found = p.containers[found.name]
            if k in summed:
                before = edit.add_container(Container(_sum(k), c.dtype, c.shape, role="input"))
                found = b.pointwise(lambda s, g: s + g, before, found, dtype=c.dtype)
            b.nodes.append(_copy(c.dtype, found, y))
        for name in p.signature.outputs:
            if p.containers[name].role == "output":
                edit.set_container(p.containers[name].with_(role="transient", strides=None))
        inputs = (*body.signature.inputs, *(_cotangent(k) for k in outputs), *(_sum(k) for k in summed))
        edit.set_signature(type(p.signature)(inputs, tuple(_grad(k) for k in wanted)))
        for n in list(p.nodes):
            edit.replace(n, n.with_(phase="forward"))
        edit.add(*renamed, before=p.nodes[0] if p.nodes else None)
        edit.add(*b.nodes)
    _prune(p, keep=[_cotangent(k) for k in outputs] + [_sum(k) for k in summed])
    kept.pop("stop_gradient", None)
    return Program(p.name, p.form, p.containers, p.nodes, p.signature, p.symbols, p.constants, attributes=kept)


def _prune(p: Program, keep: Sequence[str]) -> None:
    """Without the forward values that no gradient needs, and the inputs that nothing reads."""
    with p.edit("Prune") as edit:
        for n in reversed(list(p.nodes)):
            if not n.defines and not any(c in p.results or p.readers(c) for c in p.writes_of(n)):
                edit.remove(n)
        inputs = tuple(n for n in p.signature.inputs if n in keep or p.readers(n))
        edit.set_signature(p.signature.with_(inputs=inputs))
        edit.drop_unused(list(p.containers))


def _refuse_random(body: Program) -> None:
    for n in body.nodes:
        if isinstance(n, LibraryCall) and n.attributes.get("random"):
            raise DifferentiationError(
                f"no gradient for {n.label} of {n.origin} inside a branch or loop: the backward phase would draw its random numbers again"
            )


def _copy(dtype: DType, x: Container, y: Container) -> Node:
    return Operator("cast", {"dtype": dtype}, reads={"x": full(x)}, writes={"y": full(y)})


def _operand(edit: Edit, node: Any, k: str) -> Container:
    return edit.program.containers[node.reads[k].container]


def _declare(edit: Edit, hint: str, like: Container) -> Container:
    return edit.add_container(Container(edit.program.fresh(hint), like.dtype, like.shape))


def _cotangent(k: str) -> str:
    return f"cotangent_of_{k}"


def _grad(k: str) -> str:
    return f"gradient_of_{k}"


def _sum(k: str) -> str:
    return f"sum_of_{k}"
