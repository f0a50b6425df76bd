// Draws the graph and the minimap: in a worker where the browser can, so that the page's own thread neither records nor rasterizes, else in
// the page. Self-contained: the offline page starts it from its text. Only what is in the window is drawn, and less of it the smaller it is.
//
// Messages: {surface}, {ink}, {scene}, {colors}, {frame}; whatever came last is drawn once in the next frame, and {painted} is answered.

const FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", MONO = "ui-monospace, 'DejaVu Sans Mono', monospace";
const EDGE_WIDTHS = [1, 1.6, 2.6, 4, 6, 9]; // by the square root of an edge's bytes; as WIDTHS in scene.js
const LINE_HEIGHT = 15, ROW_TOP = 44;
const LEGIBLE = 0.44; // scale from which text is drawn: 12 px become 5.3
const NODE = 0, OPEN = 2; // kinds of boxes; 1 is a closed module
const BACK = 1, SAVED = 2; // kinds of edges; 0 goes forward, 3 goes across and is not saved

export class Painter {
  /** @param {(message: PaintAnswer) => void} answer */
  constructor(answer) {
    this.answer = answer;
    /** @type {any} */ this.canvas = null;
    /** @type {any} */ this.ctx = null;
    /** @type {any} */ this.minimap = null;
    /** @type {any} */ this.small = null;
    /** @type {Scene | null} */ this.scene = null;
    /** @type {PaintColors} */ this.colors = { palette: [], inks: [], of: new Uint16Array(0), marked: new Uint8Array(0) };
    /** @type {Frame | null} */ this.frame = null;
    /** @type {Record<string, string>} */ this.ink = {};
    this.scheduled = false;
    this.smallStale = true;
  }

  /** @param {PaintMessage} m */
  receive(m) {
    if (m.surface) {
      this.canvas = m.surface.canvas;
      this.minimap = m.surface.minimap;
      this.ctx = this.canvas.getContext("2d", { alpha: false });
      this.small = typeof OffscreenCanvas === "undefined" ? document.createElement("canvas") : new OffscreenCanvas(1, 1);
    }
    if (m.ink) this.ink = m.ink;
    if (m.scene) this.scene = m.scene;
    if (m.colors) this.colors = m.colors;
    if (m.frame) this.frame = m.frame;
    if (m.ink || m.scene || m.colors) this.smallStale = true;
    if (this.scheduled || !this.canvas || !this.frame) return;
    this.scheduled = true;
    const next = typeof requestAnimationFrame === "undefined" ? (/** @type {() => void} */ f) => setTimeout(f, 16) : requestAnimationFrame;
    next(() => {
      this.scheduled = false;
      const began = performance.now(), drawn = this.paint();
      this.answer({ painted: /** @type {Frame} */ (this.frame).serial, ms: performance.now() - began, ...drawn });
    });
  }

  paint() {
    const { ctx, canvas } = this, { x, y, k, w, h, ratio } = /** @type {Frame} */ (this.frame);
    const wide = Math.max(1, Math.round(w * ratio)), high = Math.max(1, Math.round(h * ratio));
    if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.fillStyle = this.ink.canvas || "#fff";
    ctx.fillRect(0, 0, w, h);
    const scene = this.scene;
    if (!scene) return { nodes: 0, edges: 0 };
    ctx.setTransform(ratio * k, 0, 0, ratio * k, ratio * x, ratio * y);
    const B = scene.boxes, x0 = -x / k, y0 = -y / k, x1 = x0 + w / k, y1 = y0 + h / k;
    /** @type {number[]} */ const groups = [];
    /** @type {number[]} */ const leaves = [];
    for (let n = 0; n < scene.kinds.length; n++) {
      if (B[4 * n] > x1 || B[4 * n + 1] > y1 || B[4 * n] + B[4 * n + 2] < x0 || B[4 * n + 1] + B[4 * n + 3] < y0) continue;
      (scene.kinds[n] === OPEN ? groups : leaves).push(n);
    }
    for (const n of groups) this.group(scene, n);
    const edges = this.lines(scene, x0, y0, x1, y1);
    this.leaves(scene, leaves);
    if (k >= LEGIBLE) this.texts(scene, leaves);
    for (const n of groups) this.groupTitle(scene, n);
    this.highlight(scene);
    this.columns(scene);
    this.overview(scene);
    return { nodes: leaves.length, edges };
  }

