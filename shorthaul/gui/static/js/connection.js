// The page's line to a session: a WebSocket that comes back by itself, a notebook's widget, or the answers that an offline page carries.
//
// A request that was under way when the line broke is sent again with the same key; the server answers a key that it has seen, so that
// nothing is done twice.

const CHANGES = new Set(["apply", "apply_alike", "run_level", "replay", "undo", "redo", "goto", "reset", "set_machine"]);
const SLOW = 20000; // milliseconds after which a kernel that has not answered is said to be busy

/**
 * @typedef {{ call(method: string, params?: Record<string, unknown>): Promise<any>, onEvent: (event: any) => void,
 *   onStatus: (connected: boolean, text: string) => void, version: number, readOnly: boolean }} Connection
 */

/** Requests that wait for their answers, whatever carries them. @implements {Connection} */
class Line {
  constructor() {
    this.readOnly = false;
    this.version = 0;
    /** @type {(event: any) => void} */ this.onEvent = () => {};
    /** @type {(connected: boolean, text: string) => void} */ this.onStatus = () => {};
    /** @type {Map<string, { text: string, resolve: (v: any) => void, reject: (e: Error) => void }>} */ this.pending = new Map();
    this.number = 0;
    this.me = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
  }

  /** Send a request if that can be done now; else it is sent when it can. @param {string} _text */
  transmit(_text) {}

  /** @param {any} message */
  receive(message) {
    if (message.event) {
      if (message.version) this.version = message.version;
      this.onEvent(message);
      return;
    }
    const p = this.pending.get(message.id);
    if (!p) return;
    this.pending.delete(message.id);
    if (message.error === undefined) p.resolve(message.result);
    else p.reject(new Error(message.error));
  }

  /** @param {string} method @param {Record<string, unknown>} [params] @returns {Promise<any>} */
  call(method, params = {}) {
    const id = `${this.me}/${++this.number}`, change = CHANGES.has(method) ? { version: this.version, key: id } : {};
    const text = JSON.stringify({ id, method, params, ...change });
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
    /** @type {WebSocket | null} */ this.socket = null;
    this.opened = false;
    window.addEventListener("online", () => this.connect());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.connect(); });
    this.connect();
  }

  connect() {
    if (this.socket && this.socket.readyState <= WebSocket.OPEN) return;
    const socket = this.socket = new WebSocket(this.url);
    socket.onopen = () => {
      this.wait = 250;
      this.onStatus(true, "");
      for (const p of this.pending.values()) socket.send(p.text);
      if (this.opened) this.onEvent({ event: "changed", reconnected: true });
      this.opened = true;
    };
    socket.onmessage = (m) => this.receive(JSON.parse(m.data));
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.onStatus(false, "The connection to the studio is lost; trying again. Its state is kept. If the program was ended, start it again.");
      setTimeout(() => this.connect(), this.wait);
      this.wait = Math.min(5000, this.wait * 2);
    };
  }

  /** @override @param {string} text */
  transmit(text) {
    if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(text);
  }
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
    this.timer = setTimeout(() => { if (this.pending.size) this.onStatus(false, "The kernel has not answered for a while: it is busy with a cell, or it has ended. Run the cell of the widget again in the second case."); }, SLOW);
  }

  /** @override @param {any} message */
  receive(message) {
    this.onStatus(true, "");
    super.receive(message);
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */ timer = undefined;
}

/** @implements {Connection} */
export class Offline {
  /** @param {any} data */
  constructor(data) {
    this.data = data;
    this.readOnly = true;
    this.version = data.describe.version;
    /** @type {(event: any) => void} */ this.onEvent = () => {};
    /** @type {(connected: boolean, text: string) => void} */ this.onStatus = () => {};
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
