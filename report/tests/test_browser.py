"""The page in a real browser: what is drawn, what controls do, and that it asks nobody anything."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlalign_report.command import report
from rlalign_report.run import Run
from rlalign_report.watch import Watch

from .written import HOSTILE, append, evaluation, iteration, sample, whole, written

NAME = HOSTILE.replace("/", "∕")
"""Of a folder, which no slash can be in."""
DRAWN = "document.querySelectorAll('.plot[data-drawn]').length"


def made(folder: Path, *runs: Path) -> Path:
    out = folder / "page.html"
    said = CliRunner().invoke(report, [*map(str, runs), "-o", str(out)])
    assert said.exit_code == 0, said.output
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tries to be more than text, with three evaluations and an episode."""
    folder = tmp_path_factory.mktemp("hostile")
    talk = [{"role": "assistant", "content": HOSTILE, "reward": -0.5}, {"role": HOSTILE, "content": "warmer"}]
    words = [
        sample(n, f"{HOSTILE} {i}", f"answer {i} of {n} {HOSTILE}") for n in (0, 20, 40) for i in range(3)
    ]
    words += [sample(40, "a game", "4", transcript=talk)]
    rows = [
        *whole(),
        iteration(41, **{f"odd/{HOSTILE}": 1.0}),
        iteration(42, **{f"odd/{HOSTILE}": 2.0, "length": 90.0}),
    ]
    return made(folder, written(folder / NAME, rows, words))


def ready(chromium: Any) -> None:
    chromium.until(f"{DRAWN} > 0")


def complaints(chromium: Any) -> list[Any]:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event["params"] for event in chromium.events if event["method"] in kinds]


def requests(chromium: Any) -> set[str]:
    sent = [
        e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"
    ]
    return {url.partition(":")[0] for url in sent}


