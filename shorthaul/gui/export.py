"""What leaves a session: recipe, program, trace, drawing, and a page that works offline."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shorthaul.analysis.movement import human
from shorthaul.ir.serialize import dumps
from shorthaul.transforms.explain import Place
from shorthaul.transforms.recipe import Recipe

from . import graph as graphs
from .details import details
from .load import SessionError
from .overlays import nodes_of_bodies, overlays

if TYPE_CHECKING:
    from .session import Session, State

STATIC = Path(__file__).parent / "static"
DETAILED = 400  # nodes of an offline page that have their whole side panel, the costliest first


def export(session: Session, kind: str, state: State) -> str:
    """The text of one kind of export. Raises SessionError for a kind that there is not."""
    if kind == "recipe":
        return str(Recipe.of(state.program))
    if kind == "json":
        return dumps(state.program)
    if kind == "trace":
        return json.dumps(trace(state))
    if kind == "svg":
        return svg(state)
    if kind == "html":
        return html(session, state)
    raise SessionError(f"there is no export {kind!r}; there are recipe, json, trace, svg, html")


def trace(state: State) -> Any:
    """Events for Chrome's and Perfetto's viewers: one after the other, as long as measured (else predicted), and memory over time."""
    view, events, at = state.view, [], 0.0
    for i, n in enumerate(view.program.nodes):
        t = view.times.get(n.id)
        seconds = view.seconds.get(n.id, 0.0 if t is None else t.seconds)
        where = {"module": n.origin.module, "source": n.origin.source, "bytes": view.bytes.get(n.id, 0), "node": n.id,
                 "duration": "measured" if n.id in view.seconds else "predicted"}  # fmt: skip
        events.append({"name": graphs.label(n), "cat": n.kind, "ph": "X", "ts": at * 1e6, "dur": seconds * 1e6, "pid": 1, "tid": n.phase,
                       "args": where})  # fmt: skip
        events.append({"name": "memory", "ph": "C", "ts": at * 1e6, "pid": 1, "args": {"bytes": view.liveness.at[i]}})
        at += seconds
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"program": view.program.name, "step": state.step}}


def svg(state: State) -> str:
    """The modules at the top two levels, forward left and backward right: bars as long as the bytes that they move."""
    rows: list[tuple[str, int, int, int]] = []
    for m in graphs.modules(state.view):
        inner = [] if "node" in m else graphs.modules(state.view, m["path"])
        parts = [(x["path"], x) for x in inner if "node" not in x] or [(m["path"] or "<model>", m)]
        rows += [(name, x["forward"], x["backward"], x["kernels"]) for name, x in parts]
    most = max((max(f, b) for _, f, b, _ in rows), default=1) or 1
    bar, height, middle = 300, 22, 560
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{middle * 2 - 40}" height="{len(rows) * height + 70}" '
           'font-family="system-ui, sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>',
           f'<text x="20" y="26" font-size="15" font-weight="600">{escape(state.program.name)}: {human(state.totals["bytes"])} in '
           f'{state.totals["kernels"]} kernels ({escape(state.step)})</text>',
           f'<text x="{middle - 10}" y="50" text-anchor="end" fill="#52606d">forward</text>'
           f'<text x="{middle + 10}" y="50" fill="#52606d">backward</text>']  # fmt: skip
    for i, (name, f, b, kernels) in enumerate(rows):
        y = 62 + i * height
        out.append(f'<text x="20" y="{y + 13}">{escape(name)} <tspan fill="#52606d">({kernels})</tspan></text>')
        for value, x, anchor, color, sign in ((f, middle - 10, "end", "#0072b2", -1), (b, middle + 10, "start", "#d55e00", 1)):
            w = bar * value / most
            out.append(f'<rect x="{x - (w if sign < 0 else 0):.1f}" y="{y}" width="{w:.1f}" height="{height - 6}" rx="2" fill="{color}"/>')
            out.append(f'<text x="{x + sign * (w + 6):.1f}" y="{y + 13}" text-anchor="{anchor}" fill="#52606d">{human(value)}</text>')
    return "\n".join([*out, "</svg>", ""])


def page(title: str, scripts: str, data: str = "", policy: str = "") -> str:
    """`index.html` with its slots filled."""
    text = (STATIC / "index.html").read_text()
    for slot, value in (("<!--title-->", escape(title)), ("<!--policy-->", policy), ("<!--scripts-->", scripts), ("<!--data-->", data)):
        text = text.replace(slot, value)
    return text


def modules_of_the_page() -> list[Path]:
    return sorted((STATIC / "js").glob("*.js"))


def html(session: Session, state: State) -> str:
    """One file with page, program and answers; it loads nothing and changes nothing."""
    program = state.program
    order = sorted(program.nodes, key=lambda n: -state.view.bytes.get(n.id, 0))
    described = {**session.describe(), "states": [state.describe()], "current": state.id, "undo": False, "redo": None, "job": ""}
    parts = [n.origin.module.split(".") for n in program.nodes if n.origin.module]
    paths = sorted({".".join(p[: i + 1]) for p in parts for i in range(len(p))})
    inner = list(nodes_of_bodies(state.view))
    at: dict[int, list[Place]] = {}  # every place is looked at once, not again for each of its nodes
    for p in state.places:
        if not p.transformation.at_places:  # those need to be given parameters
            for n in p.match.nodes:
                at.setdefault(n.id, []).append(p)
    data = {
        "describe": described, "graph": session.graph(state.id),
        "overlay": {name: session.overlay(name, state.id) for name in overlays()},
        "node": {**{str(n.id): details(state.view, n, at.get(n.id, ())) for n in order[:DETAILED]},
                 **{above + ref: details(view, n, (), above) for above, ref, view, n in inner[:DETAILED]}},
        "body": {**{str(n.id): graphs.body(n) for n in order}, **{above + ref: graphs.body(n) for above, ref, _, n in inner}},
        "module": {p: session.module(p, state.id) for p in paths},
        "opportunities": session.opportunities(limit=100, state=state.id),
        "costliest": session.costliest(state=state.id), "roofline": session.roofline(state.id), "memory": session.memory(state.id),
        "recipe": export(session, "recipe", state), "svg": svg(state), "detailed": min(DETAILED, len(order)),
    }  # fmt: skip
    text = json.dumps(data).replace("</", "<\\/")
    return _whole(f"{program.name} · Shorthaul studio", f'<script type="application/json" id="offline">{text}</script>')


def framed(name: str) -> str:
    """The page for a notebook's frame: it asks the widget around it."""
    return _whole(f"{name} · Shorthaul studio", '<script type="application/json" id="framed">{}</script>')


def _whole(title: str, data: str) -> str:
    """The page with its style and modules in it. Its policy lets it load and send nothing."""
    sources = {f"studio/{p.name}": _data_url(p.read_text()) for p in modules_of_the_page()}
    style = f"<style>{(STATIC / 'style.css').read_text()}</style>"
    imports = json.dumps({"imports": sources})
    scripts = f'{style}<script type="importmap">{imports}</script><script type="module">import "studio/main.js";</script>'
    policy = ("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline' data: blob:; "
              "style-src 'unsafe-inline'; img-src data:; worker-src blob: data:\">")  # fmt: skip
    return page(title, scripts, data, policy)


def _data_url(text: str) -> str:
    return "data:text/javascript;base64," + base64.b64encode(text.encode()).decode("ascii")
