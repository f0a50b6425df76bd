// The page's line to a session: a WebSocket that comes back by itself, a notebook's widget, or the answers that an offline page carries.
//
// A request that was under way when the line broke is sent again with the same key; the server answers a key that it has seen, so that
// nothing is done twice. A line begins with the server's greeting, which names its session: where it is another one (the process was
// started anew), what was under way is refused, not sent.

const CHANGES = new Set(["apply", "apply_alike", "run_level", "replay", "undo", "redo", "goto", "reset", "set_machine", "restore"]);
const JOBS = new Set(["measure", "tune", "stop"]);
const SLOW = 20000; // milliseconds after which a kernel that has not answered is said to be busy
const PATIENCE = 8000; // milliseconds after which a line that does not answer at all is given up
const GONE = "The kernel that made this widget was ended or started anew. Run the cell of the widget again: it offers the state that you had. Nothing can be changed here.";
const TICK = 5000; // milliseconds between looks at the clock: where much more has passed, the machine was asleep

/**
 * How the line is. "back": it answers again, nothing was lost; "anew": another session answers now.
 * @typedef {"lost" | "other" | "slow" | "back" | "anew"} Status
 * @typedef {{ call(method: string, params?: Record<string, unknown>): Promise<any>, onEvent: (event: any) => void,
 *   onStatus: (status: Status, text: string) => void, version: number, readOnly: boolean }} Connection
 */

/** Requests that wait for their answers, whatever carries them. @implements {Connection} */
class Line {
  constructor() {
    this.readOnly = false;
    this.version = 0; // of the session as the page shows it; a change is decided on it
    /** @type {(event: any) => void} */ this.onEvent = () => {};
    /** @type {(status: Status, text: string) => void} */ this.onStatus = () => {};
    /** @type {Map<string, { text: string, resolve: (v: any) => void, reject: (e: Error) => void }>} */ this.pending = new Map();
    this.number = 0;
    this.me = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
  }

  /** Send a request if that can be done now; else it is sent when it can. @param {string} _text */
  transmit(_text) {}

  /** Why nothing can be changed now; empty where it can. */
  blocked() { return ""; }

  /** @param {any} message */
  receive(message) {
    if (message.event) return this.onEvent(message);
    const p = this.pending.get(message.id);
    if (!p) return;
    this.pending.delete(message.id);
    if (message.error === undefined && message.version === this.version + 1) this.version = message.version; // a change of this page's own, and nobody else's before it
    if (message.error === undefined) p.resolve(message.result);
    else p.reject(new Error(message.error));
  }

  /** @param {string} method @param {Record<string, unknown>} [params] @returns {Promise<any>} */
  call(method, params = {}) {
    const changes = CHANGES.has(method), keyed = changes || JOBS.has(method), why = keyed ? this.blocked() : "";
    if (why) return Promise.reject(new Error(why));
    const id = `${this.me}/${++this.number}`;
    const text = JSON.stringify({ id, method, params, ...(changes ? { version: this.version } : {}), ...(keyed ? { key: id } : {}) });
    return new Promise((resolve, reject) => {
      this.pending.set(id, { text, resolve, reject });
      this.transmit(text);
    });
  }
}