def texts(chromium: Any, selector: str) -> list[str]:
    found: list[str] = chromium.js(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")
    return found


def draw_all(chromium: Any) -> None:
    """As before printing."""
    chromium.js("dispatchEvent(new Event('beforeprint'))")
    chromium.until(f"{DRAWN} === document.querySelectorAll('.plot').length")


def test_all_is_there_and_nobody_is_asked(chromium, page):
    chromium.open(page)
    ready(chromium)
    draw_all(chromium)
    titles = texts(chromium, "main section h2")
    assert titles[0] == "Alarms" and {"Reward", "Time", "Other metrics", "Evaluations", "Samples"} <= set(
        titles
    )
    assert titles[-2:] == ["Before and after", "Provenance"]
    lines = "[...document.querySelectorAll('.plot')].every(p => p.querySelectorAll('.scatterlayer .trace').length > 0)"
    assert chromium.js(lines)
    assert chromium.js("document.title") == f"{NAME} · rlalign"
    assert HOSTILE in texts(chromium, ".turn .text") and f"odd/{HOSTILE}" in texts(chromium, ".chart h3")
    assert chromium.js("document.images.length") == 0
    assert complaints(chromium) == []
    assert requests(chromium) <= {"file", "data"}


def test_what_the_numbers_depend_on_can_be_read(chromium, page, tmp_path):
    """Also that no part of any section is told as the object that it is."""
    chromium.open(page)
    ready(chromium)
    assert "Run" in texts(chromium, "#provenance .card h3") and "seed" in texts(chromium, "#provenance td")
    assert HOSTILE in texts(chromium, "#provenance pre")[0]
    assert "[object" not in chromium.js("document.body.textContent")
    two = [written(tmp_path / f"run-{seed}", whole(), seed=seed) for seed in (0, 1)]
    chromium.open(made(tmp_path, *two))
    ready(chromium)
    assert texts(chromium, "#provenance > details > summary") == ["run-0", "run-1"]
    assert "[object" not in chromium.js("document.body.textContent")


def test_the_theme_changes_page_and_charts(chromium, page):
    chromium.open(page)
    ready(chromium)
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.plot .xtick text').style.fill"
    light, written_in = chromium.js(paper), chromium.js(ink)
    for _ in range(2):  # automatic, light, dark
        chromium.js("document.getElementById('theme').click()")
    chromium.until(f"{ink} !== {written_in!r}")
    dark = chromium.js(paper)
    assert dark != light
    chromium.open(page, dark=True)
    ready(chromium)
    assert chromium.js(paper) == dark
    chromium.js("document.getElementById('theme').click()")
    assert chromium.js(paper) == light
    chromium.open(page, dark=True, again=True)  # it is remembered
    assert chromium.js(paper) == light


def test_samples_of_each_evaluation(chromium, page):
    chromium.open(page)
    assert texts(chromium, "#samples .where") == ["iteration 40"]
    chromium.js("document.querySelector('#samples button').click()")
    assert texts(chromium, "#samples .where") == ["iteration 20"]
    assert texts(chromium, "#samples .response > .text")[0] == f"answer 0 of 20 {HOSTILE}"
    slide = (
        "(e => { e.value = 0; e.dispatchEvent(new Event('input')) })(document.querySelector('#samples .at'))"
    )
    chromium.js(slide)
    assert texts(chromium, "#samples .where") == ["iteration 0"]
    find = "(e => { e.value = 'answer 2'; e.dispatchEvent(new Event('input')) })"
    chromium.js(f"{find}(document.querySelector('#samples [type=search]'))")
    assert texts(chromium, "#samples .response > .text") == [f"answer 2 of 0 {HOSTILE}"]
    first = texts(chromium, "#pairs .pair:first-child .text")
    assert first == [f"{HOSTILE} 0", f"answer 0 of 0 {HOSTILE}", f"answer 0 of 40 {HOSTILE}"]
    assert complaints(chromium) == []


def test_tokens_are_tinted_by_what_they_earned(chromium, tmp_path):
    said = [
        sample(
            n,
            "say",
            f"{HOSTILE} b",
            tokens=[HOSTILE, " b", ""],
            steps={"kl": [-1.0, n / 80, 0.0], HOSTILE: [0, 2, 0]},
        )
        for n in (20, 40)
    ]
    odd = {"tokens": ["x"], "steps": {"kl": [1.0, 2.0]}}
    odder = {"tokens": "xy", "steps": {"kl": [1.0, 2.0]}}
    plain = [sample(40, "other", "plain", **more) for more in ({}, odd, odder)]
    chromium.open(made(tmp_path, written(tmp_path / "run", whole(), [*said, *plain])))
    assert texts(chromium, "#samples .token") == [HOSTILE, " b", "▪"]
    assert texts(chromium, "#samples .response > .text")[-3:] == ["plain"] * 3
    colours = (
        "[...document.querySelectorAll('#samples .token')].map(e => getComputedStyle(e).backgroundColor)"
    )
    cost, earned, nothing = chromium.js(colours)
    assert cost != earned != nothing != cost
    titles = "[...document.querySelectorAll('#samples .token')].map(e => e.title)"
    assert chromium.js(titles) == ["−1", "0.5", "0"]
    choose = "((e, said) => { e.value = said; e.dispatchEvent(new Event('change')) })"
    choose += "(document.querySelector('#samples .tint'), %r)"
    chromium.js(choose % HOSTILE)
    assert chromium.js(titles) == ["0", "2", "0"]
    chromium.js(choose % "")
    assert (
        texts(chromium, "#samples .token") == []
        and texts(chromium, "#samples .response > .text")[0] == f"{HOSTILE} b"
    )
    assert complaints(chromium) == []


TALK = [
    {"role": "assistant", "content": "5", "reward": -0.5, "tokens": ["5"], "steps": {"advantage": [-0.5]}},
    {"role": "environment", "content": HOSTILE},
    {"role": "assistant", "content": "4", "tokens": ["4"], "steps": {"advantage": [0.125]}},
]
LEARNED = [
    (0, "one", {"advantage": -2.0, "tokens": ["o", "ne"], "steps": {"kl": [0.5, -0.5]}}),
    (0, f"two {HOSTILE}", {"tokens": ["two ", HOSTILE, ""], "steps": {"advantage": [2.0, -0.5, None]}}),
    (1, "three", {"advantage": 0.0, "age": 3}),
    (2, "4", {"transcript": TALK}),
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says what it learned from: two groups that have the same prompt, and an episode."""
    folder = written(tmp_path_factory.mktemp("taught") / "run", whole(), [sample(40, "p", "x")])
    for at, more in ((20, -8.0), (40, 0.5)):
        rows = [sample(at, "p", text, group=g, reward=more, **about) for g, text, about in LEARNED]
        append(folder / "learned.jsonl", rows)
    append(folder / "learned.jsonl", [sample(20, "p", "early", group=3, reward=0.0, advantage=100.0)])
    return made(folder, folder)


COLOURS = "[...document.querySelectorAll({!r})].map(e => getComputedStyle(e).backgroundColor)"


def test_what_was_learned_from_is_on_the_colour_of_its_advantage(chromium, taught):
    chromium.open(taught)
    assert texts(chromium, "#learned .where") == ["iteration 40"]
    tokens = ["one", "two ", HOSTILE, "three", "5", "4"]  # one for all of it where the advantage is one
    assert texts(chromium, "#learned .token") == tokens
    assert texts(chromium, "#learned .response > .text") == ["one", f"two {HOSTILE}", "three"]
    titles = "[...document.querySelectorAll('#learned .token')].map(e => e.title)"
    assert chromium.js(titles) == ["−2", "2", "−0.5", "0", "−0.5", "0.125"]
    worst, best, bad, nothing, turn, good = chromium.js(COLOURS.format("#learned .token"))
    assert len({worst, best, bad, nothing, good}) == 5 and bad == turn
    assert nothing == "rgba(0, 0, 0, 0)"
    assert texts(chromium, "#learned .swatch") == ["−2", "−0.5", "0", "0.5", "2"]
    scale = chromium.js(COLOURS.format("#learned .swatch"))
    assert (scale[0], scale[1], scale[2], scale[4]) == (
        worst,
        bad,
        nothing,
        best,
    )  # a token on its own place of it
    chips = texts(chromium, "#learned .chips .chip:first-child")
    assert chips == ["advantage −2", "advantage −0.5 … 2", "advantage 0", "advantage −0.5 … 0.125"]
    assert (
        texts(chromium, "#learned .chips")[2] == "advantage 0sampled 3 iterations beforetotal 0.5rhymes 0.5"
    )
    assert texts(chromium, "#learned .turn .role span") == [
        "assistant",
        "reward −0.5",
        "environment",
        "assistant",
    ]
    after = "getComputedStyle(document.activeElement, '::after').content"
    chromium.js("document.querySelector('#learned .token').focus()")  # as where one is touched
    assert chromium.js(after) == "attr(title)" or "−2" in chromium.js(after)
    change = "((e, said) => { e.value = said; e.dispatchEvent(new Event('change')) })"
    chromium.js(f"{change}(document.querySelector('#learned .tint'), 'kl')")
    assert texts(chromium, "#learned .token") == ["o", "ne"]
    chromium.js("document.querySelector('#learned button').click()")
    assert texts(chromium, "#learned .where") == ["iteration 20"]
    chromium.js(f"{change}(document.querySelector('#learned .tint'), 'advantage')")
    assert texts(chromium, "#learned .swatch")[-1] == "100"  # of that iteration
    assert complaints(chromium) == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_groups_responses_stand_side_by_side_and_can_be_read(chromium, taught, dark):
    """On a phone one below the other; a group apart from the next, though their prompts are the same."""
    chromium.open(taught, dark=dark)
    cards = "[...document.querySelectorAll('#learned .sample')]"
    tops = f"{cards}.map(s => [...s.querySelectorAll('.response')].map(e => e.getBoundingClientRect().top))"
    (one, two), *others = chromium.js(tops)
    assert one == two and [len(group) for group in others] == [1, 1]
    ink = "getComputedStyle(document.querySelector('#learned .token')).color"
    card = "getComputedStyle(document.querySelector('#learned .card')).backgroundColor"
    paper = colour(chromium, card)[:3]
    for shown in chromium.js(COLOURS.format("#learned .swatch")):
        tint = colour(chromium, repr(shown))
        below = [tint[3] * x + (1 - tint[3]) * y for x, y in zip(tint, paper, strict=False)]
        assert contrast(colour(chromium, ink)[:3], below) > 4.5
    chromium.open(taught, 390, 844, dark=dark)
    (one, two), *_ = chromium.js(tops)
    assert two > one
    assert chromium.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    inside = "(e => e.left >= 0 && e.right <= innerWidth + 1)(q.getBoundingClientRect())"
    assert chromium.js(f"[...document.querySelectorAll('#learned *')].every(q => {inside})")


def colour(chromium: Any, expression: str) -> list[float]:
    """Red, green, blue and how much it covers, between 0 and 1, as a canvas paints it."""
    chromium.js("window.canvas = new OffscreenCanvas(1, 1).getContext('2d')")
    chromium.js(f"canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = {expression}; canvas.fillRect(0, 0, 1, 1)")
    return [value / 255 for value in chromium.js("[...canvas.getImageData(0, 0, 1, 1).data]")]


def contrast(one: list[float], other: list[float]) -> float:
    """As WCAG 2 defines it."""

    def light(rgb: list[float]) -> float:
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
        return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_run_that_learned_from_nothing_shown_has_no_such_part(chromium, page):
    chromium.open(page)
    assert "What it learned from" not in texts(chromium, "main section h2")


def test_charts_can_be_found_smoothed_and_zoomed(chromium, page):
    chromium.open(page)
    ready(chromium)
    change = (
        "((e, name, value) => {{ e[name] = value; e.dispatchEvent(new Event('{}', {{bubbles: true}})) }})"
    )
    chromium.js(change.format("input") + "(document.getElementById('filter'), 'value', 'reward tot')")
    assert texts(chromium, ".figures:not([hidden]) .chart:not([hidden]) h3") == ["reward/total"]
    plot = "document.querySelector('#overview .plot')"
    chromium.until(f"{plot}.dataset.drawn === 'yes'")
    before = chromium.js(f"{plot}.data.length")
    chromium.js(change.format("input") + "(document.getElementById('smooth'), 'value', 0.8)")
    chromium.until(f"{plot}.data.length > {before}")
    chromium.js(change.format("change") + "(document.getElementById('x'), 'value', 'tokens')")
    chromium.until(f"{plot}.layout.xaxis.title.text === 'tokens'")
    box = chromium.js(
        f"(b => [b.left, b.top, b.width, b.height])({plot}.querySelector('.nsewdrag').getBoundingClientRect())"
    )
    wide = chromium.js(f"{plot}.layout.xaxis.range[1] - {plot}.layout.xaxis.range[0]")
    y = box[1] + box[3] / 2
    for kind, share, buttons in (("mousePressed", 0.3, 1), ("mouseMoved", 0.6, 1), ("mouseReleased", 0.6, 0)):
        x = box[0] + share * box[2]
        chromium.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1
        )
    chromium.until(f"{plot}.layout.xaxis.range[1] - {plot}.layout.xaxis.range[0] < {wide} / 2")
    assert complaints(chromium) == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(chromium, page, width):
    chromium.open(page, width, 844)
    ready(chromium)
    assert chromium.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    inside = "(e => e.left >= 0 && e.right <= innerWidth + 1)(q.getBoundingClientRect())"
    assert chromium.js(
        f"[...document.querySelectorAll('main .card, main h1, #controls > *, .text')].every(q => {inside})"
    )


def test_several_runs_are_compared(chromium, tmp_path):
    folders = [
        written(tmp_path / f"calm-{seed}", whole(), [sample(0, "p", f"of {seed}")], seed=seed)
        for seed in (0, 1)
    ]
    folders.append(written(tmp_path / "hot", whole(30), seed=0, train={"lr": 1.0}))
    chromium.open(made(tmp_path, *folders))
    ready(chromium)
    draw_all(chromium)
    assert texts(chromium, "#controls .legend span") == ["calm, mean of 2 seeds", "hot", "evaluation"]
    assert "train.lr" in texts(chromium, "#comparison td")
    plot = "document.querySelector('#overview .plot')"
    before = chromium.js(f"{plot}.data.length")
    chromium.js("document.getElementById('seeds').click()")
    chromium.until(f"{plot}.data.length === {before} + 4")  # two seeds, training and evaluation
    chromium.js(
        "(e => { e.value = '1'; e.dispatchEvent(new Event('change')) })(document.querySelector('#samples .run'))"
    )
    assert texts(chromium, "#samples .response > .text") == ["of 1"]
    assert complaints(chromium) == []


def test_a_live_page_follows_its_run(chromium, tmp_path):
    folder = tmp_path / "run"
    with Watch(Run(folder)) as watch:
        thread = threading.Thread(target=watch.serve)
        thread.start()
        try:
            chromium.open(watch.address)
            assert "has not begun" in texts(chromium, "#overview")[0]
            written(folder, [evaluation(0), iteration(1)], [sample(0, "p", HOSTILE)], finished=False)
            chromium.until("document.querySelectorAll('.chart').length > 3")
            ready(chromium)
            append(folder / "metrics.jsonl", [iteration(n) for n in range(2, 30)])
            chromium.until("document.querySelector('#overview').textContent.includes('after iteration 29')")
            assert HOSTILE in texts(chromium, "#samples .response > .text")
            (folder / "model").mkdir()
            chromium.until("document.getElementById('state').textContent === 'finished'")
            assert complaints(chromium) == [] and requests(chromium) <= {"http", "data"}
        finally:
            watch.close()
            thread.join()
    chromium.until("document.getElementById('live').textContent.includes('nobody answers')")