  /** @param {Scene} scene @param {number} n */
  group(scene, n) {
    const { ctx, frame } = this, k = frame?.k ?? 1, B = scene.boxes, chosen = n === frame?.selected;
    ctx.fillStyle = scene.depth[n] % 2 ? this.ink.group : this.ink["group-2"];
    ctx.strokeStyle = chosen ? this.ink.accent : this.ink.line;
    ctx.lineWidth = (chosen ? 2 : 1) / Math.max(k, 0.3);
    ctx.beginPath();
    ctx.roundRect(B[4 * n], B[4 * n + 1], B[4 * n + 2], B[4 * n + 3], 10);
    ctx.fill();
    ctx.stroke();
    if (k < LEGIBLE) return;
    ctx.fillStyle = this.ink.text;
    ctx.font = `600 13px ${FONT}`;
    ctx.textBaseline = "middle";
    const text = `▾ ${scene.titles[n]}`, wide = ctx.measureText(text).width;
    ctx.fillText(text, B[4 * n] + 12, B[4 * n + 1] + 16, B[4 * n + 2] - 20);
    ctx.fillStyle = this.ink.soft;
    ctx.font = `11px ${FONT}`;
    if (B[4 * n + 2] > wide + scene.unders[n].length * 6 + 40) ctx.fillText(scene.unders[n], B[4 * n] + 22 + wide, B[4 * n + 1] + 16.5);
  }

  /** From afar a module's name stands on its box. @param {Scene} scene @param {number} n */
  groupTitle(scene, n) {
    const { ctx } = this, k = this.frame?.k ?? 1, B = scene.boxes, depth = scene.depth[n];
    if (k >= LEGIBLE || depth > 2 || B[4 * n + 2] * k < 70 || B[4 * n + 3] * k < 26) return;
    const text = scene.paths[n], size = 11 / k, x = B[4 * n] + 6 / k, y = B[4 * n + 1] + 10 / k + (depth - 1) * 16 / k;
    ctx.font = `600 ${size}px ${FONT}`;
    ctx.textBaseline = "middle";
    const width = ctx.measureText(text).width;
    if (width > B[4 * n + 2]) return;
    ctx.globalAlpha = 0.85;
    ctx.fillStyle = this.ink.canvas;
    ctx.fillRect(x - 3 / k, y - 8 / k, width + 6 / k, 16 / k);
    ctx.globalAlpha = 1;
    ctx.fillStyle = this.ink.text;
    ctx.fillText(text, x, y);
  }

  /** The boxes of nodes and closed modules: one path a colour, one stroke for all of them. @param {Scene} scene @param {number[]} leaves */
  leaves(scene, leaves) {
    const { ctx, colors } = this, B = scene.boxes, k = this.frame?.k ?? 1, round = k >= 0.3;
    /** @type {number[][]} */ const by = [];
    for (const n of leaves) (by[colors.of[n] ?? 0] ??= []).push(n);
    const box = (/** @type {number} */ n, /** @type {number} */ d) => {
      if (round) ctx.roundRect(B[4 * n] + d, B[4 * n + 1] + d, B[4 * n + 2], B[4 * n + 3], scene.kinds[n] === NODE ? 6 : 8);
      else ctx.rect(B[4 * n] + d, B[4 * n + 1] + d, B[4 * n + 2], B[4 * n + 3]);
    };
    const piles = round ? leaves.filter((n) => scene.kinds[n] !== NODE) : []; // a closed module looks like a pile
    ctx.lineWidth = 1;
    ctx.strokeStyle = this.ink.line;
    for (const n of piles) {
      ctx.fillStyle = colors.palette[colors.of[n]] ?? this.ink.plain;
      ctx.beginPath();
      box(n, 4);
      ctx.fill();
      ctx.stroke();
    }
    by.forEach((list, c) => {
      ctx.fillStyle = colors.palette[c] ?? this.ink.plain;
      ctx.beginPath();
      for (const n of list) box(n, 0);
      ctx.fill();
    });
    if (round) {
      ctx.beginPath();
      for (const n of leaves) box(n, 0);
      ctx.stroke();
    }
    for (const n of leaves) {
      const chosen = n === this.frame?.selected, marked = colors.marked[n];
      if (!chosen && !marked && n !== this.frame?.hovered) continue;
      ctx.strokeStyle = chosen ? this.ink.accent : marked ? this.ink.mark : this.ink.line;
      ctx.lineWidth = chosen ? 3 / Math.min(1, Math.max(k, 0.2)) : marked ? 2.5 : 2;
      ctx.beginPath();
      box(n, 0);
      ctx.stroke();
    }
  }

