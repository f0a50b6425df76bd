// Selection, what is open, colour, tab and place in the browser's address, so that a link leads back.

import { TABS } from "studio/tables.js";

const LONGEST = 4000; // characters of an address; more is not remembered

export class Address {
  /** @param {import("studio/main.js").App} app */
  constructor(app) {
    this.app = app;
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;
    /** @type {number[] | null} where the window stood */ this.place = null;
  }

  remember() {
    if (location.protocol === "about:") return; // a page inside a notebook has no address
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const p = new URLSearchParams(), { app } = this, { x, y, k } = app.view, s = app.selection();
      if (s) p.set("select", s);
      p.set("open", [...app.open].join("|"));
      p.set("colour", app.overlay);
      p.set("tab", app.tab);
      p.set("at", [x.toFixed(0), y.toFixed(0), k.toFixed(3)].join(","));
      const hash = `#${p}`;
      if (hash.length < LONGEST) window.history.replaceState(null, "", location.pathname + location.search + hash);
    }, 400);
  }

  /** The overlay that the address names. */
  colour() {
    return new URLSearchParams(location.hash.slice(1)).get("colour") ?? this.app.overlay;
  }

  /** What the address says of modules and tab, before anything is laid out. */
  read() {
    const { app } = this, p = new URLSearchParams(location.hash.slice(1)), open = p.get("open");
    if (open !== null) app.open = new Set(open.split("|").filter((x) => app.model.byPath.has(x)));
    const tab = p.get("tab");
    if (tab && TABS.some(([t]) => t === tab)) app.tab = tab;
    const at = p.get("at")?.split(",").map(Number);
    this.place = at && at.length === 3 && at.every(Number.isFinite) ? at : null;
  }

  /** Go where the address says, when the graph is laid out. */
  follow() {
    const { app } = this, select = new URLSearchParams(location.hash.slice(1)).get("select");
    if (select) app.find(select);
    else if (this.place) {
      const [x, y, k] = this.place;
      Object.assign(app.view, { x, y, k });
      app.view.draw();
    }
  }
}
