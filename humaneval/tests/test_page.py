"""What a page holds, and what it must not tell; which answers are refused."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from rlalign.errors import ConfigError
from rlalign_humaneval import files, page, questions
from rlalign_humaneval.sources import Example, Source

HOSTILE = "</script><img src=x onerror=\"alert('&amp;')\"><!-- \u2028 \\u003c"
STYLE = (Path(page.__file__).parent / "page/page.css").read_text()


def made(
    count: int = 12, runs: tuple[str, ...] = ("zeta-ppo", "alpha-sft"), seed: int = 0, same: int = 0
) -> files.Key:
    """The key of a page; the first `same` items have one response of all runs."""
    examples = [
        Example(
            str(i),
            f"prompt {i}",
            {run: f"same {i}" if i < same else f"{HOSTILE} {i} {n}" for n, run in enumerate(runs)},
        )
        for i in range(count)
    ]
    found = [Source(run, f"/somewhere/{run}.jsonl", "imdb", []) for run in runs]
    return page.blinded(examples, found, questions.DEFAULT, "Which is better?", task="imdb", seed=seed)


def test_the_page_is_blind():
    key = made()
    text = page.html(key)
    for told in ("zeta", "alpha", "somewhere", "imdb"):
        assert told not in text
    assert list(key.sheet.texts) == sorted(key.sheet.texts)
    assert all(a < b for a, b in key.sheet.pairs.values())
    # Neither an id's size nor its place says whose it is.
    whose = [key.wrote[text] for text in key.sheet.texts]
    assert 3 < sum(a == b for a, b in pairwise(whose)) < 20
    first = [key.wrote[a] for a, _ in key.sheet.pairs.values()]
    assert 2 <= first.count(("zeta-ppo",)) <= 10


def test_a_key_belongs_to_its_page():
    assert made() == made()
    assert made().page != made(seed=1).page
    assert made().sheet != made(seed=1).sheet
    swapped = made(
        runs=("alpha-sft", "zeta-ppo")
    )  # the same seed and texts: ids tell nothing to who knows them
    assert [swapped.wrote[t] for t in swapped.sheet.texts] != [made().wrote[t] for t in made().sheet.texts]


def test_what_several_wrote_is_one_text():
    key = made(count=3, runs=("a", "b", "c"), same=1)
    assert sorted(map(len, key.wrote.values())) == [1, 1, 1, 1, 1, 1, 3]
    assert len(key.sheet.pairs) == 6


def test_no_text_leaves_its_element():
    text = page.html(made())
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert not set("<>&\u2028") & set(data)
    found = json.loads(data)
    assert sorted(one for _, one in found["texts"].values())[0].startswith(HOSTILE)
    assert len(re.findall(r"<script", text)) == 2
    for banned in ("http:", "https:", "//cdn", "src=", "@import", "url(", "innerHTML", "eval("):
        assert banned not in text.replace(data, "")


def test_a_text_that_looks_like_a_place_of_the_page_stays():
    example = Example(None, "@SCRIPT@", {"a": "@DATA@ @POLICY@", "b": "$&"})
    key = page.blinded([example], [Source(n, n, None, []) for n in "ab"], [], "Which?", task=None, seed=0)
    text = page.html(key)
    assert '"@SCRIPT@"' in text and '"@DATA@ @POLICY@"' in text and text.rstrip().endswith("</html>")


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.2)."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(dark):
    found = colours(STYLE.partition("@media")[2] if dark else STYLE.partition("@media")[0])
    assert len(found) == 10
    for ground in ("paper", "card", "tint", "warn"):
        assert contrast(found["ink"], found[ground]) > 7
    for ground in ("paper", "card"):
        assert contrast(found["soft"], found[ground]) > 4.5
        for edge in ("line", "accent"):  # of controls, and of what has the focus
            assert contrast(found[edge], found[ground]) > 3
    assert contrast(found["on-accent"], found["accent"]) > 4.5


def test_a_key_whose_parts_do_not_belong_together_is_refused(tmp_path):
    key, other = made(count=2), made(count=2, seed=1)
    path = tmp_path / "page.key.json"
    path.write_text(key.model_dump_json())
    assert files.read(path, files.Key) == key
    for wrong in (
        {"page": other.page},
        {"wrote": other.model_dump()["wrote"]},
        {"runs": ["someone", "else"]},
    ):
        path.write_text(json.dumps({**key.model_dump(mode="json"), **wrong}))
        with pytest.raises(ConfigError, match=r"page\.key\.json: its parts do not belong together"):
            files.read(path, files.Key)


# -- answers ----------------------------------------------------------------------------------------------


def test_answers_that_do_not_belong_are_refused(tmp_path):
    key = made(count=2)
    text, pair = next(iter(key.sheet.texts)), next(iter(key.sheet.pairs))
    left, right = key.sheet.pairs[pair]
    sound = {
        "format": "rlalign-humaneval-answers/1",
        "page": key.page,
        "rater": "ada",
        "ratings": {text: [3, None]},
        "choices": {pair: {"choice": "tie", "left": right}},
    }

    def read(*files_: dict[str, object]) -> list[files.Answers]:
        paths = []
        for i, one in enumerate(files_):
            paths.append(tmp_path / f"{i}.json")
            paths[-1].write_text(json.dumps(one))
        return files.read_answers(paths, key)

    assert [one.rater for one in read(sound, {**sound, "rater": "bob"})] == ["ada", "bob"]
    for wrong, expected in (
        ({"page": "another"}, "answers to the page 'another'"),
        ({"format": "something"}, "`format`"),
        ({"rater": ""}, "`rater`"),
        ({"ratings": {"t9": [1, 1]}}, "rates 't9'"),
        ({"ratings": {text: [1]}}, "on 1 axes"),
        ({"ratings": {text: [0, 1]}}, "ratings"),
        ({"ratings": {text: [6, 1]}}, "ratings"),
        ({"ratings": {text: ["3", 1]}}, "ratings"),
        ({"ratings": {text: [2.5, 1]}}, "ratings"),
        ({"choices": {"c9": {"choice": "tie", "left": left}}}, "compares 'c9'"),
        ({"choices": {pair: {"choice": text + "x", "left": left}}}, "neither of the two"),
        ({"choices": {pair: {"choice": left, "left": "tie"}}}, "neither of the two"),
        ({"more": 1}, "`more`"),
    ):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            read({**sound, **wrong})
    with pytest.raises(ConfigError, match="both are answers of 'ada'"):
        read(sound, sound)
    (tmp_path / "no.json").write_text("[1")
    with pytest.raises(ConfigError, match="expected a file of answers"):
        files.read_answers([tmp_path / "no.json"], key)
    with pytest.raises(ConfigError, match="cannot be read"):
        files.read_answers([tmp_path / "nowhere.json"], key)
    with pytest.raises(ConfigError, match="expected a key"):
        files.read(tmp_path / "0.json", files.Key)
