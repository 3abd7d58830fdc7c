"""IMDB: halves of reviews, RL4LMs' shuffle and cut, the layouts there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.imdb import IMDB

BY_PLACE = {
    "train.jsonl:1": (
        "I went in with no hopes at all and came out with wet eyes. The old lighthouse",
        " keeper is played so quietly that you notice only at the end how much he has told you.",
    ),
    "train.jsonl:2": (
        "Two hours about a stolen tractor, and not one of them is needed.<br /><br />The jokes",
        " are older than the tractor, and the thief is the only one who seems to have fun.",
    ),
    "train.jsonl:6": (
        "If you loved the book, stay away.",
        " If you did not, stay away as well.",
    ),
}


def made(**options: object) -> IMDB:
    return IMDB(IMDB.Config(**({"sample": True} | options)))  # type: ignore[arg-type]


def test_the_first_half_is_the_prompt_and_the_rest_follows_it():
    task = made()
    found = {e.id: e for split in ("train", "val") for e in task.examples(split)}
    assert len(found) == 10
    for place, (prompt, response) in BY_PLACE.items():
        assert (found[place].prompt, found[place].responses) == (prompt, (response,))
    # All of the review is the reference, which only a perplexity reads.
    assert found["train.jsonl:6"].meta == {
        "references": ["If you loved the book, stay away. If you did not, stay away as well."],
        "label": 0,
    }


def test_the_test_split():
    assert {e.id: e.prompt for e in made().examples("test")} == {
        "test.jsonl:1": "Every frame looks like a painting, and for once there is a story",
        "test.jsonl:2": "The robot is the best actor here. It says four",
    }


def test_rows_are_shuffled_as_datasets_does_it_and_a_fifth_set_aside():
    datasets = pytest.importorskip("datasets")
    order = datasets.Dataset.from_dict({"row": list(range(1, 11))}).shuffle(seed=42)["row"]
    task = made()
    assert [e.id for e in task.examples("train")] == [f"train.jsonl:{row}" for row in order[:8]]
    assert [e.id for e in task.examples("val")] == [f"train.jsonl:{row}" for row in order[8:]]
    assert [e.id for e in made(seed=1).examples("train")] != [e.id for e in task.examples("train")]


def test_positive_reviews_are_those_of_train():
    task = made(train="positive")
    every = made()
    kind = [e.id for e in every.examples("train") if e.meta["label"] == 1]
    assert [e.id for e in task.examples("train")] == kind and 0 < len(kind) < 8
    assert [e.id for e in task.examples("val")] == [e.id for e in every.examples("val")]


def test_rl4lms_puts_no_space_between():
    found = {e.id: e for e in made(compat="rl4lms").examples("train")}
    assert found["train.jsonl:6"].responses == ("If you did not, stay away as well.",)


def test_chat():
    found = {e.id: e for split in ("train", "val") for e in made(style="chat").examples(split)}
    said = "Go on with this film review where it stops:\n\nIf you loved the book, stay away."
    assert list(found["train.jsonl:6"].prompt) == [{"role": "user", "content": said}]
    assert found["train.jsonl:6"].responses == ("If you did not, stay away as well.",)


def test_the_authors_folders(tmp_path: Path):
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            folder = tmp_path / "aclImdb" / split / label
            folder.mkdir(parents=True)
            for i in range(5):
                (folder / f"{i}_{8 if label == 'pos' else 2}.txt").write_text(f"{split} {label} nº {i}")
    task = made(sample=False, path=tmp_path)
    assert [len(task.examples(split)) for split in ("train", "val", "test")] == [8, 2, 10]
    found = {e.id: (e.prompt, e.responses, e.meta["label"]) for e in task.examples("test")}
    assert found["test/pos/3_8.txt"] == ("test pos", (" nº 3",), 1)
    assert found["test/neg/0_2.txt"] == ("test neg", (" nº 0",), 0)
    before = task.fingerprint("train")
    (tmp_path / "aclImdb/train/pos/0_8.txt").write_text("another text")
    again = made(sample=False, path=tmp_path)
    assert again.fingerprint("train") != before and again.fingerprint("test") == task.fingerprint("test")


def test_a_file_in_another_encoding_is_left_out(tmp_path: Path):
    for label, text in (("neg", b"a caf\xe9"), ("pos", b"one two"), ("pos", b"three four")):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{len(list(folder.iterdir()))}_8.txt").write_bytes(text)
    task = made(sample=False, path=tmp_path)
    with pytest.warns(UserWarning, match=r"train/neg/0_8.txt: not UTF-8: byte 0xe9 at place 6\n.*iconv"):
        found = task.examples("train")
    assert (len(found), len(task.examples("val"))) == (1, 1)


def test_rows_that_cannot_be_used(tmp_path: Path):
    rows = [{"text": "one two", "label": -1}, {"text": "single", "label": 1}, {"text": " ", "label": 1}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError) as told:
        made(sample=False, path=tmp_path).examples("train")
    for fault in ("`label` is -1, expected 0 or 1", "`text` is a single word", "`text` is empty"):
        assert fault in str(told.value)


def test_only_train_is_there(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "one two three", "label": 1}\n' * 5)
    task = made(sample=False, path=tmp_path / "train.jsonl")
    assert task.splits() == ["train", "val"] and len(task.examples("val")) == 1
    with pytest.raises(ConfigError, match="has no split `test`"):
        task.examples("test")
