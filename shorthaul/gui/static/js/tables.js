// The drawer: tables that sort, the roofline, memory over time, the tree of states, the difference of two.

import { bytes, change, count, el, seconds } from "studio/format.js";

export const TABS = [["costliest", "Costliest"], ["opportunities", "What saves most"], ["roofline", "Roofline"], ["memory", "Memory"], ["history", "History"], ["diff", "Compare"]];
const SVG = "http://www.w3.org/2000/svg";

/** @param {string} tag @param {Record<string, any>} attributes @param {...(Node | string)} children */
function s(tag, attributes = {}, ...children) {
  const e = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) k.startsWith("on") ? e.addEventListener(k.slice(2), v) : e.setAttribute(k, String(v));
  e.append(...children);
  return e;
}

/**
 * A table whose columns sort. @template T @param {HTMLElement} into
 * @param {{ name: string, get: (row: T) => any, show?: (row: T) => string | Node, number?: boolean, wide?: boolean }[]} columns
 * @param {T[]} rows @param {{ sort: number, down: boolean }} by @param {(row: T) => void} [choose] @param {(row: T) => boolean} [chosen] @param {Node} [top]
 */
export function table(into, columns, rows, by, choose, chosen, top) {
  const draw = () => {
    const c = columns[by.sort];
    const sorted = [...rows].sort((a, b) => {
      const x = c.get(a), y = c.get(b);
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return (x < y ? -1 : x > y ? 1 : 0) * (by.down ? -1 : 1);
    });
    into.replaceChildren(...(top ? [top] : []), el("table", {},
      el("thead", {}, el("tr", {}, ...columns.map((k, i) => el("th", { class: k.number ? "n" : "", "aria-sort": i === by.sort ? (by.down ? "descending" : "ascending") : "none" },
        el("button", { onclick: () => { by.down = by.sort === i ? !by.down : !!k.number; by.sort = i; draw(); } }, k.name + (i === by.sort ? (by.down ? " ▾" : " ▴") : "")))))),
      el("tbody", {}, ...sorted.map((row) => el("tr", { class: chosen && chosen(row) ? "chosen" : "", tabindex: choose ? 0 : null, onclick: () => choose && choose(row), onkeydown: (/** @type {KeyboardEvent} */ e) => { if (e.key === "Enter" && choose) choose(row); } },
        ...columns.map((k) => el("td", { class: k.number ? "n" : k.wide ? "wrap" : "" }, k.show ? k.show(row) : String(k.get(row) ?? "–"))))))));
  };
  draw();
}

/** @param {HTMLElement} into @param {CostRow[]} rows @param {{ sort: number, down: boolean }} by @param {(id: number) => void} select @param {number} selected */
export function costliest(into, rows, by, select, selected) {
  const most = Math.max(1, ...rows.map((r) => r.bytes));
  table(into, [
    { name: "Node", get: (r) => r.label, wide: true }, { name: "Module", get: (r) => r.module, wide: true }, { name: "Phase", get: (r) => r.phase }, { name: "Runs as", get: (r) => r.kind },
    { name: "Bytes", get: (r) => r.bytes, number: true, show: (r) => el("span", {}, el("span", { class: "bar", style: `width:${(60 * r.bytes / most).toFixed(1)}px` }), bytes(r.bytes)) },
    { name: "Share", get: (r) => r.share, number: true, show: (r) => `${(100 * r.share).toFixed(1)}%` },
    { name: "Flop/B", get: (r) => (r.flops === null || !r.bytes ? null : r.flops / r.bytes), number: true, show: (r) => (r.flops === null || !r.bytes ? "–" : (r.flops / r.bytes).toPrecision(2)) },
    { name: "Predicted", get: (r) => r.predicted, number: true, show: (r) => seconds(r.predicted) },
    { name: "Measured", get: (r) => r.measured, number: true, show: (r) => seconds(r.measured) },
    { name: "Off roofline", get: (r) => (r.measured && r.predicted ? r.measured / r.predicted : null), number: true, show: (r) => (r.measured && r.predicted ? `${(r.measured / r.predicted).toPrecision(2)}×` : "–") },
  ], rows, by, (r) => select(r.id), (r) => r.id === selected);
}

