// The page: what is selected, open, coloured and shown, and what its buttons and keys ask the session to do.

import { Framed, Live, Offline } from "studio/connection.js";
import { gradient, scale } from "studio/color.js";
import { Address } from "studio/address.js";
import { bar, event, help, preview } from "studio/bar.js";
import { byId, bytes, download, el, value } from "studio/format.js";
import { layout } from "studio/layout.js";
import { Model } from "studio/model.js";
import { showModule, showNode, showProgram } from "studio/panel.js";
import { flatten } from "studio/rows.js";
import { sizeOf } from "studio/scene.js";
import { wireSearch } from "studio/search.js";
import { svg } from "studio/svg.js";
import * as tables from "studio/tables.js";
import { View } from "studio/view.js";
import { startWorker } from "studio/workers.js";



export class App {
  constructor() {
    const offline = document.getElementById("offline");
    /** @type {import("studio/connection.js").Connection} */
    this.line = offline ? new Offline(JSON.parse(offline.textContent ?? "{}")) : document.getElementById("framed") ? new Framed() : new Live(`ws://${location.host}/ws${location.search}`);
    /** @type {Describe} */ this.d = /** @type {any} */ (null);
    /** @type {Graph} */ this.graph = /** @type {any} */ (null);
    /** @type {Model} */ this.model = /** @type {any} */ (null);
    /** @type {Set<string>} */ this.open = new Set();
    /** @type {Map<string, Row[]>} lines of open kernels, by reference */ this.bodies = new Map();
    this.selected = -1;
    this.tab = "costliest";
    this.sort = { costliest: { sort: 4, down: true }, opportunities: { sort: 0, down: true } };
    this.refused = false;
    this.sheets = 0; // how many tables were asked for
    /** @type {[number, number] | null} */ this.compare = null;
    /** @type {number[] | null} ids of nodes that the comparison found new */ this.fresh = null;
    /** @type {PlaceInfo[] | null} */ this.best = null;
    this.overlay = "bytes";
    this.device = ""; // that is measured on, where the user chose one
    /** @type {Record<string, number | string>} */ this.values = {};
    this.serial = 0;
    this.loading = 0;
    /** @type {Record<string, number>} seconds since the page began */ this.timing = {};
    this.theme = /** @type {"light" | "dark"} */ (stored("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    this.view = new View(/** @type {HTMLCanvasElement} */ (byId("graph")), /** @type {HTMLCanvasElement} */ (byId("minimap")), {
      select: (i) => this.select(i), toggle: (i) => this.toggle(i), hover: (i, x, y) => this.tip(i, x, y), moved: () => this.address.remember(),
    });
    this.worker = startWorker("layout.js", () => { this.worker = null; this.instead?.(); });
    if (this.worker) this.worker.onmessage = (/** @type {MessageEvent<LayoutOutput>} */ m) => this.waiting?.(m.data);
    /** @type {((out: LayoutOutput) => void) | null} */ this.waiting = null;
    /** @type {(() => void) | null} lays out in the page where the worker fails */ this.instead = null;
    this.actions = {
      select: (/** @type {number | string} */ w) => this.find(w), apply: (/** @type {PlaceInfo} */ p) => this.applyPlace("apply", p), alike: (/** @type {PlaceInfo} */ p) => this.applyPlace("apply_alike", p),
      preview: (/** @type {PlaceInfo} */ p) => preview(this, p), readOnly: this.line.readOnly, open: (/** @type {number} */ id) => this.find(id),
    };
    this.setTheme(this.theme);
    this.line.onEvent = (e) => event(this, e);
    this.line.onStatus = (status, text) => this.status(status, text);
    this.lost = false;
    /** @type {Promise<unknown>} the last change */ this.turn = Promise.resolve();
    this.offered = ""; // the session whose earlier state was offered
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;
    this.address = new Address(this);
    /** @type {number[] | null} */ this.place = null;
    this.wire();
    this.load(true).catch((e) => this.fail(e));
  }

  /** How the line to the session is. @param {import("studio/connection.js").Status} status @param {string} text */
  status(status, text) {
    const back = status === "back";
    if (back && !this.lost) return;
    this.lost = !back && status !== "anew";
    this.notice(text, this.lost, back ? 3000 : 0);
  }

