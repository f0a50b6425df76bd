"""Branches and loops of a functional graph as nodes with programs for bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import fx

from shorthaul.frontends.functional import FunctionalGraph, Unsupported
from shorthaul.frontends.functional_control import ControlFlow
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_
from shorthaul.ir.memlet import Memlet, full
from shorthaul.ir.nodes import Branch, Loop, Operator, Origin
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import used_sizes

if TYPE_CHECKING:
    from shorthaul.frontends.importer import _Importer

GOES_ON = "goes_on"


def import_control(importer: _Importer, node: fx.Node) -> list[Container]:
    """Append the node for a call of `control_flow`; its results.

    Operand i is x{i} in the bodies and as a connector, result i is result{i}.
    """
    flow = importer.graph.attributes[str(node.args[0].target)]  # type: ignore[union-attr]
    assert isinstance(flow, ControlFlow)
    where = node.meta["origin"]
    origin = Origin(where.module, where.source, where.call)
    values = [importer._value(a) for a in node.args[1:]]
    decides, given = ([], values) if flow.kind == "loop" else (values[:1], values[1:])
    bodies = [_body(importer, g, f"{node.name}_{i}", flow.kind != "branch", where) for i, g in enumerate(flow.bodies)]
    always = flow.carried + flow.scanned  # their places mean something, used or not
    operands = {f"x{i}": c for i, c in enumerate(given) if isinstance(c, Container)}
    operands = {k: c for i, (k, c) in enumerate(operands.items()) if int(k[1:]) < always or any(b.readers(k) for b in bodies)}
    reads: dict[str, Memlet] = {k: full(c) for k, c in operands.items()}
    for name in sorted({n for b in bodies for n in b.signature.inputs if n in importer.random_names}):
        reads[name] = full(importer._random_input(name))
    for b in bodies:
        _keep_inputs(b, [*reads, importer.iteration])
    outputs = []
    for i, fake in enumerate(node.meta["val"]):
        c = Container(importer.program.fresh(f"{node.name}_{i}"), bodies[0].containers[f"result{i}"].dtype,
                      tuple(importer.sizes.convert(n) for n in fake.shape))  # fmt: skip
        outputs.append(importer.edit.add_container(c))
    writes = {f"result{i}": full(c) for i, c in enumerate(outputs)}
    if flow.kind == "branch":
        branch = Branch(*bodies, reads={"condition": full(decides[0]), **reads}, writes=writes, origins=(origin,))
        importer._append(branch, node, outputs)
        return outputs
    (body,) = bodies
    carried = [(f"x{i}", f"result{i}") for i in range(flow.carried)]
    condition = None
    if flow.kind == "while":
        condition = GOES_ON
        carried.append((GOES_ON, f"result{len(carried)}"))
        reads[GOES_ON] = full(decides[0])
        with body.edit("Condition") as edit:
            edit.add_container(Container(GOES_ON, bool_, (), role="input"))
            edit.set_signature(body.signature.with_(inputs=(*body.signature.inputs, GOES_ON)))
    scanned = tuple(f"x{i}" for i in range(flow.carried, always))
    stacked = tuple(f"result{i}" for i in range(flow.carried, len(outputs)))
    index = importer.iteration if importer.iteration in body.signature.inputs else None
    count = None if condition else operands[scanned[0]].shape[0]
    loop = Loop(body, count, tuple(carried), scanned, stacked, condition, index, reads=reads, writes=writes, origins=(origin,))
    importer._append(loop, node, outputs)
    return outputs


def _body(importer: _Importer, graph: FunctionalGraph, name: str, numbered: bool, where: object) -> Program:
    """The program of a body. numbered: it runs in a loop, whose iterations draw different random numbers."""
    inner = type(importer)(graph, name, importer.strict, importer.sizes)
    inner.streams = importer.streams
    inner.depth = importer.depth + 1 if numbered else 0
    found = inner.run()
    importer.streams = inner.streams
    importer.fallbacks += found.fallbacks
    p = found.program
    stop: list[str] = p.attributes["stop_gradient"]
    results = []
    with p.edit("Results") as edit:
        for i, r in enumerate(found.results):
            if r is None:
                raise Unsupported("a body returns a number, not a tensor", where, "Return a tensor.")  # type: ignore[arg-type]
            c = p.containers[r]
            if c.role == "output":
                c = edit.set_container(c.with_(role="transient", strides=None))
            y = edit.add_container(Container(f"result{i}", c.dtype, c.shape, role="output"))
            edit.add(Operator("cast", {"dtype": c.dtype}, reads={"x": full(c)}, writes={"y": full(y)}))
            if r in stop:
                stop.append(y.name)
            results.append(y.name)
        edit.set_signature(p.signature.with_(outputs=tuple(results)))
    used = used_sizes(p)
    p.symbols = tuple(s for s in p.symbols if s in used)
    return p


def _keep_inputs(body: Program, names: Sequence[str]) -> None:
    dropped = [n for n in body.signature.inputs if n not in names]
    with body.edit("Inputs") as edit:
        edit.set_signature(body.signature.with_(inputs=tuple(n for n in body.signature.inputs if n in names)))
        edit.drop_unused(dropped)
