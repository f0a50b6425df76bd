"""A program as the graph that the page draws: nodes, edges with the bytes they carry, modules. All of it plain JSON types.

Numbers are at the program's size hints. Edges are lists, not objects: a program of 10,000 nodes is about two megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from shorthaul.ir.location import references
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Node, Operator, Tasklet
from shorthaul.ir.program import Program
from shorthaul.transforms.base import hint_value

from .overlays import View, bodies

Json = Any
NAME = re.compile(r"[A-Za-z_]\w*")
GENERIC = ("pointwise", "sum_to", "map", "expand", "fill")  # names of kernels that say little without the operator


def graph(view: View) -> Json:
    """The whole program, and after its nodes those of the bodies of loops and branches.

    nodes: {id, ref, label, kind, phase, module, ops, bytes, source, lines, shape, inner}, in a body also `parent` (position of the loop or
    branch) and `body` (its name); edges: [from, to, container, bytes, saved] with positions in `nodes` and `containers`; containers: {name,
    dtype, shape, role, bytes}. Bytes in a body are those of one round.
    """
    out: Json = {"name": view.program.name, "form": view.program.form.name.lower(), "nodes": [], "edges": [], "containers": []}
    _add(out, view, {})
    return out


def _add(out: Json, view: View, inside: Json) -> None:
    """Append the nodes of a program and those of its bodies. inside: what is said of each, for a body."""
    program, first, offset = view.program, len(out["nodes"]), len(out["containers"])
    refs, containers = references(program), list(program.containers.values())
    place = {c.name: offset + i for i, c in enumerate(containers)}
    at = {n.id: first + i for i, n in enumerate(program.nodes)}
    moved: dict[tuple[int, str], int] = {}
    for m in view.movement.moved:
        if m.side == "read":
            moved[m.node.id, m.container] = int(m.bytes)  # type: ignore[arg-type]
    saved = {name for name, _ in view.liveness.saved}
    above = inside.pop("above", "")
    out["nodes"] += [{**_node(view, n, above + refs[n.id]), **inside} for n in program.nodes]
    out["containers"] += [{"name": c.name, "dtype": c.dtype.name, "shape": [str(s) for s in c.shape], "role": c.role,
                           "bytes": hint_value(program, c.bytes)} for c in containers]  # fmt: skip
    for n in program.nodes:
        for c in sorted(program.reads_of(n)):
            base = _base(program, c)
            for w in program.writers(c) or program.writers(base):
                if w.id != n.id and at[w.id] < at[n.id]:
                    across = int(base in saved and w.phase != n.phase)
                    out["edges"].append([at[w.id], at[n.id], place[c], moved.get((n.id, c), 0), across])
    for n in program.nodes:
        for name, body in bodies(n):
            around = f"{above}{refs[n.id]} / " + (f"{name} / " if name else "")
            _add(out, view.of(body), {"parent": at[n.id], "body": name, "above": around})


def _base(program: Program, name: str) -> str:
    while (alias := program.containers[name].alias) is not None:
        name = alias.base
    return name


def _node(view: View, n: Node, ref: str) -> Json:
    program = view.program
    results = [program.containers[c] for c in sorted(program.writes_of(n))]
    shape = max((c.shape for c in results), key=len, default=())
    return {
        "id": n.id, "ref": ref, "label": label(n), "kind": n.kind, "phase": n.phase, "module": n.origin.module,
        "ops": list(dict.fromkeys(o.operator for o in n.origins if o.operator)), "bytes": view.bytes.get(n.id, 0),
        "source": n.origin.source, "lines": lines(n), "shape": "×".join(map(str, shape)), "inner": isinstance(n, (Map, Loop, Branch)),
    }  # fmt: skip


def lines(n: Node) -> list[str]:
    """The user's lines that a node comes from, as they are searched: "network.py:12", of everything that was fused into it."""
    return list(dict.fromkeys(o.source.replace("\\", "/").rpartition("/")[2] for o in n.origins if o.source))


