// The side panel: what is known of the selection, and what can be done with it.

import { bytes, count, el, seconds, value } from "studio/format.js";

/** @typedef {{ select(what: number | string): void, preview(p: PlaceInfo): void, apply(p: PlaceInfo): void, alike(p: PlaceInfo): void, readOnly: boolean, open(id: number): void }} Actions */

/** @param {string} name @param {string | Node} text */
function fact(name, text) {
  return el("div", { class: "fact" }, el("span", {}, name), el("b", {}, text));
}

/** A place where something applies (with buttons) or does not (with the reason). @param {PlaceInfo} p @param {Actions} on */
export function placeCard(p, on) {
  const saves = p.saves === null ? null : p.saves > 0 ? `saves ${bytes(p.saves)}` : p.saves < 0 ? `costs ${bytes(-p.saves)}, opens the way` : "prepares";
  return el("div", { class: `card ${p.reason ? "refused" : ""}` },
    el("header", {}, el("b", {}, p.transformation), p.reason ? el("span", { class: "soft" }, p.at_stake ? `${bytes(p.at_stake)} at stake` : "") : el("b", { class: (p.saves ?? 0) > 0 ? "good" : "soft" }, saves)),
    el("div", { class: "place" }, p.text),
    p.reason ? el("p", {}, p.reason) : null,
    p.reason || on.readOnly ? null : el("div", { class: "row" },
      el("button", { class: "main", onclick: () => on.apply(p) }, "Apply"),
      el("button", { onclick: () => on.alike(p), title: "Here and in every module that is built alike" }, "Apply to all alike"),
      el("button", { onclick: () => on.preview(p) }, "Preview")));
}

/** @param {HTMLElement} panel @param {NodeDetails} d @param {Actions} on @param {{ info: OverlayInfo, value: number | string | undefined }} overlay */
export function showNode(panel, d, on, overlay) {
  const applies = d.places.filter((p) => !p.reason), refused = d.places.filter((p) => p.reason);
  const side = (/** @type {string} */ s, /** @type {string} */ head) => {
    const rows = d.memlets.filter((m) => m.side === s);
    return rows.length ? [el("h3", {}, head), el("table", {}, el("tbody", {}, ...rows.map((m) => el("tr", {},
      el("td", { class: "wrap" }, el("span", { class: "mono" }, m.container), el("br"), el("span", { class: "soft" },
        `${m.dtype}[${m.shape.join(", ")}] ${m.role}${m.strides ? ` strides (${m.strides.join(", ")})` : ""}${m.alias ? ` in ${m.alias}` : ""}`),
        el("br"), el("span", { class: "mono soft", title: "memlet: what of the container moves" }, m.subset),
        ...(m.others.length ? [el("br"), el("span", { class: "soft" }, s === "read" ? "from " : "to "), ...m.others.flatMap((o, i) => [i ? ", " : "", el("a", { href: "#", onclick: (/** @type {Event} */ e) => { e.preventDefault(); on.select(o); } }, o)])] : [])),
      el("td", { class: "n", title: m.again ? `${bytes(m.again)} of it read again` : "" }, (m.exact ? "" : "≤ ") + bytes(m.bytes))))))] : [];
  };
  panel.replaceChildren(
    el("h2", {}, d.label), el("p", { class: "soft" }, `${d.kind === "map" ? "kernel" : d.kind}, ${d.phase}`, d.module ? " · " : "", d.module ? el("a", { href: "#", onclick: (/** @type {Event} */ e) => { e.preventDefault(); on.select(`module:${d.module}`); } }, d.module) : ""),
    el("div", { class: "facts" }, fact("Bytes moved", bytes(d.bytes)), fact("Operations", count(d.flops)),
      fact("Predicted", d.predicted === null ? "–" : `${seconds(d.predicted)}`), fact("Bound by", d.bound ?? "–"), fact("Measured", seconds(d.measured)),
      ["bytes", "predicted", "measured", "error"].includes(overlay.info.name) ? fact("Numeric check", d.error === null ? "–" : d.error === 0 ? "no difference" : d.error.toExponential(1)) : fact(overlay.info.title, value(overlay.value, overlay.info.unit))),
    el("h3", {}, `What can be done (${applies.length})`),
    ...(applies.length ? applies.map((p) => placeCard(p, on)) : [el("p", { class: "soft" }, d.inside ? "This is a node of a body: transformations are applied to the nodes of the program itself." : "No transformation applies here.")]),
    ...(refused.length ? [el("details", { class: "refusals" }, el("summary", {}, `What does not apply, and why (${refused.length})`), ...refused.map((p) => placeCard(p, on)))] : []),
    el("h3", {}, "Where it comes from"),
    ...(d.origins.length ? d.origins.slice(0, 6).map((o, i) => origin(o, i === 0)) : [el("p", { class: "soft" }, "It has no origin in the model.")]),
    ...(d.origins.length > 6 ? [el("p", { class: "soft" }, `and ${d.origins.length - 6} more`)] : []),
    ...side("read", "Reads"), ...side("write", "Writes"),
    el("details", {}, el("summary", {}, "As maps and tasklets"), el("pre", {}, d.text)),
    ...d.code.map((c) => c.language ? el("details", { class: "code" }, el("summary", {}, c.language === "call" ? "Library call" : `Generated ${c.language}`), el("pre", {}, c.text)) : el("p", { class: "soft" }, c.text)));
  panel.scrollTop = 0;
}