/** @param {HTMLElement} into @param {PlaceInfo[]} rows @param {{ sort: number, down: boolean }} by @param {import("studio/panel.js").Actions} on @param {boolean} refused @param {(refused: boolean) => void} turn */
export function opportunities(into, rows, by, on, refused, turn) {
  const top = el("div", { class: "bar-top" },
    el("span", {}, (rows.length >= 200 ? "The first " : "") + (refused ? `${rows.length} places where a transformation does not apply, most bytes at stake first` : `${rows.length} places where a transformation applies now, by what it is predicted to save`)),
    el("button", { onclick: () => turn(!refused) }, refused ? "Show what applies" : "Show what does not apply"));
  table(into, [
    { name: refused ? "At stake" : "Saves", get: (r) => (refused ? r.at_stake : r.saves), number: true, show: (r) => bytes(refused ? r.at_stake : r.saves) },
    { name: "Transformation", get: (r) => r.transformation }, { name: "Level", get: (r) => r.level, number: true },
    { name: "Place", get: (r) => r.text, wide: true },
    refused ? { name: "Reason", get: (r) => r.reason, wide: true } : { name: "", get: () => 0, show: (r) => (on.readOnly ? "" : el("span", {},
      el("button", { onclick: (/** @type {Event} */ e) => { e.stopPropagation(); on.apply(r); } }, "Apply"), " ",
      el("button", { onclick: (/** @type {Event} */ e) => { e.stopPropagation(); on.alike(r); } }, "All alike"), " ",
      el("button", { onclick: (/** @type {Event} */ e) => { e.stopPropagation(); on.preview(r); } }, "Preview"))) },
  ], rows, by, (r) => { if (r.nodes.length) on.select(r.nodes[0]); }, undefined, top);
}

/** @param {HTMLElement} into @param {RooflineInfo} d @param {(id: number) => void} select @param {number} selected */
export function roofline(into, d, select, selected) {
  const w = Math.max(600, into.clientWidth || 900), h = 260, left = 74, right = 24, top = 18, bottom = 38;
  const xs = d.points.map((p) => p.flops / p.bytes);
  const lo = Math.min(0.05, ...xs), hi = Math.max(100, d.contraction / d.bandwidth * 4, ...xs);
  const high = Math.max(d.peak, d.contraction) * 2, low = Math.min(d.bandwidth * lo, ...d.points.filter((p) => p.measured).map((p) => p.flops / /** @type {number} */ (p.measured))) / 2;
  const X = (/** @type {number} */ v) => left + (w - left - right) * Math.log(v / lo) / Math.log(hi / lo);
  const Y = (/** @type {number} */ v) => h - bottom - (h - top - bottom) * Math.log(v / low) / Math.log(high / low);
  const svg = s("svg", { class: "plot", viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `Roofline of ${d.points.length} kernels on ${d.machine}` });
  for (let e = Math.ceil(Math.log10(lo)); e <= Math.log10(hi); e++) svg.append(s("line", { class: "axis", x1: X(10 ** e), x2: X(10 ** e), y1: top, y2: h - bottom }), s("text", { x: X(10 ** e), y: h - bottom + 15, "text-anchor": "middle" }, e < 0 ? (10 ** e).toFixed(-e) : String(10 ** e)));
  for (let e = Math.ceil(Math.log10(low)); e <= Math.log10(high); e++) svg.append(s("line", { class: "axis", x1: left, x2: w - right, y1: Y(10 ** e), y2: Y(10 ** e) }), s("text", { x: left - 8, y: Y(10 ** e) + 4, "text-anchor": "end" }, `${count(10 ** e).replace(".00", "")}flop/s`));
  for (const [peak, name] of /** @type {[number, string][]} */ ([[d.peak, "peak"], [d.contraction, "peak of products"]])) {
    const knee = peak / d.bandwidth;
    svg.append(s("path", { d: `M${X(lo)} ${Y(d.bandwidth * lo)}L${X(knee)} ${Y(peak)}L${X(hi)} ${Y(peak)}`, fill: "none", stroke: "var(--text)", "stroke-width": 1.5 }), s("text", { class: "halo", x: w - right, y: Y(peak) + (peak < Math.max(d.peak, d.contraction) ? 14 : -5), "text-anchor": "end" }, name));
  }
  svg.append(s("text", { x: (left + w) / 2, y: h - 6, "text-anchor": "middle" }, `operations per byte on ${d.machine}; ${d.without} nodes whose operations are not known are left out`));
  const most = Math.max(...d.points.map((p) => p.bytes), 1);
  for (const p of [...d.points].sort((a, b) => b.bytes - a.bytes)) {
    const rate = p.flops / (p.measured ?? p.predicted);
    const dot = s("circle", { class: `dot ${p.measured ? "measured" : ""} ${p.id === selected ? "chosen" : ""}`, cx: X(p.flops / p.bytes), cy: Y(Math.max(low, rate)), r: 3 + 9 * Math.sqrt(p.bytes / most), tabindex: 0, onclick: () => select(p.id), onkeydown: (/** @type {KeyboardEvent} */ e) => { if (e.key === "Enter") select(p.id); } });
    dot.append(s("title", {}, `${p.name}: ${bytes(p.bytes)}, ${count(p.flops)} operations, ${p.measured ? `measured ${seconds(p.measured)}` : `predicted ${seconds(p.predicted)} (bound by ${p.bound})`}`));
    svg.append(dot);
  }
  into.replaceChildren(svg);
}