  /** Names and what stands below them, a font at a time. @param {Scene} scene @param {number[]} leaves */
  texts(scene, leaves) {
    const { ctx, colors } = this, B = scene.boxes;
    ctx.textBaseline = "middle";
    for (const name of [true, false]) {
      ctx.font = name ? `600 12px ${FONT}` : `11px ${FONT}`;
      ctx.globalAlpha = name ? 1 : 0.85;
      for (const n of leaves) {
        const pile = scene.kinds[n] !== NODE;
        ctx.fillStyle = colors.inks[colors.of[n]] ?? this.ink.text;
        if (name) ctx.fillText((pile ? "▸ " : "") + scene.titles[n], B[4 * n] + 11, B[4 * n + 1] + (pile ? 17 : 14), B[4 * n + 2] - 20);
        else ctx.fillText(scene.unders[n], B[4 * n] + 11, B[4 * n + 1] + (pile ? 34 : 30), B[4 * n + 2] - 20);
      }
    }
    ctx.globalAlpha = 1;
    for (const n of leaves) {
      const rows = scene.rows.get(n);
      if (rows) this.inside(rows, B[4 * n], B[4 * n + 1], B[4 * n + 2], colors.inks[colors.of[n]] ?? this.ink.text);
    }
  }

  /** The lines of an open kernel. @param {Row[]} rows @param {number} x @param {number} y @param {number} w @param {string} dark */
  inside(rows, x, y, w, dark) {
    const { ctx } = this;
    ctx.save();
    ctx.beginPath();
    ctx.rect(x, y, w, 1e5);
    ctx.clip();
    rows.forEach((r, n) => {
      const top = y + ROW_TOP + n * LINE_HEIGHT, left = x + 12 + r.depth * 13;
      ctx.fillStyle = dark;
      ctx.globalAlpha = r.kind === "map" ? 1 : r.kind === "local" ? 0.65 : 0.9;
      ctx.font = `${r.kind === "map" ? "600 " : ""}11px ${MONO}`;
      ctx.fillText(r.text, left, top + LINE_HEIGHT / 2);
      if (r.depth) { ctx.globalAlpha = 0.25; ctx.fillRect(left - 7, top, 1, LINE_HEIGHT); }
    });
    ctx.restore();
  }

  /** Edges of the window, few strokes for many. @param {Scene} scene @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 */
  lines(scene, x0, y0, x1, y1) {
    const { ctx, frame } = this, k = frame?.k ?? 1, curved = k > 0.3, { bounds, style } = scene.edges;
    /** @type {number[][]} */ const classes = Array.from({ length: 4 * EDGE_WIDTHS.length }, () => []);
    let total = 0;
    for (let e = 0; e < style.length; e++) {
      if (bounds[4 * e] > x1 || bounds[4 * e + 1] > y1 || bounds[4 * e + 2] < x0 || bounds[4 * e + 3] < y0) continue;
      if (Math.floor(style[e] / EDGE_WIDTHS.length) === SAVED && !frame?.showSaved) continue;
      total++;
      classes[style[e]].push(e);
    }
    ctx.lineCap = "butt";
    classes.forEach((list, c) => {
      if (!list.length) return;
      const kind = Math.floor(c / EDGE_WIDTHS.length);
      ctx.strokeStyle = kind === SAVED ? this.ink.saved : kind === BACK ? this.ink["edge-back"] : this.ink.edge;
      ctx.globalAlpha = kind === SAVED ? 0.4 : 0.75;
      ctx.lineWidth = Math.max(EDGE_WIDTHS[c % EDGE_WIDTHS.length], 0.6 / k);
      ctx.beginPath();
      for (const e of list) this.path(scene, e, curved);
      ctx.stroke();
    });
    ctx.globalAlpha = 1;
    return total;
  }

  /** @param {Scene} scene @param {number} e @param {boolean} curved */
  path(scene, e, curved) {
    const { ctx } = this, { points: p, starts, style } = scene.edges, end = starts[e + 1], flat = style[e] >= SAVED * EDGE_WIDTHS.length;
    ctx.moveTo(p[starts[e]], p[starts[e] + 1]);
    for (let i = starts[e] + 2; i < end; i += 2) {
      const x = p[i - 2], y = p[i - 1], u = p[i], v = p[i + 1];
      if (!curved || x === u) ctx.lineTo(u, v);
      else if (flat) ctx.bezierCurveTo(x + (u - x) * 0.45, y, u - (u - x) * 0.45, v, u, v);
      else { const m = (v - y) * 0.5; ctx.bezierCurveTo(x, y + m, u, v - m, u, v); }
    }
  }