/** To the studio's server on this machine. */
export class Live extends Line {
  /** @param {string} url */
  constructor(url) {
    super();
    this.url = url;
    this.wait = 250;
    this.session = ""; // that greeted last
    /** @type {WebSocket | null} */ this.socket = null;
    this.greeted = false; // whether requests can be sent
    this.since = ""; // the time of day when the line was lost
    this.other = false; // whether another studio answers at this address
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.waiting = undefined;
    let last = Date.now();
    setInterval(() => { const now = Date.now(); if (now - last > 3 * TICK) this.probe(); last = now; }, TICK);
    window.addEventListener("online", () => this.probe());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.probe(); });
    this.connect();
  }

  connect() {
    if (this.socket && this.socket.readyState <= WebSocket.OPEN) return;
    clearTimeout(this.waiting);
    const socket = this.socket = new WebSocket(this.url);
    socket.onmessage = (m) => {
      if (this.socket !== socket) return;
      const message = JSON.parse(m.data);
      clearTimeout(this.asked);
      if (message.event === "hello") this.hello(message);
      else this.receive(message);
    };
    socket.onclose = () => { if (this.socket === socket) this.lose(); };
  }

  /** The server's greeting: at the beginning of a line, and when it was asked whether it is there. @param {{ session: string, version: number }} who */
  hello(who) {
    if (this.greeted) return;
    const again = this.session !== "", same = !again || who.session === this.session;
    this.greeted = true;
    this.session = who.session;
    this.wait = 250;
    this.since = "";
    this.other = false;
    if (same) for (const p of this.pending.values()) this.transmit(p.text);
    else {
      const under = [...this.pending.values()];
      this.pending.clear();
      for (const p of under) p.reject(new Error("The studio was started anew: what was under way was not done."));
    }
    if (!again) return;
    this.onStatus(same ? "back" : "anew", same ? "Connected again; nothing was lost." : "The studio was started anew, and shows the state that it begins with; what was under way was not done.");
    this.onEvent({ event: "changed", version: who.version });
  }

  /** Ask whether the line still carries: after a sleep it may look open and be dead. */
  probe() {
    const socket = this.socket;
    if (!socket || socket.readyState > WebSocket.OPEN) return this.connect();
    if (socket.readyState !== WebSocket.OPEN) return;
    socket.send("ping");
    clearTimeout(this.asked);
    this.asked = setTimeout(() => { if (this.socket === socket) { this.socket = null; socket.close(); this.lose(); } }, PATIENCE);
  }

  lose() {
    this.greeted = false;
    this.since ||= new Date().toTimeString().slice(0, 5);
    this.onStatus(this.other ? "other" : "lost", this.blocked());
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.connect(), this.wait);
    this.wait = Math.min(5000, this.wait * 2);
    // a browser does not say why a WebSocket was refused: whoever answers at this address does
    fetch(`/${location.search}`, { method: "HEAD", cache: "no-store" }).then((r) => r.status === 403, () => false).then((other) => {
      if (this.greeted || other === this.other) return;
      this.other = other;
      this.onStatus(other ? "other" : "lost", this.blocked());
    });
  }

  /** @override */
  blocked() {
    if (!this.since) return "";
    return this.other ? "The process that this page belongs to was ended, and another studio runs at its address. Open the address that the new one printed; on the same program it offers the state that you had. Nothing can be changed here."
      : `The studio has not answered since ${this.since}. If this computer was asleep, it is back in a moment. If its process was ended, start it again and open the address that it prints: it offers the state that you had. Until then nothing can be changed here.`;
  }

  /** @override @param {string} text */
  transmit(text) {
    if (this.greeted && this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(text);
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */ asked = undefined;
}

/** Inside a notebook: to the widget around the page, which passes everything on to the kernel. */
export class Framed extends Line {
  constructor() {
    super();
    window.addEventListener("message", (m) => { if (m.source === window.parent && typeof m.data?.studio === "string") this.receive(JSON.parse(m.data.studio)); });
  }

  /** @override @param {string} text */
  transmit(text) {
    window.parent.postMessage({ studio: text }, "*"); // the page has an origin of its own, and its parent's is not known
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { if (this.pending.size) this.onStatus("slow", "The kernel has not answered for a while. If it is busy with a cell, this goes on when the cell is done. If it was ended, run the cell that made this widget again: it offers the state that you had."); }, SLOW);
  }

  /** @override @param {any} message */
  receive(message) {
    clearTimeout(this.timer);
    if (message.event === "gone") {
      const under = [...this.pending.values()];
      this.pending.clear();
      this.gone = true;
      for (const p of under) p.reject(new Error(GONE));
      this.onStatus("lost", GONE);
    } else {
      this.onStatus("back", "The kernel answers again; nothing was lost.");
      super.receive(message);
    }
  }

  /** @override */
  blocked() { return this.gone ? GONE : ""; }

  /** @type {ReturnType<typeof setTimeout> | undefined} */ timer = undefined;
  gone = false;
}

/** @implements {Connection} */
export class Offline {
  /** @param {any} data */
  constructor(data) {
    this.data = data;
    this.readOnly = true;
    this.version = data.describe.version;
    /** @type {(event: any) => void} */ this.onEvent = () => {};
    /** @type {(status: Status, text: string) => void} */ this.onStatus = () => {};
  }

  /** @param {string} method @param {Record<string, any>} [params] */
  async call(method, params = {}) {
    const d = this.data;
    if (method === "overlay") return d.overlay[params.name];
    if (method === "body" || method === "module") return d[method][params.what ?? params.path];
    if (method === "node") {
      const found = d.node[params.what];
      if (!found) throw new Error(`This offline page has the details of the ${d.detailed} costliest nodes only.`);
      return found;
    }
    if (method === "opportunities") return params.refused ? [] : d.opportunities;
    if (method === "export" && params.kind in d) return d[params.kind];
    if (method in d) return d[method];
    throw new Error("This page is a read-only export; open the program in the studio to change or measure it.");
  }
}