  // --- loading ---------------------------------------------------------------------------------------------------------
  /** Ask for everything that belongs to the current state. @param {boolean} first */
  async load(first) {
    const turn = ++this.loading;
    if (first) this.overlay = this.address.colour();
    const [d, g, values] = await Promise.all([this.line.call("describe"), this.line.call("graph"), this.line.call("overlay", { name: this.overlay }).catch((e) => ({ values: {}, error: e.message }))]);
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
      this.address.read();
    } else {
      this.open = new Set([...this.open].filter((p) => this.model.byPath.has(p)));
    }
    for (const ref of [...this.bodies.keys()]) if (!this.model.byRef.has(ref)) this.bodies.delete(ref);
    this.selected = -1;
    if (before) this.selected = this.itemOf(before);
    bar(this);
    if (first) this.timing.model = performance.now() / 1000;
    this.setValues(values);
    const was = before && !first ? this.place : null; // where the selection stood in the window
    await this.relayout(first ? "start" : "keep");
    if (!first) this.settle(was);
    this.view.drawn().then(() => {
      byId("loading").hidden = true;
      if (first) this.timing.opened = performance.now() / 1000;
    });
    if (first) this.address.follow();
    if (d.earlier && d.session !== this.offered) this.offer(d.session, d.earlier);
    this.panel();
    this.sheet();
    await this.view.drawn(); // looking for all opportunities of a large program keeps the session busy: the graph comes first
    if (turn !== this.loading) return;
    const found = await this.line.call("opportunities");
    if (turn !== this.loading) return;
    this.best = found;
    if (this.selected < 0) this.panel();
    if (this.tab === "opportunities") this.sheet();
  }

  /** What an earlier session on this program had reached, once for every session. @param {string} session @param {NonNullable<Describe["earlier"]>} was */
  offer(session, was) {
    this.offered = session;
    const said = byId("notice"), before = said.hidden ? "" : `${said.querySelector("span")?.textContent} `; // that the studio was started anew
    this.notice(`${before}An earlier session on this program came ${was.steps === 1 ? "a step" : `${was.steps} steps`} further: “${was.step}”, ${bytes(was.bytes)} moved, ${new Date(was.when * 1000).toLocaleString()}. The history keeps it, too.`, false, 0,
      [el("button", { id: "restore", onclick: () => this.change("restore") }, "Take it up")]);
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
    this.setValues(await this.line.call("overlay", { name: this.overlay }));
  }

  /** @param {OverlayValues} found */
  setValues(found) {
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
      if (v === undefined || this.graph.nodes[n].parent !== undefined) continue; // a body is counted by its loop
      if (how === "uniform") { if (total !== undefined && total !== v) return undefined; total = v; } else if (typeof v === "number") total = total === undefined ? v : how === "sum" ? /** @type {number} */ (total) + v : Math.max(/** @type {number} */ (total), v);
    }
    return total;
  }

  paintColours() {
    const model = this.model, shown = this.view.visible.filter((_, k) => this.view.scene.kinds[k] !== 2);
    const values = new Map(shown.map((i) => [i, this.valueOf(model.items[i])]));
    const s = scale(this.info, /** @type {(number | string)[]} */ ([...values.values()].filter((v) => v !== undefined)), this.theme);
    /** @type {(string | undefined)[]} */ const colors = new Array(model.items.length);
    for (const [i, v] of values) colors[i] = s.color(v);
    this.view.setColors(colors);
    const legend = byId("legend");
    legend.replaceChildren(el("b", {}, this.info.title), ...(s.words ? [el("div", { class: "words" }, ...s.words.map((w) => el("span", {}, el("i", { style: `background:${s.color(w)}` }), w)))] :
      s.most ? [el("div", { class: "ramp", style: `background:${gradient(this.theme)}` }), el("div", { class: "ends" }, el("span", {}, "0"), el("span", {}, value(s.most, this.info.unit)))] : [el("div", { class: "soft" }, this.overlay === "measured" || this.overlay === "distance" ? "nothing was measured in this state" : "no values in this state")]));
  }

  /** What is outlined: nodes that the comparison found new, else those that the last step made, and the modules around them (where closed). */
  marks() {
    const { model } = this, current = this.d.states.find((s) => s.id === this.d.current), marked = new Set();
    for (const id of this.tab === "diff" && this.fresh ? this.fresh : current?.kind === "step" ? current.made : []) {
      const n = model.byId.get(id);
      for (let i = n === undefined ? -1 : model.leaf[n]; i >= 0 && !marked.has(i); i = model.items[i].parent) marked.add(i);
    }
    return marked;
  }

  /** The comparison that is shown, or none. @param {number[] | null} fresh ids of nodes that are new in the current state */
  compared(fresh) {
    if (!fresh && !this.fresh) return;
    this.fresh = fresh;
    this.view.marked = this.marks();
    this.paintColours();
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
    this.view.marked = this.marks();
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
    const it = this.model.items[i];
    this.view.show(i, it.node < 0 ? (this.model.byPath.get(it.path) ?? []).filter((j) => j !== i) : []); // a module with its gradient
  }

  /** @param {number} i */
  select(i) {
    this.selected = this.view.selected = i;
    this.view.draw();
    this.panel();
    this.address.remember();
    const it = this.model.items[i];
    if (it) byId("say").textContent = `${it.path || "model"} ${it.label}, ${bytes(it.bytes)}, ${it.column ? "backward" : "forward"}`;
    for (const row of document.querySelectorAll("#sheet tr.chosen")) row.classList.remove("chosen");
  }

  /** Open or close a module or a kernel. @param {number} i */
  async toggle(i) {
    const it = this.model.items[i];
    if (it.children.length) {
      if (this.open.has(it.path)) { for (const p of [...this.open]) if (p === it.path || p.startsWith(it.path + ".")) this.open.delete(p); } else this.open.add(it.path);
    } else {
      const node = this.graph.nodes[it.node];
      if (this.bodies.has(node.ref)) this.bodies.delete(node.ref);
      else {
        try {
          const body = await this.line.call("body", { what: nameOf(node) });
          this.bodies.set(node.ref, flatten(body));
        } catch (e) { return this.fail(e); }
      }
    }
    await this.relayout("keep", i);
    this.showWhole(i);
    this.address.remember();
  }

  /** An item that has grown out of the window moves back into it, if it fits. @param {number} i */
  showWhole(i) {
    const view = this.view, k = view.at.get(i), [w, h] = view.size;
    if (k === undefined) return;
    const [x, y, bw, bh] = view.boxes.subarray(4 * k, 4 * k + 4), left = x * view.k + view.x, top = y * view.k + view.y;
    const over = left + bw * view.k - (w - 20), below = top + bh * view.k - (h - 20);
    view.pan(over > 0 ? -Math.min(over, Math.max(0, left - 20)) : 0, below > 0 ? -Math.min(below, Math.max(0, top - 90)) : 0);
  }

  async panel() {
    const panel = byId("panel"), i = this.selected, it = this.model.items[i], version = String(this.d.version);
    try {
      if (!it) showProgram(panel, this.d, this.graph, this.best, this.actions);
      else if (it.node >= 0) {
        const node = this.graph.nodes[it.node], d = await this.line.call("node", { what: nameOf(node) });
        if (this.selected === i) showNode(panel, d, this.actions, { info: this.info, value: this.values[node.id] });
      } else {
        const [d, places] = await Promise.all([this.line.call("module", { path: it.path }), this.line.readOnly ? [] : this.line.call("opportunities", { inside: it.path, limit: 30 })]);
        if (this.selected === i) showModule(panel, d, places, this.actions);
      }
    } catch (e) {
      panel.replaceChildren(el("p", { class: "soft" }, /** @type {Error} */ (e).message));
    }
    if (this.selected === i && version === String(this.d.version)) panel.dataset.shows = `${version} ${this.selection() ?? ""}`; // for whoever waits for it
  }

  /** @param {number} i @param {number} x @param {number} y */
  tip(i, x, y) {
    const tip = byId("tip"), it = this.model?.items[i];
    if (!it || (it.children.length && this.open.has(it.path))) { tip.hidden = true; return; }
    const node = it.node >= 0 ? this.graph.nodes[it.node] : null;
    const v = this.valueOf(it);
    tip.replaceChildren(el("b", {}, node ? node.ref : it.path), el("br"), node ? `${bytes(it.bytes)} moved${node.shape ? `, result ${node.shape}` : ""}` : `${it.count} nodes, ${bytes(it.bytes)} moved; double-click opens it`,
      this.overlay === "bytes" || v === undefined ? "" : el("div", {}, `${this.info.title}: ${value(v, this.info.unit)}`), node?.source ? el("div", { class: "soft" }, node.source.split("/").slice(-2).join("/")) : "");
    tip.hidden = false;
    tip.style.left = `${Math.min(x + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, innerHeight - tip.offsetHeight - 8)}px`;
  }

  async sheet() {
    const into = byId("sheet"), turn = ++this.sheets;
    // an answer that comes when another table is shown already is not drawn
    const ask = async (/** @type {string} */ method, /** @type {Record<string, unknown>} */ params = {}) => { const answer = await this.line.call(method, params); return turn === this.sheets ? answer : null; };
    for (const b of document.querySelectorAll("#tabs button[role=tab]")) b.setAttribute("aria-selected", String(/** @type {HTMLElement} */ (b).dataset.tab === this.tab));
    if (into.hidden) return;
    const pick = (/** @type {number} */ id) => this.find(id), it = this.model.items[this.selected], chosen = it && it.node >= 0 ? this.graph.nodes[it.node].id : -1;
    try {
      if (this.tab === "costliest") {
        const rows = await ask("costliest");
        if (rows) tables.costliest(into, rows, this.sort.costliest, pick, chosen);
      } else if (this.tab === "opportunities") {
        if (!this.refused && this.best === null) into.replaceChildren(el("div", { class: "bar-top" }, "Looking at every place of every transformation …"));
        else {
          const rows = this.refused ? await ask("opportunities", { refused: true }) : this.best ?? [];
          if (rows) tables.opportunities(into, rows, this.sort.opportunities, this.actions, this.refused, (r) => { this.refused = r; this.sheet(); });
        }
      } else if (this.tab === "roofline") {
        const rows = await ask("roofline");
        if (rows) tables.roofline(into, rows, pick, chosen);
      } else if (this.tab === "memory") {
        const rows = await ask("memory");
        if (rows) tables.memory(into, rows, pick);
      } else if (this.tab === "history") tables.history(into, this.d, { goto: (id) => this.change("goto", { state: id }), restore: () => this.change("restore"), diff: (a, b) => { this.compare = [a, b]; this.setTab("diff"); }, readOnly: this.line.readOnly });
      else if (this.line.readOnly) into.replaceChildren(el("div", { class: "bar-top" }, "An offline page holds one state."));
      else {
        const parent = this.d.states.find((s) => s.id === this.d.current)?.parent;
        const pair = this.compare ?? (parent === null || parent === undefined ? null : [parent, this.d.current]);
        const changed = pair && await ask("diff", { before: pair[0], after: pair[1] });
        if (changed) {
          tables.diff(into, changed, pick);
          this.compared(changed.after.id === this.d.current ? changed.added.map((/** @type {CostRow} */ n) => n.id) : null);
        }
        else if (!pair) into.replaceChildren(el("div", { class: "bar-top" }, "This is the first state: change something, or choose Compare beside a state in the history."));
      }
    } catch (e) { this.fail(e); }
  }

  /** @param {string} tab */
  setTab(tab) {
    const sheet = byId("sheet");
    sheet.hidden = this.tab === tab && !sheet.hidden && tab !== "diff";
    if (this.tab !== tab) sheet.scrollTop = 0;
    this.tab = tab;
    if (tab !== "diff") this.compared(null);
    this.sheet();
    this.address.remember();
  }

  // --- changing ------------------------------------------------------------------------------------------------------------
  /** @param {string} method @param {Record<string, unknown>} [params] */
  async change(method, params = {}) {
    // keys that are pressed faster than the session answers: the next undo is of what the last one left; all else is decided on what is shown
    if ((method === "undo" || method === "redo") && !this.lost) await this.turn;
    this.busy(true);
    try {
      const asked = this.line.call(method, params);
      this.turn = asked.catch(() => {});
      const found = await asked;
      this.notice("", false);
      this.compare = null;
      return found;
    } catch (e) {
      this.fail(e);
      await this.load(false).catch((x) => this.fail(x));
    } finally {
      this.busy(false);
    }
  }

  /** @param {"apply" | "apply_alike"} method @param {PlaceInfo} p */
  async applyPlace(method, p) {
    const found = await this.change(method, { transformation: p.transformation, where: p.where, parameters: p.parameters });
    if (found) byId("say").textContent = `${found.step}: ${bytes(found.totals.bytes)} moved`;
  }

  async measure() {
    if (this.line.readOnly) return;
    try {
      if (this.d.job === "measuring") await this.line.call("stop");
      else await this.line.call("measure", { device: this.device || this.d.device });
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
      const text = kind === "svg" ? svg(this.view) : await this.line.call("export", { kind });
      const [end, type] = { recipe: [".py", "text/x-python"], svg: [".svg", "image/svg+xml"], html: [".html", "text/html"], trace: [".trace.json", "application/json"], json: [".json", "application/json"] }[kind] ?? [".txt", "text/plain"];
      download(`${this.d.name}${end}`, text, type);
    } catch (e) { this.fail(e); }
  }

  // --- small things ----------------------------------------------------------------------------------------------------------
  /** @param {any} e */
  fail(e) {
    this.notice(e instanceof Error ? e.message : String(e), true);
  }

  /** @param {string} text @param {boolean} bad @param {number} [gone] milliseconds after which it goes by itself @param {Node[]} [buttons] */
  notice(text, bad, gone = 0, buttons = []) {
    const n = byId("notice");
    clearTimeout(this.timer);
    n.hidden = !text;
    n.className = bad ? "bad" : "";
    n.replaceChildren(el("span", {}, text), ...buttons, el("button", { class: "quiet", onclick: () => { n.hidden = true; } }, "Close"));
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
    if (this.model) { this.paintColours(); bar(this); }
  }

  wire() {
    byId("tabs").replaceChildren(...tables.TABS.map(([t, name]) => el("button", { role: "tab", "data-tab": t, "aria-selected": "false", onclick: () => this.setTab(t) }, name)));
    byId("fit").onclick = () => this.view.fit();
    byId("collapse").onclick = () => { this.open.clear(); this.bodies.clear(); this.relayout("fit"); this.address.remember(); };
    byId("expand").onclick = () => this.openMore();
    const overlay = /** @type {HTMLSelectElement} */ (byId("overlay"));
    overlay.onchange = () => { this.overlay = overlay.value; this.colours().then(() => { this.paintColours(); this.panel(); this.address.remember(); }).catch((e) => this.fail(e)); };
    const saved = /** @type {HTMLInputElement} */ (byId("saved"));
    saved.onchange = () => { this.view.showSaved = saved.checked; this.view.draw(); };
    wireSearch(this);
    const split = byId("split");
    split.addEventListener("pointerdown", (e) => split.setPointerCapture(e.pointerId));
    split.addEventListener("pointermove", (e) => { if (e.buttons) document.documentElement.style.setProperty("--panel", `${Math.max(260, Math.min(innerWidth - 320, innerWidth - e.clientX))}px`); });
    document.addEventListener("keydown", (e) => this.key(e));
  }

  async openMore() {
    const it = this.model.items[this.selected];
    if (it && it.node < 0) {
      const closed = this.model.visible(new Set([...this.open, it.path])).map((i) => this.model.items[i]).filter((x) => x.node < 0 && !this.open.has(x.path) && x.path.startsWith(it.path + "."));
      if (!this.open.has(it.path)) this.open.add(it.path);
      else for (const x of closed) this.open.add(x.path);
    } else for (const i of this.view.visible) if (this.model.items[i].node < 0) this.open.add(this.model.items[i].path);
    await this.relayout("keep", this.selected);
    this.address.remember();
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
    else if (e.key === "?") help();
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

/** How the session is asked for a node: bodies may share nodes, so theirs are asked for by reference. @param {GraphNode} node */
function nameOf(node) {
  return node.parent === undefined ? node.id : node.ref;
}

/** @param {string} name @returns {any} */
function stored(name) {
  try { return localStorage.getItem(`shorthaul-${name}`); } catch { return null; }
}

window.studio = new App();