  /** The edges of what is selected or under the pointer, with arrow heads. @param {Scene} scene */
  highlight(scene) {
    const { ctx, frame } = this, k = frame?.k ?? 1, { from, to, points, starts, style } = scene.edges;
    const hovered = frame?.hovered ?? -1, which = hovered >= 0 ? hovered : frame?.selected ?? -1;
    if (which < 0) return;
    ctx.strokeStyle = ctx.fillStyle = this.ink.accent;
    for (let e = 0; e < style.length; e++) {
      const kind = Math.floor(style[e] / EDGE_WIDTHS.length);
      if ((from[e] !== which && to[e] !== which) || (kind === SAVED && !frame?.showSaved)) continue;
      ctx.lineWidth = Math.max(EDGE_WIDTHS[style[e] % EDGE_WIDTHS.length], 1.5 / k);
      ctx.beginPath();
      this.path(scene, e, true);
      ctx.stroke();
      const x = points[starts[e + 1] - 2], y = points[starts[e + 1] - 1], s = Math.min(12, Math.max(5, 5 / k));
      ctx.beginPath();
      ctx.moveTo(x, y);
      if (kind >= SAVED) { ctx.lineTo(x - s * 1.4, y - s); ctx.lineTo(x - s * 1.4, y + s); } else { const d = kind ? 1 : -1; ctx.lineTo(x - s, y + d * s * 1.4); ctx.lineTo(x + s, y + d * s * 1.4); }
      ctx.fill();
    }
  }

  /** The headings of both columns stay at the top of the window. @param {Scene} scene */
  columns(scene) {
    if (scene.middle <= 0) return;
    const { ctx } = this, { x, k, w, ratio } = /** @type {Frame} */ (this.frame), middle = scene.middle * k + x;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.font = `600 11px ${FONT}`;
    ctx.textBaseline = "middle";
    ctx.globalAlpha = 0.92; // what scrolls by below does not run into them
    ctx.fillStyle = this.ink.canvas;
    ctx.fillRect(0, 0, w, 28);
    ctx.globalAlpha = 1;
    ctx.fillStyle = this.ink.soft;
    for (const [text, at, before] of /** @type {[string, number, number][]} */ ([["FORWARD ↓", middle - 14, 1], ["BACKWARD ↑", middle + 14, 0]])) {
      const width = ctx.measureText(text).width, left = before ? at - width : at;
      if (left < 0 || left + width > w) continue;
      ctx.fillText(text, left, 15);
    }
  }

  /** The minimap: the boxes, drawn once, and the window on them. @param {Scene} scene */
  overview(scene) {
    const { x, y, k, w, h, ratio, small: s } = /** @type {Frame} */ (this.frame), wide = Math.max(1, Math.round(s.w * ratio)), high = Math.max(1, Math.round(s.h * ratio));
    if (this.smallStale || this.small.width !== wide || this.small.height !== high) {
      this.smallStale = false;
      this.small.width = this.minimap.width = wide;
      this.small.height = this.minimap.height = high;
      const ctx = this.small.getContext("2d"), B = scene.boxes;
      ctx.setTransform(ratio * s.k, 0, 0, ratio * s.k, ratio * s.x, ratio * s.y);
      for (let n = 0; n < scene.kinds.length; n++) {
        ctx.fillStyle = scene.kinds[n] === OPEN ? this.ink.group : this.colors.palette[this.colors.of[n]] ?? this.ink.plain;
        ctx.fillRect(B[4 * n], B[4 * n + 1], Math.max(B[4 * n + 2], 1 / s.k), Math.max(B[4 * n + 3], 1 / s.k));
      }
    }
    const ctx = this.minimap.getContext("2d");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, wide, high);
    ctx.drawImage(this.small, 0, 0);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.strokeStyle = this.ink.accent;
    ctx.lineWidth = 1.5;
    const left = Math.max(1, s.x - x / k * s.k), top = Math.max(1, s.y - y / k * s.k);
    const right = Math.min(s.w - 1, s.x + (w - x) / k * s.k), bottom = Math.min(s.h - 1, s.y + (h - y) / k * s.k);
    if (right > left && bottom > top) ctx.strokeRect(left, top, right - left, bottom - top);
  }
}

if (typeof document === "undefined") { // in the worker
  const painter = new Painter((m) => self.postMessage(m));
  self.onmessage = (/** @type {MessageEvent<PaintMessage>} */ m) => painter.receive(m.data);
  self.postMessage({ ready: true });
}
