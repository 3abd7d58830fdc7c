// Samples over time, transcripts, and before beside after.
const viewed = { run: 0, at: null, filter: "", pairs: 12, tint: undefined };

function ranges(samples) {
  const found = {};
  for (const { rows } of samples.evaluations) for (const row of rows) for (const [name, value] of Object.entries(row.scores)) {
    if (typeof value !== "number") continue;
    const [low, high] = found[name] ?? [value, value];
    found[name] = [Math.min(low, value), Math.max(high, value)];
  }
  return found;
}

function chips(scores, range, before) {
  return make("div", { class: "chips" }, Object.entries(scores).map(([name, value]) => {
    const [low, high] = range[name] ?? [0, 0];
    const share = typeof value === "number" && high > low ? (value - low) / (high - low) : null;
    const hue = share === null ? null : share >= 0.5 ? ["good", 2 * share - 1] : ["bad", 1 - 2 * share];
    const style = hue ? { background: `color-mix(in srgb, var(--${hue[0]}) ${Math.round(28 * hue[1])}%, transparent)` } : {};
    const was = before?.[name];
    const moved = typeof was === "number" && typeof value === "number" && was !== value ? ` ${value > was ? "▲" : "▼"}` : "";
    return make("span", { class: "chip", style }, `${name} ${figure(value, 3)}${moved}`);
  }));
}

function promptOf(prompt) {
  if (!Array.isArray(prompt)) return prompt === "" ? null : make("div", { class: "prompt" }, textOf(prompt));
  return make("div", { class: "prompt" }, prompt.map((one) => make("div", {}, make("div", { class: "role" }, one.role), textOf(one.content))));
}

function transcriptOf(messages) {
  return messages.flatMap((one) => {
    const own = one.role === "assistant";
    const about = [one.role, "reward" in one && `reward ${figure(one.reward, 3)}`, one.cut && "cut"].filter(Boolean);
    const turn = make("div", { class: `turn${own ? " own" : ""}` },
      make("div", { class: "role" }, about.map((word) => make("span", {}, word))), textOf(one.content));
    const answer = "answer" in one && make("div", { class: "turn" }, make("div", { class: "role" }, "answer"), textOf(one.answer));
    return answer ? [turn, answer] : [turn];
  });
}

// Each token on the colour of what it earned or cost; the strongest is that of the largest value in the run.
function tokensOf(row, values, most) {
  const spans = row.tokens.map((token, i) => {
    const value = values[i];
    const share = most > 0 ? Math.round(50 * Math.sqrt(Math.min(1, Math.abs(value) / most))) : 0;
    const style = share ? { background: `color-mix(in srgb, var(--${value > 0 ? "good" : "bad"}) ${share}%, transparent)` } : {};
    return make("span", { class: token === "" ? "token soft" : "token", style, title: figure(value, 3) }, token === "" ? "▪" : token);
  });
  const written = row.tokens.join("");
  const rest = row.response.startsWith(written) ? row.response.slice(written.length) : "";
  return make("div", { class: "text", dir: "auto" }, spans, rest);
}

function mostOf(samples, name) {
  let most = 0;
  for (const { rows } of samples.evaluations) for (const row of rows) for (const value of row.steps?.[name] ?? []) most = Math.max(most, Math.abs(value));
  return most;
}

// Whether and by what tokens of this run are tinted: at first by the first score that has a value for each.
function tintOf(samples) {
  if (viewed.tint === "") return null;
  const name = samples.steps.includes(viewed.tint) ? viewed.tint : samples.steps[0];
  return name === undefined ? null : { name, most: mostOf(samples, name) };
}

function said(row, tint) {
  if (row.transcript) return transcriptOf(row.transcript);
  const values = tint && row.steps?.[tint.name];
  return [values ? tokensOf(row, values, tint.most) : textOf(row.response)];
}

function tintChoice(samples, then) {
  if (!samples.steps.length) return null;
  const now = tintOf(samples)?.name ?? "";
  return make("label", {}, "Tint tokens by", make("select", { class: "tint", onchange: (event) => { viewed.tint = event.target.value; then(); } },
    [...samples.steps, ""].map((name) => make("option", { value: name, selected: name === now }, name || "nothing"))));
}

function sampleCards(rows, samples, range) {
  const tint = tintOf(samples);
  // What was answered to one prompt stands together.
  const together = [];
  for (const row of rows) {
    if (together.length && together[together.length - 1][0].prompt === row.prompt) together[together.length - 1].push(row);
    else together.push([row]);
  }
  return together.map((some) => make("article", { class: "sample card" }, promptOf(samples.prompts[some[0].prompt]),
    some.map((row) => make("div", { class: "response" }, said(row, tint), chips(row.scores, range)))));
}

