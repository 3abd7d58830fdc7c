"""faithdial and wizard-of-wikipedia: which turns are examples, what the prompt holds, both in one split."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlalign import ConfigError, Example
from rlalign_plugin_dialog_tasks import FaithDial, WizardOfWikipedia

END = "<|endoftext|>"


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def faith(response: str = "r", **other: Any) -> dict[str, Any]:
    return {"dialog_idx": 7, "response": response, "history": ["h1", "h2"], "knowledge": "k", **other}


def faithdial(path: Path, **options: Any) -> list[Example]:
    return list(FaithDial(FaithDial.Config(path=path, **options)).examples("train"))


def wizard(text: str, *checked: str) -> dict[str, Any]:
    return {
        "speaker": "1_Wizard",
        "text": text,
        "checked_sentence": {f"t{i}": c for i, c in enumerate(checked)},
    }


def apprentice(text: str) -> dict[str, Any]:
    return {"speaker": "0_Apprentice", "text": text}


def wow(folder: Path, *turns: Any, **options: Any) -> list[Example]:
    path = write(folder / "d.json", [{"dialog": list(turns)}])
    return list(WizardOfWikipedia(WizardOfWikipedia.Config(path=path, **options)).examples("train"))


# -- faithdial --------------------------------------------------------------------------------------------


def test_faithdial(tmp_path):
    row = faith(
        " It is. ", knowledge=" K. ", history=["Is it?", "What?", "It."], BEGIN=["Entailment"], VRM=[]
    )
    (example,) = faithdial(write(tmp_path / "train.json", [row]))
    assert example.prompt == "Knowledge: K.<|endoftext|>Is it?<|endoftext|>What?<|endoftext|>It.<|endoftext|>"
    assert (example.responses, example.scores, example.finished) == (("It is.",), (), (True,))
    assert example.meta == {
        "BEGIN": ["Entailment"],
        "knowledge": "K.",
        "history": ["Is it?", "What?", "It."],
        "references": ["It is."],
    }


def test_ids_are_unique_though_dialogue_numbers_are_not(tmp_path):
    found = faithdial(write(tmp_path / "train.json", [faith("a"), faith("b")]))
    assert len({e.id for e in found}) == 2


def test_dialogues_with_their_utterances_in_one_row(tmp_path):
    turns = [
        {"speaker": "Apprentice", "history": [], "utterance": "h1"},
        {"speaker": "Wizard", **faith("a", history=["h1"])},
        {"speaker": "Apprentice", "history": ["h1", "a"]},
        {"speaker": "Wizard", **faith("b", history=["h1", "a", "h2"])},
    ]
    found = faithdial(write(tmp_path / "train.json", [{"utterances": turns, "dialog_idx": 0}]))
    assert [(e.responses[0], e.meta["history"][-1]) for e in found] == [("a", "h1"), ("b", "h2")]
    assert [e.id.rpartition("#")[2] for e in found] == ["2", "4"]
    lonely = write(tmp_path / "train.json", [{"utterances": turns[:1]}])
    with pytest.raises(ConfigError, match="no utterance is by the wizard"):
        faithdial(lonely)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (faith(""), "`response` is empty"),
        (faith(knowledge=None), "`knowledge` is nothing"),
        (faith(history=[]), "`history` is an empty list"),
        (faith(history="h"), "`history` is text, expected a list"),
        (faith(history=["a", " "]), "turn 2 of `history` is empty"),
        ({"response": "r", "knowledge": "k"}, "no column `history`"),
    ],
)
def test_bad_rows_of_faithdial(tmp_path, row, why):
    path = write(tmp_path / "train.json", [faith(), row])
    with pytest.raises(ConfigError, match=r"1 of 2 rows cannot be used") as caught:
        faithdial(path, bad_rows="error")
    assert why in str(caught.value)
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        assert len(faithdial(path)) == 1


def test_published_sizes(tmp_path):
    path = write(tmp_path / "train.json", [faith()])
    assert len(faithdial(path)) == 1
    with pytest.raises(ConfigError, match=r"`train` holds 1 rows, expected 18,357"):
        faithdial(path, whole=True)
    assert len(faithdial(path, whole=True, limit=1)) == 1  # a part was asked for


# -- wizard of wikipedia ----------------------------------------------------------------------------------


def test_which_turns_are_examples_and_what_was_said_before(tmp_path):
    turns = [
        wizard("w0", "k0"),
        apprentice("a1"),
        wizard("w1"),
        apprentice("a2"),
        wizard("w2", "no_passages_used"),
        apprentice("a3"),
        wizard(" w3 ", " k3 ", "another"),
    ]
    with pytest.warns(UserWarning, match="left out") as said:
        (example,) = wow(tmp_path, *turns)
    # A-LoL's preparation loses w1, which has no checked sentence, from the history.
    assert example.prompt == f"Knowledge: k3{END}w0{END}a1{END}w1{END}a2{END}w2{END}a3{END}"
    assert example.responses == ("w3",) and example.id == "wow/d.json:1#7"
    assert example.meta["references"] == ["w3"] and example.meta["knowledge"] == "k3"
    text = str(said[0].message)
    assert "d.json: 1 of 4 examples kept; left out:" in text
    assert "1 open the dialogue" in text and "1 are turns of the wizard without a checked sentence" in text
    assert "1 are turns of the wizard that use no passage" in text


def test_another_end_of_turn(tmp_path):
    (example,) = wow(tmp_path, apprentice("a"), wizard("w", "k"), turn="\n")
    assert example.prompt == "Knowledge: k\na\n"


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ({"speaker": "Moderator", "text": "x"}, "turn 3 is by `Moderator`"),
        (apprentice(" "), "turn 3 is empty"),
        ({"speaker": "0_Wizard", "text": "x"}, "no column `checked_sentence`"),
        ({"speaker": "0_Wizard", "text": "x", "checked_sentence": "k"}, "`checked_sentence` is text"),
        (wizard("x", ""), "the checked sentence is empty"),
        ("x", "turn 3 is text, expected an object"),
    ],
)
def test_bad_dialogues(tmp_path, turn, why):
    with pytest.raises(ConfigError, match=why):
        wow(tmp_path, apprentice("a"), wizard("w", "k"), turn)


HUB_ROW = {
    "post": ["Bees", "and then?"],
    "response": ["They sting.", "They die."],
    "knowledge": [
        ["no_passages_used __knowledge__ no_passages_used", "Bee __knowledge__ Bees sting."],
        ["no_passages_used __knowledge__ no_passages_used", "Bee __knowledge__ A bee dies."],
    ],
    "labels": [1, 1],
}


def test_the_hubs_layout(tmp_path):
    path = write(tmp_path / "d.json", [HUB_ROW])
    found = WizardOfWikipedia(WizardOfWikipedia.Config(path=path)).examples("train")
    assert [e.prompt for e in found] == [
        f"Knowledge: Bees sting.{END}Bees{END}",
        f"Knowledge: A bee dies.{END}Bees{END}They sting.{END}and then?{END}",
    ]
    write(path, [{**HUB_ROW, "labels": [0, 1]}])
    with pytest.warns(UserWarning, match="use no passage"):
        assert len(WizardOfWikipedia(WizardOfWikipedia.Config(path=path)).examples("train")) == 1
    for wrong, why in (
        ({"labels": [1]}, r"are not of one length \(2, 2, 2, 1\)"),
        ({"labels": [1, 5]}, "turn 2: no sentence 5"),
        ({"response": ["a", ""]}, "response 2 is empty"),
    ):
        write(path, [{**HUB_ROW, **wrong}])
        with pytest.raises(ConfigError, match=why):
            WizardOfWikipedia(WizardOfWikipedia.Config(path=path)).examples("train")


def parlai(folder: Path) -> Path:
    for name in ("train", "valid_topic_split", "valid_random_split", "test_random_split", "test_topic_split"):
        write(folder / f"{name}.json", [{"dialog": [apprentice("a"), wizard(name, "k")]}])
    write(folder / "topic_splits.json", [{"no": "data"}])
    return folder


def test_parlais_files(tmp_path):
    task = WizardOfWikipedia(WizardOfWikipedia.Config(path=parlai(tmp_path)))
    assert {s: task.examples(s)[0].responses[0] for s in task.splits()} == {
        "train": "train",
        "val": "valid_topic_split",
        "val_seen": "valid_random_split",
        "test_seen": "test_random_split",
        "test_unseen": "test_topic_split",
    }
    with pytest.raises(ConfigError, match="has no split `test`"):
        task.examples("test")


def test_with_faithdial(tmp_path):
    """As in A-LoL: FaithDial's test split, and in `both` its training split too, under ids that differ."""
    for name in ("train", "valid", "test"):
        write(tmp_path / f"faith/{name}.json", [faith(name), faith(name)])
    options: dict[str, Any] = {"path": parlai(tmp_path / "wow"), "faithdial": tmp_path / "faith"}
    task = WizardOfWikipedia(WizardOfWikipedia.Config(**options))
    assert [e.responses[0] for e in task.examples("test")] == ["test", "test"]
    assert len(task.examples("train")) == 1
    both = WizardOfWikipedia(WizardOfWikipedia.Config(**options, train="both"))
    found = both.examples("train")
    assert [e.id.partition("/")[0] for e in found] == ["wow", "faithdial", "faithdial"]
    assert len({e.id for e in found}) == 3
    assert found[-1].responses == ("train",) and [e.id for e in found[1:]] == [e.id for e in list(found)[1:]]
    with pytest.raises(IndexError):
        found[3]
    before = both.fingerprint("train"), both.fingerprint("test"), both.fingerprint("val")
    write(tmp_path / "faith/train.json", [faith("other")])
    after = WizardOfWikipedia(WizardOfWikipedia.Config(**options, train="both"))
    assert after.fingerprint("train") != before[0]
    assert (after.fingerprint("test"), after.fingerprint("val")) == before[1:]
    with pytest.raises(ValidationError, match="`train: both` needs `faithdial`"):
        WizardOfWikipedia.Config(path=tmp_path, train="both")


def test_the_samples_of_both_go_together():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = WizardOfWikipedia(WizardOfWikipedia.Config(sample=True, train="both"))
        assert len(task.examples("train")) == 9 + 8
        assert len({e.id for e in task.examples("train")}) == 17
