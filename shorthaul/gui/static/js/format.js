// Numbers and text as people read them, and small helpers to build the page.

/** @param {number | null | undefined} n */
export function bytes(n) {
  if (n === null || n === undefined) return "–";
  let size = n;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(size) < 1024 || unit === "TiB") return unit === "B" ? `${size.toFixed(0)} B` : `${size.toFixed(size < 10 ? 2 : 1)} ${unit}`;
    size /= 1024;
  }
  return "";
}

/** @param {number | null | undefined} s */
export function seconds(s) {
  if (s === null || s === undefined) return "–";
  if (s === 0) return "0 s";
  if (s < 1e-6) return `${(s * 1e9).toFixed(0)} ns`;
  if (s < 1e-3) return `${(s * 1e6).toFixed(s < 1e-5 ? 1 : 0)} µs`;
  if (s < 1) return `${(s * 1e3).toFixed(s < 1e-2 ? 2 : 1)} ms`;
  return `${s.toFixed(2)} s`;
}

/** @param {number | null | undefined} n */
export function count(n) {
  if (n === null || n === undefined) return "–";
  if (n >= 1e12) return `${(n / 1e12).toFixed(2)} T`;
  if (n >= 1e9) return `${(n / 1e9).toFixed(2)} G`;
  if (n >= 1e6) return `${(n / 1e6).toFixed(2)} M`;
  return n.toLocaleString("en");
}

/** A value of an overlay. @param {number | string | undefined} v @param {string} unit */
export function value(v, unit) {
  if (v === undefined) return "–";
  if (typeof v === "string") return v;
  if (unit === "B") return bytes(v);
  if (unit === "s") return seconds(v);
  const text = v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(1) : v.toPrecision(3);
  return unit === "x" ? `${text}×` : unit ? `${text} ${unit}` : text;
}

/** @param {number} after @param {number} before */
export function change(after, before) {
  if (!before || after === before) return "";
  const part = (after - before) / before * 100;
  return `${part < 0 ? "▼" : "▲"} ${Math.abs(part).toFixed(Math.abs(part) < 10 ? 1 : 0)}%`;
}

/**
 * An element with attributes and children; text is never read as HTML.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (v === null || v === undefined || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "class") e.className = v;
    else e.setAttribute(k, v === true ? "" : String(v));
  }
  for (const c of children) if (c !== null && c !== undefined && c !== false) e.append(c);
  return e;
}

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const e = document.getElementById(id);
  if (!e) throw new Error(`the page has no #${id}`);
  return e;
}

/** Save text as a file. @param {string} name @param {string} text @param {string} type */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const a = el("a", { href: url, download: name });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
