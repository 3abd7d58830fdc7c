"""Responses from runs and files, paired by prompt and id; and what is asked of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlalign.errors import ConfigError
from rlalign_humaneval import questions, sources

CHAT = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *rows: object, form: str = "lines") -> str:
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / name).write_text(json.dumps(rows) if form == "list" else lines)
        return str(tmp_path / name)

    return write


def pairs(*paths: str, items: int = 50, seed: int = 0) -> list[sources.Example]:
    return sources.paired(sources.distinct([sources.read(path) for path in paths]), items, seed)


def test_only_prompts_that_all_have_answered(file):
    a = file("a.jsonl", *({"prompt": f"p{i}", "response": f"a{i}"} for i in range(5)))
    b = file("b.json", *({"prompt": f"p{i}", "response": f"b{i}"} for i in range(3, 9)), form="list")
    found = pairs(a, b)
    assert {e.prompt: dict(e.responses) for e in found} == {
        "p3": {"a": "a3", "b": "b3"},
        "p4": {"a": "a4", "b": "b4"},
    }


def test_ids_count_where_every_row_has_one(file):
    rows = [
        {"id": 1, "prompt": "same", "responses": ["x1"]},
        {"id": 2, "prompt": "same", "responses": ["x2"]},
    ]
    a = file("a.jsonl", *rows)
    b = file(
        "b.jsonl",
        {"id": "2", "prompt": "same", "responses": ["y2"]},
        {"id": 1, "prompt": "other", "responses": [""]},
    )
    (found,) = pairs(a, b)
    assert (found.id, dict(found.responses)) == ("2", {"a": "x2", "b": "y2"})
    c = file("c.jsonl", {"prompt": "same", "response": "z"})
    (found,) = pairs(a, c)
    assert (found.id, dict(found.responses)) == (None, {"a": "x2", "c": "z"})


def test_of_logged_data_the_last_row_and_of_samples_the_first(file):
    """What a run kept while it trained has an id of its own for each row; the example's is in `meta`."""
    kept = [
        {
            "id": f"phase-0/7#{i}.0",
            "prompt": CHAT,
            "responses": [f"k{i}", "other"],
            "meta": {"rlalign": {"example": "7", "task": "hh"}},
        }
        for i in range(3)
    ]
    a = file("a.jsonl", *kept)
    b = file(
        "b.json", {"prompt": CHAT, "response": "first"}, {"prompt": CHAT, "response": "second"}, form="list"
    )
    (found,) = pairs(a, b)
    assert dict(found.responses) == {"a": "k2", "b": "first"}
    assert [message.content for message in found.prompt] == ["Hello?"]
    assert sources.read(a).task == "hh"
    assert sources.read(a).rows[0].example == "7"


def test_the_same_seed_chooses_the_same_prompts(file):
    rows = [{"prompt": f"p{i}", "response": "r"} for i in range(30)]
    a, b = file("a.jsonl", *rows), file("b.jsonl", *reversed(rows))
    first = [e.prompt for e in pairs(a, b, items=10)]
    assert len(set(first)) == 10
    assert first == [e.prompt for e in pairs(b, a, items=10)]
    assert first != [e.prompt for e in pairs(a, b, items=10, seed=1)]


def test_files_of_one_name_are_called_by_their_paths(file, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    row = {"prompt": "p", "response": "r"}
    (found,) = pairs(file("one/x.jsonl", row), file("two/x.jsonl", row))
    assert [Path(name).parent.name for name in found.responses] == ["one", "two"]


def test_half_a_character_becomes_a_whole_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "response": "x\\ud83dy \\ud83d\\ude42"}')
    assert sources.read(str(tmp_path / "a.jsonl")).rows[0].response == "x\ufffdy 🙂"


def test_what_is_no_source_is_refused(file, tmp_path):
    for path, expected in {
        str(tmp_path / "nowhere"): "neither a run nor a file",
        file("no.jsonl", {"text": "x"}): "row 1, `prompt`",
        file("none.jsonl"): "holds no responses",
        file("empty.jsonl", {"prompt": "p", "responses": []}): "holds no responses",
    }.items():
        with pytest.raises(ConfigError, match=expected):
            sources.read(path)
    a, b = file("a.jsonl", {"prompt": "p", "response": ""}), file("b.jsonl", {"prompt": "q", "response": ""})
    with pytest.raises(ConfigError, match="a 1, b 1"):
        pairs(a, b)
    with pytest.raises(ConfigError, match="twice"):
        pairs(a, a)


def test_axes_of_tasks():
    asked = {task: [axis.name for axis in axes] for task, axes in questions.AXES.items()}
    assert asked == {
        "imdb": ["coherence", "sentiment"],
        "common-gen": ["fluency", "commonsense"],
        "daily-dialog": ["fluency", "coherence"],
        "cnn-daily-mail": ["coherence", "quality"],
        "totto": ["fluency", "correctness"],
    }
    assert questions.axes_of("toy-reviews") == questions.AXES["imdb"]
    assert [axis.name for axis in questions.axes_of(None)] == ["fluency", "quality"]
    assert questions.comparison_of("hh") != questions.comparison_of("common-gen")


def test_an_axis_of_ones_own():
    assert questions.axis("humour: Is it funny? Really: funny?") == questions.Axis(
        name="humour", question="Is it funny? Really: funny?"
    )
    assert questions.axis("x: y? | no | yes").high == "yes"
    for said in ("humour", "humour:", "x: y | no", "x: y | no | yes | more", f"{'x' * 41}: y", "| a | b"):
        with pytest.raises(ConfigError, match="expected NAME: QUESTION"):
            questions.axis(said)
