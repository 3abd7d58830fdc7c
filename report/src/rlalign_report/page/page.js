// The page is made of `data`; a live one is made again whenever the run has written something.
function section(id, title, about, ...inside) {
  return make("section", { id }, make("h2", {}, title), make("p", {}, about), ...inside);
}

function tile(what, value, detail) {
  return make("div", { class: "tile card" }, make("div", { class: "what" }, what), make("div", { class: "value" }, value), make("div", { class: "detail" }, detail));
}

function overview(data) {
  const made = make("section", { id: "overview" });
  if (data.runs.length === 1) {
    const [run] = data.runs;
    const best = run.best;
    made.append(
      make("h1", {}, run.name),
      make("p", { class: "soft" }, [[run.algorithm, run.task].filter(Boolean).join(" on "), run.policy, run.seed === null || run.seed === undefined ? "" : `seed ${run.seed}`].filter(Boolean).join(" · ")),
      make("p", { class: "soft" }, make("span", { class: `state ${run.state}` }, `The run ${run.ended}.`)),
      make("div", { class: "tiles" },
        best ? tile("Best evaluation", figure(best.value), `${best.name} at iteration ${figure(best.at, 9)}; ${figure(best.first)} at first`) : tile("Best evaluation", "–", "nothing is evaluated yet"),
        tile("Iterations", figure(run.iterations, 9), run.planned && run.planned !== run.iterations ? `of ${figure(run.planned, 9)} · ${figure(run.steps, 9)} optimiser steps` : `${figure(run.steps, 9)} optimiser steps`),
        tile("Tokens", count(run.tokens), "that the policy chose in training"),
        tile("Time", duration(run.seconds), run.iterations ? `${duration(run.seconds / run.iterations)} an iteration, evaluations included` : ""),
        tile("Alarms", String(run.alarms.length), run.alarms.map((one) => one.title).join(", ") || "no rule fired")),
    );
  } else {
    made.append(make("h1", {}, data.title), make("p", { class: "soft" }, `${data.runs.length} runs of ${data.groups.length} ${data.groups.length > 1 ? "pipelines" : "pipeline"}; runs that differ in nothing but the seed are one group, shown as their mean with a 95 % t-interval over seeds.`));
    const rows = data.groups.flatMap((group, g) => group.runs.map((i) => [data.runs[i], g]));
    made.append(make("div", { class: "card wide", style: { margin: "1.25rem 0" } }, table(
      ["run", "algorithm", "task", "seed", "how it stands", "iterations", "time", "best evaluation", "alarms"],
      rows.map(([run, g]) => [
        make("span", { class: "legend" }, make("span", {}, make("i", { style: { color: `var(--c${g % COLOURS})` } }), make("strong", {}, run.name))),
        run.algorithm, run.task, figure(run.seed, 20), make("span", { class: `state ${run.state}` }, run.state), figure(run.iterations, 9), duration(run.seconds),
        run.best ? `${run.best.name} ${figure(run.best.value)} at ${figure(run.best.at, 9)}` : "–", String(run.alarms.length)]),
      [3, 5, 6, 8])));
  }
  for (const run of data.runs) for (const note of run.notes) made.append(make("p", { class: "notice" }, data.runs.length > 1 ? `${run.name}: ${note}` : note));
  const main = data.sections.flatMap((one) => one.charts).find((one) => one.name === "reward/total")
    ?? data.sections.flatMap((one) => one.charts).find((one) => one.name === "eval/total" || one.name === "loss");
  if (main) made.append(make("div", { class: "charts" }, chartCard(main, data, true)));
  if (data.limits.length) made.append(make("ul", { class: "limits" }, data.limits.map((said) => make("li", {}, said))));
  return made;
}

