"""daily-dialog: five turns to the letter, the labels of the next one, and DailyDialog++'s preference groups."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.daily_dialog import DailyDialog

SIX = ["a .", "b ?", "c .", "d !", "e .", "f ."]


def made(**options: Any) -> DailyDialog:
    return DailyDialog(DailyDialog.Config(**options))


def rows(folder: Path, *rows: dict[str, Any], name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def dialogue(*turns: str, **other: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "utterances": list(turns),
        "acts": [1] * len(turns),
        "emotions": [0] * len(turns),
        **other,
    }


# -- DailyDialog --------------------------------------------------------------------------------------------


def test_prompts_and_references():
    task = made(sample=True, bad_rows="error")
    train = task.examples("train")
    assert [len(task.examples(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    first, second = train[0], train[1]
    assert first.prompt == (
        "Have you seen my keys?<EOU>They are on the table .<EOU>I have looked there twice .<EOU>Then look under the "
        "newspaper .<EOU>Here they are ! Thank you . <EOU>"
    )
    assert first.references == ("You are welcome . Drive carefully .",)
    assert first.responses == ("You are welcome . Drive carefully .<EOU>",)
    assert (first.meta["intent"], first.meta["label"], first.meta["emotion"]) == (3, 2, 0)
    assert first.meta["last_turn"] == "Here they are ! Thank you . <EOU>"
    assert second.prompt == (
        "They are on the table .<EOU>I have looked there twice .<EOU>Then look under the newspaper .<EOU>Here they are "
        "! Thank you .<EOU>You are welcome . Drive carefully . <EOU>"
    )
    assert (second.id, second.references, second.meta["intent"]) == ("train.jsonl:1#7", ("I always do .",), 4)


def test_as_a_chat():
    example = made(sample=True, style="chat").examples("val")[0]
    assert example.prompt == [
        {"role": "user", "content": "You look tired ."},
        {"role": "assistant", "content": "I did not sleep well ."},
        {"role": "user", "content": "What kept you awake?"},
        {"role": "assistant", "content": "My neighbour has a new drum ."},
        {"role": "user", "content": "Shall I talk to him?"},
    ]
    assert example.responses == ("Would you? That would be kind .",)


@pytest.mark.parametrize(("turns", "expected"), [(5, ["a . <EOU>b ."]), (2, [])])
def test_fewer_than_five_turns_before_one_are_no_example(tmp_path, turns, expected):
    examples = made(path=rows(tmp_path, dialogue(*SIX), dialogue(*SIX[:5]))).examples("train")
    assert [(e.prompt, e.references) for e in examples] == [
        ("a .<EOU>b ?<EOU>c .<EOU>d !<EOU>e . <EOU>", ("f .",))
    ]
    examples = made(path=tmp_path, turns=2).examples("train")
    assert len(examples) == 4 + 3 and examples[0].prompt == "a .<EOU>b ? <EOU>"


def test_as_rl4lms_handles_text(tmp_path):
    """Utterances as they stand, `<EOU>` in what metrics compare with."""
    turns = [f" {turn} " for turn in SIX]
    folder = rows(tmp_path, dialogue(*turns))
    (plain,) = made(path=folder).examples("train")
    assert (plain.prompt, plain.references) == ("a .<EOU>b ?<EOU>c .<EOU>d !<EOU>e . <EOU>", ("f .",))
    task = made(path=folder, compat="rl4lms")
    (same,) = task.examples("train")
    assert same.prompt == " a . <EOU> b ? <EOU> c . <EOU> d ! <EOU> e .  <EOU>"
    assert same.references == same.responses == (" f . <EOU>",)
    assert task.postprocess(" f . <EOU> and on") == " f . <EOU> and on"


def test_a_response_is_read_up_to_the_end_of_the_turn():
    assert made(sample=True).postprocess(" Fine .<EOU>And you ?") == "Fine ."
    assert made(sample=True).generation["stop"] == ("<EOU>",)


def test_names_of_columns_in_the_first_publication_on_the_hub(tmp_path):
    row = {"dialog": SIX, "act": [1, 2, 1, 3, 1, 4], "emotion": [0, 0, 0, 4, 0, 6]}
    (example,) = made(path=rows(tmp_path, row)).examples("train")
    assert (example.meta["intent"], example.meta["emotion"]) == (4, 6)


def test_the_authors_text_files(tmp_path):
    for part, mark in (("train", ""), ("validation", "v"), ("test", "t")):
        folder = tmp_path / part
        folder.mkdir()
        text = "".join(f" {mark}{turn} __eou__" for turn in SIX) + "\n"
        (folder / f"dialogues_{part}.txt").write_text(text)
        (folder / f"dialogues_act_{part}.txt").write_text("1 2 1 3 1 4 \n")
        (folder / f"dialogues_emotion_{part}.txt").write_text("0 0 0 4 0 6 \n")
    for task in (made(path=tmp_path), made(path=tmp_path / "validation")):
        (example,) = task.examples("val")
        assert example.prompt == "va .<EOU>vb ?<EOU>vc .<EOU>vd !<EOU>ve . <EOU>"
        assert (example.references, example.meta["intent"], example.meta["emotion"]) == (("vf .",), 4, 6)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"acts": [1] * 5}, "6 turns, and of each `act` there should be one, not 5"),
        ({"acts": [0] * 6}, "an `act` is 0, expected 1 to 4"),
        ({"emotions": [7] * 6}, "an `emotion` is 7, expected 0 to 6"),
        ({"utterances": ["a", "b", "c", "d", "e", " "]}, "a turn is empty"),
    ],
)
def test_dialogues_that_cannot_be_used(tmp_path, other, said):
    with pytest.raises(ConfigError, match=said):
        made(path=rows(tmp_path, {**dialogue(*SIX), **other})).examples("train")


def test_sizes_are_of_dialogues(tmp_path):
    folder = rows(tmp_path, dialogue(*SIX), dialogue("short ."))
    with pytest.raises(ConfigError, match=r"`train` holds 2 rows, expected 11,118"):
        made(path=folder, whole=True).examples("train")


def test_on_the_hub(monkeypatch):
    asked: list[Any] = []

    class Split(list[dict[str, Any]]):
        column_names = ("id", "utterances", "acts", "emotions")

    def load_dataset(path: str, **how: Any) -> Any:
        asked.append((path, how))
        return {split: Split([dialogue(*SIX)]) for split in how["data_files"]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(made(whole=False).examples("val")) == 1
    home = "hf://datasets/roskoN/dailydialog@refs/convert/parquet/full"
    files = {
        "train": f"{home}/train/*.parquet",
        "val": f"{home}/validation/*.parquet",
        "test": f"{home}/test/*.parquet",
    }
    assert asked == [("parquet", {"data_files": files})]
    with pytest.raises(ConfigError, match=r"hub: roskoN/dailydialog: `val` holds 1 rows, expected 1,000"):
        made().examples("val")


# -- DailyDialog++ ------------------------------------------------------------------------------------------

RIGHT = (
    "Only on Fridays.",
    "I do not know, it is my first time.",
    "You should see it in the summer!",
    "Most days, I am afraid.",
    "No, there is a match in town today.",
)
ADVERSARIAL = (
    "I always sit on a full suitcase to close it.",
    "My training was full of surprises.",
    "Free seats at the opera are hard to get.",
    "The train of her dress was two metres long.",
    "Please sit, said the dog trainer.",
)
RANDOM = (
    "I would like the soup, please.",
    "My sister plays the harp.",
    "The printer is out of paper.",
    "Turn left after the bank.",
    "He never answered my letter.",
)


def ended(*texts: str) -> tuple[str, ...]:
    return tuple(text + "<EOU>" for text in texts)


@pytest.mark.parametrize(
    ("which", "responses", "scores"),
    [
        ("right", RIGHT, ()),
        ("adversarial", RIGHT + ADVERSARIAL, (1.0,) * 5 + (0.0,) * 5),
        ("random", RIGHT + RANDOM, (1.0,) * 5 + (0.0,) * 5),
        ("all", RIGHT + ADVERSARIAL + RANDOM, (1.0,) * 5 + (0.0,) * 10),
    ],
)
def test_right_and_wrong_answers(which, responses, scores):
    task = made(sample=True, data="plusplus", responses=which, bad_rows="error")
    first = task.examples("train")[0]
    assert (
        first.prompt
        == "Is this seat free?<EOU>Yes, please sit down.<EOU>Thank you. Is this train always so full? <EOU>"
    )
    assert first.references == RIGHT
    assert (first.responses, first.scores) == (ended(*responses), scores)
    assert first.meta["last_turn"] == "Thank you. Is this train always so full? <EOU>"


def test_the_last_five_turns_of_a_context():
    third = made(sample=True, data="plusplus").examples("train")[2]
    assert third.prompt == (
        "Wonderful. We went to the mountains.<EOU>Did you climb any?<EOU>Two small ones, and one by cable car.<EOU>"
        "That one does not count.<EOU>My feet say that it does. <EOU>"
    )


def test_a_chat_begins_with_the_user():
    """Of two turns the first is the assistant's, and is left out."""
    task = made(sample=True, data="plusplus", style="chat", responses="adversarial")
    assert task.examples("train")[1].prompt == [{"role": "user", "content": "Let me try."}]
    assert task.examples("train")[0].responses == RIGHT + ADVERSARIAL
    assert [m["role"] for m in task.examples("train")[0].prompt] == ["user", "assistant", "user"]