/** @param {HTMLElement} into @param {MemoryInfo} d @param {(id: number) => void} select */
export function memory(into, d, select) {
  const w = Math.max(600, into.clientWidth || 900), h = 260, left = 74, right = 20, top = 18, bottom = 34, n = d.at.length || 1;
  const most = Math.max(1, ...d.at), X = (/** @type {number} */ i) => left + (w - left - right) * i / n, Y = (/** @type {number} */ b) => h - bottom - (h - top - bottom) * b / most;
  const svg = s("svg", { class: "plot", viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `Memory of transients over the step, at most ${bytes(most)}` });
  for (let i = 0; i <= 4; i++) svg.append(s("line", { class: "axis", x1: left, x2: w - right, y1: Y(most * i / 4), y2: Y(most * i / 4) }), s("text", { x: left - 8, y: Y(most * i / 4) + 4, "text-anchor": "end" }, bytes(most * i / 4)));
  let area = `M${X(0)} ${Y(0)}`;
  d.at.forEach((b, i) => { area += `L${X(i).toFixed(1)} ${Y(b).toFixed(1)}L${X(i + 1).toFixed(1)} ${Y(b).toFixed(1)}`; });
  svg.append(s("path", { d: `${area}L${X(n)} ${Y(0)}Z`, fill: "var(--accent)", "fill-opacity": 0.18, stroke: "var(--accent)" }));
  d.tensors.filter((t) => t.bytes > most / 200).slice(0, 40).forEach((t, i) => {
    const y = h - bottom - 5 - (i % 40) * (h - top - bottom - 10) / 40;
    const bar = s("line", { x1: X(t.first), x2: X(t.last + 1), y1: y, y2: y, stroke: t.saved ? "var(--saved)" : "var(--soft)", "stroke-width": 3, "stroke-opacity": 0.75, style: "cursor:pointer", onclick: () => select(d.ids[t.first]) });
    bar.append(s("title", {}, `${t.name}: ${bytes(t.bytes)}${t.saved ? ", saved for the backward phase" : ""}`));
    svg.append(bar);
  });
  const turn = d.phases.findIndex((p) => p !== "forward");
  if (turn > 0) svg.append(s("line", { x1: X(turn), x2: X(turn), y1: top, y2: h - bottom, stroke: "var(--text)", "stroke-dasharray": "4 3" }), s("text", { class: "halo", x: X(turn) + 6, y: top - 5 }, `backward begins; ${bytes(d.saved)} saved`));
  svg.append(s("text", { x: (left + w) / 2, y: h - 8, "text-anchor": "middle" }, "nodes in order; bars are the largest tensors from their first to their last use, the saved ones in orange"));
  into.replaceChildren(svg);
}

/** @param {Badge | null} b */
export function badge(b) {
  if (!b) return el("span", { class: "soft" }, "");
  const [sign, kind] = b.ok === true ? ["✓ agrees", "good"] : b.ok === false ? ["✗ differs", "bad"] : b.done ? ["? not checked", "warn"] : ["… checking", "soft"];
  if (b.word) return el("span", { class: "badge soft", title: b.text }, b.word);
  return el("span", { class: `badge ${kind}`, title: b.text }, sign);
}

