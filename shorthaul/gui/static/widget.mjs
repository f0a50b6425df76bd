// The studio's page in a notebook: a frame, and what goes between it and the kernel.

/** @param {{ model: any, el: HTMLElement }} widget */
function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = "Shorthaul studio";
  frame.setAttribute("sandbox", "allow-scripts allow-downloads"); // without allow-same-origin: an origin of its own
  frame.style.cssText = `width: 100%; height: ${model.get("height")}px; border: 1px solid #8886; border-radius: 8px; display: block; box-sizing: border-box;`;
  frame.srcdoc = model.get("page");
  const down = (/** @type {{ studio?: string }} */ m) => { if (typeof m?.studio === "string") frame.contentWindow?.postMessage({ studio: m.studio }, "*"); };
  const gone = () => down({ studio: JSON.stringify({ event: "gone" }) }); // the kernel that made the widget: the front end refuses to send
  const up = (/** @type {MessageEvent} */ m) => { if (m.source === frame.contentWindow && typeof m.data?.studio === "string") Promise.resolve().then(() => model.send({ studio: m.data.studio })).catch(gone); };
  const tall = () => { frame.style.height = `${model.get("height")}px`; };
  window.addEventListener("message", up);
  model.on("msg:custom", down);
  model.on("change:height", tall);
  el.append(frame);
  return () => {
    window.removeEventListener("message", up);
    model.off("msg:custom", down);
    model.off("change:height", tall);
  };
}

export default { render };
