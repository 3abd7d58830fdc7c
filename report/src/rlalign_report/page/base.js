// Everything on the page is made by `make`, of text and never of markup: what a model wrote cannot be more than text.
const byId = (id) => document.getElementById(id);

function make(tag, about = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(about)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(made.style, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...inside.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return made;
}

function figure(value, digits = 4) {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  const short = Number(value.toPrecision(digits));
  return short.toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "−");
}

function count(value) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) {
    if (value >= size) return Number((value / (unit === " k" ? 1e3 : size)).toPrecision(3)) + unit;
  }
  return figure(value, 6);
}

function duration(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(2))} s`;
  const whole = Math.round(seconds);
  const parts = [[Math.floor(whole / 86400), "d"], [Math.floor(whole / 3600) % 24, "h"], [Math.floor(whole / 60) % 60, "min"], [whole % 60, "s"]];
  const first = parts.findIndex(([n]) => n > 0);
  return parts.slice(first, first + 2).filter(([n]) => n > 0).map(([n, unit]) => `${n} ${unit}`).join(" ");
}

function kept(key, value) {
  // What a person has chosen, where the browser keeps anything for this page.
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* it keeps nothing */ }
  return null;
}

function textOf(text) {
  return text === "" ? make("div", { class: "text empty" }, "(empty)") : make("div", { class: "text", dir: "auto" }, text);
}

// -- light and dark ------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

function setTheme(name) {
  const theme = THEMES.includes(name) ? name : "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[theme];
  byId("theme").dataset.now = theme;
  kept("rlalign-theme", theme);
}

function colour(name) {
  // Of a variable, as it is now.
  const sight = byId("sight");
  sight.style.color = `var(--${name})`;
  return getComputedStyle(sight).color;
}

function faded(rgb, share) {
  const [r, g, b] = rgb.match(/[\d.]+/g);
  return `rgba(${r}, ${g}, ${b}, ${share})`;
}