/** @param {HTMLElement} into @param {Describe} d @param {{ goto(id: number): void, diff(a: number, b: number): void, restore(): void, readOnly: boolean }} on */
export function history(into, d, on) {
  /** @type {Map<number | null, StateInfo[]>} */ const below = new Map();
  for (const st of d.states) (below.get(st.parent) ?? below.set(st.parent, []).get(st.parent))?.push(st);
  const out = el("div", { class: "tree", role: "tree" });
  const walk = (/** @type {StateInfo} */ st, /** @type {number} */ depth, /** @type {StateInfo | null} */ before) => {
    out.append(el("div", { class: `state ${st.id === d.current ? "now" : ""}`, role: "treeitem", "aria-selected": st.id === d.current },
      el("span", { class: "soft" }, `${st.id}`), el("span", { title: st.step, style: `padding-left:${depth * 18}px` }, depth ? "└ " : "", st.step), el("span", { class: "n" }, bytes(st.totals.bytes)),
      el("span", { class: "n soft" }, before && before.form !== "operators" ? change(st.totals.bytes, before.totals.bytes) : ""), el("span", { class: "n" }, `${st.totals.kernels} nodes`), badge(st.check),
      el("span", {}, st.id === d.current || on.readOnly ? el("span", { class: "soft" }, st.id === d.current ? "here" : "") : el("button", { class: "quiet", onclick: () => on.goto(st.id) }, "Go here"),
        st.id === d.current || on.readOnly ? "" : el("button", { class: "quiet", onclick: () => on.diff(st.id, d.current) }, "Compare"))));
    const kids = below.get(st.id) ?? [];
    kids.forEach((k) => walk(k, depth + (kids.length > 1 ? 1 : 0), st));
  };
  for (const st of below.get(null) ?? d.states.slice(0, 1)) walk(st, 0, null);
  if (d.earlier && !on.readOnly) {
    out.append(el("div", { class: "state" }, el("span", { class: "soft" }, "–"), el("span", { title: d.earlier.step }, `an earlier session: ${d.earlier.step}`), el("span", { class: "n" }, bytes(d.earlier.bytes)),
      el("span"), el("span"), el("span", { class: "soft" }, new Date(d.earlier.when * 1000).toLocaleDateString()), el("span", {}, el("button", { class: "quiet", onclick: on.restore }, "Take it up"))));
  }
  into.replaceChildren(out);
  out.querySelector(".now")?.scrollIntoView({ block: "nearest" });
}

/** @param {HTMLElement} into @param {DiffInfo} d @param {(id: number) => void} select */
export function diff(into, d, select) {
  const a = d.before.totals, b = d.after.totals;
  const top = el("div", { class: "bar-top" }, el("span", {}, `From state ${d.before.id} (${d.before.step}) to ${d.after.id} (${d.after.step}): bytes ${bytes(a.bytes)} → ${bytes(b.bytes)} ${change(b.bytes, a.bytes)}, nodes ${a.kernels} → ${b.kernels}, predicted ${seconds(a.predicted)} → ${seconds(b.predicted)}` +
    (a.measured && b.measured ? `, measured ${seconds(a.measured.median)} → ${seconds(b.measured.median)} ${change(b.measured.median, a.measured.median)}` : "") + `. ${d.added.length} nodes are new (outlined in the graph), ${d.removed.length} are gone.`));
  const box = el("div");
  table(box, [
    { name: "Module", get: (r) => r.module || "<model>", wide: true }, { name: "Bytes before", get: (r) => r.before, number: true, show: (r) => bytes(r.before) },
    { name: "after", get: (r) => r.after, number: true, show: (r) => bytes(r.after) }, { name: "Change", get: (r) => r.after - r.before, number: true, show: (r) => `${r.after > r.before ? "+" : r.after < r.before ? "−" : ""}${bytes(Math.abs(r.after - r.before))}` },
    { name: "Nodes before", get: (r) => r.kernels_before, number: true }, { name: "after", get: (r) => r.kernels_after, number: true },
  ], d.modules, { sort: 3, down: false });
  const list = (/** @type {string} */ head, /** @type {CostRow[]} */ rows, /** @type {boolean} */ link) => el("details", { style: "padding:0 12px" }, el("summary", {}, `${head} (${rows.length})`), el("table", {}, el("tbody", {}, ...rows.slice(0, 300).map((r) => el("tr", link ? { tabindex: 0, onclick: () => select(r.id) } : {}, el("td", { class: "wrap" }, r.label), el("td", { class: "wrap" }, r.module), el("td", {}, r.phase), el("td", { class: "n" }, bytes(r.bytes)))))));
  into.replaceChildren(top, box, list("New nodes", d.added, true), list("Nodes that are gone", d.removed, false), el("details", { style: "padding:0 12px" }, el("summary", {}, "Steps"), el("pre", {}, d.recipe || "the same steps")));
}
