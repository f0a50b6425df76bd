// The hierarchy: modules, in each phase, down to nodes; what of it is open, and the edges between what is visible.

const FIRST = 60; // items that are open at first, about

export class Model {
  /** @param {Graph} graph */
  constructor(graph) {
    this.graph = graph;
    /** @type {Item[]} */ this.items = [];
    /** @type {number[]} nodes in the order of the hierarchy */ this.leaves = [];
    /** @type {number[]} item of each node */ this.leaf = new Array(graph.nodes.length);
    /** @type {Map<string, number[]>} items by module path */ this.byPath = new Map();
    /** @type {Map<number, number>} position of each node by id */ this.byId = new Map(graph.nodes.map((n, i) => [n.id, i]));
    /** @type {Map<string, number>} */ this.byRef = new Map(graph.nodes.map((n, i) => [n.ref, i]));
    this.roots = [this.add("", 0, -1, "forward"), this.add("", 1, -1, "backward")];
    /** @type {Map<string, number>} */ const groups = new Map();
    const homes = this.homes();
    graph.nodes.forEach((node, at) => {
      if (node.parent !== undefined) { this.inner(node, at, groups); return; }
      const column = node.phase === "forward" ? 0 : 1;
      let parent = this.roots[column], path = "";
      for (const part of homes[at] ? homes[at].split(".") : []) {
        const label = /^\d+$/.test(part) && path ? `${path.split(".").pop()}.${part}` : part; // a number alone says little
        path = path ? `${path}.${part}` : part;
        const key = `${column}:${path}`;
        let g = groups.get(key);
        if (g === undefined) groups.set(key, g = this.add(path, column, parent, label));
        parent = g;
      }
      const it = this.add(homes[at], column, parent, node.label);
      this.items[it].node = at;
      this.leaf[at] = it;
    });
    for (const r of this.roots) this.tidy(r);
    for (const r of this.roots) this.number(r, 0);
    for (const it of this.items) if (it.children.length && it.depth > 0) (this.byPath.get(it.path) ?? this.byPath.set(it.path, []).get(it.path))?.push(it.index);
  }

  /** A node of a body lies in its loop, or in one side of its branch. @param {GraphNode} node @param {number} at @param {Map<string, number>} groups */
  inner(node, at, groups) {
    const owner = this.items[this.leaf[/** @type {number} */ (node.parent)]];
    owner.path = this.graph.nodes[owner.node].ref; // what opens it
    let parent = owner.index;
    if (node.body) {
      const path = `${owner.path} / ${node.body}`, known = groups.get(path);
      parent = known ?? this.add(path, owner.column, owner.index, node.body);
      this.items[parent].body = true;
      groups.set(path, parent);
    }
    const it = this.add(node.module, owner.column, parent, node.label);
    this.items[it].node = at;
    this.leaf[at] = it;
  }

  /** The module that each node is drawn in: its own; where it has none (a sum of gradients), what its neighbours have in common. */
  homes() {
    const { nodes, edges } = this.graph, homes = nodes.map((n) => n.module);
    /** @type {Map<number, string[]>} */ const near = new Map();
    for (const [a, b] of edges) {
      if (nodes[a].phase !== nodes[b].phase) continue;
      for (const [x, y] of [[a, b], [b, a]]) if (!nodes[x].module && nodes[y].module) (near.get(x) ?? near.set(x, []).get(x))?.push(nodes[y].module);
    }
    for (const [i, modules] of near) {
      homes[i] = modules.map((m) => m.split(".")).reduce((p, q) => { let k = 0; while (k < p.length && p[k] === q[k]) k++; return p.slice(0, k); }).join(".");
    }
    return homes;
  }

  /** @param {string} path @param {number} column @param {number} parent @param {string} label */
  add(path, column, parent, label) {
    const index = this.items.length;
    this.items.push({ index, key: "", column, parent, depth: 0, path, label, children: [], node: -1, body: false, count: 0, bytes: 0, first: 0, last: 0, order: 0 });
    if (parent >= 0) this.items[parent].children.push(index);
    return index;
  }

  /** A module with one thing in it is that thing. @param {number} g */
  tidy(g) {
    const it = this.items[g];
    it.children = it.children.map((c) => {
      this.tidy(c);
      const child = this.items[c];
      if (child.node >= 0 || child.body || child.children.length !== 1) return c;
      const only = this.items[child.children[0]];
      only.parent = g;
      if (only.node < 0) only.label = `${child.label}.${only.label}`;
      return only.index;
    });
  }

  /** Depth, number of nodes, bytes, and the run of leaves below. @param {number} g @param {number} depth */
  number(g, depth) {
    const it = this.items[g];
    it.depth = depth;
    it.first = this.leaves.length;
    if (it.node >= 0) {
      const node = this.graph.nodes[it.node];
      this.leaves.push(it.node);
      it.bytes = node.bytes;
      it.key = `n:${node.ref}`;
      it.order = it.node;
      for (const c of it.children) this.number(c, depth + 1);
      it.count = Math.max(1, it.children.reduce((s, c) => s + this.items[c].count, 0));
    } else {
      let sum = 0, nodes = 0;
      for (const c of it.children) {
        this.number(c, depth + 1);
        const child = this.items[c], own = child.node >= 0 ? 1 : child.count; // a loop is one node of its module
        nodes += own;
        it.bytes += child.bytes;
        sum += child.order * own;
      }
      it.count = nodes;
      it.order = sum / Math.max(1, nodes);
      it.key = `${it.column ? "b" : "f"}:${it.path}`;
    }
    it.children.sort((p, q) => this.items[p].order - this.items[q].order); // where most of a module runs is its place in the order
    it.last = this.leaves.length;
  }