function plainText(row, samples) {
  return JSON.stringify([samples.prompts[row.prompt], row.response, row.transcript ?? ""]).toLowerCase();
}

function runChoice(data, then) {
  if (data.runs.length < 2) return null;
  return make("label", {}, "Run", make("select", { class: "run", onchange: (event) => { viewed.run = Number(event.target.value); then(); } },
    data.runs.map((run, i) => make("option", { value: i, selected: i === viewed.run }, run.name))));
}

function samplesSection(data) {
  const body = make("div");
  const show = () => {
    const { samples } = data.runs[viewed.run];
    const range = ranges(samples);
    const last = samples.evaluations.length - 1;
    const slider = make("input", { id: "evaluation", type: "range", min: 0, max: Math.max(0, last), "aria-label": "evaluation" });
    const back = make("button", { type: "button", "aria-label": "earlier", onclick: () => go(Number(slider.value) - 1) }, "←");
    const on = make("button", { type: "button", "aria-label": "later", onclick: () => go(Number(slider.value) + 1) }, "→");
    const where = make("strong", { id: "where", class: "number" });
    const cards = make("div");
    const fill = () => {
      const at = Number(slider.value);
      const one = samples.evaluations[at];
      back.disabled = at === 0;
      on.disabled = at === last;
      const phases = data.runs[viewed.run].phases.length > 1 ? `${one.phase}, ` : "";
      where.textContent = `${phases}iteration ${figure(one.at, 9)}`;
      const rows = one.rows.filter((row) => plainText(row, samples).includes(viewed.filter.toLowerCase()));
      cards.replaceChildren(...sampleCards(rows, samples, range));
      if (!rows.length) cards.append(make("p", { class: "soft" }, "No sample holds this text."));
    };
    const go = (at) => {
      slider.value = at;
      viewed.at = Number(slider.value) === last ? null : samples.evaluations[Number(slider.value)].at;
      fill();
    };
    slider.addEventListener("input", () => go(Number(slider.value)));
    if (last < 0) {
      body.replaceChildren(make("div", { class: "samplebar card" }, runChoice(data, show), make("span", { class: "soft" }, "This run has written no samples: it evaluates nothing, or not yet.")));
      return;
    }
    const search = make("input", { type: "search", placeholder: "Find a text", "aria-label": "Find a text", value: viewed.filter, oninput: (event) => { viewed.filter = event.target.value; fill(); } });
    body.replaceChildren(make("div", { class: "samplebar card" }, runChoice(data, show), back, slider, on, where, make("span", { class: "space" }), tintChoice(samples, fill), search), cards);
    const found = samples.evaluations.findIndex((one) => one.at === viewed.at);
    slider.value = found < 0 ? last : found;
    fill();
    if (samples.left_out) body.append(make("p", { class: "small soft" }, `Shortened: ${samples.left_out}.`));
  };
  show();
  const turns = data.runs.some((run) => run.samples.evaluations.some((one) => one.rows.some((row) => row.transcript)));
  return section("samples", "Samples", turns
    ? "Episodes as they were played at each evaluation, turn by turn, with their scores. Scores are tinted from the least to the greatest of their name."
    : "The first responses of each evaluation, with their scores. Scores are tinted from the least to the greatest of their name, tokens by what each of them earned or cost.", body);
}

function pairsSection(data) {
  if (!data.runs.some((run) => run.samples.pairs.length)) return null;
  const body = make("div");
  const show = () => {
    const { samples } = data.runs[viewed.run];
    const range = ranges(samples);
    const tint = tintOf(samples);
    const [first, last] = [samples.evaluations[0], samples.evaluations[samples.evaluations.length - 1]];
    const rows = samples.pairs.slice(0, viewed.pairs).map(([before, after]) => make("article", { class: "pair card" },
      make("div", {}, make("div", { class: "role" }, "prompt"), promptOf(samples.prompts[before.prompt]) ?? textOf("")),
      make("div", {}, make("div", { class: "role" }, `before, iteration ${figure(first.at, 9)}`), said(before, tint), chips(before.scores, range)),
      make("div", {}, make("div", { class: "role" }, `after, iteration ${figure(last.at, 9)}`), said(after, tint), chips(after.scores, range, before.scores))));
    const more = samples.pairs.length > viewed.pairs
      ? make("button", { type: "button", onclick: () => { viewed.pairs = Infinity; show(); } }, `Show all ${samples.pairs.length}`) : null;
    const choice = runChoice(data, show);
    body.replaceChildren(...[choice && make("div", { class: "samplebar card" }, choice), ...rows, more,
      !rows.length && make("p", { class: "soft" }, "This run's first and last evaluation have no prompt in common.")].filter(Boolean));
  };
  show();
  return section("pairs", "Before and after", "The same prompts at the first evaluation and at the last. ▲ and ▼ say which scores rose and fell.", body);
}
