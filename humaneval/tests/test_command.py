"""The command line: make a page of runs and files, score what raters answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlalign_humaneval import files
from rlalign_humaneval.command import humaneval

PIPELINE = {
    "task": "toy-numbers",
    "policy": {"table": {"actions": ["1", "2", "end"], "end": "end", "steps": 4, "state": "previous"}},
    "rewards": ["increasing-numbers"],
    "algorithm": "rloo",
    "generation": {"samples": 2},
    "train": {"iterations": 1, "prompts": 1, "lr": 0.1},
    "evaluate": {"every": 1, "examples": 4, "use": ["increasing-numbers"]},
}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(humaneval, [str(a) for a in arguments])


def rows(path: Path, name: str, count: int = 6) -> Path:
    made = [{"prompt": f"prompt {i}", "response": f"{name} {i}"} for i in range(count)]
    path.write_text(json.dumps(made))
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return rows(tmp_path / "ppo.json", "good"), rows(tmp_path / "sft.json", "bad")


def answered(key: files.Key, name: str, folder: Path) -> Path:
    """A rater to whom good is 5 and 4, bad 2 and 1, and better."""
    text_of = {one: text for one, (_, text) in key.sheet.texts.items()}
    answers: dict[str, Any] = {
        "format": "rlalign-humaneval-answers/1",
        "page": key.page,
        "rater": name,
        "choices": {},
    }
    answers["ratings"] = {one: [5, 4] if text.startswith("good") else [2, 1] for one, text in text_of.items()}
    for pair, (a, b) in key.sheet.pairs.items():
        answers["choices"][pair] = {"choice": a if text_of[a].startswith("good") else b, "left": a}
    (folder / f"{name}.json").write_text(json.dumps(answers))
    return folder / f"{name}.json"


def test_from_files_to_figures(two, tmp_path):
    out = tmp_path / "page.html"
    made = call("make", *two, "--out", out, "--items", 5)
    assert made.exit_code == 0, made.output
    assert "5 prompts; 10 responses to rate (fluency, quality) and 5 comparisons" in made.output
    key = files.read(tmp_path / "page.key.json", files.Key)
    assert (key.runs, len(key.sheet.prompts)) == (("ppo", "sft"), 5)
    answers = [answered(key, name, tmp_path) for name in ("ada", "bob")]
    scored = call("score", tmp_path / "page.key.json", *answers)
    assert scored.exit_code == 0, scored.output
    assert "| ppo | 5.00 ± 0.00 | 5 | 10 |" in scored.output
    assert "| ppo − sft | 100 % | 57 % … 100 % | 10 | 0 | 0 | 0 | 5 |" in scored.output
    found = json.loads(call("score", tmp_path / "page.key.json", *answers, "--json").stdout)
    assert found["axes"][1]["runs"][1]["mean"]["mean"] == 1
    other = call("make", *two, "--out", tmp_path / "other.html", "--seed", 1)
    assert other.exit_code == 0
    refused = call("score", tmp_path / "other.key.json", *answers)
    assert refused.exit_code == 2 and "answers to the page" in refused.output


def test_questions_of_ones_own(two, tmp_path):
    asked = ["--likert", "humour: Is it funny? | no | yes", "--no-pairwise"]
    assert call("make", *two, "--out", tmp_path / "a.html", *asked).exit_code == 0
    key = files.read(tmp_path / "a.key.json", files.Key)
    assert [axis.name for axis in key.sheet.axes] == ["humour"] and not key.sheet.pairs
    asked = ["--no-likert", "--pairwise", "Which is funnier?"]
    assert call("make", *two, "--out", tmp_path / "b.html", *asked).exit_code == 0
    key = files.read(tmp_path / "b.key.json", files.Key)
    assert (key.sheet.axes, key.sheet.pairwise, len(key.sheet.pairs)) == ((), "Which is funnier?", 6)
    assert call("make", *two, "--out", tmp_path / "c.html", "--task", "imdb").exit_code == 0
    key = files.read(tmp_path / "c.key.json", files.Key)
    assert [axis.name for axis in key.sheet.axes] == ["coherence", "sentiment"]


@pytest.mark.parametrize(
    "more, expected",
    [
        (["--no-likert", "--no-pairwise"], "ask some"),
        (["--no-likert", "--likert", "a: b"], "ask some"),
        (["--likert", "a: b", "--likert", "a: c"], "two axes"),
        (["--likert", "a"], "expected NAME: QUESTION"),
    ],
)
def test_questions_that_do_not_fit(two, tmp_path, more, expected):
    made = call("make", *two, "--out", tmp_path / "page.html", *more)
    assert made.exit_code == 2 and expected in made.output
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_raters_may_have_is_not_replaced(two, tmp_path):
    (tmp_path / "page.key.json").write_text("{}")
    made = call("make", *two, "--out", tmp_path / "page.html")
    assert made.exit_code == 2 and "raters may have it" in made.output
    assert call("make", two[0], "--out", tmp_path / "other.html").exit_code == 2


@pytest.mark.slow
def test_of_runs_what_their_last_evaluations_logged(tmp_path):
    """All prompts of this task are the same, so each run has one item to show; the note says how to get more."""
    import rlalign

    for name, seed in (("one", 0), ("two", 1)):
        rlalign.run({**PIPELINE, "seed": seed}, root=tmp_path, name=name, display=False)
    made = call("make", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html")
    assert made.exit_code == 0, made.output
    assert "of 50 prompts 1 were found" in made.output
    key = files.read(tmp_path / "page.key.json", files.Key)
    assert (key.runs, key.task) == (("one", "two"), "toy-numbers")
    last = [row["response"] for row in rlalign.Result(tmp_path / "one").samples if row["iteration"] == 1]
    (shown,) = [text for one, (_, text) in key.sheet.texts.items() if "one" in key.wrote[one]]
    assert shown == last[0]
