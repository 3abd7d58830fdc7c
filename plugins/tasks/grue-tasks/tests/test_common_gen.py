"""CommonGen: one example a set of words with all its sentences, in every form in which the data are published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.common_gen import CommonGen


def made(**options: object) -> CommonGen:
    return CommonGen(CommonGen.Config(**({"sample": True} | options)))  # type: ignore[arg-type]


def test_prompts_and_all_references():
    task = made(bad_rows="error")
    train, val = ({str(e.prompt): e for e in task.examples(split)} for split in ("train", "val"))
    assert list(train) == [
        "generate a sentence with: baker oven bread.",
        "generate a sentence with: rain umbrella walk street.",
        "generate a sentence with: cat window.",
    ]
    assert train["generate a sentence with: baker oven bread."].meta == {
        "references": ["The baker takes the bread out of the oven.", "A baker puts bread into a hot oven."],
        "keywords": ["baker", "oven", "bread"],
    }
    assert val["generate a sentence with: child ladder tree apple pick."].references == (
        "The child climbs a ladder to pick apples from the tree.",
        "A child on a ladder picks an apple off a tree.",
    )
    assert train["generate a sentence with: cat window."].responses == (" A cat sleeps at the window.",)


def test_the_test_split_is_blind():
    for example in made().examples("test"):
        assert example.references == () == example.responses
        assert "evaluate on `val`" in example.without_references


def test_rl4lms_takes_rows_and_one_sentence_of_each():
    task = made(compat="rl4lms")
    assert [(e.prompt, e.references) for e in task.examples("train")][:2] == [
        ("generate a sentence with: baker oven bread.", ("The baker takes the bread out of the oven.",)),
        ("generate a sentence with: baker oven bread.", ("A baker puts bread into a hot oven.",)),
    ]
    assert len(task.examples("train")) == 6
    assert [e.references for e in task.examples("val")] == [
        ("A fisherman sits in his boat on the lake.",),
        ("The child climbs a ladder to pick apples from the tree.",),
        ("The teacher writes on the board.",),
    ]
    assert task.examples("train")[5].responses == ("A cat sleeps at the window.",)


def test_chat():
    said = "Write one sentence about an everyday scene that uses all of these words: baker, oven, bread."
    assert list(made(style="chat").examples("train")[0].prompt) == [{"role": "user", "content": said}]


def test_the_authors_rows(tmp_path: Path):
    row = {
        "concept_set": "dog#lawn",
        "scene": ["A dog on a lawn.", "The lawn has a dog."],
        "reason": ["", ""],
    }
    (tmp_path / "commongen.dev.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = made(sample=False, path=tmp_path).examples("val")
    assert example.prompt == "generate a sentence with: dog lawn."
    assert example.references == ("A dog on a lawn.", "The lawn has a dog.")


def test_the_hubs_other_rows(tmp_path: Path):
    rows = [
        {"concept_set_idx": 0, "concepts": ["dog", "lawn"], "target": "A dog on a lawn."},
        {"concept_set_idx": 0, "concepts": ["dog", "lawn"], "target": "The lawn has a dog."},
        {"concept_set_idx": 1, "concepts": ["cat", "roof"], "target": "A cat is on the roof."},
    ]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = made(sample=False, path=tmp_path).examples("val")
    assert [e.references for e in found] == [
        ("A dog on a lawn.", "The lawn has a dog."),
        ("A cat is on the roof.",),
    ]


def test_the_authors_text_files(tmp_path: Path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"commongen.{split}.src_alpha.txt").write_text("dog lawn\ndog lawn\ncat roof")
        (tmp_path / f"commongen.{split}.tgt.txt").write_text("A dog.\nA lawn.\nA cat on the roof.")
        (tmp_path / f"commongen.{split}.index.txt").write_text("0\n0\n1")
    task = made(sample=False, path=tmp_path)
    assert sorted(task.splits()) == ["test", "train", "val"]
    for split in task.splits():
        first, second = task.examples(split)
        assert (first.meta["keywords"], first.references) == (["dog", "lawn"], ("A dog.", "A lawn."))
        assert (second.meta["keywords"], second.references) == (["cat", "roof"], ("A cat on the roof.",))
    (tmp_path / "commongen.dev.jsonl").write_text(
        '{"concept_set": "sun#sea", "scene": ["Sun on the sea."]}\n'
    )
    task = made(sample=False, path=tmp_path)
    assert [e.meta["keywords"] for e in task.examples("val")] == [["sun", "sea"]]
    assert len(task.examples("train")) == 2


def test_text_files_that_do_not_go_together(tmp_path: Path):
    (tmp_path / "commongen.train.src_alpha.txt").write_text("dog lawn\ncat roof\n")
    (tmp_path / "commongen.train.tgt.txt").write_text("A dog.\n")
    with pytest.raises(ConfigError, match=r"tgt.txt has 1 lines and .*src_alpha.txt has more"):
        made(sample=False, path=tmp_path).examples("train")


def test_references_that_are_no_list_are_refused(tmp_path: Path):
    (tmp_path / "val.csv").write_text("concept_set,scene\na#b,A b.\n")
    with pytest.raises(ConfigError, match="`scene` is text, expected a list"):
        made(sample=False, path=tmp_path).examples("val")
    (tmp_path / "val.csv").unlink()
    (tmp_path / "val.jsonl").write_text('{"concepts": ["a"], "target": "x", "references": "An a."}\n')
    with pytest.raises(ConfigError, match="`references` is text, expected a list"):
        made(sample=False, path=tmp_path).examples("val")


def test_words_without_a_sentence_are_refused_where_there_must_be_one(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(
        '{"concepts": ["a"], "target": ""}\n{"concepts": [""], "target": "x"}\n'
    )
    with pytest.raises(ConfigError, match=r"train.jsonl:1: no reference\n.*train.jsonl:2: a word is empty"):
        made(sample=False, path=tmp_path).examples("train")
