// The graph on a canvas: only what is in the window is drawn, and less of it the smaller it is.

import { ink } from "studio/color.js";
import { bytes } from "studio/format.js";

const FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", MONO = "ui-monospace, 'DejaVu Sans Mono', monospace";
const WIDTHS = [1, 1.6, 2.6, 4, 6, 9]; // of edges, by the square root of their bytes
const LINE = 15, ROW_HEAD = 44;

/** @typedef {{ depth: number, kind: string, text: string }} Row  a line of an open kernel */
/** @typedef {{ from: number, to: number, bytes: number, saved: boolean, count: number, container: number, width: number, up: boolean, points: number[], box: [number, number, number, number] }} Drawn */

/** The size of an item before its insides are laid out. @param {Item} it @param {GraphNode | null} node @param {Row[] | undefined} rows @returns {[number, number]} */
export function sizeOf(it, node, rows) {
  if (rows) return [Math.max(180, Math.min(760, 30 + 6.7 * Math.max(...rows.map((r) => r.text.length + 2 * r.depth)))), ROW_HEAD + rows.length * LINE + 10];
  const text = Math.max(title(it).length * 7.2, under(it, node).length * 6.1);
  return [Math.max(84, Math.min(240, text + 24 + (node ? 0 : 14))), node ? 42 : 48];
}

/** @param {Item} it */
function title(it) {
  return it.label.length > 30 ? it.label.slice(0, 29) + "…" : it.label;
}

/** @param {Item} it @param {GraphNode | null} node */
function under(it, node) {
  if (!node) return `${it.count} nodes · ${bytes(it.bytes)}`;
  const text = `${bytes(node.bytes)}${node.shape ? ` · ${node.shape}` : ""}`;
  return text.length > 38 ? text.slice(0, 37) + "…" : text;
}

export class View {
  /** @param {HTMLCanvasElement} canvas @param {HTMLCanvasElement} minimap @param {{ select(i: number): void, toggle(i: number): void, hover(i: number, x: number, y: number): void, moved(): void }} on */
  constructor(canvas, minimap, on) {
    this.canvas = canvas;
    this.minimap = minimap;
    this.on = on;
    this.ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.x = 0; this.y = 0; this.k = 1;
    /** @type {import("studio/model.js").Model | null} */ this.model = null;
    /** @type {number[]} */ this.visible = [];
    /** @type {Set<string>} */ this.open = new Set();
    /** @type {Map<number, number>} item -> its position in boxes */ this.at = new Map();
    /** @type {Float64Array} */ this.boxes = new Float64Array(0);
    /** @type {Drawn[]} */ this.edges = [];
    /** @type {Map<number, Row[]>} */ this.rows = new Map();
    /** @type {(string | undefined)[]} */ this.colors = [];
    this.width = 0; this.height = 0; this.middle = 0;
    this.selected = -1; this.hovered = -1;
    /** @type {Set<number>} */ this.marked = new Set();
    this.showSaved = true;
    this.theme = /** @type {"light" | "dark"} */ ("light");
    /** @type {Record<string, string>} */ this.ink = {};
    /** @type {number[]} milliseconds of the last frames */ this.frames = [];
    this.drawn = { nodes: 0, edges: 0 };
    this.scheduled = false;
    /** @type {HTMLCanvasElement} */ this.small = document.createElement("canvas");
    new ResizeObserver(() => this.resize()).observe(/** @type {Element} */ (canvas.parentElement));
    this.listen();
    this.resize();
  }

  // --- scene ---------------------------------------------------------------------------------------------------------
  /** @param {import("studio/model.js").Model} model @param {number[]} visible @param {Set<string>} open @param {ReturnType<import("studio/model.js").Model["edges"]>} edges @param {LayoutOutput} layout @param {Map<number, Row[]>} rows */
  setScene(model, visible, open, edges, layout, rows) {
    this.model = model; this.visible = visible; this.open = open; this.rows = rows;
    this.boxes = layout.boxes; this.width = layout.width; this.height = layout.height; this.middle = layout.middle;
    this.at = new Map(visible.map((i, k) => [i, k]));
    const most = Math.max(1, ...[0], edges.reduce((m, e) => Math.max(m, e.bytes), 0));
    this.edges = edges.map((e) => this.route(e, layout.routes, most));
    this.draw();
  }