function alarmsSection(data) {
  const known = new Set(data.sections.flatMap((one) => one.charts).map((one) => one.name));
  const links = (names) => names.filter((name) => known.has(name)).map((name) => make("a", { href: `#${chartId(name)}` }, name));
  const cards = data.runs.flatMap((run) => run.alarms.map((alarm) => make("article", { class: "alarm card" },
    make("h3", {}, data.runs.length > 1 ? `${run.name}: ${alarm.title}` : alarm.title),
    make("p", {}, alarm.found),
    make("details", {}, make("summary", {}, "The rule"), make("p", { class: "small" }, alarm.rule)),
    make("p", { class: "small chips" }, links(alarm.metrics)))));
  const about = "Rules about what often goes wrong. An alarm is a reason to look, no verdict; a rule that is silent proves nothing. Rules about training look at a run's last phase.";
  const none = make("p", { class: "fine" }, "✓ No rule fired: reward against evaluations, KL, entropy, lengths, repeated samples, figures that are not finite.");
  return section("alarms", "Alarms", about, cards.length ? cards : none);
}

function table(head, rows, numbers = []) {
  const cell = (tag, value, i) => make(tag, { class: numbers.includes(i) ? "number" : "" }, value instanceof Node ? value : String(value));
  return make("table", {}, make("thead", {}, make("tr", {}, head.map((one, i) => cell("th", one, i)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((one, i) => cell("td", one, i))))));
}

function figuresTable(run) {
  if (!run.figures.length) return null;
  const moved = (one) => {
    const change = one.last - one.first;
    return `${change > 0 ? "+" : ""}${figure(change)}`;
  };
  return make("div", { class: "card wide", style: { marginBottom: ".9rem" } }, table(["", "first", "last", "change", "least", "at", "greatest", "at"],
    run.figures.map((one) => [one.name.replace("eval/", ""), figure(one.first), figure(one.last), moved(one), figure(one.low[0]), figure(one.low[1], 9), figure(one.high[0]), figure(one.high[1], 9)]),
    [1, 2, 3, 4, 5, 6, 7]));
}

function compared(data) {
  if (!data.comparison.length) return null;
  const shown = (cell) => cell ? figure(cell.mean) + (cell.half === null ? "" : ` ± ${figure(cell.half, 2)}`) : "–";
  const pValue = (p) => (p === null || p === undefined ? "–" : p < 0.001 ? "< 0.001" : figure(p, 2));
  const tested = data.comparison.some((line) => line.p.some((p) => p !== null));
  const heads = data.groups.map((group) => `${group.name}${group.runs.length > 1 ? ` (${group.runs.length} seeds)` : ""}`);
  const others = tested ? data.groups.slice(1).map((group) => `p, ${group.name}`) : [];
  const rows = data.comparison.map((line) => [line.name.replace("eval/", ""), ...line.cells.map(shown), ...(tested ? line.p.slice(1).map(pValue) : [])]);
  const about = "Figures of each run's last evaluation; ± is half of the 95 % t-interval over seeds."
    + (tested ? ` p: paired t-test against ${data.groups[0].name} over the seeds that both have, adjusted by Holm's method over all of these figures but counts.` : "");
  const different = data.differences.length ? [make("h3", { style: { margin: "1.2rem 0 .4rem" } }, "What the pipelines say otherwise"),
    make("div", { class: "card wide" }, table(["", ...data.groups.map((group) => group.name)], data.differences.map(([key, values]) => [key, ...values])))] : [];
  return section("comparison", "Comparison", about, make("div", { class: "card wide" }, table(["", ...heads, ...others], rows, rows[0].map((_, i) => i).slice(1))), different);
}

function times(data) {
  const known = data.runs.filter((run) => run.times.length);
  if (!known.length) return [];
  const stages = [...new Set(known.flatMap((run) => run.times.map(([stage]) => stage)))];
  const hue = (stage) => `var(--c${stages.indexOf(stage) % COLOURS})`;
  const bars = known.flatMap((run) => {
    const all = run.times.reduce((sum, [, seconds]) => sum + seconds, 0);
    return [data.runs.length > 1 ? make("div", { class: "small soft" }, run.name) : null,
      make("div", { class: "stages" }, run.times.map(([stage, seconds]) => make("i", { title: `${stage}: ${duration(seconds)}`, style: { flex: String(seconds / all), background: hue(stage) } }))),
      data.runs.length > 1 ? null : make("div", { class: "legend" }, run.times.map(([stage, seconds]) => make("span", {}, make("i", { style: { color: hue(stage) } }), `${stage} ${duration(seconds)}, ${Math.round(100 * seconds / all)} %`)))];
  });
  const marks = data.runs.length > 1 ? make("div", { class: "legend" }, stages.map((stage) => make("span", {}, make("i", { style: { color: hue(stage) } }), stage))) : null;
  return [make("div", { class: "times card" }, bars, marks)];
}