def label(n: Node) -> str:
    """A node's name on the page: its operators, without the library's prefix."""
    if isinstance(n, Map):
        name = n.name or n.origin.operator or "map"
        of = n.origin.operator.removeprefix("aten.").partition(".")[0]
        return f"{name} of {of}" if name in GENERIC and of and of != name else name
    if isinstance(n, LibraryCall):
        return n.function.removeprefix("aten::")
    return n.label


def modules(view: View, inside: str = "") -> list[Json]:
    """One level of the hierarchy: the modules (and nodes that lie in none) directly inside a module, with bytes, kernels and saved tensors.

    [{path, bytes, forward, backward, kernels, saved, predicted}], in program order; a node that belongs to `inside` itself has `node`.
    Raises KeyError for a module that has no nodes.
    """
    rows: dict[str, Json] = {}
    saved, depth = dict(view.liveness.saved), inside.count(".") + 1 if inside else 0
    for n in view.program.nodes:
        path = n.origin.module
        if inside and path != inside and not path.startswith(inside + "."):
            continue
        parts = path.split(".") if path else []
        key = ".".join(parts[: depth + 1]) if len(parts) > depth else f"#{n.id}"
        row = rows.setdefault(key, {"path": key if not key.startswith("#") else path, "bytes": 0, "forward": 0, "backward": 0, "kernels": 0,
                                    "saved": 0, "predicted": 0.0, **({"node": n.id} if key.startswith("#") else {})})  # fmt: skip
        b = view.bytes.get(n.id, 0)
        row["bytes"] += b
        row["kernels"] += 1
        row["saved"] += sum(saved.get(c, 0) for c in view.program.writes_of(n))
        row["predicted"] += view.times[n.id].seconds if n.id in view.times else 0.0
        if n.phase in ("forward", "backward"):
            row[n.phase] += b
    if not rows and inside:
        raise KeyError(f"no node of {view.program.name} comes from a module {inside!r}")
    return list(rows.values())


def body(n: Node) -> Json:
    """What is inside a node, nested: maps with ranges and locals, tasklets as lines, loops and branches as lists of nodes.

    Parameters are numbered from zero for the reader: their own names grow with everything that the process has compiled.
    """
    params = [p.name for around, _ in n.tasklets() for p in around] if isinstance(n, Map) else []
    short = {name: f"i{k}" for k, name in enumerate(dict.fromkeys(params))}
    return _body(n, lambda text: NAME.sub(lambda found: short.get(found[0], found[0]), text))


def _body(n: Node, short: Callable[[str], str]) -> Json:
    if isinstance(n, Map):
        ranges = ", ".join(f"{p.name} in {p.lower}:{p.upper + 1 if p.upper is not None else '?'}" for p in n.params)
        return {"kind": "map", "title": n.name, "ranges": short(ranges), "schedule": n.schedule.kind,
                "locals": [short(repr(c)).removesuffix(" transient") + f" ({c.storage})" for c in n.locals.values()],
                "items": [_body(b, short) for b in n.body]}  # fmt: skip
    if isinstance(n, Tasklet):
        from shorthaul.ir.printer import print_node

        return {"kind": "tasklet", "lines": short(print_node(n, {}, volumes=False).split("  # ")[0]).splitlines()}
    if isinstance(n, (Loop, Branch)):
        return {"kind": n.kind, "title": n.label, "ranges": "", "schedule": "", "locals": [],
                "items": [{"kind": "tasklet", "lines": [f"{name or 'body'}: {len(b.nodes)} nodes", *(label(m) for m in b.nodes[:40])]}
                          for name, b in bodies(n)]}  # fmt: skip
    assert isinstance(n, (Operator, LibraryCall))
    return {"kind": "tasklet", "lines": [f"{k} = {v}" for k, v in n.attributes.items()]}
