// Workers from the page's own modules, also in an offline page, whose modules are texts in it.

/**
 * A worker that runs one self-contained module; null, or `failed` later, where the browser has none (some forbid them to local files).
 * @param {string} name @param {() => void} failed @returns {Worker | null}
 */
export function startWorker(name, failed) {
  try {
    const map = document.querySelector('script[type="importmap"]'), url = String(JSON.parse(map?.textContent ?? "{}").imports?.[`studio/${name}`]);
    const worker = url.startsWith("data:") ? new Worker(URL.createObjectURL(new Blob([plain(url)], { type: "text/javascript" }))) : new Worker(url, { type: "module" });
    worker.onerror = () => failed();
    return worker;
  } catch {
    return null;
  }
}

/** The text of a module as a plain script: files may not start modules. @param {string} url */
function plain(url) {
  return new TextDecoder().decode(Uint8Array.from(atob(url.split(",")[1]), (c) => c.charCodeAt(0))).replace(/^export /gm, "");
}
