// Charts are drawn when they come into sight.
const COLOURS = 7;
const AXES = { iteration: "iterations", step: "optimiser steps", tokens: "tokens", seconds: "seconds" };
const chosen = { x: "iteration", smooth: 0, seeds: false, log: false, filter: "" };
const drawn = new Map(); // by element, the chart's values and whether it is out of date
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const about = drawn.get(entry.target);
    if (!about) continue;
    about.inSight = entry.isIntersecting;
    if (about.inSight) draw(entry.target);
  }
}, { rootMargin: "200px" });
const coarse = matchMedia("(pointer: coarse)");

const library = (async () => {
  await new Promise((done) => setTimeout(done, 20)); // the page is shown first
  const packed = atob(byId("library").textContent.trim());
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  if (!window.Plotly) throw new Error("the library for charts did not start");
})();

// Plotly reads a few tags in names.
const literal = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function smoothed(ys, share) {
  let sum = 0, weight = 0;
  return ys.map((y) => {
    if (y === null) return null;
    sum = share * sum + (1 - share) * y;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}

function lineColour(line, data) {
  const number = data.groups.length > 1 ? line.group : line.evaluation ? 1 : 0;
  return colour(`c${number % COLOURS}`);
}

function traces(chart, data) {
  const found = [];
  const several = data.groups.length > 1;
  for (const line of chart.lines) {
    if (line.seed && !chosen.seeds) continue;
    const own = chart.name.startsWith("eval/");
    const x = data.axes[line.axes][chosen.x];
    const hue = lineColour(line, data);
    const name = literal(line.evaluation && !own ? `${several || line.mean ? `${line.label}, ` : ""}evaluation` : several || line.mean || line.seed ? line.label : "training");
    if (line.low && !(line.seed)) {
      const band = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, connectgaps: false };
      found.push({ ...band, y: line.low }, { ...band, y: line.high, fill: "tonexty", fillcolor: faded(hue, 0.14) });
    }
    const smooth = chosen.smooth > 0 && !line.evaluation;
    const look = { color: hue, width: line.seed ? 0.8 : 1.8, dash: line.evaluation && !own ? "dot" : "solid" };
    const mode = line.evaluation && x.length <= 120 ? "lines+markers" : x.length === 1 ? "markers" : "lines";
    const trace = { x, y: line.y, name, mode, line: look, marker: { size: 5.5, color: hue }, hovertemplate: "%{y:.5~g}", opacity: line.seed ? 0.55 : 1 };
    if (smooth) {
      found.push({ ...trace, opacity: 0.25, hoverinfo: "skip", hovertemplate: undefined, line: { ...look, width: 1 } });
      found.push({ ...trace, y: smoothed(line.y, chosen.smooth) });
    } else found.push(trace);
  }
  return found;
}

function room(chart) {
  // Lines decide what is shown. An interval of few seeds may be far wider: it is cut off rather than flattening them.
  if (chosen.log) return undefined;
  const shown = chart.lines.filter((line) => !line.seed || chosen.seeds);
  const finite = (key) => shown.flatMap((line) => (line.seed && key !== "y" ? [] : line[key] ?? [])).filter((y) => y !== null);
  const [ys, lows, highs] = ["y", "low", "high"].map(finite);
  if (!ys.length || !lows.length) return undefined;
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
  const [low, high] = [least(ys), most(ys)];
  const span = high - low || Math.abs(high) || 1;
  const range = [Math.max(least(lows), low - span * 0.6), Math.min(most(highs), high + span * 0.6)];
  const margin = (range[1] - range[0]) * 0.05;
  return [Math.min(range[0], low) - margin, Math.max(range[1], high) + margin];
}

function layout(chart, data) {
  const soft = colour("soft");
  const axis = { gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), tickfont: { size: 10.5, color: soft }, automargin: true, exponentformat: "power", fixedrange: coarse.matches };
  const ink = colour("ink");
  const phases = data.runs.length === 1 && chosen.x === "iteration" ? data.runs[0].phases.slice(1) : [];
  return {
    margin: { l: 44, r: 12, t: 8, b: 30 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: ink },
    showlegend: false, hovermode: "x unified", dragmode: coarse.matches ? false : "zoom",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: ink, size: 11 }, namelength: -1 },
    xaxis: { ...axis, showgrid: false, title: { text: AXES[chosen.x], font: { size: 10.5, color: soft }, standoff: 4 }, hoverformat: ",.6~g" },
    yaxis: { ...axis, type: chosen.log ? "log" : "linear", nticks: 6, range: room(chart) },
    shapes: phases.map(([, at]) => ({ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: soft, width: 1, dash: "dot" } })),
    annotations: phases.map(([name, at]) => ({ x: at, y: 1, yref: "paper", text: literal(name), showarrow: false, xanchor: "left", yanchor: "top", font: { size: 10, color: soft } })),
    uirevision: `${chosen.x} ${chosen.log}`,
  };
}

