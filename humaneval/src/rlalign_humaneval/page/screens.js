// What stands on the screen. Texts are shown by `textContent` alone: the page's policy forbids to make markup of them.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A box with somebody's text: in its own direction, in no language that we know. */
function box(text) {
  const empty = text.trim() === "";
  const made = element("div", empty ? "text empty" : "text", empty ? "(empty)" : text);
  if (!empty) {
    made.dir = "auto";
    made.lang = "";
  }
  return made;
}

function promptBoxes(prompt) {
  if (typeof prompt === "string") return [box(prompt)];
  return prompt.map(({ role, content }) => {
    const made = element("div", "message");
    made.append(element("div", "role", role), box(content));
    return made;
  });
}

let quiet = 0;
/** Tell those who listen to the page; and where the page itself does not show it, those who look at it. */
function say(text, seen = true) {
  $("say").textContent = text;
  $("say").classList.toggle("seen", seen);
  clearTimeout(quiet);
  quiet = setTimeout(() => { $("say").textContent = ""; }, 4000);
}

function only(id) {
  for (const name of ["start", "item", "end"]) $(name).hidden = name !== id;
  $("bar").hidden = $("keys").hidden = id === "start";
  $("pause").hidden = id !== "item";
  scrollTo(0, 0);
  $(id).querySelector("h1").focus({ preventScroll: true });
}

function showProgress() {
  const done = count();
  $("where").textContent = `${done} of ${screens.length} answered`;
  $("progress").max = screens.length;
  $("progress").value = done;
}

