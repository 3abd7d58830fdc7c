// What is asked, and in which order; what was answered, and where it is kept.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const place = `rlalign-humaneval/${data.page}/`;
const TIE = "tie";

// -- what is asked, and in which order ----------------------------------------------------------------------

/** A generator of numbers in [0, 1) that depends on a text alone (FNV-1a, then mulberry32). */
function randomFrom(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [all[i], all[j]] = [all[j], all[i]];
  }
  return all;
}

/** First every text alone, so that nothing is rated beside another; then pairs, sides by chance too. */
function screensFor(rater) {
  const random = randomFrom(`${data.page}/${rater}`);
  const rate = data.axes.length ? shuffled(Object.keys(data.texts), random) : [];
  const compare = shuffled(Object.keys(data.pairs), random);
  return [
    ...rate.map((id) => ({ id, texts: [id] })),
    ...compare.map((id) => ({ id, texts: shuffled(data.pairs[id], random) })),
  ];
}

// -- what was answered, and where it is kept ----------------------------------------------------------------

let rater = null, screens = [], at = 0, shown = null;
let ratings = new Map(), choices = new Map();
let kept = true, saved = true;

const isPair = (screen) => screen.texts.length === 2;
const complete = (screen) => isPair(screen)
  ? choices.has(screen.id)
  : (ratings.get(screen.id) ?? []).filter((x) => x !== null).length === data.axes.length;
const count = () => screens.filter(complete).length;
const firstOpen = () => screens.findIndex((screen) => !complete(screen));

function answers() {
  const plain = (map) => Object.fromEntries([...map].sort(([a], [b]) => (a < b ? -1 : 1)));
  return {
    format: "rlalign-humaneval-answers/1", page: data.page, rater, saved: new Date().toISOString(),
    ratings: plain(ratings), choices: plain(choices),
  };
}

/** The ratings and choices in a saved text; throws what is wrong with it in words. */
function understood(text) {
  let found = null;
  try { found = JSON.parse(text); } catch { /* said below */ }
  if (found?.format !== "rlalign-humaneval-answers/1") throw new Error("This is no file of answers.");
  if (found.page !== data.page) throw new Error("These are answers to another page.");
  if (typeof found.rater !== "string" || !found.rater.trim()) throw new Error("This file does not say whose answers it holds.");
  const has = (object, key) => Object.prototype.hasOwnProperty.call(object, key);
  const level = (x) => x === null || (Number.isInteger(x) && x >= 1 && x <= data.levels);
  const rated = Object.entries(found.ratings ?? {}).filter(([id, xs]) =>
    has(data.texts, id) && Array.isArray(xs) && xs.length === data.axes.length && xs.every(level));
  const chosen = Object.entries(found.choices ?? {}).filter(([id, c]) =>
    has(data.pairs, id) && [...data.pairs[id], TIE].includes(c?.choice) && data.pairs[id].includes(c?.left));
  return { rater: found.rater.trim().slice(0, 40), at: found.at, ratings: new Map(rated), choices: new Map(chosen) };
}

function keep() {
  saved = false;
  try {
    localStorage.setItem(place + rater, JSON.stringify({ ...answers(), at }));
  } catch {
    kept = false;
  }
}

function recalled(name) {
  try { return understood(localStorage.getItem(place + name) ?? ""); } catch { return null; }
}

function knownRaters() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(place)).map((key) => key.slice(place.length))
      .filter((name) => recalled(name)?.rater === name);
  } catch {
    kept = false;
    return [];
  }
}

function fileName() {
  const name = rater.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").toLowerCase();
  return `answers-${name || "rater"}.json`;
}

function save() {
  const url = URL.createObjectURL(new Blob([JSON.stringify(answers(), null, 1) + "\n"], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = fileName();
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  saved = true;
  say(`Saved as ${fileName()}.`);
}
