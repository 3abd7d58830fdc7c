"""Rows of our own in the layouts of published data: E2E, CommonGen, DailyDialog, DailyDialog++, ToTTo, CNN/DM."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError
from rlalign_plugin_dataset import Dataset


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset(Dataset.Config(path=path, **{"join": "", **options}))


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- rows that share a prompt -------------------------------------------------------------------------------

E2E = (
    "mr,ref\n"
    '"name[A], area[b]","A is in b."\n'
    '"name[C]","There is C."\n'
    '"name[A], area[b]","In b, find A."\n'
    '"name[A], area[b]","A? It is in b."\n'
)


@pytest.fixture
def e2e(tmp_path: Path) -> Path:
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        (tmp_path / name).write_text(E2E)
    return tmp_path


def test_e2e(e2e):
    task = dataset(e2e, prompt="mr", references="ref", responses="ref", gather=True)
    for split in ("train", "val", "dev", "test"):
        first, second = task.examples(split)
        assert (first.prompt, second.prompt) == ("name[A], area[b]", "name[C]")
        assert first.references == ("A is in b.", "In b, find A.", "A? It is in b.")
        assert first.responses == first.references and second.responses == ("There is C.",)
    assert first.id == "testset_w_refs.csv:2" and task.examples("train").response_counts.tolist() == [3, 1]
    assert len(dataset(e2e, prompt="mr", references="ref").examples("train")) == 4


def test_a_limit_counts_gathered_prompts(e2e):
    (only,) = dataset(e2e, prompt="mr", references="ref", gather=True, limit=1).examples("train")
    assert len(only.references) == 3


def test_gathered_scores_and_ends(tmp_path):
    rows = [
        {"prompt": "p", "responses": [str(i)], "scores": [i], "finished": [i > 0], "n": i} for i in range(3)
    ]
    (example,) = dataset(jsonl(tmp_path / "d.jsonl", *rows), gather=True).examples("train")
    assert (example.responses, example.scores) == (("0", "1", "2"), (0.0, 1.0, 2.0))
    assert example.finished == (False, True, True) and example.meta == {"n": 0}


def test_gathered_chats_and_ids(tmp_path):
    """CommonGen names a concept set by its number, which all its rows have."""
    chat = [[{"role": "user", "content": text}] for text in "aba"]
    rows = [{"id": i, "prompt": p, "references": r} for i, p, r in zip((0, 1, 0), chat, "xyz", strict=True)]
    found = dataset(jsonl(tmp_path / "d.jsonl", *rows), gather=True).examples("train")
    assert [(e.id, e.references) for e in found] == [("0", ("x", "z")), ("1", ("y",))]
    rows[2]["id"] = 1
    with pytest.raises(ConfigError, match=r"d\.jsonl:3: the id `1` is that of d\.jsonl:2 too"):
        dataset(jsonl(tmp_path / "d.jsonl", *rows), gather=True).examples("train")


def test_gathered_rows_are_in_one_split_and_drawn_by_their_prompt(tmp_path):
    rows = [{"id": i, "prompt": f"p{i % 40}", "references": str(i)} for i in range(200)]
    shares = {"train": 0.5, "val": 0.5}
    task = dataset(jsonl(tmp_path / "d.jsonl", *rows), gather=True, splits=shares)
    found = {s: {e.prompt: set(e.references) for e in task.examples(s)} for s in shares}
    assert not set(found["train"]) & set(found["val"]) and len(found["train"] | found["val"]) == 40
    assert all(len(references) == 5 for part in found.values() for references in part.values())
    other = dataset(jsonl(tmp_path / "e.jsonl", *reversed(rows)), gather=True, splits=shares)
    again = {e.prompt: set(e.references) for e in other.examples("train")}
    assert again == found["train"]
    keys = [
        dict(zip((e.prompt for e in one.examples("train")), one.examples("train").row_keys, strict=True))
        for one in (task, other)
    ]
    assert keys[0] == keys[1]


# -- dialogues without roles --------------------------------------------------------------------------------

CONTEXT = ["Are you ready?", "Nearly.", "Then let us go."]
TURNS = [
    {"role": "user", "content": "Are you ready?"},
    {"role": "assistant", "content": "Nearly."},
    {"role": "user", "content": "Then let us go."},
]
DDPP = {
    "id": 0,
    "context": CONTEXT,
    "positive_responses": ["One moment.", "Where to?"],
    "adversarial_negative_responses": ["Ready, steady, go!", "I go to bed at ten."],
    "random_negative_responses": ["It rains.", "Two, please."],
}


def test_daily_dialog_plus_plus(tmp_path):
    path = jsonl(tmp_path / "dev.json", DDPP)
    pair = {"chosen": "positive_responses", "rejected": "adversarial_negative_responses"}
    (example,) = dataset(path, prompt="context", references="positive_responses", **pair).examples("train")
    assert example.prompt == "Are you ready?\nNearly.\nThen let us go.\n"
    assert example.responses == ("One moment.", "Where to?", "Ready, steady, go!", "I go to bed at ten.")
    assert example.scores == (1.0, 1.0, 0.0, 0.0) and example.references == ("One moment.", "Where to?")
    (example,) = dataset(path, prompt="context", style="chat", **pair).examples("train")
    assert example.prompt == TURNS
    (example,) = dataset(path, prompt="context", turn=" <EOU> ").examples("train")
    assert example.prompt == "Are you ready? <EOU> Nearly. <EOU> Then let us go. <EOU> "
    (example,) = dataset(path, prompt="{context}B: ", style="chat").examples("train")
    assert example.prompt == [{"role": "user", "content": "Are you ready?\nNearly.\nThen let us go.\nB: "}]


def test_a_whole_dialogue_ends_with_the_response(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"dialog": [*CONTEXT, "One moment."]})
    (example,) = dataset(path, chat="dialog").examples("train")
    assert (example.prompt, example.responses) == (TURNS, ("One moment.",))
    path = jsonl(tmp_path / "d.jsonl", {"dialog": CONTEXT, "answer": "One moment."})
    (example,) = dataset(path, chat="dialog", responses="answer").examples("train")
    assert (example.prompt, example.responses) == (TURNS, ("One moment.",))
    path = jsonl(tmp_path / "d.jsonl", {"chosen": [*CONTEXT, "a"], "rejected": [*CONTEXT, "b"]})
    (example,) = dataset(path).examples("train")
    assert (example.prompt, example.responses) == (TURNS, ("a", "b"))


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"c": []}, {"prompt": "c"}, "`c` is an empty list"),
        ({"c": ["a", 1]}, {"prompt": "c"}, "`c` is a list, expected text or a list of messages or texts"),
        ({"c": ["a"]}, {"chat": "c"}, "`c` holds an answer and no prompt"),
        (
            {"c": "a", "g": ["a", ""], "b": ["c"]},
            {"prompt": "c", "chosen": "g", "rejected": "b"},
            "`g` is empty",
        ),
        (
            {"c": "a", "g": [], "b": ["c"]},
            {"prompt": "c", "chosen": "g", "rejected": "b"},
            "`g` is an empty list",
        ),
    ],
)
def test_what_is_no_dialogue(tmp_path, row, options, said):
    with pytest.raises(ConfigError, match=said):
        dataset(jsonl(tmp_path / "d.jsonl", row), **options).examples("train")


# -- what a chat model is asked -----------------------------------------------------------------------------


def test_a_prompt_becomes_a_users_message(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"q": "Why?", "a": "So."})
    options: dict[str, Any] = {"prompt": "q", "responses": "a", "style": "chat", "join": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a chat's template parts prompt and response
        (example,) = dataset(path, **options).examples("train")
    assert example.prompt == [{"role": "user", "content": "Why?"}] and example.responses == ("So.",)
    (example,) = dataset(path, **options, system="Be brief.").examples("train")
    assert example.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    with pytest.raises(
        ConfigError, match="`system` begins a chat, and this prompt is text: say `style: chat` too"
    ):
        dataset(path, prompt="q", system="Be brief.").examples("train")


def test_a_system_message_of_the_data_stays(tmp_path):
    own = [{"role": "system", "content": "Be kind."}, *TURNS]
    path = jsonl(tmp_path / "d.jsonl", {"messages": own}, {"messages": TURNS})
    first, second = dataset(path, system="Be brief.").examples("train")
    assert first.prompt == own
    assert second.prompt == [{"role": "system", "content": "Be brief."}, *TURNS]


# -- paths into lists of objects ----------------------------------------------------------------------------


def test_totto(tmp_path):
    row = {
        "example_id": -7,
        "table_page_title": "Town",
        "sentence_annotations": [
            {"original_sentence": "x", "final_sentence": "It is a town."},
            {"original_sentence": "y", "final_sentence": "A town it is."},
        ],
        "table": [[{"value": "Year", "is_header": True}], [{"value": "1900", "is_header": False}]],
    }
    path = jsonl(tmp_path / "totto_train_data.jsonl", row)
    options: dict[str, Any] = {"prompt": "table_page_title", "id": "example_id"}
    (example,) = dataset(path, **options, references="sentence_annotations.final_sentence").examples("train")
    assert example.id == "-7" and example.references == ("It is a town.", "A town it is.")
    (example,) = dataset(path, **options, meta=("table.value",)).examples("train")
    assert example.meta == {"table.value": [["Year"], ["1900"]]}
    del row["sentence_annotations"][1]["final_sentence"]  # type: ignore[attr-defined]
    jsonl(path, row)
    with pytest.raises(ConfigError, match=r"no column `sentence_annotations\.final_sentence`"):
        dataset(path, **options, references="sentence_annotations.final_sentence").examples("train")


# -- names of splits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn_dailymail_validation_subset", "dev", "valset"])
def test_a_lone_file_of_held_out_data(tmp_path, name):
    jsonl(tmp_path / f"{name}.jsonl", {"prompt": "a"})
    assert len(dataset(tmp_path).examples("val")) == 1
    said = rf"has no split `train` \(splits: val\); `splits: \{{train: {name}\.jsonl\}}` names the file$"
    with pytest.raises(ConfigError, match=said):
        dataset(tmp_path).examples("train")
    with pytest.raises(ConfigError, match=rf"shares are of `train`, .* `splits: \{{train: {name}\.jsonl\}}`"):
        dataset(tmp_path, splits={"train": 0.9, "val": 0.1}).examples("train")
    assert len(dataset(tmp_path, splits={"train": f"{name}.jsonl"}).examples("train")) == 1
    assert len(dataset(tmp_path / f"{name}.jsonl").examples("train")) == 1
    with pytest.raises(ConfigError, match=r"no split `test`.*`splits: \{test: "):
        dataset(tmp_path).examples("test")


@pytest.mark.parametrize("name", ["offset", "set", "asset_1"])
def test_other_names_that_end_in_set(tmp_path, name):
    jsonl(tmp_path / "train.jsonl", {"prompt": "a"})
    jsonl(tmp_path / f"{name}.jsonl", {"prompt": "b"})
    assert [e.prompt for e in dataset(tmp_path).examples(name)] == ["b"]