function showStart() {
  rater = shown = null;
  $("rater").value = "";
  const rate = data.axes.length ? Object.keys(data.texts).length : 0, compare = Object.keys(data.pairs).length;
  const parts = [];
  if (rate) parts.push(`rate ${rate} responses`);
  if (compare) parts.push(`compare ${compare} pairs of responses`);
  $("task").textContent = `You are asked to ${parts.join(", and then to ")}.`;
  const list = element("ul");
  for (const axis of data.axes) {
    const item = element("li");
    item.append(element("strong", "", axis.name), `: ${axis.question} 1 is “${axis.low}”, ${data.levels} “${axis.high}”.`);
    list.append(item);
  }
  if (compare) list.append(element("li", "", data.pairwise));
  $("criteria").replaceChildren(list);
  const known = knownRaters();
  $("known").replaceChildren();
  if (known.length) $("known").append(element("p", "", "Or go on where you were:"));
  const row = element("div", "row");
  for (const name of known) {
    const button = element("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => begin(name));
    row.append(button);
  }
  if (known.length) $("known").append(row);
  $("unkept").hidden = kept;
  only("start");
  if (!known.length) $("rater").focus({ preventScroll: true });
}

function begin(name) {
  const before = recalled(name);
  rater = name;
  screens = screensFor(name);
  ratings = before?.ratings ?? new Map();
  choices = before?.choices ?? new Map();
  const open = firstOpen();
  const seen = before !== null && Number.isInteger(before.at) && before.at >= 0 && before.at < screens.length;
  show(seen ? before.at : open < 0 ? screens.length : open);
}

function show(number) {
  at = number;
  keep();
  showProgress();
  if (at >= screens.length) showEnd();
  else showItem(screens[at]);
}

function showEnd() {
  shown = null;
  const left = screens.length - count();
  $("end-title").textContent = left ? "Paused" : "All done, thank you";
  $("left").textContent = left
    ? `${count()} of ${screens.length} answered. You can save what is there now, and go on at any time.`
    : "Save your answers now: until then they are in this browser only.";
  $("onwards").textContent = left ? "Go on" : "Look at them again";
  $("filename").textContent = fileName();
  only("end");
  $("save").focus({ preventScroll: true });
}

function showItem(screen) {
  shown = screen;
  const two = isPair(screen);
  $("title").textContent = two ? "Compare two responses" : "Rate this response";
  $("title").append(element("span", "fine", `  ${at + 1} of ${screens.length}`));
  const prompt = data.prompts[data.texts[screen.texts[0]][0]];
  $("prompt").replaceChildren(...promptBoxes(prompt));
  $("responses").className = two ? "two" : "";
  $("responses").replaceChildren(...screen.texts.map((id, i) => {
    const made = element("section", "response"), head = element("h2", "", two ? `Response ${"AB"[i]}` : "Response");
    head.id = `response-${i}`;
    made.setAttribute("aria-labelledby", head.id);
    made.dataset.text = id;
    made.append(head, box(data.texts[id][1]));
    return made;
  }));
  $("answer").classList.toggle("several", !two && data.axes.length > 1);
  $("questions").replaceChildren(...(two ? [comparison(screen)] : data.axes.map((axis, i) => scale(screen, axis, i))));
  $("back").disabled = at === 0;
  only("item");
  $("prompt").scrollTop = 0;
  // A box that scrolls must be reachable by keys.
  if ($("prompt").scrollHeight > $("prompt").clientHeight) $("prompt").tabIndex = 0;
  else $("prompt").removeAttribute("tabindex");
  showChosen();
}

function question(name, text, choices, className) {
  const field = element("fieldset"), legend = element("legend"), row = element("div", className);
  field.tabIndex = -1;
  if (name) legend.append(element("strong", "", name), " — ");
  legend.append(text);
  field.append(legend, row);
  for (const { label, said, checked, choose } of choices) {
    const made = element("label", "choice"), input = element("input");
    input.type = "radio";
    input.name = `q-${name}`;
    input.checked = checked;
    if (said !== label) input.setAttribute("aria-label", said);
    input.addEventListener("change", () => { choose(); keep(); showProgress(); showChosen(); });
    made.append(input, element("span", "", label));
    row.append(made);
  }
  return field;
}

function scale(screen, axis, number) {
  const given = ratings.get(screen.id)?.[number];
  const field = question(axis.name, axis.question, Array.from({ length: data.levels }, (_, i) => ({
    label: `${i + 1}`,
    said: i === 0 ? `1, ${axis.low}` : i === data.levels - 1 ? `${i + 1}, ${axis.high}` : `${i + 1}`,
    checked: given === i + 1,
    choose() {
      const now = [...(ratings.get(screen.id) ?? data.axes.map(() => null))];
      now[number] = i + 1;
      ratings.set(screen.id, now);
    },
  })), "choices");
  const ends = element("div", "ends");
  ends.setAttribute("aria-hidden", "true");
  ends.append(element("span", "", axis.low), element("span", "", axis.high));
  field.append(ends);
  return field;
}

function comparison(screen) {
  const given = choices.get(screen.id)?.choice, [left, right] = screen.texts;
  return question("", data.pairwise, [["A", left], ["Tie", TIE], ["B", right]].map(([label, choice]) => ({
    label, said: label, checked: given === choice,
    choose() { choices.set(screen.id, { choice, left }); },
  })), "choices three");
}

const fields = () => [...$("questions").children];
const inputs = (field) => [...field.querySelectorAll("input")];
const isOpen = (field) => !inputs(field).some((input) => input.checked);

/** The question that digits answer: the one with the focus, else the first that is open. */
function currentField() {
  return fields().find((f) => f.contains(document.activeElement)) ?? fields().find(isOpen) ?? fields()[0];
}

function showChosen() {
  if (!shown) return;
  const done = complete(shown), chosen = choices.get(shown.id)?.choice;
  $("next").textContent = done ? "Next" : "Skip";
  $("next").classList.toggle("skips", !done);
  for (const section of $("responses").children) section.classList.toggle("chosen", section.dataset.text === chosen);
  showCurrent();
}

function showCurrent() {
  if (!shown) return;
  const current = currentField();
  for (const field of fields()) field.classList.toggle("current", field === current && fields().length > 1);
}
