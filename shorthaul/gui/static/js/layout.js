// Layered layout of what is open, in a worker. Self-contained: the offline page starts it from its text.
//
// Forward and backward are two columns. The forward column flows down; the backward column flows up, so that a module's gradient stands
// beside the module, and what is saved for it goes straight across. An open module is laid out by itself and is one box of its parent.
// Every step is linear in nodes and edges but for a few sorts, so ten thousand nodes take a fraction of a second.

const GAP_X = 28, GAP_Y = 34, PAD = 18, HEAD = 30, BETWEEN = 180;
const SWEEPS = 6, DUMMY = 6, LONGEST = 60; // LONGEST: layers that an edge is led around nodes for

/**
 * @typedef {{ box: number, w: number, x: number, row: number, at: number, key: number, above: Cell[], below: Cell[] }} Cell
 *   box: position in the group's children, -1 for a bend of an edge; at: position in its row; above, below: neighbours
 * @typedef {{ rows: Cell[][], width: number, heights: number[], tops: number[], chains: Map<number, Cell[]>, layer: Int32Array }} Arranged
 */

/** @param {LayoutInput} input @returns {LayoutOutput} */
export function layout(input) {
  const began = performance.now();
  const { items } = input, n = items.length;
  const position = new Map(items.map((it, k) => [it.i, k]));
  /** @type {number[][]} */ const children = items.map(() => []);
  /** @type {number[][]} */ const roots = [[], []];
  items.forEach((it, k) => (it.parent < 0 ? roots[it.column] : children[/** @type {number} */ (position.get(it.parent))]).push(k));
  const W = Float64Array.from(items, (it) => it.w), H = Float64Array.from(items, (it) => it.h);
  const X = new Float64Array(n), Y = new Float64Array(n); // relative to the parent's corner
  /** @type {Map<string, [number, number, number][]>} edges between siblings, by parent and column */ const edges = new Map();
  const slot = new Int32Array(n);
  for (const list of [...children, ...roots]) list.forEach((k, i) => { slot[k] = i; });
  for (const [a, b, bytes] of input.edges) {
    const p = position.get(a), q = position.get(b);
    if (p === undefined || q === undefined) continue;
    const key = items[p].parent < 0 ? `root${items[p].column}` : String(items[p].parent);
    const list = edges.get(key) ?? [];
    if (!list.length) edges.set(key, list);
    list.push([slot[p], slot[q], bytes]);
  }
  /** @type {Map<number, number[]>} */ const routes = new Map();
  /** @type {[number, number[], Arranged, number][]} */ const arranged = [];

  /** Lay out the insides of a forward and a backward group (either may be missing) beside each other. @param {number} f @param {number} b */
  function pair(f, b) {
    const groups = [f, b].map((k) => (k < 0 ? [] : children[k]));
    inside(groups[0], groups[1], [f, b].map((k) => (k < 0 ? "" : String(items[k].i))), [f, b]);
  }

  /** @param {number[]} forward @param {number[]} backward @param {string[]} keys @param {number[]} owners */
  function inside(forward, backward, keys, owners) {
    const twins = new Map(backward.filter((k) => items[k].open).map((k) => [items[k].path, k]));
    for (const k of forward) {
      if (!items[k].open) continue;
      const twin = twins.get(items[k].path);
      pair(k, twin ?? -1);
      if (twin !== undefined) twins.delete(items[k].path);
    }
    for (const k of twins.values()) pair(-1, k);
    const a = arrange(forward, edges.get(keys[0]) ?? [], W, H, false);
    const b = arrange(backward, edges.get(keys[1]) ?? [], W, H, true);
    align(a, b, forward, backward);
    [[a, forward, owners[0]], [b, backward, owners[1]]].forEach(([found, list, owner]) => {
      place(/** @type {Arranged} */ (found), /** @type {number[]} */ (list), /** @type {number} */ (owner));
    });
  }

  /** Rows of both columns that belong to the same modules get the same height. @param {Arranged} a @param {Arranged} b @param {number[]} f @param {number[]} g */
  function align(a, b, f, g) {
    /** @type {Map<string, number>} */ const at = new Map();
    a.rows.forEach((row, r) => { for (const c of row) if (c.box >= 0 && !at.has(items[f[c.box]].path)) at.set(items[f[c.box]].path, r); });
    /** @type {[number, number][]} */ const pairs = [];
    b.rows.forEach((row, r) => {
      const found = row.filter((c) => c.box >= 0).map((c) => at.get(items[g[c.box]].path)).filter((x) => x !== undefined).sort((x, y) => x - y);
      if (found.length) pairs.push([/** @type {number} */ (found[found.length >> 1]), r]);
    });
    const kept = ascending(pairs);
    stack(a), stack(b);
    for (const [r, s] of kept) {
      const d = a.tops[r] - b.tops[s];
      const late = d > 0 ? b : a, from = d > 0 ? s : r;
      for (let i = from; i < late.tops.length; i++) late.tops[i] += Math.abs(d);
    }
  }

  /** @param {Arranged} found @param {number[]} list @param {number} owner */
  function place(found, list, owner) {
    const top = owner < 0 ? 0 : HEAD, side = owner < 0 ? 0 : PAD;
    found.rows.forEach((row, r) => {
      for (const c of row) {
        if (c.box < 0) continue;
        const k = list[c.box];
        X[k] = side + c.x - W[k] / 2;
        Y[k] = top + found.tops[r];
      }
    });
    const last = found.rows.length - 1;
    const height = last < 0 ? 0 : found.tops[last] + found.heights[last];
    if (owner >= 0) {
      W[owner] = Math.max(found.width + 2 * PAD, items[owner].w);
      H[owner] = height + HEAD + PAD;
    }
    arranged.push([owner, list, found, height]);
  }

  inside(roots[0], roots[1], ["root0", "root1"], [-1, -1]);
  const [a, b] = arranged.slice(-2);
  const shift = roots[0].length && roots[1].length ? a[2].width + BETWEEN : 0;
  for (const k of roots[1]) X[k] += shift;
  const boxes = new Float64Array(4 * n);
  /** @type {[number, number, number][]} */ const todo = [...roots[0], ...roots[1]].map((k) => [k, 0, 0]);
  /** @type {Map<number, [number, number]>} */ const corners = new Map();
  while (todo.length) {
    const [k, x, y] = /** @type {[number, number, number]} */ (todo.pop());
    boxes.set([x + X[k], y + Y[k], W[k], H[k]], 4 * k);
    corners.set(k, [x + X[k], y + Y[k]]);
    for (const c of children[k]) todo.push([c, x + X[k], y + Y[k]]);
  }
  for (const [owner, list, found] of arranged) { // where long edges bend, by source and row
    const [x, y] = owner < 0 ? [list.length && items[list[0]].column === 1 ? shift : 0, 0] : /** @type {[number, number]} */ (corners.get(owner));
    const top = owner < 0 ? 0 : HEAD, side = owner < 0 ? 0 : PAD;
    for (const [source, chain] of found.chains) {
      const points = [];
      for (const c of chain) points.push(x + side + c.x, y + top + found.tops[c.row], found.heights[c.row]);
      routes.set(items[list[source]].i, points);
    }
  }
  return { serial: input.serial, boxes, width: shift + b[2].width || a[2].width, height: Math.max(a[3], b[3]), middle: shift - BETWEEN / 2,
           routes, seconds: (performance.now() - began) / 1000 };
}

