// The body of an open kernel as lines of text.

const WIDEST = 110; // characters of a line; what is longer goes on in the next one, indented

/** The lines of a kernel's body. @param {Body} body @param {number} [depth] @returns {Row[]} */
export function flatten(body, depth = 0) {
  if (body.kind === "tasklet") return (body.lines ?? []).flatMap((text) => lines("code", depth, text.trim()));
  const ranges = body.ranges ? ` ${body.ranges}` : "", schedule = body.schedule && body.schedule !== "auto" ? ` (${body.schedule})` : "";
  const out = lines("map", depth, `${body.kind}${ranges}${schedule}`);
  for (const c of body.locals ?? []) out.push(...lines("local", depth + 1, `local ${c}`));
  for (const b of body.items ?? []) out.push(...flatten(b, depth + 1));
  return out;
}

/** @param {"code" | "map" | "local"} kind @param {number} depth @param {string} text @returns {Row[]} */
function lines(kind, depth, text) {
  /** @type {Row[]} */ const out = [];
  while (text.length > WIDEST) {
    const space = text.lastIndexOf(" ", WIDEST), at = space > WIDEST / 2 ? space : WIDEST;
    out.push({ depth: out.length ? depth + 1 : depth, kind, text: text.slice(0, at) });
    text = text.slice(at).trimStart();
  }
  out.push({ depth: out.length ? depth + 1 : depth, kind, text });
  return out;
}
