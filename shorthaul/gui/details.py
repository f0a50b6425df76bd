"""What the side panel says of a node or a module: shapes, memlets, origin, code, what can be done with it and what not, and why."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shorthaul.ir.location import reference
from shorthaul.ir.nodes import LibraryCall, Map, Node
from shorthaul.ir.printer import print_node
from shorthaul.ir.program import Program
from shorthaul.transforms.base import hint_value
from shorthaul.transforms.explain import Place

from .graph import label
from .overlays import View

Json = Any
AROUND = 3  # lines of the user's source before and after an origin
LONGEST = 200_000  # characters of one piece of code that the page is sent


def details(view: View, node: Node, places: Iterable[Place], above: str = "") -> Json:
    """Everything about one node of the view's program; see docs/studio.md for the keys.

    above: what its reference begins with, where the program is the body of a loop or branch.
    """
    program, time = view.program, view.times.get(node.id)
    return {
        "id": node.id, "ref": above + reference(program, node), "inside": above.removesuffix(" / "), "label": label(node),
        "kind": node.kind, "phase": node.phase, "module": node.origin.module, "bytes": view.bytes.get(node.id, 0),
        "flops": None if time is None else time.flops, "predicted": None if time is None else time.seconds,
        "bound": None if time is None else time.bound, "measured": view.seconds.get(node.id), "error": view.errors.get(node.id),
        "memlets": _memlets(view, node, above), "origins": [origin(o) for o in _distinct(node.origins)],
        "text": print_node(node, program.containers), "code": generated(program, node),
        "places": [place(p) for p in places],
    }  # fmt: skip


def place(p: Place) -> Json:
    """A place of a transformation: what the page shows, and what `Session.apply` takes back."""
    text = " → ".join(v for v in p.where.values() if ": " in v) or "the whole program"
    text += " (changes numbers)" if p.transformation.rounding else ""
    return {"transformation": p.transformation.name, "level": p.transformation.level, "parameters": _plain(p.transformation.parameters),
            "where": dict(p.where), "text": text, "saves": p.saves, "at_stake": p.at_stake, "reason": p.reason,
            "nodes": [n.id for n in p.match.nodes]}  # fmt: skip


def _plain(parameters: Any) -> Json:
    return {k: v for k, v in parameters.items() if v is None or isinstance(v, (bool, int, float, str))}


def _distinct(origins: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(origins))


def origin(o: Any) -> Json:
    """An origin with the lines of the user's source around it (empty where the file cannot be read)."""
    file, _, number = o.source.rpartition(":")
    lines: list[Json] = []
    if file and number.isdigit():
        at = int(number)
        for n in range(max(1, at - AROUND), at + AROUND + 1):
            text = linecache.getline(file, n)
            if text:
                lines.append([n, text.rstrip("\n")])
    return {"module": o.module, "operator": o.operator, "source": o.source, "file": Path(file).name if file else "",
            "line": int(number) if number.isdigit() else 0, "lines": lines}  # fmt: skip


def _memlets(view: View, node: Node, above: str) -> list[Json]:
    program = view.program
    moved = {(m.container, m.side): m for m in view.movement.moved if m.node.id == node.id}
    rows = []
    for side, memlets in (("read", node.reads), ("write", node.writes)):
        for connector, m in memlets.items():
            c = program.containers.get(m.container)
            if c is None:
                continue
            found = moved.get((m.container, side))
            rows.append({
                "side": side, "connector": connector, "container": c.name, "dtype": c.dtype.name, "shape": [str(s) for s in c.shape],
                "strides": None if c.strides is None else [str(s) for s in c.strides], "role": c.role,
                "alias": None if c.alias is None else c.alias.base, "subset": str(m),
                "bytes": 0 if found is None else hint_value(program, found.bytes),
                "again": 0 if found is None else hint_value(program, found.again), "exact": found is None or found.exact,
                "others": [above + reference(program, o) for o in (program.writers(c.name) if side == "read" else program.readers(c.name))
                           if o.id != node.id][:8],
            })  # fmt: skip
    return rows


def generated(program: Program, node: Node) -> list[Json]:
    """The code that runs the node: [{language, text}], "C++", "Triton" or "call"; without a language why there is none."""
    if isinstance(node, Map):
        return [_code("C++", _cpp, program, node), _code("Triton", _triton, program, node)]
    if isinstance(node, LibraryCall):
        reads, writes = (", ".join(f"{k}={m.container}" for k, m in side.items()) for side in (node.reads, node.writes))
        attributes = "".join(f",\n    {k}={v!r}" for k, v in node.attributes.items())
        return [{"language": "call", "text": f"{writes} =\n  {node.function}({reads}{attributes})"}]
    return [{"language": "", "text": "an operator is not code yet; run level 0 to lower it"}]


def _code(language: str, emit: Callable[[Program, Map], str], program: Program, node: Map) -> Json:
    try:
        return {"language": language, "text": emit(program, node)[:LONGEST]}
    except Exception as e:  # code is only shown here: the page says why there is none
        return {"language": "", "text": f"no {language} for this kernel: {str(e) or type(e).__name__}"}


def _cpp(program: Program, node: Map) -> str:
    from shorthaul.codegen.cpp.emit import emit_kernel

    kernel = emit_kernel(node, program.containers, shared=[c for c in program.writes_of(node) if len(program.writers(c)) > 1])
    return "".join(f"// p[{i}]: {a}\n" for i, a in enumerate(kernel.arguments)) + kernel.source


def _triton(program: Program, node: Map) -> str:
    from shorthaul.codegen.triton.emit_map import emit_map  # imports torch

    return "\n\n".join(k.source for k in emit_map(node, program).kernels)


def module_details(view: View, path: str, alike: list[str]) -> Json:
    """A module: totals by phase, its costliest nodes, the modules built like it."""
    program = view.program
    nodes = [n for n in program.nodes if n.origin.module == path or n.origin.module.startswith(path + ".")]
    if not nodes:
        raise KeyError(f"no node of {program.name} comes from a module {path!r}")
    ids = {n.id for n in nodes}
    saved = dict(view.liveness.saved)
    rows = sorted(nodes, key=lambda n: -view.bytes.get(n.id, 0))
    return {
        "module": path, "kernels": len(nodes), "bytes": sum(view.bytes.get(i, 0) for i in ids),
        "phases": {p: sum(view.bytes.get(n.id, 0) for n in nodes if n.phase == p) for p in ("forward", "backward", "update")},
        "predicted": sum(view.times[i].seconds for i in ids if i in view.times), "alike": alike,
        "measured": sum(view.seconds[i] for i in ids) if ids <= view.seconds.keys() else None,
        "saved": [[c, b] for c, b in saved.items() if any(w.id in ids for w in program.writers(c))][:20],
        "inputs": _crossing(program, nodes, ids), "nodes": [{"id": n.id, "label": label(n), "phase": n.phase, "ref": reference(program, n),
                                                           "bytes": view.bytes.get(n.id, 0)} for n in rows[:40]],
    }  # fmt: skip


def _crossing(program: Program, nodes: list[Node], ids: set[int]) -> Json:
    """Containers that come from outside the module, largest first."""
    found = {c for n in nodes for c in program.reads_of(n) if all(w.id not in ids for w in program.writers(c))}
    rows = [(c, hint_value(program, program.containers[c].bytes)) for c in found]
    return [{"container": c, "bytes": b, "shape": [str(s) for s in program.containers[c].shape], "role": program.containers[c].role}
            for c, b in sorted(rows, key=lambda r: (-r[1], r[0]))[:20]]  # fmt: skip
