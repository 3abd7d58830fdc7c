"""The page in a real browser, by keys alone: answers as people give them, and texts that want to be more than text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlalign_humaneval import files
from rlalign_humaneval.command import humaneval

HOSTILE = (
    "</script><img src=x onerror=\"document.title = 'owned'\"><script>document.title = 'owned'</script>",
    "שלום \u202eabc\u202c (מילים) 1, 2 — \u2066half",
    "x" * 3000,
    "🙂👩‍👩‍👧‍👦 \u2028 \u2029 \\u003c &lt;&amp; ${7*7} {{7*7}}\n\n\ttabs",
)
AXES = ["--likert", "fluency: Is it fluent? | bad | good", "--likert", "humour: Is it funny?"]


class Asked:
    """A page, what runs `good` and `bad` wrote, and whose texts are whose."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.path, self.key_path = folder / "page.html", folder / "page.key.json"
        self.prompts = [[{"role": "<b>user</b>", "content": HOSTILE[0]}], *(f"prompt {i}" for i in range(3))]
        paths = []
        for name in ("good", "bad"):
            rows = [
                {"id": i, "prompt": prompt, "response": f"{name} {HOSTILE[i]}"}
                for i, prompt in enumerate(self.prompts)
            ]
            paths.append(folder / f"{name}.json")
            paths[-1].write_text(json.dumps(rows))
        made = CliRunner().invoke(
            humaneval, ["make", *map(str, paths), "--out", str(self.path), *AXES, *more]
        )
        assert made.exit_code == 0, made.output
        self.key = files.read(self.key_path, files.Key)
        self.texts = {text for _, text in self.key.sheet.texts.values()}


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def texts(chromium: Any) -> list[str]:
    """The responses on the screen."""
    found: list[str] = chromium.js(
        "[...document.querySelectorAll('.response > .text')].map(e => e.textContent)"
    )
    return found


def shown(chromium: Any, name: str) -> bool:
    return bool(chromium.js(f"!document.getElementById('{name}').hidden"))


def focus(chromium: Any) -> str:
    return str(chromium.js("document.activeElement.id || document.activeElement.tagName"))


def where(chromium: Any) -> str:
    return str(chromium.js("document.getElementById('where').textContent"))


def answer(chromium: Any, better: str) -> None:
    """Rate what stands there: 5 and 4 for a good text, 2 and 1 for a bad one; choose the better of two."""
    there = texts(chromium)
    if len(there) == 1:
        chromium.press(*("54" if there[0].startswith("good") else "21"), "Enter")
    elif better == "tie":
        chromium.press("2", "Enter")
    else:
        chromium.press("ArrowLeft" if there[0].startswith(better) else "ArrowRight", "Enter")


def complaints(chromium: Any) -> list[Any]:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event["params"] for event in chromium.events if event["method"] in kinds]