  /** What to open at first: the largest modules, until there is enough to see. */
  initial() {
    /** @type {Set<string>} */ const open = new Set();
    const shown = () => this.visible(open).length;
    let now = shown();
    for (let tries = 0; tries < 40 && now < FIRST; tries++) {
      const closed = this.visible(open).map((i) => this.items[i]).filter((it) => it.node < 0 && !it.body && !open.has(it.path));
      if (!closed.length) break;
      const it = closed.sort((a, b) => b.count - a.count)[0];
      const grown = (this.byPath.get(it.path) ?? []).reduce((s, i) => s + this.items[i].children.length, 0);
      if (now > 12 && now + grown > FIRST * 1.4) break;
      open.add(it.path);
      now = shown();
    }
    return open;
  }

  /** Items that are shown, parents before children. @param {Set<string>} open */
  visible(open) {
    /** @type {number[]} */ const out = [];
    const walk = (/** @type {number} */ g) => {
      for (const c of this.items[g].children) {
        out.push(c);
        if (this.items[c].children.length && open.has(this.items[c].path)) walk(c);
      }
    };
    for (const r of this.roots) walk(r);
    return out;
  }

  /**
   * The edges between visible items: each pair once, with the bytes of all that goes from one to the other, what is saved apart.
   * @param {number[]} visible @param {Set<string>} open
   * @returns {{ from: number, to: number, bytes: number, saved: boolean, count: number, container: number }[]}
   */
  edges(visible, open) {
    const shown = new Int32Array(this.graph.nodes.length);
    for (const i of visible) {
      const it = this.items[i];
      if (it.node >= 0) shown[it.node] = i;
      if (it.children.length && !open.has(it.path)) for (let k = it.first; k < it.last; k++) shown[this.leaves[k]] = i;
    }
    /** @type {Map<number, { from: number, to: number, bytes: number, saved: boolean, count: number, container: number }>} */
    const found = new Map();
    const size = this.items.length;
    for (const [a, b, container, bytes, saved] of this.graph.edges) {
      const from = shown[a], to = shown[b];
      if (from === to) continue;
      const key = from * size + to, e = found.get(key);
      if (e) { e.bytes += bytes; e.count++; } else found.set(key, { from, to, bytes, saved: !!saved, count: 1, container });
    }
    return [...found.values()];
  }

  /** What the layout needs. @param {number[]} visible @param {Set<string>} open @param {ReturnType<Model["edges"]>} edges @param {(it: Item) => [number, number]} size @param {number} serial @returns {LayoutInput} */
  layoutInput(visible, open, edges, size, serial) {
    const items = visible.map((i) => {
      const it = this.items[i], [w, h] = size(it), parent = this.items[it.parent];
      return { i, parent: parent.depth === 0 ? -1 : parent.index, column: it.column, path: it.path, w, h, open: it.children.length > 0 && open.has(it.path) };
    });
    /** @type {Map<number, [number, number, number]>} */ const lifted = new Map();
    for (const e of edges) {
      let a = this.items[e.from], b = this.items[e.to];
      if (a.column !== b.column) continue;
      while (a.depth > b.depth) a = this.items[a.parent];
      while (b.depth > a.depth) b = this.items[b.parent];
      while (a.parent !== b.parent) { a = this.items[a.parent]; b = this.items[b.parent]; }
      if (a === b) continue;
      const key = a.index * this.items.length + b.index, known = lifted.get(key);
      if (known) known[2] += e.bytes; else lifted.set(key, [a.index, b.index, e.bytes]);
    }
    return { items, edges: [...lifted.values()], serial };
  }

  /** The item whose chain an edge bends along: the source's at the level where both ends part. @param {number} from @param {number} to */
  part(from, to) {
    let a = this.items[from], b = this.items[to];
    while (a.depth > b.depth) a = this.items[a.parent];
    while (b.depth > a.depth) b = this.items[b.parent];
    while (a.parent !== b.parent) { a = this.items[a.parent]; b = this.items[b.parent]; }
    return a.index;
  }

  /** Open every module above an item. @param {number} i @param {Set<string>} open */
  reveal(i, open) {
    for (let p = this.items[i].parent; p >= 0 && this.items[p].depth > 0; p = this.items[p].parent) open.add(this.items[p].path);
  }

  /** Items that a text names: modules, labels, operators, shapes, source lines. @param {string} text */
  search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    /** @type {{ item: Item, text: string, rank: number }[]} */ const out = [];
    for (const it of this.items) {
      if (it.depth === 0 || it.body || (it.node < 0 && it.column === 1 && (this.byPath.get(it.path) ?? []).length > 1)) continue;
      const n = it.node >= 0 ? this.graph.nodes[it.node] : null;
      const file = n ? n.source.split("/").pop() : "";
      const hay = (n ? `${n.ref} ${n.label} ${n.ops.join(" ")} ${n.shape} ${n.shape.replaceAll("×", "x")} ${n.lines.join(" ")}` : it.path).toLowerCase();
      if (!words.every((w) => hay.includes(w))) continue;
      const exact = it.path.toLowerCase() === text.toLowerCase() || (n && n.label.toLowerCase() === words[0]);
      out.push({ item: it, text: n ? `${n.ref}${n.shape ? `   ${n.shape}` : ""}${file ? `   ${file}` : ""}` : it.path, rank: n && n.ref === text.trim() ? -1 : (exact ? 0 : 2) + (n ? 1 : 0) });
    }
    return out.sort((a, b) => a.rank - b.rank || b.item.bytes - a.item.bytes).slice(0, 60);
  }
}
