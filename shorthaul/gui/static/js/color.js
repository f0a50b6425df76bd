// Colours of overlays. Heat runs in lightness as well as hue, and words use the palette of Okabe and Ito, so that both can be told apart
// without seeing colours.

const HEAT = {
  light: ["#f4f1ea", "#fbdcb0", "#f8b26a", "#e8743b", "#b83a24", "#6f1414"],
  dark: ["#2b303b", "#4a3560", "#84376f", "#c44a5c", "#ef8245", "#fbd877"],
};
const WORDS = {
  light: ["#cfe3f2", "#f6d9a8", "#bfe3d3", "#f1cfe0", "#f3c3ab", "#e9e39a", "#d9d9d9", "#c9c3e6"],
  dark: ["#22557c", "#8a5a10", "#1d6b52", "#7b3a60", "#8a3c14", "#6d681a", "#5a5f69", "#4b4488"],
};
const STEPS = 48;

/** @param {string} hex @returns {[number, number, number]} */
function rgb(hex) {
  return [parseInt(hex.slice(1, 3), 16), parseInt(hex.slice(3, 5), 16), parseInt(hex.slice(5, 7), 16)];
}

/** @param {string[]} stops */
function ramp(stops) {
  const out = [];
  for (let i = 0; i < STEPS; i++) {
    const at = i / (STEPS - 1) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(at)), t = at - k;
    const a = rgb(stops[k]), b = rgb(stops[k + 1]);
    out.push("#" + a.map((x, j) => Math.round(x + (b[j] - x) * t).toString(16).padStart(2, "0")).join(""));
  }
  return out;
}

const RAMPS = { light: ramp(HEAT.light), dark: ramp(HEAT.dark) };

/** Black or white, whichever is read better on a colour. @param {string} hex */
export function ink(hex) {
  const [r, g, b] = rgb(hex).map((v) => { const c = v / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.3 ? "#14181f" : "#f6f8fb";
}

/**
 * From values to colours. Numbers are spread by their square root: bytes and times lie far apart, and areas are read that way.
 * @param {OverlayInfo} info @param {(number | string)[]} values @param {"light" | "dark"} theme
 */
export function scale(info, values, theme) {
  if (info.kind === "category") {
    const words = [...new Set(values.map(String))].sort();
    /** @type {Map<string, string>} */ const colors = new Map(words.map((w, i) => [w, WORDS[theme][i % WORDS[theme].length]]));
    return { words, most: 0, color: (/** @type {number | string | undefined} */ v) => v === undefined ? undefined : colors.get(String(v)) };
  }
  let most = 0;
  for (const v of values) if (typeof v === "number" && Number.isFinite(v) && v > most) most = v;
  const ramp = RAMPS[theme];
  return {
    words: null, most,
    color: (/** @type {number | string | undefined} */ v) => {
      if (typeof v !== "number" || !Number.isFinite(v)) return undefined;
      return ramp[Math.max(0, Math.min(STEPS - 1, Math.round(Math.sqrt(Math.max(0, v) / (most || 1)) * (STEPS - 1))))];
    },
  };
}

/** @param {"light" | "dark"} theme */
export function gradient(theme) {
  return `linear-gradient(to right, ${RAMPS[theme].filter((_, i) => i % 6 === 0 || i === STEPS - 1).join(", ")})`;
}
