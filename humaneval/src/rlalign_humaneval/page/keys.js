// Keys, buttons and files; then the first screen.

function answer(index) {
  const field = currentField(), input = inputs(field)[index];
  if (!input) return;
  if (!input.checked) input.click();
  const open = fields().find(isOpen);
  say(`${input.getAttribute("aria-label") ?? input.parentElement.textContent}${open ? "" : ". Enter: next"}`, false);
  (open ?? $("next")).focus();
  showCurrent();
}

function next() {
  show(at + 1);
}

function back() {
  if (at > 0) show(at - 1);
}

document.addEventListener("keydown", (event) => {
  if (!shown || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const on = event.target, inChoices = on instanceof HTMLInputElement && on.type === "radio";
  if (event.key === "Enter") {
    if (event.shiftKey) {
      event.preventDefault();
      back();
      return;
    }
    if (on.closest("button, summary, [type=checkbox]")) return;
    event.preventDefault();
    if (complete(shown)) next();
    else {
      const open = fields().find(isOpen);
      open.focus();
      say("Answer this first, or skip.");
    }
    return;
  }
  if (!$("single").checked || (event.shiftKey && !/^\d$/.test(event.key))) return;
  const limit = isPair(shown) ? 3 : data.levels, digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1] ?? event.key;
  if (/^[1-9]$/.test(digit) && Number(digit) <= limit) {
    event.preventDefault();
    answer(Number(digit) - 1);
  } else if (isPair(shown) && !inChoices && on !== $("prompt") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    event.preventDefault();
    answer(event.key === "ArrowLeft" ? 0 : 2);
  } else if (!isPair(shown) && on instanceof HTMLFieldSetElement && /^Arrow/.test(event.key)) {
    // As radio buttons do it themselves, once one of them has the focus.
    event.preventDefault();
    const all = inputs(on), first = ["ArrowRight", "ArrowDown"].includes(event.key) ? all[0] : all[all.length - 1];
    const target = all.find((input) => input.checked) ?? first;
    target.focus();
    if (!target.checked) target.click();
  }
});

document.addEventListener("focusin", showCurrent);
$("answer").addEventListener("submit", (event) => { event.preventDefault(); next(); });
$("back").addEventListener("click", back);
$("pause").addEventListener("click", showEnd);
$("save").addEventListener("click", save);
$("leave").addEventListener("click", showStart);
$("onwards").addEventListener("click", () => {
  const open = firstOpen();
  show(open < 0 ? 0 : at < screens.length && !complete(screens[at]) ? at : open);
});
$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("rater").value.trim();
  if (name) begin(name);
});
$("file").addEventListener("change", async () => {
  const file = $("file").files[0];
  $("file").value = "";
  if (!file) return;
  try {
    const found = understood(await file.text()), before = recalled(found.rater);
    rater = found.rater;
    screens = screensFor(rater);
    // What is here already and not in the file stays.
    ratings = new Map([...(before?.ratings ?? []), ...found.ratings]);
    choices = new Map([...(before?.choices ?? []), ...found.choices]);
    const open = firstOpen();
    show(open < 0 ? screens.length : open);
  } catch (error) {
    say(error.message);
  }
});
addEventListener("storage", (event) => {
  // The same person in another window: go on from what was answered there.
  if (rater === null || event.key !== place + rater) return;
  const there = recalled(rater);
  if (!there) return;
  ratings = there.ratings;
  choices = there.choices;
  showProgress();
  if (shown) showItem(shown);
});
addEventListener("beforeunload", (event) => {
  if (!kept && !saved && rater !== null) event.preventDefault();
});

showStart();