/** The longest run of pairs in which both numbers grow. @param {[number, number][]} pairs */
function ascending(pairs) {
  /** @type {number[]} */ const ends = [];
  const back = new Int32Array(pairs.length).fill(-1);
  pairs.forEach(([r], i) => {
    let lo = 0, hi = ends.length;
    while (lo < hi) { const m = (lo + hi) >> 1; if (pairs[ends[m]][0] < r) lo = m + 1; else hi = m; }
    if (lo) back[i] = ends[lo - 1];
    ends[lo] = i;
  });
  const out = [];
  for (let i = ends.length ? ends[ends.length - 1] : -1; i >= 0; i = back[i]) out.unshift(pairs[i]);
  return out;
}

/** @param {Arranged} a */
function stack(a) {
  let y = 0;
  a.tops = a.heights.map((h) => { const at = y; y += h + GAP_Y; return at; });
}

/**
 * Layers, order within them, positions. @param {number[]} list @param {[number, number, number][]} edges
 * @param {Float64Array} W @param {Float64Array} H @param {boolean} flip @returns {Arranged}
 */
function arrange(list, edges, W, H, flip) {
  const n = list.length;
  const layer = new Int32Array(n);
  /** @type {number[][]} */ const next = Array.from({ length: n }, () => []);
  /** @type {number[][]} */ const before = Array.from({ length: n }, () => []);
  for (const [a, b] of edges) if (a < b) { next[a].push(b); before[b].push(a); } // program order; the others would close a cycle
  for (let a = 0; a < n; a++) for (const b of next[a]) if (layer[b] <= layer[a]) layer[b] = layer[a] + 1;
  for (let a = n - 1; a >= 0; a--) { // what has no producer here stands right before its first consumer
    if (!before[a].length && next[a].length) layer[a] = Math.max(0, Math.min(...next[a].map((b) => layer[b])) - 1);
  }
  /** @type {Cell[][]} */ let rows = [];
  /** @type {Cell[]} */ const cells = [];
  for (let a = 0; a < n; a++) {
    const c = cell(a, W[list[a]], layer[a]);
    cells.push(c);
    (rows[layer[a]] ??= []).push(c);
  }
  for (let r = 0; r < rows.length; r++) rows[r] ??= [];
  const link = (/** @type {Cell} */ p, /** @type {Cell} */ q) => { p.below.push(q); q.above.push(p); };
  /** @type {Map<number, Cell[]>} */ const chains = new Map();
  let left = 4 * n + 2000;
  for (let a = 0; a < n; a++) {
    const far = next[a].filter((b) => layer[b] - layer[a] > 1 && layer[b] - layer[a] <= LONGEST);
    const last = far.length ? Math.max(...far.map((b) => layer[b])) - 1 : 0;
    /** @type {Cell[]} */ const chain = [];
    if (far.length && left > last - layer[a]) {
      for (let r = layer[a] + 1; r <= last; r++) {
        const c = cell(-1, DUMMY, r);
        rows[r].push(c);
        link(chain.length ? chain[chain.length - 1] : cells[a], c);
        chain.push(c);
      }
      left -= chain.length;
      chains.set(a, chain);
    }
    for (const b of next[a]) {
      const span = layer[b] - layer[a];
      if (span === 1) link(cells[a], cells[b]);
      else if (chain.length && span <= LONGEST) link(chain[span - 2], cells[b]);
    }
  }
  order(rows);
  rows = wrap(rows, n);
  if (flip) {
    rows.reverse();
    rows.forEach((row, r) => { for (const c of row) c.row = r; });
  }
  coordinates(rows);
  let lo = Infinity, hi = -Infinity;
  for (const row of rows) for (const c of row) { lo = Math.min(lo, c.x - c.w / 2); hi = Math.max(hi, c.x + c.w / 2); }
  for (const row of rows) for (const c of row) c.x -= lo;
  const heights = rows.map((row) => row.reduce((h, c) => (c.box < 0 ? h : Math.max(h, H[list[c.box]])), 0));
  return { rows, width: n ? hi - lo : 0, heights, tops: [], chains, layer };
}

