// The bar with the totals and buttons, the two dialogs, and what happens when the session tells of a change.

import { byId, bytes, change, el, seconds } from "studio/format.js";
import { badge } from "studio/tables.js";

const KEYS = [["/", "search"], ["← ↑ → ↓", "to the neighbour"], ["Enter", "open or close the selection"], ["e", "open the selected module one level further"], ["Esc", "select what is around it, then nothing"], ["0", "fit into the window"], ["+  −", "zoom"], ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"], ["m", "measure"], ["t", "light or dark"], ["?", "this list"]];

/** @param {import("studio/main.js").App} app */
export function bar(app) {
  const d = app.d, now = d.states.find((s) => s.id === d.current) ?? d.states[0], t = now.totals;
  const first = d.states.find((s) => s.kind === "lowered") ?? d.states[0], f = first.totals;
  byId("name").textContent = d.name;
  byId("step").textContent = `${now.id}: ${now.step}`;
  byId("step").title = now.step;
  const cell = (/** @type {string} */ name, /** @type {string} */ text, /** @type {string} */ small, good = false, /** @type {string} */ title = "") => el("div", { class: "total", title, "data-total": name }, el("span", {}, name), el("b", {}, text, small ? el("small", { class: good ? "good" : "soft" }, small) : ""));
  const drop = (/** @type {number} */ a, /** @type {number} */ b) => (now.id === first.id ? "" : change(a, b));
  const m = t.measured, base = m && d.states.find((s) => s.id !== now.id && s.totals.measured?.device === m.device); // the first that was measured
  const spread = (/** @type {Measured} */ x) => `median of ${x.runs} runs on ${x.device}, ${x.threads} threads: ${seconds(x.median)}; quartiles ${seconds(x.low)} to ${seconds(x.high)}`;
  const told = m ? spread(m) + (base?.totals.measured ? `\nbefore, in state ${base.id} (${base.step}): ${spread(base.totals.measured)}` : "") : "not measured in this state";
  byId("totals").replaceChildren(
    cell("Bytes moved", bytes(t.bytes), drop(t.bytes, f.bytes), t.bytes < f.bytes, `compared with state ${first.id}; read ${bytes(t.read)}, written ${bytes(t.written)}`),
    cell("of eager", t.eager ? `${(t.bytes / t.eager).toFixed(2)}×` : "–", "", false, `eager PyTorch moves ${bytes(t.eager)}`),
    cell("Kernels", String(t.kernels), drop(t.kernels, f.kernels), t.kernels < f.kernels, `${t.calls} of them library calls`),
    cell("Predicted", seconds(t.predicted), drop(t.predicted, f.predicted), t.predicted < f.predicted, `roofline on ${d.machine}`),
    cell("Measured", m ? seconds(m.median) : d.job === "measuring" ? "…" : "–", m ? `± ${seconds((m.high - m.low) / 2)} ${base?.totals.measured ? change(m.median, base.totals.measured.median) : ""}` : "", !!base?.totals.measured && !!m && m.high < base.totals.measured.low, told),
    el("div", { class: "total" }, el("span", {}, "Numbers"), badge(now.check)));
  const overlay = /** @type {HTMLSelectElement} */ (byId("overlay"));
  if (overlay.options.length !== d.overlays.length) overlay.replaceChildren(...d.overlays.map((o) => el("option", { value: o.name, title: o.description }, o.title)));
  overlay.value = app.overlay;
  const ro = app.line.readOnly, button = (/** @type {string} */ id, /** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ run, off = false, main = false) => el("button", { id, title, class: main ? "main" : "", onclick: run, disabled: off }, text);
  const level = /** @type {HTMLSelectElement} */ (el("select", { id: "level", title: "Run the pipeline up to a level for the chosen machine, from the captured operators", "aria-label": "Run level", onchange: () => { const v = level.value; level.value = ""; if (v) app.change("run_level", { level: Number(v) }); } },
    el("option", { value: "" }, "Level …"), ...["0 lower only", "1 operator", "2 fusion", "3 layout", "4 whole step"].map((t2, i) => el("option", { value: i }, t2))));
  const out = /** @type {HTMLSelectElement} */ (el("select", { id: "export", title: "Take it out", "aria-label": "Export", onchange: () => { const v = out.value; out.value = ""; if (v) app.export(v); } },
    el("option", { value: "" }, "Export …"), ...[["recipe", "Recipe (Python)"], ["svg", "Graph as shown (SVG)"], ...(ro ? [] : [["html", "Offline page (HTML)"], ["trace", "Trace (Chrome, Perfetto)"], ["json", "Program (JSON)"]])].map(([v, t2]) => el("option", { value: v }, t2))));
  const machine = /** @type {HTMLSelectElement} */ (el("select", { id: "machine", title: "The machine that times are predicted for, and that levels choose for", "aria-label": "Machine", onchange: () => app.change("set_machine", { machine: machine.value }) }, ...d.machines.map((m2) => el("option", { value: m2 }, m2))));
  machine.value = d.machine;
  const devices = Object.entries(d.devices), device = /** @type {HTMLSelectElement} */ (el("select", { id: "device", title: "What is measured on", "aria-label": "Device", onchange: () => { app.device = device.value; } }, ...devices.map(([v, name]) => el("option", { value: v }, name))));
  device.value = app.device || d.device;
  const measuring = d.job === "measuring", tuning = d.job === "tuning";
  byId("actions").replaceChildren(...(ro ? [el("span", { class: "badge soft" }, "read-only export")] : [
    button("undo", "Undo", "Ctrl+Z", () => app.change("undo"), !d.undo), button("redo", "Redo", "Ctrl+Shift+Z", () => app.change("redo"), d.redo === null), level,
    button("reset", "Reset", "Back to the first state; the others stay in the history", () => app.change("reset")), machine, ...(devices.length > 1 ? [device] : []),
    button("measure", measuring ? "Stop" : "Measure", measuring ? "Stop measuring" : "Time the step and every kernel on this machine (m)", () => app.measure(), tuning, true),
    button("tune", tuning ? "Stop" : "Tune", d.tunes ? "Search for a faster plan by measuring, for a minute; what was found is kept when it is stopped" : "Tuning runs the model: open the module or its ONNX file", () => app.tune(), !d.tunes || measuring)]),
    out, button("theme", app.theme === "dark" ? "Light" : "Dark", "Light or dark (t)", () => app.setTheme(app.theme === "dark" ? "light" : "dark")), button("help", "?", "Keys", () => help()));
}

/** What the session tells every page. @param {import("studio/main.js").App} app @param {any} e */
export function event(app, e) {
  if (e.event === "changed" || e.event === "measured") app.load(false).catch((x) => app.fail(x));
  else if (e.event === "checked") app.line.call("describe").then((d) => {
    if (d.session !== app.d.session || d.version < app.d.version) return; // it comes late: what is shown was asked for later, and has the check
    app.d = d;
    bar(app);
    if (app.tab === "history") app.sheet();
    const s = d.states[e.state];
    if (s?.check?.ok === false) app.notice(`State ${s.id} (${s.step}) ${s.check.text}. Undo takes it back.`, true);
  }).catch((x) => app.fail(x));
  else if (e.event === "progress" && app.d) {
    const was = app.d.job;
    app.d.job = e.job;
    if (was !== e.job) bar(app);
    const cell = document.querySelector('[data-total="Measured"] b');
    if (e.job === "measuring" && cell) cell.textContent = `${e.what} ${Math.round(100 * e.part)}%`;
    if (e.job === "tuning") app.notice(`Tuning, ${Math.round(100 * e.part)}%: ${e.what}`, false);
    else if (was === "tuning" && !e.job) app.notice("Tuning has ended; what won is the current state.", false, 8000);
  } else if (e.event === "failed") app.notice(e.what, true);
  else if (e.event === "stopped") app.notice(e.what, false, 6000);
}

/** What applying would do. @param {import("studio/main.js").App} app @param {PlaceInfo} p */
export async function preview(app, p) {
  app.busy(true);
  try {
    /** @type {PreviewInfo} */ const d = await app.line.call("preview", { transformation: p.transformation, where: p.where, parameters: p.parameters });
    const dialog = /** @type {HTMLDialogElement} */ (byId("dialog"));
    const close = () => dialog.close();
    dialog.replaceChildren(el("h2", {}, `Preview: ${p.transformation}`), el("p", { class: "soft" }, p.text),
      el("p", {}, `Bytes ${bytes(d.before.bytes)} → ${bytes(d.after.bytes)} ${change(d.after.bytes, d.before.bytes)},  kernels and calls ${d.before.kernels} → ${d.after.kernels},  predicted ${seconds(d.before.predicted)} → ${seconds(d.after.predicted)}`), el("p", { class: "soft" }, d.check),
      el("div", { class: "two" }, el("div", {}, el("b", {}, "Before"), el("pre", {}, d.text_before || "–")), el("div", {}, el("b", {}, "After"), el("pre", {}, d.text_after || "–"))),
      el("div", { class: "row", style: "display:flex;gap:8px;justify-content:flex-end;margin-top:12px" }, el("button", { onclick: close }, "Close"), el("button", { onclick: () => { close(); app.applyPlace("apply_alike", p); } }, "Apply to all alike"), el("button", { class: "main", onclick: () => { close(); app.applyPlace("apply", p); } }, "Apply")));
    dialog.showModal();
  } catch (e) { app.fail(e); } finally { app.busy(false); }
}

export function help() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("dialog"));
  dialog.replaceChildren(el("h2", {}, "Keys"), el("table", {}, el("tbody", {}, ...KEYS.map(([k, what]) => el("tr", {}, el("td", {}, el("kbd", {}, k)), el("td", {}, what))))),
    el("p", { class: "soft" }, "Drag moves, the wheel zooms, a double click opens a module or a kernel. Edges are as wide as the bytes they carry; orange ones are tensors saved for the backward phase."), el("button", { onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}