/** @param {OriginInfo} o @param {boolean} open */
function origin(o, open) {
  const head = `${o.module || "<model>"}${o.operator ? `  ${o.operator}` : ""}${o.file ? `  ${o.file}:${o.line}` : ""}`;
  if (!o.lines.length) return el("p", { class: "mono soft" }, head);
  return el("details", { open }, el("summary", {}, head), el("pre", { title: o.source }, ...o.lines.map(([n, text]) =>
    el("span", { class: n === o.line ? "hit" : "" }, el("span", { class: "no" }, String(n)), text, n === o.line ? "" : "\n"))));
}

/** @param {HTMLElement} panel @param {ModuleDetails} d @param {PlaceInfo[]} places @param {Actions} on */
export function showModule(panel, d, places, on) {
  panel.replaceChildren(
    el("h2", {}, d.module), el("p", { class: "soft" }, `module, ${d.kernels} nodes`),
    el("div", { class: "facts" }, fact("Bytes moved", bytes(d.bytes)), fact("Forward", bytes(d.phases.forward)), fact("Backward", bytes(d.phases.backward)),
      fact("Predicted", seconds(d.predicted)), fact("Measured", seconds(d.measured)), fact("Saves for backward", bytes(d.saved.reduce((s, [, b]) => s + b, 0)))),
    ...(d.alike.length ? [el("p", {}, el("span", { class: "soft" }, "Built alike: "), ...d.alike.slice(0, 12).flatMap((m, i) => [i ? ", " : "", el("a", { href: "#", onclick: (/** @type {Event} */ e) => { e.preventDefault(); on.select(`module:${m}`); } }, m)]))] : []),
    el("h3", {}, places.length ? `What saves most here (${places.length < 30 ? places.length : "the first 30"})` : "What saves most here"),
    ...(places.length ? places.slice(0, 30).map((p) => placeCard(p, on)) : [el("p", { class: "soft" }, "No transformation applies inside.")]),
    el("h3", {}, "Costliest inside"),
    el("table", {}, el("tbody", {}, ...d.nodes.map((n) => el("tr", { tabindex: 0, onclick: () => on.select(n.id), onkeydown: (/** @type {KeyboardEvent} */ e) => { if (e.key === "Enter") on.select(n.id); } },
      el("td", { class: "wrap" }, n.ref), el("td", { class: "n" }, bytes(n.bytes)))))),
    ...(d.saved.length ? [el("h3", {}, "Saved for the backward phase"), el("table", {}, el("tbody", {}, ...d.saved.map(([c, b]) => el("tr", {}, el("td", { class: "mono wrap" }, c), el("td", { class: "n" }, bytes(b))))))] : []),
    ...(d.inputs.length ? [el("details", {}, el("summary", {}, "What comes from outside"), el("table", {}, el("tbody", {}, ...d.inputs.map((c) => el("tr", {}, el("td", { class: "wrap" }, el("span", { class: "mono" }, c.container), ` ${c.role}`), el("td", { class: "n" }, c.shape.join("×")), el("td", { class: "n" }, bytes(c.bytes)))))))] : []));
  panel.scrollTop = 0;
}

/** Nothing is selected. @param {HTMLElement} panel @param {Describe} d @param {Graph} g @param {PlaceInfo[] | null} best @param {Actions} on */
export function showProgram(panel, d, g, best, on) {
  const now = d.states[0] && (d.states.find((s) => s.id === d.current) ?? d.states[0]), t = now.totals;
  panel.replaceChildren(
    el("h2", {}, d.name), el("p", { class: "soft" }, `${now.step} · form ${g.form} · ${g.nodes.filter((n) => n.parent === undefined).length} nodes`),
    el("div", { class: "facts" }, fact("Read", bytes(t.read)), fact("Written", bytes(t.written)), fact("Eager PyTorch", bytes(t.eager)), fact("Lower bound", bytes(t.bound)),
      fact("Saved tensors", bytes(t.saved)), fact("Peak of transients", bytes(t.peak)), fact("Library calls", String(t.calls))),
    el("p", { class: "soft" }, "Select a node or a module to see what it moves, where it comes from and what can be done with it. Press ? for the keys."),
    el("h3", {}, "What saves most"),
    ...(best === null ? [el("p", { class: "soft" }, "Looking at every place …")] : best.length ? best.slice(0, 8).map((p) => placeCard(p, on)) : [el("p", { class: "soft" }, g.form === "operators" ? "Run level 0 to lower the operators; then there is something to fuse." : "No transformation saves anything more.")]));
  panel.scrollTop = 0;
}
