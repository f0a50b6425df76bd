// The window on the graph: where it stands, what the pointer does, and what of it the painter is told.

import { ink } from "studio/color.js";
import { makeScene } from "studio/scene.js";
import { Surface } from "studio/surface.js";

const EMPTY = { boxes: new Float64Array(0), width: 0, height: 0, middle: 0, kinds: new Uint8Array(0), depth: new Uint8Array(0), titles: [], unders: [], paths: [], rows: new Map(),
                edges: { from: new Int32Array(0), to: new Int32Array(0), style: new Uint8Array(0), starts: new Int32Array(1), bounds: new Float32Array(0), points: new Float32Array(0) } };

export class View {
  /** @param {HTMLCanvasElement} canvas @param {HTMLCanvasElement} minimap @param {{ select(i: number): void, toggle(i: number): void, hover(i: number, x: number, y: number): void, moved(): void }} on */
  constructor(canvas, minimap, on) {
    this.canvas = canvas;
    this.minimap = minimap;
    this.on = on;
    this.x = 0; this.y = 0; this.k = 1;
    this.window = [1, 1];
    /** @type {import("studio/model.js").Model | null} */ this.model = null;
    /** @type {number[]} */ this.visible = [];
    /** @type {Set<string>} */ this.open = new Set();
    /** @type {Map<number, number>} item -> its position in boxes */ this.at = new Map();
    /** @type {Scene} */ this.scene = EMPTY;
    /** @type {(string | undefined)[]} by item */ this.colors = [];
    this.selected = -1; this.hovered = -1;
    /** @type {Set<number>} */ this.marked = new Set();
    this.showSaved = true;
    this.theme = /** @type {"light" | "dark"} */ ("light");
    /** @type {Record<string, string>} */ this.ink = {};
    this.serial = 0;
    this.scheduled = false;
    /** @type {number[]} milliseconds in which the last frames were painted */ this.frames = [];
    /** @type {PaintAnswer} */ this.painted = { painted: -1, ms: 0, nodes: 0, edges: 0 };
    /** @type {{ serial: number, done: () => void }[]} */ this.waiting = [];
    this.surface = new Surface(canvas, minimap, (m) => this.answered(m));
    new ResizeObserver(() => this.resize()).observe(/** @type {Element} */ (canvas.parentElement));
    this.listen();
    this.resize();
  }

  get boxes() { return this.scene.boxes; }
  get width() { return this.scene.width; }
  get height() { return this.scene.height; }

  // --- what is drawn -------------------------------------------------------------------------------------------------
  /** @param {import("studio/model.js").Model} model @param {number[]} visible @param {Set<string>} open @param {ReturnType<import("studio/model.js").Model["edges"]>} edges @param {LayoutOutput} layout @param {Map<number, Row[]>} rows */
  setScene(model, visible, open, edges, layout, rows) {
    this.model = model; this.visible = visible; this.open = open;
    this.at = new Map(visible.map((i, k) => [i, k]));
    this.scene = makeScene(model, visible, open, edges, layout, rows);
    this.surface.post({ scene: this.scene });
    this.draw();
  }

  /** @param {(string | undefined)[]} colors by item */
  setColors(colors) {
    this.colors = colors;
    const palette = [this.ink.plain], known = new Map([[this.ink.plain, 0]]), of = new Uint16Array(this.visible.length), marked = new Uint8Array(this.visible.length);
    this.visible.forEach((i, k) => {
      const color = colors[i] ?? this.ink.plain;
      let c = known.get(color);
      if (c === undefined) { known.set(color, c = palette.length); palette.push(color); }
      of[k] = c;
      marked[k] = this.marked.has(i) ? 1 : 0;
    });
    this.surface.post({ colors: { palette, inks: palette.map((c) => ink(c.startsWith("#") ? c : "#ffffff")), of, marked } });
    this.draw();
  }

  /** @param {"light" | "dark"} theme */
  setTheme(theme) {
    this.theme = theme;
    const style = getComputedStyle(document.documentElement);
    for (const name of ["canvas", "group", "group-2", "line", "text", "soft", "edge", "edge-back", "saved", "accent", "plain", "mark"])
      this.ink[name] = style.getPropertyValue(`--${name}`).trim();
    this.surface.post({ ink: { ...this.ink } });
    this.draw();
  }

