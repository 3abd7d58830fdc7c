// Samples over time, transcripts, what was learned from, and before beside after.
const viewed = { run: 0, pairs: 12, samples: { at: null, filter: "", tint: undefined }, learned: { at: null, filter: "", tint: undefined } };

function ranges(samples) {
  const found = {};
  for (const { rows } of samples.evaluations) for (const row of rows) for (const [name, value] of Object.entries(row.scores)) {
    if (typeof value !== "number") continue;
    const [low, high] = found[name] ?? [value, value];
    found[name] = [Math.min(low, value), Math.max(high, value)];
  }
  return found;
}

function chips(scores, range, before, ...others) {
  return make("div", { class: "chips" }, others, Object.entries(scores).map(([name, value]) => {
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

function transcriptOf(row, tint) {
  return row.transcript.flatMap((one) => {
    const own = one.role === "assistant";
    const about = [one.role, "reward" in one && `reward ${figure(one.reward, 3)}`, one.cut && "cut"].filter(Boolean);
    const turn = make("div", { class: `turn${own ? " own" : ""}` },
      make("div", { class: "role" }, about.map((word) => make("span", {}, word))), own ? tinted(one.content, one, row, tint) : textOf(one.content));
    const answer = "answer" in one && make("div", { class: "turn" }, make("div", { class: "role" }, "answer"), textOf(one.answer));
    return answer ? [turn, answer] : [turn];
  });
}

// A token on the colour of what it earned or cost. What is focused shows its number.
function tokenOf(token, value, most, kind = "token") {
  const share = most > 0 ? Math.round(50 * Math.sqrt(Math.min(1, Math.abs(value) / most))) : 0;
  const style = share ? { background: `color-mix(in srgb, var(--${value > 0 ? "more" : "less"}) ${share}%, transparent)` } : {};
  return make("span", { class: token === "" ? `${kind} soft` : kind, style, title: figure(value, 3), tabindex: -1 }, token === "" ? "▪" : token);
}

function tokensOf(tokens, values, text, most) {
  const spans = tokens.map((token, i) => (values[i] === null ? make("span", { class: "soft" }, token) : tokenOf(token, values[i], most)));
  const written = tokens.join("");
  return make("div", { class: "text", dir: "auto" }, spans, text.startsWith(written) ? text.slice(written.length) : "");
}

// A response's text, or that of one of its turns. An advantage may be one for the whole response.
function tinted(text, part, row, tint) {
  const values = tint && part.steps?.[tint.name];
  if (values) return tokensOf(part.tokens, values, text, tint.most);
  if (tint?.name === "advantage" && row.advantage !== undefined) return tokensOf([text], [row.advantage], text, tint.most);
  return textOf(text);
}

function valuesOf(row, name) {
  const parts = [row, ...(row.transcript ?? [])].flatMap((part) => part.steps?.[name] ?? []);
  return [...parts, name === "advantage" ? row.advantage ?? null : null].filter((value) => value !== null);
}

// Whether and by what tokens are tinted: at first by the first score that has a value for each. The strongest colour is that of the
// largest value in the run, or in those `evaluations` that are compared.
function tintOf(samples, view, evaluations = samples.evaluations) {
  if (view.tint === "") return null;
  const name = samples.steps.includes(view.tint) ? view.tint : samples.steps[0];
  if (name === undefined) return null;
  let most = 0;
  for (const { rows } of evaluations) for (const row of rows) for (const value of valuesOf(row, name)) most = Math.max(most, Math.abs(value));
  return { name, most };
}

function said(row, tint) {
  return row.transcript ? transcriptOf(row, tint) : [tinted(row.response, row, row, tint)];
}

function tintChoice(samples, view, then) {
  if (!samples.steps.length) return null;
  const now = tintOf(samples, view)?.name ?? "";
  return make("label", {}, "Tint tokens by", make("select", { class: "tint", onchange: (event) => { view.tint = event.target.value; then(); } },
    [...samples.steps, ""].map((name) => make("option", { value: name, selected: name === now }, name || "nothing"))));
}

function scaleOf(tint) {
  if (!tint?.most) return null;
  const marks = [-1, -0.25, 0, 0.25, 1].map((share) => tokenOf(figure(share * tint.most, 2), share * tint.most, tint.most, "swatch"));
  return make("p", { class: "scale small soft" }, `${tint.name}: `, marks);
}

// An advantage as one number, or from that of one token to that of another.
function advantageChip(row, tint) {
  const values = valuesOf(row, "advantage");
  if (!values.length) return null;
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const told = `advantage ${figure(least, 3)}${most > least ? ` … ${figure(most, 3)}` : ""}`;
  return tokenOf(told, (least + most) / 2, tint?.name === "advantage" ? tint.most : 0, "chip");
}

function sampleCards(rows, samples, range, tint) {
  // What was answered to one prompt stands together; what was learned from, by group.
  const together = [];
  for (const row of rows) {
    const last = together.at(-1)?.[0];
    if (last && last.prompt === row.prompt && last.group === row.group) together.at(-1).push(row);
    else together.push([row]);
  }
  return together.map((some) => make("article", { class: "sample card" }, promptOf(samples.prompts[some[0].prompt]),
    make("div", { class: some[0].group !== undefined && some.length > 1 ? "answers siblings" : "answers" }, some.map((row) => make("div", { class: "response" }, said(row, tint),
      chips(row.scores, range, {}, advantageChip(row, tint), row.age && make("span", { class: "chip" }, `sampled ${row.age} iterations before`)))))));
}

function plainText(row, samples) {
  return JSON.stringify([samples.prompts[row.prompt], row.response, row.transcript ?? ""]).toLowerCase();
}

function runChoice(data, then) {
  if (data.runs.length < 2) return null;
  return make("label", {}, "Run", make("select", { class: "run", onchange: (event) => { viewed.run = Number(event.target.value); then(); } },
    data.runs.map((run, i) => make("option", { value: i, selected: i === viewed.run }, run.name))));
}

// What a run wrote at each evaluation, with a slider over these: `kind` is `samples` or `learned`.
function overTime(data, kind, nothing) {
  const body = make("div");
  const view = viewed[kind];
  const show = () => {
    const samples = data.runs[viewed.run][kind];
    const range = ranges(samples);
    const last = samples.evaluations.length - 1;
    const slider = make("input", { class: "at", type: "range", min: 0, max: Math.max(0, last), "aria-label": "evaluation" });
    const back = make("button", { type: "button", "aria-label": "earlier", onclick: () => go(Number(slider.value) - 1) }, "←");
    const on = make("button", { type: "button", "aria-label": "later", onclick: () => go(Number(slider.value) + 1) }, "→");
    const where = make("strong", { class: "where number" });
    const cards = make("div");
    const fill = () => {
      const at = Number(slider.value);
      const one = samples.evaluations[at];
      back.disabled = at === 0;
      on.disabled = at === last;
      const phases = data.runs[viewed.run].phases.length > 1 ? `${one.phase}, ` : "";
      where.textContent = `${phases}iteration ${figure(one.at, 9)}`;
      const rows = one.rows.filter((row) => plainText(row, samples).includes(view.filter.toLowerCase()));
      const tint = tintOf(samples, view, kind === "learned" ? [one] : undefined);  // advantages compare the responses of an iteration
      cards.replaceChildren(...[scaleOf(tint), ...sampleCards(rows, samples, range, tint)].filter(Boolean));
      if (!rows.length) cards.append(make("p", { class: "soft" }, "None holds this text."));
    };
    const go = (at) => {
      slider.value = at;
      view.at = Number(slider.value) === last ? null : samples.evaluations[Number(slider.value)].at;
      fill();
    };
    slider.addEventListener("input", () => go(Number(slider.value)));
    if (last < 0) {
      body.replaceChildren(make("div", { class: "samplebar card" }, runChoice(data, show), make("span", { class: "soft" }, nothing)));
      return;
    }
    const search = make("input", { type: "search", placeholder: "Find a text", "aria-label": "Find a text", value: view.filter, oninput: (event) => { view.filter = event.target.value; fill(); } });
    body.replaceChildren(make("div", { class: "samplebar card" }, runChoice(data, show), back, slider, on, where, make("span", { class: "space" }), tintChoice(samples, view, fill), search), cards);
    const found = samples.evaluations.findIndex((one) => one.at === view.at);
    slider.value = found < 0 ? last : found;
    fill();
    if (samples.left_out) body.append(make("p", { class: "small soft" }, `Shortened: ${samples.left_out}.`));
  };
  show();
  return body;
}

function samplesSection(data) {
  const turns = data.runs.some((run) => run.samples.evaluations.some((one) => one.rows.some((row) => row.transcript)));
  return section("samples", "Samples", turns
    ? "Episodes as they were played at each evaluation, turn by turn, with their scores. Scores are tinted from the least to the greatest of their name."
    : "The first responses of each evaluation, with their scores. Scores are tinted from the least to the greatest of their name, tokens by what each of them earned or cost.",
  overTime(data, "samples", "This run has written no samples: it evaluates nothing, or not yet."));
}

function learnedSection(data) {
  if (!data.runs.some((run) => run.learned.evaluations.length)) return null;
  return section("learned", "What it learned from",
    "Some responses of the iteration before each evaluation, those to one prompt side by side. Tokens are tinted by their advantage, the largest of the iteration most: a positive one asks for more of that, a negative one for less. Point at a token, or touch it, for its number.",
    overTime(data, "learned", "This run has written nothing of what it learned from: its algorithm makes no advantages, or it evaluates nothing, or not yet."));
}

function pairsSection(data) {
  if (!data.runs.some((run) => run.samples.pairs.length)) return null;
  const body = make("div");
  const show = () => {
    const { samples } = data.runs[viewed.run];
    const range = ranges(samples);
    const tint = tintOf(samples, viewed.samples);
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
