// The canvases and who draws on them: a worker, or the page itself where a worker cannot.

import { Painter } from "studio/paint.js";
import { startWorker } from "studio/workers.js";

export class Surface {
  /** @param {HTMLCanvasElement} canvas @param {HTMLCanvasElement} minimap @param {(m: PaintAnswer) => void} answered */
  constructor(canvas, minimap, answered) {
    this.canvases = { canvas, minimap };
    this.answered = answered;
    /** @type {PaintMessage} what was said before anyone could draw, the last of each kind */ this.early = {};
    /** @type {((m: PaintMessage) => void) | null} */ this.send = null;
    const worker = "transferControlToOffscreen" in canvas ? startWorker("paint.js", () => this.inPage()) : null;
    if (!worker) { this.inPage(); return; }
    worker.onmessage = (/** @type {MessageEvent<PaintAnswer & { ready?: boolean }>} */ m) => {
      if (!m.data.ready) { this.answered(m.data); return; }
      if (this.send) return; // the page draws already
      const surface = { canvas: canvas.transferControlToOffscreen(), minimap: minimap.transferControlToOffscreen() };
      worker.postMessage({ surface }, [surface.canvas, surface.minimap]);
      this.begin((message) => worker.postMessage(message));
    };
  }

  inPage() {
    if (this.send) return; // the worker has the canvases
    const painter = new Painter((m) => this.answered(m));
    painter.receive({ surface: this.canvases });
    this.begin((m) => painter.receive(m));
  }

  /** @param {(m: PaintMessage) => void} send */
  begin(send) {
    this.send = send;
    send(this.early);
  }

  /** @param {PaintMessage} message */
  post(message) {
    if (this.send) this.send(message);
    else Object.assign(this.early, message);
  }
}
