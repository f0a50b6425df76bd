// What is drawn: the texts and sizes of items, the way of every edge, as flat arrays that the painter takes.

import { bytes } from "studio/format.js";

export const WIDTHS = [1, 1.6, 2.6, 4, 6, 9]; // of edges, by the square root of their bytes
const LINE = 15, ROW_HEAD = 44;

/** The size of an item before its insides are laid out. @param {Item} it @param {GraphNode | null} node @param {Row[] | undefined} rows @returns {[number, number]} */
export function sizeOf(it, node, rows) {
  if (rows) return [Math.max(180, Math.min(760, 30 + 6.7 * Math.max(...rows.map((r) => r.text.length + 2 * r.depth)))), ROW_HEAD + rows.length * LINE + 10];
  const text = Math.max(title(it).length * 7.2, under(it, node).length * 6.1), pile = it.children.length > 0;
  return [Math.max(84, Math.min(240, text + 24 + (pile ? 14 : 0))), pile ? 48 : 42];
}

/** @param {Item} it */
export function title(it) {
  return it.label.length > 30 ? it.label.slice(0, 29) + "…" : it.label;
}

/** @param {Item} it @param {GraphNode | null} node */
export function under(it, node) {
  if (!node) return `${it.count} nodes · ${bytes(it.bytes)}`;
  const text = `${it.children.length ? `${it.count} inside · ` : ""}${bytes(node.bytes)}${node.shape ? ` · ${node.shape}` : ""}`;
  return text.length > 38 ? text.slice(0, 37) + "…" : text;
}

/**
 * @param {import("studio/model.js").Model} model @param {number[]} visible @param {Set<string>} open
 * @param {ReturnType<import("studio/model.js").Model["edges"]>} edges @param {LayoutOutput} layout @param {Map<number, Row[]>} rows by item
 * @returns {Scene}
 */
export function makeScene(model, visible, open, edges, layout, rows) {
  const n = visible.length, at = new Int32Array(model.items.length).fill(-1);
  const kinds = new Uint8Array(n), depth = new Uint8Array(n), titles = new Array(n), unders = new Array(n), paths = new Array(n);
  /** @type {Map<number, Row[]>} */ const inside = new Map();
  visible.forEach((i, k) => {
    const it = model.items[i], node = it.node < 0 ? null : model.graph.nodes[it.node];
    at[i] = k;
    kinds[k] = !it.children.length ? 0 : open.has(it.path) ? 2 : 1;
    depth[k] = it.depth;
    titles[k] = title(it);
    unders[k] = under(it, node);
    paths[k] = kinds[k] === 2 ? it.path : "";
    const lines = rows.get(i);
    if (lines) inside.set(k, lines);
  });
  return { boxes: layout.boxes, width: layout.width, height: layout.height, middle: layout.middle, kinds, depth, titles, unders, paths, rows: inside,
           edges: route(model, at, edges, layout) };
}

/** @param {import("studio/model.js").Model} model @param {Int32Array} at @param {ReturnType<import("studio/model.js").Model["edges"]>} edges @param {LayoutOutput} layout @returns {Scene["edges"]} */
function route(model, at, edges, layout) {
  const B = layout.boxes, count = edges.length, most = edges.reduce((m, e) => Math.max(m, e.bytes), 1);
  const from = new Int32Array(count), to = new Int32Array(count), style = new Uint8Array(count), starts = new Int32Array(count + 1);
  const bounds = new Float32Array(4 * count);
  /** @type {number[]} */ const points = [];
  edges.forEach((e, k) => {
    const a = 4 * at[e.from], b = 4 * at[e.to], start = points.length;
    const up = model.items[e.from].column === 1, across = model.items[e.from].column !== model.items[e.to].column;
    if (across) points.push(B[a] + B[a + 2], B[a + 1] + B[a + 3] / 2, B[b], B[b + 1] + B[b + 3] / 2);
    else {
      const end = up ? B[b + 1] + B[b + 3] : B[b + 1];
      points.push(B[a] + B[a + 2] / 2, up ? B[a + 1] : B[a + 1] + B[a + 3]);
      const chain = layout.routes.get(model.part(e.from, e.to));
      for (let i = 0; chain && i < chain.length; i += 3) {
        const x = chain[i], top = chain[i + 1], h = chain[i + 2], last = points[points.length - 1];
        if (up ? top > end && top + h < last : top + h < end && top > last) {
          if (up) points.push(x, top + h, x, top); else points.push(x, top, x, top + h);
        }
      }
      points.push(B[b] + B[b + 2] / 2, end);
    }
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
    for (let i = start; i < points.length; i += 2) {
      if (points[i] < x0) x0 = points[i];
      if (points[i] > x1) x1 = points[i];
      if (points[i + 1] < y0) y0 = points[i + 1];
      if (points[i + 1] > y1) y1 = points[i + 1];
    }
    bounds[4 * k] = x0; bounds[4 * k + 1] = y0; bounds[4 * k + 2] = x1; bounds[4 * k + 3] = y1;
    from[k] = at[e.from];
    to[k] = at[e.to];
    const width = Math.min(WIDTHS.length - 1, Math.floor(Math.sqrt(e.bytes / most) * WIDTHS.length));
    style[k] = (e.saved ? 2 : across ? 3 : up ? 1 : 0) * WIDTHS.length + width;
    starts[k + 1] = points.length;
  });
  return { from, to, style, starts, bounds, points: Float32Array.from(points) };
}