async function draw(plot) {
  const about = drawn.get(plot);
  if (!about || about.fresh) return;
  about.fresh = true;
  try { await library; } catch (error) {
    plot.replaceChildren(make("p", { class: "notice" }, `Charts cannot be shown: ${error.message}. A browser of 2024 or newer shows them.`));
    return;
  }
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  await Plotly.react(plot, traces(about.chart, about.data), layout(about.chart, about.data), config);
  plot.dataset.drawn = "yes";
}

function redraw() {
  for (const [plot, about] of drawn) {
    about.fresh = false;
    if (about.inSight) draw(plot);
  }
}

function legend(data) {
  // What lines mean is the same in all charts.
  const mark = (label, hue, dots) => make("span", {}, make("i", { class: dots ? "dots" : "", style: { color: `var(--${hue})` } }), label);
  const several = data.groups.length > 1;
  const seeds = (group) => group.runs.length > 1 ? `, mean of ${group.runs.length} seeds` : "";
  const own = several
    ? data.groups.map((group, g) => mark(`${group.name}${seeds(group)}`, `c${g % COLOURS}`))
    : [mark(`training${seeds(data.groups[0])}`, "c0")];
  const evaluated = data.runs.some((run) => run.figures.length) ? [mark("evaluation", several ? "soft" : "c1", true)] : [];
  return make("div", { class: "legend" }, own, evaluated);
}

function constant(chart) {
  // The one value of a figure that never changes.
  const values = new Set(chart.lines.flatMap((line) => line.y).filter((y) => y !== null));
  const points = Math.max(...chart.lines.map((line) => line.y.length));
  return values.size === 1 && points > 2 ? [...values][0] : null;
}

function charts(all, data) {
  const still = all.filter((chart) => constant(chart) !== null);
  const moving = all.filter((chart) => constant(chart) === null);
  return [
    moving.length ? make("div", { class: "charts" }, moving.map((chart) => chartCard(chart, data))) : null,
    still.length ? make("div", { class: "chips still" }, make("span", { class: "small soft" }, "Always the same:"), still.map((chart) =>
      make("span", { class: "chip", id: chartId(chart.name), title: chart.about, "data-metric": chart.name }, `${chart.name} ${figure(constant(chart))}`))) : null,
  ];
}

const chartId = (name) => `chart-${encodeURIComponent(name)}`;

function lastValue(chart) {
  const main = chart.lines.filter((line) => !line.seed);
  if (main.length === 0 || new Set(main.map((line) => line.group)).size > 1) return "";
  const ys = (main.find((line) => !line.evaluation) ?? main[0]).y.filter((y) => y !== null);
  return ys.length ? figure(ys[ys.length - 1]) : "";
}

function chartCard(chart, data, large = false) {
  const plot = make("div", { class: "plot" });
  const card = make("article", { class: `chart card${large ? " large" : ""}`, id: large ? undefined : chartId(chart.name) });
  const enlarge = make("button", { type: "button", title: "Larger or smaller", "aria-label": `${chart.name}: larger or smaller`, onclick: () => {
    card.classList.toggle("large");
    if (plot.dataset.drawn) Plotly.Plots.resize(plot);
  } }, "⤢");
  card.append(
    make("header", {}, make("h3", { title: chart.name }, chart.name), make("span", { class: "last" }, lastValue(chart)), large ? null : enlarge),
    make("div", { class: "about", title: chart.about }, chart.about),
    large ? legend(data) : "",
    plot,
  );
  card.dataset.metric = chart.name;
  drawn.set(plot, { chart, data, fresh: false, inSight: false });
  seen.observe(plot);
  return card;
}

function filterCharts() {
  const wanted = chosen.filter.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of document.querySelectorAll("section.figures")) {
    let any = false;
    for (const card of section.querySelectorAll("[data-metric]")) {
      card.hidden = !wanted.every((word) => card.dataset.metric.toLowerCase().includes(word));
      any ||= !card.hidden;
    }
    section.hidden = !any;
  }
}

function controls(data) {
  const change = (key, read) => (event) => { chosen[key] = read(event.target); redraw(); };
  const some = data.groups.some((group) => group.runs.length > 1);
  return make("div", { id: "controls", class: "card" }, legend(data),
    make("label", {}, "Along", make("select", { id: "x", onchange: change("x", (one) => one.value) },
      Object.entries(AXES).map(([value, label]) => make("option", { value, selected: value === chosen.x }, label)))),
    make("label", {}, "Smooth", make("input", { id: "smooth", type: "range", min: 0, max: 0.98, step: 0.02, value: chosen.smooth, oninput: change("smooth", (one) => Number(one.value)) })),
    make("label", {}, make("input", { id: "log", type: "checkbox", checked: chosen.log, onchange: change("log", (one) => one.checked) }), "log scale"),
    some && make("label", {}, make("input", { id: "seeds", type: "checkbox", checked: chosen.seeds, onchange: change("seeds", (one) => one.checked) }), "each seed"),
    make("span", { class: "space" }),
    make("input", { id: "filter", type: "search", placeholder: "Find a metric", "aria-label": "Find a metric", value: chosen.filter, oninput: (event) => { chosen.filter = event.target.value; filterCharts(); } }));
}