def test_what_plusplus_is_not():
    with pytest.raises(ValidationError, match=r"is not on the hub: say `path`, .*DailyDialog-plusplus"):
        made(data="plusplus")
    with pytest.raises(
        ConfigError, match="`responses: all` is of DailyDialog\\+\\+, and this row is a dialogue"
    ):
        made(sample=True, responses="all").examples("train")


def test_an_answer_is_not_right_and_wrong(tmp_path):
    row = {
        "context": ["a"],
        "positive_responses": ["Yes.", "No."],
        "adversarial_negative_responses": ["No.", "Maybe."],
        "random_negative_responses": ["Maybe.", "Never."],
    }
    (example,) = made(path=rows(tmp_path, row), responses="all").examples("train")
    assert example.responses == ended("Yes.", "No.", "Maybe.", "Never.")
    assert example.scores == (1.0, 1.0, 0.0, 0.0)


def test_json_lines_in_spite_of_the_ending(tmp_path):
    row = {"id": 0, "context": ["a", "b"], "positive_responses": ["c", "d"]}
    task = made(path=rows(tmp_path, row, name="dev.json"))
    (example,) = task.examples("val")
    assert (example.prompt, example.references) == ("a<EOU>b <EOU>", ("c", "d"))
    with pytest.raises(ConfigError, match=r"`val` holds 1 rows, expected 1,028"):
        made(path=tmp_path, whole=True).examples("val")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"context": [], "positive_responses": ["c"]}, "`context` is empty"),
        ({"context": ["a"], "positive_responses": []}, "`positive_responses` is empty"),
        ({"context": ["a", ""], "positive_responses": ["c"]}, "a turn is empty"),
    ],
)
def test_contexts_that_cannot_be_used(tmp_path, row, said):
    with pytest.raises(ConfigError, match=said):
        made(path=rows(tmp_path, row)).examples("train")