def test_from_the_page_to_figures_by_keys_alone(chromium, asked, tmp_path):
    saved = []
    for name, better in (("Ada Ä.", "good"), ("bob", "tie")):
        chromium.open(asked.path)
        assert focus(chromium) == "rater"
        chromium.write(name)
        chromium.press("Enter")
        seen, pairs = [], 0
        for number in range(12):
            assert where(chromium) == f"{number} of 12 answered"
            there = texts(chromium)
            assert set(there) <= asked.texts  # as it was written, to the character
            assert pairs == 0 or len(there) == 2  # everything alone comes first
            pairs += len(there) == 2
            seen += there if len(there) == 1 else []
            answer(chromium, better)
        assert set(seen) == asked.texts and pairs == 4
        assert shown(chromium, "end") and focus(chromium) == "save"
        chromium.press("Enter")
        saved.append(chromium.downloaded(f"answers-{'ada-a' if name[0] == 'A' else 'bob'}.json"))
        assert chromium.js("document.title") == "Rating responses"
        assert chromium.js("document.images.length + document.scripts.length") == 2
        assert complaints(chromium) == []
        requests = [
            e["params"]["request"]["url"]
            for e in chromium.events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert {url.partition(":")[0] for url in requests} <= {"file", "blob"}
        assert [url for url in requests if url.startswith("file")] == [asked.path.as_uri()]
    assert json.loads(saved[0].read_text())["rater"] == "Ada Ä."
    done = CliRunner().invoke(humaneval, ["score", str(asked.key_path), *map(str, saved), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    means = [{run["run"]: run["mean"]["mean"] for run in axis["runs"]} for axis in found["axes"]]
    assert means == [{"good": 5, "bad": 2}, {"good": 4, "bad": 1}]
    assert [axis["agreement"]["alphas"]["ordinal"] for axis in found["axes"]] == [1, 1]
    (pair,) = found["pairwise"]
    assert (pair["runs"], pair["wins"], pair["ties"], pair["losses"]) == (["good", "bad"], 4, 4, 0)
    assert pair["rate"]["share"] == 0.75
    for path in saved:
        path.unlink()


def test_each_rater_meets_another_order_and_other_sides(chromium, asked):
    orders = []
    for name in ("ada", "bob", "cyd", "ada"):
        chromium.open(asked.path)
        chromium.write(name)
        chromium.press("Enter")
        order = []
        for _ in range(12):
            order.append(tuple(texts(chromium)))
            chromium.js("document.getElementById('next').click()")
        orders.append(order)
    assert orders[0] == orders[3]
    assert len({tuple(order[:8]) for order in orders}) == 3
    sides = {frozenset(pair): [] for pair in orders[0][8:]}
    for order in orders[:3]:
        for pair in order[8:]:
            sides[frozenset(pair)].append(pair[0])
    assert any(len(set(left)) == 2 for left in sides.values())


def test_stopped_and_taken_up_again_here_and_elsewhere(chromium, asked):
    chromium.open(asked.path)
    chromium.write("ada")
    chromium.press("Enter")
    for _ in range(3):
        answer(chromium, "good")
    fourth = texts(chromium)
    chromium.press("3")  # one axis of two
    chromium.open(asked.path, again=True)  # as if the window had been closed
    chromium.press("Tab")
    chromium.js("document.querySelector('#known button').focus()")
    chromium.press("Enter")
    assert where(chromium) == "3 of 12 answered" and texts(chromium) == fourth
    assert chromium.js("document.querySelectorAll(':checked[type=radio]').length") == 1
    chromium.js("document.getElementById('pause').focus()")
    chromium.press("Enter")
    chromium.js("document.getElementById('save').focus()")
    chromium.press("Enter")
    saved = chromium.downloaded("answers-ada.json")
    chromium.open(asked.path)
    assert chromium.js("document.getElementById('known').textContent") == ""
    chromium.choose_file("#file", saved)
    chromium.until("!document.getElementById('item').hidden")
    assert where(chromium) == "3 of 12 answered" and texts(chromium) == fourth
    said = json.loads(saved.read_text())
    saved.unlink()
    for number, wrong in enumerate(({"page": "another"}, {"format": "x"}, {"rater": ""})):
        path = asked.path.parent / f"wrong-{number}.json"
        path.write_text(json.dumps({**said, **wrong}))
        chromium.open(asked.path)
        chromium.choose_file("#file", path)
        chromium.until("document.getElementById('say').textContent !== ''")
        assert shown(chromium, "start")
    # What does not fit is left out, and nothing of it is run.
    path.write_text(
        json.dumps(
            {**said, "rater": "__proto__", "ratings": {"__proto__": [1, 1], "t1": [9, 9]}, "choices": 7}
        )
    )
    chromium.choose_file("#file", path)
    chromium.until("!document.getElementById('item').hidden")
    assert where(chromium) == "0 of 12 answered"
    assert complaints(chromium) == []


def test_keys(chromium, asked):
    chromium.open(asked.path)
    chromium.write("ada")
    chromium.press("Enter")
    first = texts(chromium)
    chromium.press("Enter")  # nothing answered: it says so, and does not go on
    assert texts(chromium) == first and focus(chromium) == "FIELDSET"
    assert "Answer this first" in chromium.js("document.getElementById('say').textContent")
    chromium.press("ArrowRight", "ArrowRight")  # into the choices, and as radio buttons do
    inputs = "[...f.querySelectorAll('input')]"
    checked = f"[...document.querySelectorAll('fieldset')].map(f => {inputs}.findIndex(i => i.checked))"
    assert chromium.js(checked) == [1, -1]
    chromium.press("7", "0", "a")
    assert chromium.js(checked) == [1, -1]
    chromium.press("4", "2")  # changes the first, which has the focus; then the second
    assert chromium.js(checked) == [3, 1] and focus(chromium) == "next"
    chromium.press("Enter")
    chromium.press("Enter", shift=True)
    assert texts(chromium) == first and chromium.js(checked) == [3, 1]
    # Tab reaches every control, and what has the focus can be seen.
    reached = []
    for _ in range(9):
        chromium.press("Tab")
        reached.append(focus(chromium))
        outline = "getComputedStyle(document.activeElement.closest('.choice') ?? document.activeElement).outlineStyle"
        assert chromium.js(f"document.activeElement === document.body || {outline} === 'solid'")
    assert [one for one in reached if one != "BODY"][:5] == ["INPUT", "INPUT", "next", "SUMMARY", "pause"]
    # Who dictates, or touches keys by chance, can have them do nothing.
    chromium.js("document.getElementById('single').click()")
    chromium.press("1")
    assert chromium.js(checked) == [3, 1]


def test_what_a_screen_reader_is_told(chromium, asked):
    chromium.open(asked.path)
    chromium.write("reader")
    chromium.press("Enter")
    assert focus(chromium) == "title"
    chromium.call("Accessibility.enable")
    found = chromium.call("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in found if not n.get("ignored")]
    assert [name for role, name in named if role == "radio"][:5] == ["1, bad", "2", "3", "4", "5, good"]
    assert "Fluency — Is it fluent?" in [name for role, name in named if role == "group"]
    assert all(
        name
        for role, name in named
        if role in ("button", "radio", "progressbar", "region", "heading", "checkbox")
    )


def test_the_page_can_neither_call_home_nor_make_markup_of_text(chromium, asked):
    chromium.open(asked.path)
    made = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'made' } catch (e) { return e.name } })()"
    assert chromium.js(made) == "TypeError"
    caught = """new Promise(done => {
        const caught = [];
        document.addEventListener('securitypolicyviolation', e => {
            caught.push(e.effectiveDirective);
            if (caught.length === 3) done(caught.sort());
        });
        fetch('http://127.0.0.1:9/').catch(() => {});
        document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}));
        const style = document.createElement('style');
        style.textContent = 'body { color: red }';
        document.body.append(style);
    })"""
    assert chromium.js(caught) == ["connect-src", "img-src", "style-src-elem"]


@pytest.mark.parametrize("width, height", [(320, 640), (390, 760), (640, 400), (1280, 800)])
def test_nothing_is_wider_than_the_screen(chromium, asked, width, height):
    """A phone, and a small window at 200 %: text wraps, and no control is cut off."""
    chromium.open(asked.path, width, height)
    chromium.write("ada")
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert chromium.js(wide)
    chromium.press("Enter")
    for _ in range(12):
        assert chromium.js(wide)
        inside = "(e => e.left >= 0 && e.right <= innerWidth)(q.getBoundingClientRect())"
        assert chromium.js(
            f"[...document.querySelectorAll('#item button, .choice, .text')].every(q => {inside})"
        )
        # What covers the rest while it is scrolled leaves room for the text.
        stuck = "getComputedStyle(document.getElementById('answer')).position === 'sticky'"
        tall = "document.getElementById('answer').offsetHeight / innerHeight"
        assert not chromium.js(stuck) or chromium.js(tall) < 0.5
        chromium.js("document.getElementById('next').click()")
    assert shown(chromium, "end") and chromium.js(wide)