  resize() {
    const box = /** @type {HTMLElement} */ (this.canvas.parentElement).getBoundingClientRect();
    this.window = [Math.max(1, box.width), Math.max(1, box.height)];
    this.draw();
  }

  get size() {
    return this.window;
  }

  /** Tell the painter where the window stands, once for all that moved it in this task. */
  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    queueMicrotask(() => {
      this.scheduled = false;
      const place = (/** @type {number} */ i) => this.at.get(i) ?? -1, [w, h] = this.window;
      this.surface.post({ frame: { serial: ++this.serial, x: this.x, y: this.y, k: this.k, w, h, ratio: window.devicePixelRatio || 1,
        selected: place(this.selected), hovered: place(this.hovered), showSaved: this.showSaved, small: this.smallScale() } });
    });
  }

  /** @param {PaintAnswer} m */
  answered(m) {
    this.painted = m;
    this.frames.push(m.ms);
    if (this.frames.length > 600) this.frames.splice(0, 300);
    this.waiting = this.waiting.filter((w) => { if (w.serial > m.painted) return true; w.done(); return false; });
  }

  /** What the painter drew last, when it has drawn all that was asked for until now. @returns {Promise<PaintAnswer>} */
  async drawn() {
    await Promise.resolve();
    if (this.painted.painted < this.serial) await new Promise((done) => { this.waiting.push({ serial: this.serial, done: () => done(null) }); });
    return this.painted;
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

  /** Moves so that an item is in the window, at a size that can be read. @param {number} i @param {number[]} [beside] what is shown with it if both fit */
  show(i, beside = []) {
    const k = this.at.get(i);
    if (k === undefined) return;
    const [w, h] = this.size;
    let [x, y, bw, bh] = this.boxes.subarray(4 * k, 4 * k + 4);
    for (const j of beside) {
      const n = this.at.get(j);
      if (n === undefined) continue;
      const [u, v, uw, vh] = this.boxes.subarray(4 * n, 4 * n + 4), left = Math.min(x, u), top = Math.min(y, v);
      const wide = Math.max(x + bw, u + uw) - left, high = Math.max(y + bh, v + vh) - top;
      if (wide * 0.6 < w - 80 && high * 0.6 < h - 160) [x, y, bw, bh] = [left, top, wide, high];
    }
    if (this.k < 0.6 || this.k * bw > w) this.k = Math.max(0.1, Math.min(1, (w - 80) / bw, Math.max(0.6, (h - 80) / bh)));
    if (beside.length) this.k = Math.max(0.6, Math.min(this.k, (w - 80) / bw, (h - 140) / bh));
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

  smallScale() {
    const w = 150, h = 190; // as in style.css
    const k = Math.min((w - 10) / (this.width || 1), (h - 10) / (this.height || 1));
    return { k, x: (w - this.width * k) / 2, y: (h - this.height * k) / 2, w, h };
  }

  /** @param {number} n */
  item(n) {
    return /** @type {import("studio/model.js").Model} */ (this.model).items[this.visible[n]];
  }

  /** The item beside one, for the arrow keys. @param {number} i @param {string} key */
  beside(i, key) {
    const k = this.at.get(i), B = this.boxes;
    if (k === undefined) return this.visible[0] ?? -1;
    const cx = B[4 * k] + B[4 * k + 2] / 2, cy = B[4 * k + 1] + B[4 * k + 3] / 2;
    let best = -1, least = Infinity;
    this.visible.forEach((j, n) => {
      if (j === i || this.scene.kinds[n] === 2) return;
      const dx = B[4 * n] + B[4 * n + 2] / 2 - cx, dy = B[4 * n + 1] + B[4 * n + 3] / 2 - cy;
      const [along, off] = key === "ArrowRight" ? [dx, dy] : key === "ArrowLeft" ? [-dx, dy] : key === "ArrowDown" ? [dy, dx] : [-dy, dx];
      if (along <= 4) return;
      const far = along + 2.2 * Math.abs(off);
      if (far < least) { least = far; best = j; }
    });
    return best < 0 ? i : best;
  }
}