  /** @param {any} e @param {Map<string, number[]>} routes @param {number} most @returns {Drawn} */
  route(e, routes, most) {
    const model = /** @type {import("studio/model.js").Model} */ (this.model);
    const a = 4 * /** @type {number} */ (this.at.get(e.from)), b = 4 * /** @type {number} */ (this.at.get(e.to)), B = this.boxes;
    const across = model.items[e.from].column !== model.items[e.to].column, up = model.items[e.from].column === 1;
    /** @type {number[]} */ let points;
    if (across) points = [B[a] + B[a + 2], B[a + 1] + B[a + 3] / 2, B[b], B[b + 1] + B[b + 3] / 2];
    else {
      const end = up ? B[b + 1] + B[b + 3] : B[b + 1];
      points = [B[a] + B[a + 2] / 2, up ? B[a + 1] : B[a + 1] + B[a + 3]];
      const chain = routes.get(String(model.part(e.from, e.to)[0]));
      for (let i = 0; chain && i < chain.length; i += 3) {
        const [x, top, h] = [chain[i], chain[i + 1], chain[i + 2]];
        const last = points[points.length - 1];
        if (up ? top > end && top + h < last : top + h < end && top > last) points.push(...(up ? [x, top + h, x, top] : [x, top, x, top + h]));
      }
      points.push(B[b] + B[b + 2] / 2, end);
    }
    /** @type {[number, number, number, number]} */ const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < points.length; i += 2) {
      box[0] = Math.min(box[0], points[i]); box[2] = Math.max(box[2], points[i]);
      box[1] = Math.min(box[1], points[i + 1]); box[3] = Math.max(box[3], points[i + 1]);
    }
    const width = Math.min(WIDTHS.length - 1, Math.floor(Math.sqrt(e.bytes / most) * WIDTHS.length));
    return { ...e, up, points, box, width, across };
  }

  /** @param {(string | undefined)[]} colors by item */
  setColors(colors) {
    this.colors = colors;
    this.renderSmall();
    this.draw();
  }

  /** @param {"light" | "dark"} theme */
  setTheme(theme) {
    this.theme = theme;
    const style = getComputedStyle(document.documentElement);
    for (const name of ["canvas", "group", "group-2", "line", "text", "soft", "edge", "edge-back", "saved", "accent", "plain", "mark"])
      this.ink[name] = style.getPropertyValue(`--${name}`).trim();
    this.draw();
  }

  resize() {
    const box = /** @type {HTMLElement} */ (this.canvas.parentElement).getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(box.width * ratio));
    this.canvas.height = Math.max(1, Math.round(box.height * ratio));
    this.draw();
  }

  get size() {
    const ratio = window.devicePixelRatio || 1;
    return [this.canvas.width / ratio, this.canvas.height / ratio];
  }

  // --- moving --------------------------------------------------------------------------------------------------------
  fit() {
    const [w, h] = this.size;
    this.k = Math.max(0.004, Math.min(1.1, (w - 60) / (this.width || 1), (h - 100) / (this.height || 1)));
    this.x = (w - this.width * this.k) / 2;
    this.y = Math.max(80, (h - this.height * this.k) / 2);
    this.moved();
  }

  /** The beginning of the network at a size that can be read. */
  start() {
    const [w] = this.size;
    this.fit();
    if (this.k < 0.55) {
      this.k = Math.max(0.55, Math.min(0.9, (w - 60) / (this.width || 1)));
      this.x = (w - this.width * this.k) / 2;
      if (this.x < 0) this.x = Math.min(30, w / 2 - this.middleOfTop() * this.k);
      this.y = 84;
    }
    this.moved();
  }

  middleOfTop() {
    let best = Infinity, x = this.width / 2;
    this.visible.forEach((_, k) => { if (this.boxes[4 * k + 1] < best) { best = this.boxes[4 * k + 1]; x = this.boxes[4 * k] + this.boxes[4 * k + 2] / 2; } });
    return x;
  }

  /** @param {number} i item; moves so that it is in the window, at a size that can be read */
  show(i) {
    const k = this.at.get(i);
    if (k === undefined) return;
    const [x, y, bw, bh] = this.boxes.subarray(4 * k, 4 * k + 4), [w, h] = this.size;
    if (this.k < 0.6 || this.k * bw > w) this.k = Math.max(0.1, Math.min(1, (w - 80) / bw, Math.max(0.6, (h - 80) / bh)));
    this.x = w / 2 - (x + bw / 2) * this.k;
    this.y = bh * this.k > h - 120 ? 84 - y * this.k : h / 2 - (y + bh / 2) * this.k;
    this.moved();
  }

  /** @param {number} factor @param {number} px @param {number} py */
  zoom(factor, px, py) {
    const k = Math.max(0.004, Math.min(4, this.k * factor)), f = k / this.k;
    this.x = px - (px - this.x) * f;
    this.y = py - (py - this.y) * f;
    this.k = k;
    this.moved();
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.moved();
  }

  moved() {
    this.draw();
    this.on.moved();
  }

  /** The item at a point of the window, the innermost. @param {number} px @param {number} py */
  hit(px, py) {
    const x = (px - this.x) / this.k, y = (py - this.y) / this.k, B = this.boxes;
    for (let k = this.visible.length - 1; k >= 0; k--) {
      if (x >= B[4 * k] && x <= B[4 * k] + B[4 * k + 2] && y >= B[4 * k + 1] && y <= B[4 * k + 1] + B[4 * k + 3]) return this.visible[k];
    }
    return -1;
  }

  listen() {
    const c = this.canvas;
    /** @type {{ x: number, y: number, far: boolean } | null} */ let drag = null;
    const point = (/** @type {PointerEvent | WheelEvent | MouseEvent} */ e) => {
      const r = c.getBoundingClientRect();
      return [e.clientX - r.left, e.clientY - r.top];
    };
    c.addEventListener("pointerdown", (e) => { const [x, y] = point(e); drag = { x, y, far: false }; c.setPointerCapture(e.pointerId); });
    c.addEventListener("pointermove", (e) => {
      const [x, y] = point(e);
      if (drag) {
        if (drag.far || Math.hypot(x - drag.x, y - drag.y) > 4) {
          this.pan(x - drag.x, y - drag.y);
          drag = { x, y, far: true };
          c.style.cursor = "grabbing";
        }
        return;
      }
      const i = this.hit(x, y);
      if (i !== this.hovered) { this.hovered = i; this.draw(); }
      c.style.cursor = i >= 0 ? "pointer" : "grab";
      this.on.hover(i, e.clientX, e.clientY);
    });
    c.addEventListener("pointerup", (e) => {
      const [x, y] = point(e), moved = drag && drag.far;
      drag = null;
      c.style.cursor = "grab";
      if (!moved) this.on.select(this.hit(x, y));
    });
    c.addEventListener("pointerleave", () => { this.on.hover(-1, 0, 0); if (this.hovered >= 0) { this.hovered = -1; this.draw(); } });
    c.addEventListener("dblclick", (e) => { const i = this.hit(.../** @type {[number, number]} */ (point(e))); if (i >= 0) this.on.toggle(i); });
    c.addEventListener("wheel", (e) => {
      e.preventDefault();
      const [x, y] = point(e), mouse = e.deltaMode !== 0 || (e.deltaX === 0 && Math.abs(e.deltaY) >= 50);
      if (e.ctrlKey || (mouse && !e.shiftKey)) this.zoom(Math.exp(-(e.deltaMode ? 30 * e.deltaY : e.deltaY) * (mouse ? 0.0016 : 0.01)), x, y);
      else this.pan(-(e.shiftKey ? e.deltaY : e.deltaX), e.shiftKey ? 0 : -e.deltaY);
    }, { passive: false });
    const jump = (/** @type {PointerEvent} */ e) => {
      const r = this.minimap.getBoundingClientRect(), s = this.smallScale(), [w, h] = this.size;
      this.x = w / 2 - (e.clientX - r.left - s.x) / s.k * this.k;
      this.y = h / 2 - (e.clientY - r.top - s.y) / s.k * this.k;
      this.moved();
    };
    this.minimap.addEventListener("pointerdown", (e) => { this.minimap.setPointerCapture(e.pointerId); jump(e); });
    this.minimap.addEventListener("pointermove", (e) => { if (e.buttons) jump(e); });
  }

  // --- drawing -------------------------------------------------------------------------------------------------------
  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      const began = performance.now();
      this.paint();
      this.frames.push(performance.now() - began);
      if (this.frames.length > 600) this.frames.splice(0, 300);
    });
  }

  paint() {
    const { ctx, boxes: B, k } = this, ratio = window.devicePixelRatio || 1, [w, h] = this.size;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.fillStyle = this.ink.canvas || "#fff";
    ctx.fillRect(0, 0, w, h);
    const model = this.model;
    if (!model) return;
    ctx.setTransform(ratio * k, 0, 0, ratio * k, ratio * this.x, ratio * this.y);
    const x0 = -this.x / k, y0 = -this.y / k, x1 = x0 + w / k, y1 = y0 + h / k;
    /** @type {number[]} */ const groups = [];
    /** @type {number[]} */ const leaves = [];
    for (let n = 0; n < this.visible.length; n++) {
      if (B[4 * n] > x1 || B[4 * n + 1] > y1 || B[4 * n] + B[4 * n + 2] < x0 || B[4 * n + 1] + B[4 * n + 3] < y0) continue;
      const it = model.items[this.visible[n]];
      (it.node < 0 && this.open.has(it.path) ? groups : leaves).push(n);
    }
    for (const n of groups) this.group(n);
    const edges = this.lines(x0, y0, x1, y1);
    this.drawn = { nodes: leaves.length, edges };
    if (k < 0.16) this.dots(leaves);
    else for (const n of leaves) this.node(n);
    for (const n of groups) this.groupTitle(n);
    this.highlight();
    this.columns(w);
    this.paintSmall(w, h);
  }

  /** @param {number} n */
  group(n) {
    const { ctx, boxes: B, k } = this, it = this.item(n);
    ctx.fillStyle = it.depth % 2 ? this.ink.group : this.ink["group-2"];
    ctx.strokeStyle = this.visible[n] === this.selected ? this.ink.accent : this.ink.line;
    ctx.lineWidth = (this.visible[n] === this.selected ? 2 : 1) / Math.max(k, 0.3);
    this.round(n, 10);
    ctx.fill();
    ctx.stroke();
    if (k * 13 < 6) return;
    ctx.fillStyle = this.ink.text;
    ctx.font = `600 13px ${FONT}`;
    ctx.textBaseline = "middle";
    ctx.fillText(`▾ ${it.label}`, B[4 * n] + 12, B[4 * n + 1] + 16, B[4 * n + 2] - 20);
    const wide = ctx.measureText(`▾ ${it.label}`).width;
    ctx.fillStyle = this.ink.soft;
    ctx.font = `11px ${FONT}`;
    const text = `${it.count} nodes · ${bytes(it.bytes)}`;
    if (B[4 * n + 2] > wide + text.length * 6 + 40) ctx.fillText(text, B[4 * n] + 22 + wide, B[4 * n + 1] + 16.5);
  }

  /** From afar a module's name stands on its box. @param {number} n */
  groupTitle(n) {
    const { ctx, boxes: B, k } = this, it = this.item(n);
    if (k * 13 >= 6 || it.depth > 2 || B[4 * n + 2] * k < 70 || B[4 * n + 3] * k < 26) return;
    const size = 11 / k, x = B[4 * n] + 6 / k, y = B[4 * n + 1] + 10 / k + (it.depth - 1) * 16 / k;
    ctx.font = `600 ${size}px ${FONT}`;
    ctx.textBaseline = "middle";
    const width = ctx.measureText(it.path).width;
    if (width > B[4 * n + 2]) return;
    ctx.globalAlpha = 0.85;
    ctx.fillStyle = this.ink.canvas;
    ctx.fillRect(x - 3 / k, y - 8 / k, width + 6 / k, 16 / k);
    ctx.globalAlpha = 1;
    ctx.fillStyle = this.ink.text;
    ctx.fillText(it.path, x, y);
  }

  /** Far away: plain rectangles. @param {number[]} leaves */
  dots(leaves) {
    const { ctx, boxes: B } = this;
    /** @type {Map<string, number[]>} */ const by = new Map();
    for (const n of leaves) {
      const color = this.colors[this.visible[n]] ?? this.ink.plain;
      (by.get(color) ?? by.set(color, []).get(color))?.push(n);
    }
    for (const [color, list] of by) {
      ctx.fillStyle = color;
      ctx.beginPath();
      for (const n of list) ctx.rect(B[4 * n], B[4 * n + 1], B[4 * n + 2], B[4 * n + 3]);
      ctx.fill();
    }
  }

  /** @param {number} n */
  node(n) {
    const { ctx, boxes: B, k } = this, it = this.item(n), i = this.visible[n];
    const color = this.colors[i] ?? this.ink.plain, x = B[4 * n], y = B[4 * n + 1], w = B[4 * n + 2];
    ctx.fillStyle = color;
    ctx.strokeStyle = i === this.selected ? this.ink.accent : this.marked.has(i) ? this.ink.mark : this.ink.line;
    ctx.lineWidth = i === this.selected ? 3 / Math.min(1, Math.max(k, 0.4)) : this.marked.has(i) ? 2.5 : i === this.hovered ? 2 : 1;
    if (k < 0.3) {
      ctx.fillRect(x, y, w, B[4 * n + 3]);
      if (i === this.selected || this.marked.has(i)) ctx.strokeRect(x, y, w, B[4 * n + 3]);
      if (k * 12 < 4.5) return;
    } else {
      if (it.node < 0) { // a closed module looks like a pile
        ctx.beginPath();
        ctx.roundRect(x + 4, y + 4, w, B[4 * n + 3], 8);
        ctx.fill();
        ctx.stroke();
      }
      this.round(n, it.node < 0 ? 8 : 6);
      ctx.fill();
      ctx.stroke();
    }
    if (k * 12 < 5) return;
    const node = it.node < 0 ? null : /** @type {any} */ (this.model).graph.nodes[it.node], dark = ink(color.startsWith("#") ? color : "#ffffff");
    ctx.fillStyle = dark;
    ctx.textBaseline = "middle";
    ctx.font = `600 12px ${FONT}`;
    ctx.fillText((it.node < 0 ? "▸ " : "") + title(it), x + 11, y + (it.node < 0 ? 17 : 14), w - 20);
    ctx.font = `11px ${FONT}`;
    ctx.globalAlpha = 0.82;
    ctx.fillText(under(it, node), x + 11, y + (it.node < 0 ? 34 : 30), w - 20);
    ctx.globalAlpha = 1;
    const rows = node && this.rows.get(i);
    if (rows) this.inside(rows, x, y, w, dark);
  }

  /** The lines of an open kernel. @param {Row[]} rows @param {number} x @param {number} y @param {number} w @param {string} dark */
  inside(rows, x, y, w, dark) {
    const { ctx } = this;
    ctx.save();
    ctx.beginPath();
    ctx.rect(x, y, w, 1e5);
    ctx.clip();
    rows.forEach((r, n) => {
      const top = y + ROW_HEAD + n * LINE, left = x + 12 + r.depth * 13;
      ctx.fillStyle = dark;
      ctx.globalAlpha = r.kind === "map" ? 1 : r.kind === "local" ? 0.65 : 0.9;
      ctx.font = `${r.kind === "map" ? "600 " : ""}11px ${MONO}`;
      ctx.fillText(r.text, left, top + LINE / 2);
      if (r.depth) { ctx.globalAlpha = 0.25; ctx.fillRect(left - 7, top, 1, LINE); }
    });
    ctx.restore();
  }

  /** Edges of the window, few strokes for many. @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 */
  lines(x0, y0, x1, y1) {
    const { ctx, k } = this, curved = k > 0.3;
    /** @type {Drawn[][]} */ const classes = Array.from({ length: 3 * WIDTHS.length }, () => []);
    let total = 0;
    for (const e of this.edges) {
      if (e.box[0] > x1 || e.box[1] > y1 || e.box[2] < x0 || e.box[3] < y0) continue;
      if (e.saved && !this.showSaved) continue;
      total++;
      classes[(e.saved ? 2 : e.up ? 1 : 0) * WIDTHS.length + e.width].push(e);
    }
    ctx.lineCap = "butt";
    classes.forEach((list, c) => {
      if (!list.length) return;
      const kind = Math.floor(c / WIDTHS.length);
      ctx.strokeStyle = kind === 2 ? this.ink.saved : kind === 1 ? this.ink["edge-back"] : this.ink.edge;
      ctx.globalAlpha = kind === 2 ? 0.4 : 0.75;
      ctx.lineWidth = Math.max(WIDTHS[c % WIDTHS.length], 0.6 / k);
      ctx.beginPath();
      for (const e of list) this.path(e, curved);
      ctx.stroke();
    });
    ctx.globalAlpha = 1;
    return total;
  }

  /** @param {Drawn} e @param {boolean} curved */
  path(e, curved) {
    const { ctx } = this, p = e.points;
    ctx.moveTo(p[0], p[1]);
    for (let i = 2; i < p.length; i += 2) {
      const x = p[i - 2], y = p[i - 1], u = p[i], v = p[i + 1];
      if (!curved || x === u) ctx.lineTo(u, v);
      else if (e.saved) ctx.bezierCurveTo(x + (u - x) * 0.45, y, u - (u - x) * 0.45, v, u, v);
      else { const m = (v - y) * 0.5; ctx.bezierCurveTo(x, y + m, u, v - m, u, v); }
    }
  }

  /** The edges of what is selected or under the pointer, with arrow heads. */
  highlight() {
    const { ctx, k } = this, which = this.hovered >= 0 ? this.hovered : this.selected;
    if (which < 0 || !this.model) return;
    ctx.strokeStyle = ctx.fillStyle = this.ink.accent;
    for (const e of this.edges) {
      if ((e.from !== which && e.to !== which) || (e.saved && !this.showSaved)) continue;
      ctx.lineWidth = Math.max(WIDTHS[e.width], 1.5 / k);
      ctx.beginPath();
      this.path(e, true);
      ctx.stroke();
      const n = e.points.length, x = e.points[n - 2], y = e.points[n - 1], s = Math.min(12, Math.max(5, 5 / k));
      ctx.beginPath();
      ctx.moveTo(x, y);
      if (e.saved) { ctx.lineTo(x - s * 1.4, y - s); ctx.lineTo(x - s * 1.4, y + s); } else { const d = e.up ? 1 : -1; ctx.lineTo(x - s, y + d * s * 1.4); ctx.lineTo(x + s, y + d * s * 1.4); }
      ctx.fill();
    }
  }

  /** The headings of both columns stay at the top of the window. @param {number} w */
  columns(w) {
    const model = this.model;
    if (!model || !this.middle || this.middle < 0) return;
    const { ctx } = this, ratio = window.devicePixelRatio || 1, middle = this.middle * this.k + this.x;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.font = `600 11px ${FONT}`;
    ctx.textBaseline = "middle";
    for (const [text, x, y] of /** @type {[string, number, number][]} */ ([["FORWARD ↓", middle - 14, 1], ["BACKWARD ↑", middle + 14, 0]])) {
      const width = ctx.measureText(text).width, left = y ? x - width : x;
      if (left < 0 || left + width > w) continue;
      ctx.globalAlpha = 0.88;
      ctx.fillStyle = this.ink.canvas;
      ctx.fillRect(left - 6, 6, width + 12, 20);
      ctx.globalAlpha = 1;
      ctx.fillStyle = this.ink.soft;
      ctx.fillText(text, left, 16);
    }
  }

  // --- minimap -------------------------------------------------------------------------------------------------------
  smallScale() {
    const w = this.minimap.clientWidth, h = this.minimap.clientHeight;
    const k = Math.min((w - 10) / (this.width || 1), (h - 10) / (this.height || 1));
    return { k, x: (w - this.width * k) / 2, y: (h - this.height * k) / 2, w, h };
  }

  renderSmall() {
    const s = this.smallScale(), ratio = window.devicePixelRatio || 1, ctx = /** @type {CanvasRenderingContext2D} */ (this.small.getContext("2d"));
    this.small.width = Math.max(1, s.w * ratio);
    this.small.height = Math.max(1, s.h * ratio);
    ctx.setTransform(ratio * s.k, 0, 0, ratio * s.k, ratio * s.x, ratio * s.y);
    this.visible.forEach((i, n) => {
      const it = this.item(n);
      ctx.fillStyle = it.node < 0 && this.open.has(it.path) ? this.ink.group : this.colors[i] ?? this.ink.plain;
      ctx.fillRect(this.boxes[4 * n], this.boxes[4 * n + 1], Math.max(this.boxes[4 * n + 2], 1 / s.k), Math.max(this.boxes[4 * n + 3], 1 / s.k));
    });
  }

  /** @param {number} w @param {number} h */
  paintSmall(w, h) {
    const ctx = /** @type {CanvasRenderingContext2D} */ (this.minimap.getContext("2d")), s = this.smallScale();
    if (this.minimap.width !== this.small.width) this.minimap.width = this.small.width;
    if (this.minimap.height !== this.small.height) this.minimap.height = this.small.height;
    const ratio = window.devicePixelRatio || 1;
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, this.minimap.width, this.minimap.height);
    ctx.drawImage(this.small, 0, 0);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.strokeStyle = this.ink.accent;
    ctx.lineWidth = 1.5;
    const x = Math.max(1, s.x - this.x / this.k * s.k), y = Math.max(1, s.y - this.y / this.k * s.k);
    const x2 = Math.min(s.w - 1, s.x + (w - this.x) / this.k * s.k), y2 = Math.min(s.h - 1, s.y + (h - this.y) / this.k * s.k);
    if (x2 > x && y2 > y) ctx.strokeRect(x, y, x2 - x, y2 - y);
  }

  /** @param {number} n */
  item(n) {
    return /** @type {import("studio/model.js").Model} */ (this.model).items[this.visible[n]];
  }

  /** @param {number} n @param {number} r */
  round(n, r) {
    this.ctx.beginPath();
    this.ctx.roundRect(this.boxes[4 * n], this.boxes[4 * n + 1], this.boxes[4 * n + 2], this.boxes[4 * n + 3], r);
  }

  /** The item beside one, for the arrow keys. @param {number} i @param {string} key */
  beside(i, key) {
    const k = this.at.get(i), B = this.boxes;
    if (k === undefined) return this.visible[0] ?? -1;
    const cx = B[4 * k] + B[4 * k + 2] / 2, cy = B[4 * k + 1] + B[4 * k + 3] / 2;
    let best = -1, least = Infinity;
    this.visible.forEach((j, n) => {
      if (j === i || (this.item(n).node < 0 && this.open.has(this.item(n).path))) return;
      const dx = B[4 * n] + B[4 * n + 2] / 2 - cx, dy = B[4 * n + 1] + B[4 * n + 3] / 2 - cy;
      const [along, off] = key === "ArrowRight" ? [dx, dy] : key === "ArrowLeft" ? [-dx, dy] : key === "ArrowDown" ? [dy, dx] : [-dy, dx];
      if (along <= 4) return;
      const far = along + 2.2 * Math.abs(off);
      if (far < least) { least = far; best = j; }
    });
    return best < 0 ? i : best;
  }

  /** What is shown now, as SVG. */
  svg() {
    const model = this.model, out = [], B = this.boxes, escape = (/** @type {string} */ t) => t.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
    if (!model) return "";
    out.push(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="-20 -20 ${this.width + 40} ${this.height + 40}" font-family="sans-serif" font-size="12">`,
      `<rect x="-20" y="-20" width="${this.width + 40}" height="${this.height + 40}" fill="${this.ink.canvas}"/>`);
    const f = (/** @type {number} */ v) => v.toFixed(1);
    this.visible.forEach((_, n) => {
      const it = this.item(n);
      if (it.node < 0 && this.open.has(it.path)) {
        out.push(`<rect x="${f(B[4 * n])}" y="${f(B[4 * n + 1])}" width="${f(B[4 * n + 2])}" height="${f(B[4 * n + 3])}" rx="10" fill="${it.depth % 2 ? this.ink.group : this.ink["group-2"]}" stroke="${this.ink.line}"/>`,
          `<text x="${f(B[4 * n] + 12)}" y="${f(B[4 * n + 1] + 20)}" font-weight="600" fill="${this.ink.text}">${escape(it.label)}</text>`);
      }
    });
    for (const e of this.edges) {
      if (e.saved && !this.showSaved) continue;
      const p = e.points, d = [`M${f(p[0])} ${f(p[1])}`];
      for (let i = 2; i < p.length; i += 2) {
        const m = (p[i + 1] - p[i - 1]) / 2, q = (p[i] - p[i - 2]) / 2;
        d.push(e.saved ? `C${f(p[i - 2] + q)} ${f(p[i - 1])} ${f(p[i] - q)} ${f(p[i + 1])} ${f(p[i])} ${f(p[i + 1])}` : `C${f(p[i - 2])} ${f(p[i - 1] + m)} ${f(p[i])} ${f(p[i + 1] - m)} ${f(p[i])} ${f(p[i + 1])}`);
      }
      out.push(`<path d="${d.join("")}" fill="none" stroke="${e.saved ? this.ink.saved : e.up ? this.ink["edge-back"] : this.ink.edge}" stroke-width="${WIDTHS[e.width]}" opacity="${e.saved ? 0.4 : 0.75}"/>`);
    }
    this.visible.forEach((i, n) => {
      const it = this.item(n);
      if (it.node < 0 && this.open.has(it.path)) return;
      const color = this.colors[i] ?? this.ink.plain, dark = ink(color), node = it.node < 0 ? null : model.graph.nodes[it.node];
      out.push(`<rect x="${f(B[4 * n])}" y="${f(B[4 * n + 1])}" width="${f(B[4 * n + 2])}" height="${f(B[4 * n + 3])}" rx="6" fill="${color}" stroke="${this.ink.line}"/>`,
        `<text x="${f(B[4 * n] + 11)}" y="${f(B[4 * n + 1] + 18)}" font-weight="600" fill="${dark}">${escape(title(it))}</text>`,
        `<text x="${f(B[4 * n] + 11)}" y="${f(B[4 * n + 1] + 34)}" font-size="11" fill="${dark}">${escape(under(it, node))}</text>`);
    });
    return [...out, "</svg>"].join("\n");
  }
}
