// The search field: modules, nodes, operators, shapes and source lines, chosen by keys or pointer.

import { byId, bytes, el } from "studio/format.js";

/** @param {import("studio/main.js").App} app */
export function wireSearch(app) {
  const input = /** @type {HTMLInputElement} */ (byId("search")), list = byId("found");
  let at = 0;
  /** @type {ReturnType<import("studio/model.js").Model["search"]>} */ let found = [];
  const draw = () => {
    list.hidden = !input.value;
    list.replaceChildren(...(found.length ? found.map((f, i) => el("li", { role: "option", "aria-selected": i === at, onpointerdown: (/** @type {Event} */ e) => { e.preventDefault(); pick(i); } }, el("span", {}, f.text), el("span", {}, bytes(f.item.bytes)))) : [el("li", {}, el("span", { class: "soft" }, "Nothing is called so."))]));
  };
  const pick = (/** @type {number} */ i) => { if (found[i]) { app.goTo(found[i].item.index); list.hidden = true; input.blur(); byId("graph").focus(); } };
  input.oninput = () => { found = app.model.search(input.value); at = 0; draw(); };
  input.onfocus = () => { input.select(); if (input.value) draw(); };
  input.onblur = () => { list.hidden = true; };
  input.onkeydown = (e) => {
    e.stopPropagation();
    if (e.key === "ArrowDown" || e.key === "ArrowUp") { at = (at + (e.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(1, found.length); draw(); list.children[at]?.scrollIntoView({ block: "nearest" }); e.preventDefault(); } else if (e.key === "Enter") pick(at);
    else if (e.key === "Escape") { input.blur(); byId("graph").focus(); }
  };
}
