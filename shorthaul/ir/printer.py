"""A program as text: containers by role, then one line per operator and an indented nest per map.

map n in 0:N, c in 0:64:                          # sum  [#7 layer1.bn (aten.sum)]  reads 64*N elements (256*N bytes), ...
    s[c] (sum) = x[n, c]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np

from shorthaul.symbolic import Expr, Symbol, product

from .containers import ROLES, Container
from .memlet import Memlet, Span, is_full
from .nodes import Branch, Defines, LibraryCall, Loop, Map, Node, Operator, Tasklet
from .program import Program
from .propagate import propagate
from .scalar import read as read_value
from .scalar import substitute_reads, to_text, walk

IntLike = Union[int, Expr]
INDENT = "    "
LONGEST_CODE = 300  # characters of an expression; longer code is cut, its node count told


def print_program(program: Program, volumes: bool = True) -> str:
    """The whole program. Deterministic. `volumes`: show the elements and bytes that each top-level node moves."""
    return "\n".join(_program(program, "", volumes))


def print_node(node: Node, containers: Mapping[str, Container], volumes: bool = True) -> str:
    """One node with its body."""
    return "\n".join(_node(node, containers, "", volumes))


def _program(p: Program, indent: str, volumes: bool) -> Iterator[str]:
    sizes = f" of {', '.join(_symbol(s) for s in p.symbols)}" if p.symbols else ""
    yield f"{indent}program {p.name}{sizes}  # {p.form.name}, {len(p.nodes)} nodes, {len(p.containers)} containers"
    for role in ROLES:
        group = [c for c in p.containers.values() if c.role == role]
        for c in group:
            yield f"{indent}{INDENT}{role} {_container(c)}"
    s = p.signature
    for name, entries in (("inputs", s.inputs), ("outputs", s.outputs)):
        if entries:
            yield f"{indent}{INDENT}{name}: {', '.join(entries)}"
    for name, pairs, sign in (
        ("cotangents", s.cotangents, "<-"),
        ("gradients", s.gradients, "->"),
        ("updates", s.updates, "<-"),
    ):
        if pairs:
            yield f"{indent}{INDENT}{name}: {', '.join(f'{a} {sign} {b}' for a, b in pairs)}"
    phase = None
    for node in p.nodes:
        if node.phase != phase:
            phase = node.phase
            yield f"{indent}{phase}:"
        yield from _node(node, p.containers, indent + INDENT, volumes)


def _symbol(s: Symbol) -> str:
    low = "" if s.lower is None else f" >= {s.lower}"
    high = "" if s.upper is None else f" <= {s.upper}"
    return f"{s.name}{low}{high}" + (f" multiple of {s.multiple_of}" if s.multiple_of > 1 else "")


def _container(c: Container) -> str:
    text = f"{c.name}: {c.dtype}[{', '.join(map(str, c.shape))}]"
    if c.strides is not None:
        text += f" strides ({', '.join(map(str, c.strides))})"
    if c.storage != "global":
        text += f" {c.storage}"
    return text if c.alias is None else f"{text} in {c.alias.base} from {c.alias.offset}"


def _node(n: Node, containers: Mapping[str, Container], indent: str, volumes: bool) -> Iterator[str]:
    tail = f"  # {_identity(n)}" + (f"; {_volume(n, containers)}" if volumes else "")
    tail = "".join(f" defining {_definition(d)}" for d in n.defines) + tail
    if isinstance(n, Map):
        yield from _map(n, indent, tail)
    elif isinstance(n, Tasklet):
        yield from _tasklet(n, indent, frozenset())
    elif isinstance(n, (Operator, LibraryCall)):
        name = n.op if isinstance(n, Operator) else f"library {n.function}"
        operands = [_connector(k, m, containers) for k, m in n.reads.items()]
        attributes = [f"{k}={_value(v)}" for k, v in n.attributes.items()]
        expansion = f" as {n.expansion}" if isinstance(n, Operator) and n.expansion else ""
        writes = ", ".join(_connector(k, m, containers) for k, m in n.writes.items())
        yield f"{indent}{writes} = {name}({', '.join(operands + attributes)}){expansion}{tail}"
    elif isinstance(n, (Loop, Branch)):
        reads = ", ".join(_connector(k, m, containers) for k, m in n.reads.items())
        writes = ", ".join(_connector(k, m, containers) for k, m in n.writes.items())
        if isinstance(n, Loop):
            yield f"{indent}{writes} = loop {_repetition(n)} ({reads}){_roles(n)}:{tail}"
            yield from _program(n.body, indent + INDENT, volumes)
        else:
            yield f"{indent}{writes} = branch ({reads}):{tail}"
            for name, body in (("then", n.then), ("otherwise", n.otherwise)):
                yield f"{indent}{INDENT}{name}:"
                yield from _program(body, indent + 2 * INDENT, volumes)
    else:
        yield f"{indent}{n}{tail}"


def _definition(d: Defines) -> str:
    return f"{d.symbol} = {d.connector}" + ("" if d.dim is None else f".size({d.dim})")


def _repetition(n: Loop) -> str:
    times = "" if n.count is None else f"{n.count} times"
    condition = "" if n.condition is None else f"while {n.condition}"
    return " ".join(filter(None, (times, condition, "in reverse" if n.reverse else "")))


def _roles(n: Loop) -> str:
    sliced = "" if n.tile is None else f" {'x'.join(map(str, n.tile))} rows of"
    roles = {"carrying": [f"{a} <- {b}" for a, b in n.carried], f"scanning{sliced}": n.scanned, f"stacking{sliced}": n.stacked,
             "summing": n.summed, "numbering": [n.index] if n.index else []}  # fmt: skip
    return "".join(f" {role} {', '.join(names)}" for role, names in roles.items() if names)


def _map(m: Map, indent: str, tail: str = "", outer: frozenset[str] = frozenset()) -> Iterator[str]:
    ranges = ", ".join(f"{p} in {p.lower}:{p.upper + 1 if p.upper is not None else '?'}" for p in m.params)
    options = ", ".join(f"{k}={_value(v)}" for k, v in m.schedule.options)
    schedule = (
        "" if m.schedule.kind == "auto" and not options else f" {m.schedule.kind}{f'({options})' if options else ''}"
    )
    yield f"{indent}map {ranges}{schedule}:{tail}" if m.params else f"{indent}map{schedule}:{tail}"
    local = outer | m.locals.keys()
    for c in m.locals.values():
        yield f"{indent}{INDENT}local {_container(c)}"
    for child in m.body:
        if isinstance(child, Map):
            yield from _map(child, indent + INDENT, f"  # {child.name}" if child.name else "", local)
        elif isinstance(child, Tasklet):
            yield from _tasklet(child, indent + INDENT, local)
        else:
            yield f"{indent}{INDENT}{child}"


def _tasklet(t: Tasklet, indent: str, local: frozenset[str]) -> Iterator[str]:
    """Each write as an assignment, with the memlets in the place of the reads; guarded and long reads get a line of their own."""
    shown = {}
    for k, m in t.reads.items():
        if m.guard or any(f"<{k}>" in str(w) for w in (*t.reads.values(), *t.writes.values())):
            yield f"{indent}{k} = {m}"
        else:
            shown[k] = str(m)
    for k, m in t.writes.items():
        code = t.code[k]
        memlets = {r.attr: read_value(shown[r.attr], r.dtype) for r in walk(code) if r.op == "read" and r.attr in shown}  # type: ignore[index,misc]
        text = to_text(substitute_reads(code, memlets))
        if len(text) > LONGEST_CODE:
            text = text[: LONGEST_CODE - 3] + "..."
        component = f".{k}" if m.combine and len([w for w in t.writes.values() if w.combine == m.combine]) > 1 else ""
        target = str(m.with_(combine=None, scan=None, guard=()))
        scan = f"scan {m.scan} " if m.scan is not None else ""
        how = f" ({scan}{m.combine}{component})" if m.combine else ""
        guard = f" if {' and '.join(map(str, m.guard))}" if m.guard else ""
        yield f"{indent}{target}{how} = {text}{guard}"


def _connector(name: str, m: Memlet, containers: Mapping[str, Container]) -> str:
    c = containers.get(m.container)
    what = m.container if c is not None and len(m.subset) == len(c.shape) and is_full(m, c) else str(m)
    return f"{name}: {what}"


def _value(v: Any) -> str:
    if isinstance(v, np.ndarray):
        return f"array{list(v.shape)}"
    text = repr(v)
    return text if len(text) <= 60 else text[:57] + "..."


def _identity(n: Node) -> str:
    name = f"{n.name} " if isinstance(n, Map) and n.name else ""
    more = f" and {len(n.origins) - 1} more" if len(n.origins) > 1 else ""
    return f"{name}#{n.id}" + (f" [{n.origin}{more}]" if n.origins else "")


def _volume(n: Node, containers: Mapping[str, Container]) -> str:
    if isinstance(n, Map):
        unknown = (n.read_containers() | n.written_containers()) - containers.keys()
        if unknown:
            return f"uses {', '.join(sorted(unknown))}, not known"
        reads, writes = propagate(n, containers)
    else:
        reads, writes = ({m.container: m for m in side.values()} for side in (n.reads, n.writes))
    return f"reads {_amount(reads, containers)}, writes {_amount(writes, containers)}"


def _amount(memlets: Mapping[str, Memlet], containers: Mapping[str, Container]) -> str:
    elements: IntLike = 0
    size: IntLike = 0
    for name, m in memlets.items():
        if name not in containers:
            return "?"
        volume = product(s.size for s in m.subset if isinstance(s, Span))
        elements, size = elements + volume, size + volume * containers[name].dtype.itemsize
    return f"{_number(elements)} elements ({_number(size)} bytes)"


def _number(e: IntLike) -> str:
    return f"{e:,}" if isinstance(e, int) else str(e)