/** @param {number} box @param {number} w @param {number} row @returns {Cell} */
function cell(box, w, row) {
  return { box, w, x: 0, row, at: 0, key: 0, above: [], below: [] };
}

/** Fewer crossings: each row sorted by the middle of its neighbours, down and up. @param {Cell[][]} rows */
function order(rows) {
  for (const row of rows) row.forEach((c, i) => { c.at = i; });
  for (let sweep = 0; sweep < 4; sweep++) {
    const down = sweep % 2 === 0;
    for (let k = 0; k < rows.length; k++) {
      const row = rows[down ? k : rows.length - 1 - k];
      if (row.length < 2) continue;
      for (const c of row) {
        const near = down ? c.above : c.below;
        let sum = 0;
        for (const d of near) sum += d.at;
        c.key = near.length ? sum / near.length : c.at;
      }
      row.sort((p, q) => p.key - q.key);
      for (let i = 0; i < row.length; i++) row[i].at = i;
    }
  }
}

/** A layer that would be far wider than the graph is high is broken into several. @param {Cell[][]} rows @param {number} n */
function wrap(rows, n) {
  const most = Math.max(12, Math.ceil(Math.sqrt(n) * 1.3));
  /** @type {Cell[][]} */ const out = [];
  for (const row of rows) for (let i = 0; i < Math.max(1, row.length); i += most) out.push(row.slice(i, i + most));
  out.forEach((row, r) => { for (const c of row) c.row = r; });
  return out;
}

/** As near to the neighbours as the order and the gaps allow. @param {Cell[][]} rows */
function coordinates(rows) {
  for (const row of rows) {
    let x = 0;
    for (const c of row) { c.x = x + c.w / 2; x += c.w + GAP_X; }
    for (const c of row) c.x -= (x - GAP_X) / 2;
  }
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const down = sweep % 2 === 0, both = sweep > 1;
    for (let k = 0; k < rows.length; k++) {
      const row = rows[down ? k : rows.length - 1 - k];
      for (const c of row) {
        let sum = 0, near = 0;
        if (down || both) for (const d of c.above) { sum += d.x; near++; }
        if (!down || both) for (const d of c.below) { sum += d.x; near++; }
        c.key = near ? sum / near : c.x;
      }
      settle(row);
    }
  }
}

/** Positions nearest to the wanted ones that keep order and gaps (pool adjacent violators); `key` is what is wanted. @param {Cell[]} row */
function settle(row) {
  /** @type {{ sum: number, weight: number, from: number }[]} */ const blocks = [];
  let offset = 0;
  const offsets = row.map((c, i) => {
    if (i) offset += row[i - 1].w / 2 + c.w / 2 + (c.box < 0 || row[i - 1].box < 0 ? GAP_X / 2 : GAP_X);
    return offset;
  });
  row.forEach((c, i) => {
    const weight = c.box < 0 ? 4 : 1;
    blocks.push({ sum: weight * (c.key - offsets[i]), weight, from: i });
    while (blocks.length > 1) {
      const q = blocks[blocks.length - 1], p = blocks[blocks.length - 2];
      if (p.sum / p.weight <= q.sum / q.weight) break;
      p.sum += q.sum;
      p.weight += q.weight;
      blocks.pop();
    }
  });
  blocks.forEach((b, k) => {
    const end = k + 1 < blocks.length ? blocks[k + 1].from : row.length;
    for (let i = b.from; i < end; i++) row[i].x = b.sum / b.weight + offsets[i];
  });
}

if (typeof document === "undefined") { // in the worker
  self.onmessage = (/** @type {MessageEvent<LayoutInput>} */ m) => self.postMessage(layout(m.data));
}
