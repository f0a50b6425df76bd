// The page: what is selected, open, coloured and shown, and what its buttons and keys ask the session to do.

import { Live, Offline } from "studio/connection.js";
import { gradient, scale } from "studio/color.js";
import { byId, bytes, change, download, el, seconds, value } from "studio/format.js";
import { layout } from "studio/layout.js";
import { Model } from "studio/model.js";
import { showModule, showNode, showProgram } from "studio/panel.js";
import { flatten } from "studio/rows.js";
import * as tables from "studio/tables.js";
import { View, sizeOf } from "studio/view.js";

const TABS = [["costliest", "Costliest"], ["opportunities", "What saves most"], ["roofline", "Roofline"], ["memory", "Memory"], ["history", "History"], ["diff", "Compare"]];
const KEYS = [["/", "search"], ["← ↑ → ↓", "to the neighbour"], ["Enter", "open or close the selection"], ["e", "open the selected module one level further"], ["Esc", "select what is around it, then nothing"], ["0", "fit into the window"], ["+  −", "zoom"], ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"], ["m", "measure"], ["t", "light or dark"], ["?", "this list"]];

class App {
  constructor() {
    const offline = document.getElementById("offline");
    /** @type {import("studio/connection.js").Connection} */
    this.line = offline ? new Offline(JSON.parse(offline.textContent ?? "{}")) : new Live(`ws://${location.host}/ws${location.search}`);
    /** @type {Describe} */ this.d = /** @type {any} */ (null);
    /** @type {Graph} */ this.graph = /** @type {any} */ (null);
    /** @type {Model} */ this.model = /** @type {any} */ (null);
    /** @type {Set<string>} */ this.open = new Set();
    /** @type {Map<string, import("studio/view.js").Row[]>} lines of open kernels, by reference */ this.bodies = new Map();
    this.selected = -1;
    this.tab = "costliest";
    this.sort = { costliest: { sort: 4, down: true }, opportunities: { sort: 0, down: true } };
    this.refused = false;
    /** @type {[number, number] | null} */ this.compare = null;
    /** @type {PlaceInfo[] | null} */ this.best = null;
    this.overlay = "bytes";
    /** @type {Record<string, number | string>} */ this.values = {};
    this.serial = 0;
    this.loading = 0;
    /** @type {Record<string, number>} seconds since the page began */ this.timing = {};
    this.theme = /** @type {"light" | "dark"} */ (stored("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    this.view = new View(/** @type {HTMLCanvasElement} */ (byId("graph")), /** @type {HTMLCanvasElement} */ (byId("minimap")), {
      select: (i) => this.select(i), toggle: (i) => this.toggle(i), hover: (i, x, y) => this.tip(i, x, y), moved: () => this.remember(),
    });
    this.worker = this.startWorker();
    /** @type {((out: LayoutOutput) => void) | null} */ this.waiting = null;
    /** @type {(() => void) | null} lays out in the page where the worker fails */ this.instead = null;
    this.actions = {
      select: (/** @type {number | string} */ w) => this.find(w), apply: (/** @type {PlaceInfo} */ p) => this.applyPlace("apply", p), alike: (/** @type {PlaceInfo} */ p) => this.applyPlace("apply_alike", p),
      preview: (/** @type {PlaceInfo} */ p) => this.preview(p), readOnly: this.line.readOnly, open: (/** @type {number} */ id) => this.find(id),
    };
    this.setTheme(this.theme);
    this.line.onEvent = (e) => this.event(e);
    this.line.onStatus = (up, text) => { if (up) { if (this.lost) { this.lost = false; this.notice("Connected again; nothing was lost.", false, 3000); } } else { this.lost = true; this.notice(text, true); } };
    this.lost = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.link = undefined;
    /** @type {number[] | null} */ this.linked = null;
    /** @type {number[] | null} */ this.place = null;
    this.wire();
    this.load(true).catch((e) => this.fail(e));
  }

  startWorker() {
    try {
      const map = document.querySelector('script[type="importmap"]'), url = JSON.parse(map?.textContent ?? "{}").imports?.["studio/layout.js"];
      const inline = String(url).startsWith("data:"); // an offline page: a plain worker of the text, since files may not start modules
      const text = inline ? new TextDecoder().decode(Uint8Array.from(atob(url.split(",")[1]), (c) => c.charCodeAt(0))).replace(/^export /gm, "") : "";
      const worker = inline ? new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" }))) : new Worker(url, { type: "module" });
      worker.onmessage = (/** @type {MessageEvent<LayoutOutput>} */ m) => this.waiting?.(m.data);
      worker.onerror = () => { this.worker = null; this.instead?.(); };
      return worker;
    } catch {
      return null; // a browser that forbids workers to local files lays out in the page
    }
  }

  // --- loading ---------------------------------------------------------------------------------------------------------
  /** Ask for everything that belongs to the current state. @param {boolean} first */
  async load(first) {
    const turn = ++this.loading;
    const [d, g] = await Promise.all([this.line.call("describe"), this.line.call("graph")]);
    if (turn !== this.loading) return;
    if (first) this.timing.received = performance.now() / 1000;
    const before = this.model ? this.selection() : null, corner = this.model ? this.corner(this.selected) : null;
    this.place = corner ? [corner[0] * this.view.k + this.view.x, corner[1] * this.view.k + this.view.y] : null;
    this.d = d;
    this.graph = g;
    this.line.version = d.version;
    this.model = new Model(g);
    this.best = null;
    if (first) {
      this.open = this.model.initial();
      this.fromLink();
    } else {
      this.open = new Set([...this.open].filter((p) => this.model.byPath.has(p)));
    }
    for (const ref of [...this.bodies.keys()]) if (!this.model.byRef.has(ref)) this.bodies.delete(ref);
    this.selected = -1;
    if (before) this.selected = this.itemOf(before);
    this.bar();
    if (first) this.timing.model = performance.now() / 1000;
    await this.colours();
    const was = before && !first ? this.place : null; // where the selection stood in the window
    await this.relayout(first ? "start" : "keep");
    if (!first) this.settle(was);
    byId("loading").hidden = true;
    if (first) {
      this.timing.opened = performance.now() / 1000;
      const link = new URLSearchParams(location.hash.slice(1)).get("select");
      if (link) this.find(link);
      else if (this.linked) { const [x, y, k] = this.linked; Object.assign(this.view, { x, y, k }); this.view.draw(); }
    }
    this.panel();
    this.sheet();
    this.line.call("opportunities").then((found) => {
      if (turn !== this.loading) return;
      this.best = found;
      if (this.selected < 0) this.panel();
      if (this.tab === "opportunities") this.sheet();
    }).catch((e) => this.fail(e));
  }

  /** After a change of state: the selection stays where it was; an empty window shows the beginning. @param {number[] | null} was */
  settle(was) {
    const now = this.corner(this.selected), view = this.view;
    if (was && now) view.pan(was[0] - now[0] * view.k - view.x, was[1] - now[1] * view.k - view.y);
    else {
      const [w, h] = view.size, B = view.boxes;
      const seen = view.visible.some((i, n) => this.model.items[i].node >= 0 && B[4 * n] * view.k + view.x < w && (B[4 * n] + B[4 * n + 2]) * view.k + view.x > 0 && B[4 * n + 1] * view.k + view.y < h - 60 && (B[4 * n + 1] + B[4 * n + 3]) * view.k + view.y > 60);
      if (!seen) view.start();
    }
  }

  async colours() {
    const found = await this.line.call("overlay", { name: this.overlay });
    this.values = found.values;
    if (found.error) this.notice(found.error, true);
  }

  get info() {
    return this.d.overlays.find((o) => o.name === this.overlay) ?? this.d.overlays[0];
  }

  /** The value of the overlay at an item; of a module, what its aggregate says. @param {Item} it @returns {number | string | undefined} */
  valueOf(it) {
    const at = (/** @type {number} */ n) => this.values[this.graph.nodes[n].id];
    if (it.node >= 0) return at(it.node);
    const leaves = this.model.leaves.slice(it.first, it.last), how = this.info.aggregate;
    /** @type {number | string | undefined} */ let total;
    for (const n of leaves) {
      const v = at(n);
      if (v === undefined) continue;
      if (how === "uniform") { if (total !== undefined && total !== v) return undefined; total = v; } else if (typeof v === "number") total = total === undefined ? v : how === "sum" ? /** @type {number} */ (total) + v : Math.max(/** @type {number} */ (total), v);
    }
    return total;
  }

  paintColours() {
    const model = this.model, shown = this.view.visible.filter((i) => model.items[i].node >= 0 || !this.open.has(model.items[i].path));
    const values = new Map(shown.map((i) => [i, this.valueOf(model.items[i])]));
    const s = scale(this.info, /** @type {(number | string)[]} */ ([...values.values()].filter((v) => v !== undefined)), this.theme);
    /** @type {(string | undefined)[]} */ const colors = new Array(model.items.length);
    for (const [i, v] of values) colors[i] = s.color(v);
    this.view.setColors(colors);
    const legend = byId("legend");
    legend.replaceChildren(el("b", {}, this.info.title), ...(s.words ? [el("div", { class: "words" }, ...s.words.map((w) => el("span", {}, el("i", { style: `background:${s.color(w)}` }), w)))] :
      s.most ? [el("div", { class: "ramp", style: `background:${gradient(this.theme)}` }), el("div", { class: "ends" }, el("span", {}, "0"), el("span", {}, value(s.most, this.info.unit)))] : [el("div", { class: "soft" }, this.overlay === "measured" || this.overlay === "distance" ? "nothing was measured in this state" : "no values in this state")]));
  }

  /** Lay out what is open and draw it. @param {"start" | "keep" | "fit"} how @param {number} [anchor] item that stays where it is */
  async relayout(how, anchor = -1) {
    const serial = ++this.serial, model = this.model, visible = model.visible(this.open), edges = model.edges(visible, this.open);
    const rows = new Map();
    for (const [ref, r] of this.bodies) { const n = model.byRef.get(ref); if (n !== undefined) rows.set(model.leaf[n], r); }
    const input = model.layoutInput(visible, this.open, edges, (it) => sizeOf(it, it.node < 0 ? null : this.graph.nodes[it.node], rows.get(it.index)), serial);
    /** @type {LayoutOutput} */ const out = this.worker ? await new Promise((resolve) => {
      this.waiting = (o) => { if (o.serial === serial) resolve(o); };
      this.instead = () => resolve(layout(input));
      /** @type {Worker} */ (this.worker).postMessage(input);
    }) : layout(input);
    if (serial !== this.serial) return;
    this.timing.layout = out.seconds;
    if (how === "start") this.timing.placed = performance.now() / 1000;
    const was = anchor >= 0 ? this.corner(anchor) : null;
    this.view.setScene(model, visible, this.open, edges, out, rows);
    this.view.selected = this.selected;
    this.view.marked = new Set();
    const current = this.d.states.find((s) => s.id === this.d.current);
    if (this.tab === "diff" || (current && current.kind === "step")) for (const id of current?.made ?? []) { const n = model.byId.get(id); if (n !== undefined) this.view.marked.add(model.leaf[n]); }
    this.paintColours();
    if (how === "start") this.view.start();
    else if (how === "fit") this.view.fit();
    else if (was) { const now = this.corner(anchor); if (now) this.view.pan((was[0] - now[0]) * this.view.k, (was[1] - now[1]) * this.view.k); }
  }

  /** @param {number} i @returns {[number, number] | null} */
  corner(i) {
    const k = this.view.at.get(i);
    return k === undefined ? null : [this.view.boxes[4 * k], this.view.boxes[4 * k + 1]];
  }

  // --- selection ---------------------------------------------------------------------------------------------------------
  /** The selection by name, which survives a change of state. */
  selection() {
    const it = this.model.items[this.selected];
    return it ? (it.node >= 0 ? this.graph.nodes[it.node].ref : `module:${it.path}`) : null;
  }

  /** @param {string | number} what a node's id or reference, or module:path */
  itemOf(what) {
    if (typeof what === "string" && what.startsWith("module:")) return this.model.byPath.get(what.slice(7))?.[0] ?? -1;
    const n = typeof what === "number" ? this.model.byId.get(what) : this.model.byRef.get(what);
    return n === undefined ? -1 : this.model.leaf[n];
  }

  /** Select by name, opening what is around it. @param {string | number} what */
  async find(what) {
    const i = this.itemOf(what);
    if (i < 0) return this.notice(`There is no ${what} in this state.`, false, 5000);
    await this.goTo(i);
  }

  /** @param {number} i */
  async goTo(i) {
    const before = this.open.size;
    this.model.reveal(i, this.open);
    if (this.open.size !== before || !this.view.at.has(i)) await this.relayout("keep");
    this.select(i);
    this.view.show(i);
  }

  /** @param {number} i */
  select(i) {
    this.selected = this.view.selected = i;
    this.view.draw();
    this.panel();
    this.remember();
    const it = this.model.items[i];
    if (it) byId("say").textContent = `${it.path || "model"} ${it.label}, ${bytes(it.bytes)}, ${it.column ? "backward" : "forward"}`;
    for (const row of document.querySelectorAll("#sheet tr.chosen")) row.classList.remove("chosen");
  }

  /** Open or close a module or a kernel. @param {number} i */
  async toggle(i) {
    const it = this.model.items[i];
    if (it.node < 0) {
      if (this.open.has(it.path)) { for (const p of [...this.open]) if (p === it.path || p.startsWith(it.path + ".")) this.open.delete(p); } else this.open.add(it.path);
    } else {
      const node = this.graph.nodes[it.node];
      if (this.bodies.has(node.ref)) this.bodies.delete(node.ref);
      else {
        try {
          const body = await this.line.call("body", { what: node.id });
          this.bodies.set(node.ref, flatten(body));
        } catch (e) { return this.fail(e); }
      }
    }
    await this.relayout("keep", i);
    this.remember();
  }

  async panel() {
    const panel = byId("panel"), i = this.selected, it = this.model.items[i];
    try {
      if (!it) return showProgram(panel, this.d, this.graph, this.best, this.actions);
      if (it.node >= 0) {
        const node = this.graph.nodes[it.node], d = await this.line.call("node", { what: node.id });
        if (this.selected === i) showNode(panel, d, this.actions, { info: this.info, value: this.values[node.id] });
      } else {
        const [d, places] = await Promise.all([this.line.call("module", { path: it.path }), this.line.readOnly ? [] : this.line.call("opportunities", { inside: it.path, limit: 30 })]);
        if (this.selected === i) showModule(panel, d, places, this.actions);
      }
    } catch (e) {
      panel.replaceChildren(el("p", { class: "soft" }, /** @type {Error} */ (e).message));
    }
  }

  /** @param {number} i @param {number} x @param {number} y */
  tip(i, x, y) {
    const tip = byId("tip"), it = this.model?.items[i];
    if (!it || (it.node < 0 && this.open.has(it.path))) { tip.hidden = true; return; }
    const node = it.node >= 0 ? this.graph.nodes[it.node] : null;
    const v = this.valueOf(it);
    tip.replaceChildren(el("b", {}, node ? node.ref : it.path), el("br"), node ? `${bytes(it.bytes)} moved${node.shape ? `, result ${node.shape}` : ""}` : `${it.count} nodes, ${bytes(it.bytes)} moved; double-click opens it`,
      this.overlay === "bytes" || v === undefined ? "" : el("div", {}, `${this.info.title}: ${value(v, this.info.unit)}`), node?.source ? el("div", { class: "soft" }, node.source.split("/").slice(-2).join("/")) : "");
    tip.hidden = false;
    tip.style.left = `${Math.min(x + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, innerHeight - tip.offsetHeight - 8)}px`;
  }

  // --- the bar and the drawer ----------------------------------------------------------------------------------------------
  bar() {
    const d = this.d, now = d.states.find((s) => s.id === d.current) ?? d.states[0], t = now.totals;
    const first = d.states.find((s) => s.kind === "lowered") ?? d.states[0], f = first.totals;
    byId("name").textContent = d.name;
    byId("step").textContent = `${now.id}: ${now.step}`;
    byId("step").title = now.step;
    const cell = (/** @type {string} */ name, /** @type {string} */ text, /** @type {string} */ small, good = false, /** @type {string} */ title = "") => el("div", { class: "total", title, "data-total": name }, el("span", {}, name), el("b", {}, text, small ? el("small", { class: good ? "good" : "soft" }, small) : ""));
    const drop = (/** @type {number} */ a, /** @type {number} */ b) => (now.id === first.id ? "" : change(a, b));
    const m = t.measured;
    byId("totals").replaceChildren(
      cell("Bytes moved", bytes(t.bytes), drop(t.bytes, f.bytes), t.bytes < f.bytes, `compared with state ${first.id}; read ${bytes(t.read)}, written ${bytes(t.written)}`),
      cell("of eager", t.eager ? `${(t.bytes / t.eager).toFixed(2)}×` : "–", "", false, `eager PyTorch moves ${bytes(t.eager)}`),
      cell("Kernels", String(t.kernels), drop(t.kernels, f.kernels), t.kernels < f.kernels, `${t.calls} of them library calls`),
      cell("Predicted", seconds(t.predicted), drop(t.predicted, f.predicted), t.predicted < f.predicted, `roofline on ${d.machine}`),
      cell("Measured", m ? seconds(m.median) : d.job === "measuring" ? "…" : "–", m ? `± ${seconds((m.high - m.low) / 2)}` : "", false, m ? `median of ${m.runs} runs on ${m.device}, ${m.threads} threads; quartiles ${seconds(m.low)} to ${seconds(m.high)}` : "not measured in this state"),
      el("div", { class: "total" }, el("span", {}, "Numbers"), tables.badge(now.check)));
    const overlay = /** @type {HTMLSelectElement} */ (byId("overlay"));
    if (overlay.options.length !== d.overlays.length) overlay.replaceChildren(...d.overlays.map((o) => el("option", { value: o.name, title: o.description }, o.title)));
    overlay.value = this.overlay;
    const ro = this.line.readOnly, button = (/** @type {string} */ id, /** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ run, off = false, main = false) => el("button", { id, title, class: main ? "main" : "", onclick: run, disabled: off }, text);
    const level = /** @type {HTMLSelectElement} */ (el("select", { id: "level", title: "Run the pipeline up to a level, from the captured operators", "aria-label": "Run level", onchange: () => { const v = level.value; level.value = ""; if (v) this.change("run_level", { level: Number(v) }); } },
      el("option", { value: "" }, "Level …"), ...["0 lower only", "1 operator", "2 fusion", "3 layout", "4 whole step"].map((t2, i) => el("option", { value: i }, t2))));
    const out = /** @type {HTMLSelectElement} */ (el("select", { id: "export", title: "Take it out", "aria-label": "Export", onchange: () => { const v = out.value; out.value = ""; if (v) this.export(v); } },
      el("option", { value: "" }, "Export …"), ...[["recipe", "Recipe (Python)"], ["svg", "Graph as shown (SVG)"], ...(ro ? [] : [["html", "Offline page (HTML)"], ["trace", "Trace (Chrome, Perfetto)"], ["json", "Program (JSON)"]])].map(([v, t2]) => el("option", { value: v }, t2))));
    const machine = /** @type {HTMLSelectElement} */ (el("select", { id: "machine", title: "The machine that times are predicted for", "aria-label": "Machine", onchange: () => this.change("set_machine", { machine: machine.value }) }, ...d.machines.map((m2) => el("option", { value: m2 }, m2))));
    machine.value = d.machine;
    const measuring = d.job === "measuring", tuning = d.job === "tuning";
    byId("actions").replaceChildren(...(ro ? [el("span", { class: "badge soft" }, "read-only export")] : [
      button("undo", "Undo", "Ctrl+Z", () => this.change("undo"), !d.undo), button("redo", "Redo", "Ctrl+Shift+Z", () => this.change("redo"), d.redo === null), level,
      button("reset", "Reset", "Back to the first state; the others stay in the history", () => this.change("reset")), machine,
      button("measure", measuring ? "Stop" : "Measure", measuring ? "Stop measuring" : "Time the step and every kernel on this machine (m)", () => this.measure(), tuning, true),
      button("tune", tuning ? "Stop" : "Tune", d.tunes ? "Search for a faster plan by measuring, for a minute; what was found is kept when it is stopped" : "Tuning runs the model: open the module or its ONNX file", () => this.tune(), !d.tunes || measuring)]),
      out, button("theme", this.theme === "dark" ? "Light" : "Dark", "Light or dark (t)", () => this.setTheme(this.theme === "dark" ? "light" : "dark")), button("help", "?", "Keys", () => this.help()));
  }

  async sheet() {
    const into = byId("sheet");
    for (const b of document.querySelectorAll("#tabs button[role=tab]")) b.setAttribute("aria-selected", String(/** @type {HTMLElement} */ (b).dataset.tab === this.tab));
    if (into.hidden) return;
    const pick = (/** @type {number} */ id) => this.find(id), it = this.model.items[this.selected], chosen = it && it.node >= 0 ? this.graph.nodes[it.node].id : -1;
    try {
      if (this.tab === "costliest") tables.costliest(into, await this.line.call("costliest"), this.sort.costliest, pick, chosen);
      else if (this.tab === "opportunities") {
        if (!this.refused && this.best === null) into.replaceChildren(el("div", { class: "bar-top" }, "Looking at every place of every transformation …"));
        else tables.opportunities(into, this.refused ? await this.line.call("opportunities", { refused: true }) : this.best ?? [], this.sort.opportunities, this.actions, this.refused, (r) => { this.refused = r; this.sheet(); });
      } else if (this.tab === "roofline") tables.roofline(into, await this.line.call("roofline"), pick, chosen);
      else if (this.tab === "memory") tables.memory(into, await this.line.call("memory"), pick);
      else if (this.tab === "history") tables.history(into, this.d, { goto: (id) => this.change("goto", { state: id }), diff: (a, b) => { this.compare = [a, b]; this.setTab("diff"); }, readOnly: this.line.readOnly });
      else if (this.line.readOnly) into.replaceChildren(el("div", { class: "bar-top" }, "An offline page holds one state."));
      else {
        const parent = this.d.states.find((s) => s.id === this.d.current)?.parent;
        const pair = this.compare ?? (parent === null || parent === undefined ? null : [parent, this.d.current]);
        if (pair) tables.diff(into, await this.line.call("diff", { before: pair[0], after: pair[1] }), pick);
        else into.replaceChildren(el("div", { class: "bar-top" }, "This is the first state: change something, or choose Compare beside a state in the history."));
      }
    } catch (e) { this.fail(e); }
  }

  /** @param {string} tab */
  setTab(tab) {
    const sheet = byId("sheet");
    sheet.hidden = this.tab === tab && !sheet.hidden && tab !== "diff";
    this.tab = tab;
    this.sheet();
    this.remember();
  }

  // --- changing ------------------------------------------------------------------------------------------------------------
  /** @param {string} method @param {Record<string, unknown>} [params] */
  async change(method, params = {}) {
    this.busy(true);
    try {
      const found = await this.line.call(method, params);
      this.notice("", false);
      this.compare = null;
      return found;
    } catch (e) {
      this.fail(e);
      await this.load(false);
    } finally {
      this.busy(false);
    }
  }

  /** @param {"apply" | "apply_alike"} method @param {PlaceInfo} p */
  async applyPlace(method, p) {
    const found = await this.change(method, { transformation: p.transformation, where: p.where, parameters: p.parameters });
    if (found) byId("say").textContent = `${found.step}: ${bytes(found.totals.bytes)} moved`;
  }

  /** @param {PlaceInfo} p */
  async preview(p) {
    this.busy(true);
    try {
      /** @type {PreviewInfo} */ const d = await this.line.call("preview", { transformation: p.transformation, where: p.where, parameters: p.parameters });
      const dialog = /** @type {HTMLDialogElement} */ (byId("dialog"));
      const close = () => dialog.close();
      dialog.replaceChildren(el("h2", {}, `Preview: ${p.transformation}`), el("p", { class: "soft" }, p.text),
        el("p", {}, `Bytes ${bytes(d.before.bytes)} → ${bytes(d.after.bytes)} ${change(d.after.bytes, d.before.bytes)},  kernels and calls ${d.before.kernels} → ${d.after.kernels},  predicted ${seconds(d.before.predicted)} → ${seconds(d.after.predicted)}`), el("p", { class: "soft" }, d.check),
        el("div", { class: "two" }, el("div", {}, el("b", {}, "Before"), el("pre", {}, d.text_before || "–")), el("div", {}, el("b", {}, "After"), el("pre", {}, d.text_after || "–"))),
        el("div", { class: "row", style: "display:flex;gap:8px;justify-content:flex-end;margin-top:12px" }, el("button", { onclick: close }, "Close"), el("button", { onclick: () => { close(); this.applyPlace("apply_alike", p); } }, "Apply to all alike"), el("button", { class: "main", onclick: () => { close(); this.applyPlace("apply", p); } }, "Apply")));
      dialog.showModal();
    } catch (e) { this.fail(e); } finally { this.busy(false); }
  }

  async measure() {
    if (this.line.readOnly) return;
    try {
      await this.line.call(this.d.job === "measuring" ? "stop" : "measure");
    } catch (e) { this.fail(e); }
  }

  async tune() {
    try {
      await this.line.call(this.d.job === "tuning" ? "stop" : "tune", this.d.job === "tuning" ? {} : { budget: 60 });
    } catch (e) { this.fail(e); }
  }

  /** @param {string} kind */
  async export(kind) {
    try {
      const text = kind === "svg" ? this.view.svg() : await this.line.call("export", { kind });
      const [end, type] = { recipe: [".py", "text/x-python"], svg: [".svg", "image/svg+xml"], html: [".html", "text/html"], trace: [".trace.json", "application/json"], json: [".json", "application/json"] }[kind] ?? [".txt", "text/plain"];
      download(`${this.d.name}${end}`, text, type);
    } catch (e) { this.fail(e); }
  }

  /** @param {any} e */
  event(e) {
    if (e.event === "changed" || e.event === "measured") this.load(false).catch((x) => this.fail(x));
    else if (e.event === "checked") this.line.call("describe").then((d) => {
      this.d = d;
      this.bar();
      if (this.tab === "history") this.sheet();
      const s = d.states[e.state];
      if (s?.check?.ok === false) this.notice(`State ${s.id} (${s.step}) ${s.check.text}. Undo takes it back.`, true);
    }).catch((x) => this.fail(x));
    else if (e.event === "progress" && this.d) {
      const was = this.d.job;
      this.d.job = e.job;
      if (was !== e.job) this.bar();
      const cell = document.querySelector('[data-total="Measured"] b');
      if (e.job === "measuring" && cell) cell.textContent = `${e.what} ${Math.round(100 * e.part)}%`;
      if (e.job === "tuning") this.notice(`Tuning, ${Math.round(100 * e.part)}%: ${e.what}`, false);
      else if (was === "tuning" && !e.job) this.notice("Tuning has ended; what won is the current state.", false, 8000);
    } else if (e.event === "failed") this.notice(e.what, true);
  }

  // --- small things ----------------------------------------------------------------------------------------------------------
  /** @param {any} e */
  fail(e) {
    this.notice(e instanceof Error ? e.message : String(e), true);
  }

  /** @param {string} text @param {boolean} bad @param {number} [gone] milliseconds after which it goes by itself */
  notice(text, bad, gone = 0) {
    const n = byId("notice");
    clearTimeout(this.timer);
    n.hidden = !text;
    n.className = bad ? "bad" : "";
    n.replaceChildren(el("span", {}, text), el("button", { class: "quiet", onclick: () => { n.hidden = true; } }, "Close"));
    if (gone) this.timer = setTimeout(() => { n.hidden = true; }, gone);
  }

  /** @param {boolean} on */
  busy(on) {
    document.body.style.cursor = on ? "progress" : "";
    for (const b of document.querySelectorAll("#actions button, .card button")) if (on) b.setAttribute("aria-busy", "true"); else b.removeAttribute("aria-busy");
  }

  /** @param {"light" | "dark"} theme */
  setTheme(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("shorthaul-theme", theme); } catch { /* a page from a file may have no storage */ }
    this.view.setTheme(theme);
    if (this.model) { this.paintColours(); this.bar(); }
  }

  help() {
    const dialog = /** @type {HTMLDialogElement} */ (byId("dialog"));
    dialog.replaceChildren(el("h2", {}, "Keys"), el("table", {}, el("tbody", {}, ...KEYS.map(([k, what]) => el("tr", {}, el("td", {}, el("kbd", {}, k)), el("td", {}, what))))),
      el("p", { class: "soft" }, "Drag moves, the wheel zooms, a double click opens a module or a kernel. Edges are as wide as the bytes they carry; orange ones are tensors saved for the backward phase."), el("button", { onclick: () => dialog.close() }, "Close"));
    dialog.showModal();
  }

  /** Selection, what is open, colour, tab and place in the address, so that a link leads back. */
  remember() {
    clearTimeout(this.link);
    this.link = setTimeout(() => {
      const p = new URLSearchParams(), s = this.selection();
      if (s) p.set("select", s);
      p.set("open", [...this.open].join("|"));
      p.set("colour", this.overlay);
      p.set("tab", this.tab);
      p.set("at", [this.view.x.toFixed(0), this.view.y.toFixed(0), this.view.k.toFixed(3)].join(","));
      const hash = `#${p}`;
      if (hash.length < 4000) window.history.replaceState(null, "", location.pathname + location.search + hash);
    }, 400);
  }

  fromLink() {
    const p = new URLSearchParams(location.hash.slice(1)), open = p.get("open");
    if (open !== null) this.open = new Set(open.split("|").filter((x) => this.model.byPath.has(x)));
    const colour = p.get("colour");
    if (colour && this.d.overlays.some((o) => o.name === colour)) this.overlay = colour;
    const tab = p.get("tab");
    if (tab && TABS.some(([t]) => t === tab)) this.tab = tab;
    const at = p.get("at")?.split(",").map(Number);
    this.linked = at && at.length === 3 && at.every(Number.isFinite) ? at : null;
  }

  wire() {
    byId("tabs").replaceChildren(...TABS.map(([t, name]) => el("button", { role: "tab", "data-tab": t, "aria-selected": "false", onclick: () => this.setTab(t) }, name)));
    byId("fit").onclick = () => this.view.fit();
    byId("collapse").onclick = () => { this.open.clear(); this.bodies.clear(); this.relayout("fit"); this.remember(); };
    byId("expand").onclick = () => this.openMore();
    const overlay = /** @type {HTMLSelectElement} */ (byId("overlay"));
    overlay.onchange = async () => { this.overlay = overlay.value; await this.colours(); this.paintColours(); this.panel(); this.remember(); };
    const saved = /** @type {HTMLInputElement} */ (byId("saved"));
    saved.onchange = () => { this.view.showSaved = saved.checked; this.view.draw(); };
    this.wireSearch();
    const split = byId("split");
    split.addEventListener("pointerdown", (e) => split.setPointerCapture(e.pointerId));
    split.addEventListener("pointermove", (e) => { if (e.buttons) document.documentElement.style.setProperty("--panel", `${Math.max(260, Math.min(innerWidth - 320, innerWidth - e.clientX))}px`); });
    document.addEventListener("keydown", (e) => this.key(e));
  }

  wireSearch() {
    const input = /** @type {HTMLInputElement} */ (byId("search")), list = byId("found");
    let at = 0;
    /** @type {ReturnType<Model["search"]>} */ let found = [];
    const draw = () => {
      list.hidden = !input.value;
      list.replaceChildren(...(found.length ? found.map((f, i) => el("li", { role: "option", "aria-selected": i === at, onpointerdown: (/** @type {Event} */ e) => { e.preventDefault(); pick(i); } }, el("span", {}, f.text), el("span", {}, bytes(f.item.bytes)))) : [el("li", {}, el("span", { class: "soft" }, "Nothing is called so."))]));
    };
    const pick = (/** @type {number} */ i) => { if (found[i]) { this.goTo(found[i].item.index); list.hidden = true; input.blur(); byId("graph").focus(); } };
    input.oninput = () => { found = this.model.search(input.value); at = 0; draw(); };
    input.onfocus = () => { input.select(); if (input.value) draw(); };
    input.onblur = () => { list.hidden = true; };
    input.onkeydown = (e) => {
      e.stopPropagation();
      if (e.key === "ArrowDown" || e.key === "ArrowUp") { at = (at + (e.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(1, found.length); draw(); list.children[at]?.scrollIntoView({ block: "nearest" }); e.preventDefault(); } else if (e.key === "Enter") pick(at);
      else if (e.key === "Escape") { input.blur(); byId("graph").focus(); }
    };
  }

  async openMore() {
    const it = this.model.items[this.selected];
    if (it && it.node < 0) {
      const closed = this.model.visible(new Set([...this.open, it.path])).map((i) => this.model.items[i]).filter((x) => x.node < 0 && !this.open.has(x.path) && x.path.startsWith(it.path + "."));
      if (!this.open.has(it.path)) this.open.add(it.path);
      else for (const x of closed) this.open.add(x.path);
    } else for (const i of this.view.visible) if (this.model.items[i].node < 0) this.open.add(this.model.items[i].path);
    await this.relayout("keep", this.selected);
    this.remember();
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    const target = /** @type {HTMLElement} */ (e.target);
    if (!this.model || /** @type {HTMLDialogElement} */ (byId("dialog")).open || ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName)) return;
    if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "z") { if (!this.line.readOnly) this.change(e.shiftKey ? "redo" : "undo"); e.preventDefault(); return; }
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const [w, h] = this.view.size, onGraph = target === byId("graph") || target === document.body;
    if (e.key.startsWith("Arrow") && onGraph) { const i = this.view.beside(this.selected, e.key); if (i >= 0) { this.select(i); this.keepInWindow(i); } } else if (e.key === "Enter" && onGraph && this.selected >= 0) this.toggle(this.selected);
    else if (e.key === "Escape") { const it = this.model.items[this.selected], up = it ? this.model.items[it.parent] : null; this.select(up && up.depth > 0 ? up.index : -1); } else if (e.key === "/") byId("search").focus();
    else if (e.key === "0" || e.key === "f") this.view.fit();
    else if (e.key === "+" || e.key === "=") this.view.zoom(1.25, w / 2, h / 2);
    else if (e.key === "-") this.view.zoom(0.8, w / 2, h / 2);
    else if (e.key === "e") this.openMore();
    else if (e.key === "m") this.measure();
    else if (e.key === "t") this.setTheme(this.theme === "dark" ? "light" : "dark");
    else if (e.key === "?") this.help();
    else return;
    e.preventDefault();
  }

  /** @param {number} i */
  keepInWindow(i) {
    const k = this.view.at.get(i), [w, h] = this.view.size;
    if (k === undefined) return;
    const x = this.view.boxes[4 * k] * this.view.k + this.view.x, y = this.view.boxes[4 * k + 1] * this.view.k + this.view.y;
    if (x < 40 || y < 60 || x > w - 160 || y > h - 80 || this.view.k < 0.3) this.view.show(i);
  }
}

/** @param {string} name @returns {any} */
function stored(name) {
  try { return localStorage.getItem(`shorthaul-${name}`); } catch { return null; }
}

window.studio = new App();
