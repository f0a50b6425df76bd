// What is shown now, as a drawing that other programs open.

import { ink } from "studio/color.js";
import { WIDTHS } from "studio/scene.js";

/** @param {import("studio/view.js").View} view */
export function svg(view) {
  const { scene, ink: colors } = view, B = scene.boxes, { points: p, starts, style } = scene.edges, out = [];
  const escape = (/** @type {string} */ t) => t.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`), f = (/** @type {number} */ v) => v.toFixed(1);
  const box = (/** @type {number} */ n, /** @type {number} */ r, /** @type {string} */ fill) =>
    `<rect x="${f(B[4 * n])}" y="${f(B[4 * n + 1])}" width="${f(B[4 * n + 2])}" height="${f(B[4 * n + 3])}" rx="${r}" fill="${fill}" stroke="${colors.line}"/>`;
  out.push(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="-20 -20 ${f(scene.width + 40)} ${f(scene.height + 40)}" font-family="sans-serif" font-size="12">`,
    `<rect x="-20" y="-20" width="${f(scene.width + 40)}" height="${f(scene.height + 40)}" fill="${colors.canvas}"/>`);
  scene.kinds.forEach((kind, n) => {
    if (kind === 2) out.push(box(n, 10, scene.depth[n] % 2 ? colors.group : colors["group-2"]), `<text x="${f(B[4 * n] + 12)}" y="${f(B[4 * n + 1] + 20)}" font-weight="600" fill="${colors.text}">${escape(scene.titles[n])}</text>`);
  });
  style.forEach((s, e) => {
    const kind = Math.floor(s / WIDTHS.length);
    if (kind === 2 && !view.showSaved) return;
    const d = [`M${f(p[starts[e]])} ${f(p[starts[e] + 1])}`];
    for (let i = starts[e] + 2; i < starts[e + 1]; i += 2) {
      const m = (p[i + 1] - p[i - 1]) / 2, q = (p[i] - p[i - 2]) / 2;
      d.push(kind >= 2 ? `C${f(p[i - 2] + q)} ${f(p[i - 1])} ${f(p[i] - q)} ${f(p[i + 1])} ${f(p[i])} ${f(p[i + 1])}` : `C${f(p[i - 2])} ${f(p[i - 1] + m)} ${f(p[i])} ${f(p[i + 1] - m)} ${f(p[i])} ${f(p[i + 1])}`);
    }
    out.push(`<path d="${d.join("")}" fill="none" stroke="${kind === 2 ? colors.saved : kind === 1 ? colors["edge-back"] : colors.edge}" stroke-width="${WIDTHS[s % WIDTHS.length]}" opacity="${kind === 2 ? 0.4 : 0.75}"/>`);
  });
  scene.kinds.forEach((kind, n) => {
    if (kind === 2) return;
    const color = view.colors[view.visible[n]] ?? colors.plain, dark = ink(color), down = kind ? 3 : 0;
    out.push(box(n, 6, color), `<text x="${f(B[4 * n] + 11)}" y="${f(B[4 * n + 1] + 18 + down)}" font-weight="600" fill="${dark}">${escape(scene.titles[n])}</text>`,
      `<text x="${f(B[4 * n] + 11)}" y="${f(B[4 * n + 1] + 34 + down)}" font-size="11" fill="${dark}">${escape(scene.unders[n])}</text>`);
  });
  return [...out, "</svg>"].join("\n");
}