function figuresSection(one, data) {
  const first = one.key === "time" ? times(data) : one.key === "evaluation" && data.runs.length === 1 ? [figuresTable(data.runs[0])] : [];
  const made = section(`figures-${one.key}`, one.title, one.about, first, charts(one.charts, data));
  made.classList.add("figures");
  return made;
}

function provenance(data) {
  const each = data.runs.map((run) => {
    const parts = make("div", { class: "facts" }, run.provenance.map((part) => make("div", { class: "card" }, make("h3", {}, part.title), table([], part.rows))));
    const text = make("details", { class: "card", style: { marginTop: ".9rem", padding: ".6rem 1rem" } }, make("summary", {}, "pipeline.yaml"), make("pre", {}, run.pipeline));
    return data.runs.length > 1 ? make("details", { style: { marginBottom: ".75rem" } }, make("summary", {}, run.name), parts, text) : [parts, text];
  });
  const fine = make("p", { class: "small soft", style: { marginTop: "1rem" } }, `Made ${data.made} with rlalign ${data.version}. This page loads nothing and sends nothing.`);
  return section("provenance", "Provenance", "What the numbers depend on, as lock.json says it, and what an iteration cost. Hashes are shortened.", each, fine);
}

function state(data) {
  const states = data.runs.map((run) => run.state);
  return states.includes("running") ? "running" : states.every((one) => one === states[0]) ? states[0] : "stopped";
}

let following;
function contents(data) {
  const links = [...document.querySelectorAll("main section")].map((one) => {
    const alarms = one.id === "alarms" ? data.runs.reduce((sum, run) => sum + run.alarms.length, 0) : 0;
    const title = one.id === "overview" ? "Overview" : one.querySelector("h2").textContent;
    return make("a", { href: `#${one.id}` }, title, alarms ? make("span", { class: "count" }, String(alarms)) : null);
  });
  byId("contents").replaceChildren(...links);
  following?.disconnect();
  following = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      for (const link of links) link.classList.toggle("here", link.hash === `#${entry.target.id}`);
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  document.querySelectorAll("main section").forEach((one) => following.observe(one));
}

function show(data) {
  const at = window.scrollY;
  seen.disconnect();
  for (const plot of drawn.keys()) if (plot.dataset.drawn) Plotly.purge(plot);
  drawn.clear();
  document.title = `${data.title} · rlalign`;
  byId("name").textContent = data.title;
  byId("state").textContent = state(data);
  byId("state").className = `state ${state(data)}`;
  viewed.run = Math.min(viewed.run, data.runs.length - 1);
  const figures = data.sections.map((one) => figuresSection(one, data));
  byId("main").replaceChildren(...[
    overview(data), alarmsSection(data), compared(data), figures.length ? make("div", { id: "figures" }, controls(data), figures) : null,
    samplesSection(data), learnedSection(data), pairsSection(data), provenance(data),
  ].filter(Boolean));
  filterCharts();
  contents(data);
  window.scrollTo(0, at);
}

// -- a run that goes on --------------------------------------------------------------------------------------

async function follow(first) {
  let version = first;
  const say = (text) => { byId("live").textContent = text; };
  say("live");
  for (;;) {
    await new Promise((done) => setTimeout(done, 2000));
    try {
      const answer = await fetch(`data?have=${encodeURIComponent(version)}`, { cache: "no-store" });
      if (answer.status === 200) {
        const found = await answer.json();
        version = found.watched;
        show(found);
      } else if (answer.status !== 204) throw new Error(String(answer.status));
      say("live");
    } catch {
      say("nobody answers; trying again");
    }
  }
}

byId("theme").addEventListener("click", (event) => {
  setTheme(THEMES[(THEMES.indexOf(event.currentTarget.dataset.now) + 1) % THEMES.length]);
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("beforeprint", () => { for (const plot of drawn.keys()) draw(plot); });
setTheme(kept("rlalign-theme"));
const data = JSON.parse(byId("data").textContent);
show(data);
if (data.live) follow(data.watched);
