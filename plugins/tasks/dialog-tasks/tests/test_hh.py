"""hh: transcripts and PRO's rows, the prompt to the letter, what is left out, what is refused."""

from __future__ import annotations

import gzip
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlalign import ConfigError, Example
from rlalign_plugin_dialog_tasks import HH

H, A = "<|prompter|>", "<|assistant|>"


def hh(path: Path, **options: Any) -> HH:
    return HH(HH.Config(path=path, **options))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(folder: Path, rows: list[Any], **options: Any) -> list[Example]:
    return list(hh(jsonl(folder / "train.jsonl", rows), **options).examples("train"))


def transcripts(good: str = "Tea.", bad: str = "No.", before: str = "\n\nHuman: Hi") -> dict[str, Any]:
    return {"chosen": f"{before}\n\nAssistant: {good}", "rejected": f"{before}\n\nAssistant: {bad}"}


def pro(good: str = "Tea.", bad: str = "No.", **other: Any) -> dict[str, Any]:
    prefix = [f"{H}Hi", f"{A}Hello", f"{H}And?", A]
    return {"prefix": [prefix, prefix], "suffix": [good, bad], "reward": [1.5, -2.0], "sft_index": 0, **other}


PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.\n"
    "### Human: Hi ### Assistant: Hello ### Human: And? ### Assistant:"
)


def test_transcripts(tmp_path):
    row = transcripts(before="\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?")
    (example,) = train(tmp_path, [row])
    assert example.prompt == PROMPT
    assert example.responses == ("Tea.", "No.") and example.scores == (1.0, 0.0)
    assert example.finished == (True, True) and example.id == "train.jsonl:1"
    assert example.meta == {"prefix": [f"{H}Hi", f"{A}Hello", f"{H}And?", A], "references": ["Tea."]}


def test_pro(tmp_path):
    (example,) = train(tmp_path, [pro()])
    assert example.prompt == PROMPT
    assert example.scores == pytest.approx((1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(2))))
    assert example.meta["reward"] == [1.5, -2.0]
    assert train(tmp_path, [pro()], scores="preference")[0].scores == (1.0, 0.0)
    unscored = {k: v for k, v in pro().items() if k != "reward"}
    assert train(tmp_path, [unscored])[0].scores == (1.0, 0.0)
    extreme = train(tmp_path, [pro(reward=[800.0, -800.0])])[0]
    assert extreme.scores == (1.0, 0.0)


def test_one_response_of_the_pair(tmp_path):
    assert train(tmp_path, [transcripts()], responses="chosen")[0].responses == ("Tea.",)
    (example,) = train(tmp_path, [transcripts()], responses="rejected")
    assert (example.responses, example.scores, example.meta["references"]) == (("No.",), (0.0,), ["Tea."])


def test_a_chat_for_models_with_a_template(tmp_path):
    (example,) = train(tmp_path, [pro()], style="chat", join=" ")
    assert example.prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    ]
    assert example.responses == ("Tea.", "No.")  # a chat's response is never joined


def test_join(tmp_path):
    assert train(tmp_path, [transcripts()], join=" ")[0].responses == (" Tea.", " No.")


def test_a_turn_keeps_its_paragraphs(tmp_path):
    """PRO drops what does not begin with a speaker."""
    row = transcripts(good="One.\n\nTwo: Human: no turn.", before="\n\nHuman: Hi\n\nthere")
    (example,) = train(tmp_path, [row])
    assert example.responses[0] == "One.\n\nTwo: Human: no turn."
    assert str(example.prompt).endswith("### Human: Hi\n\nthere ### Assistant:")


def test_answers_with_a_colon_are_left_out_of_train(tmp_path):
    rows = [
        transcripts(),
        transcripts(good="Namely:"),
        transcripts(bad="As follows:"),
        transcripts(bad="a: b"),
    ]
    with pytest.warns(
        UserWarning,
        match=r"2 of 4 examples kept; left out:\n  2 have a response that ends with a colon \(first "
        r"train\.jsonl:2\)",
    ):
        assert [e.id for e in train(tmp_path, rows)] == ["train.jsonl:1", "train.jsonl:4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(train(tmp_path, rows, clean=False)) == 4
        jsonl(tmp_path / "test.jsonl", rows)
        assert len(hh(tmp_path).examples("test")) == 4


BAD = [
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: a"}, "no column `rejected`"),
    (transcripts(bad=" "), "the answer in `rejected` is empty"),
    (transcripts(before=""), "`chosen` holds an answer and no question"),
    ({**transcripts(), "chosen": "Hi there"}, "`chosen` does not begin with `Human:`"),
    ({**transcripts(), "chosen": "\n\nHuman: Hi"}, "`chosen` does not end with a turn of the assistant"),
    ({**transcripts(), "rejected": None}, "`rejected` is nothing"),
    (
        {**transcripts(), "rejected": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: b\n\nAssistant: c"},
        "`chosen` has 2 turns and `rejected` 4",
    ),
    ({**transcripts(), "rejected": "\n\nHuman: Ho\n\nAssistant: a"}, "differ before the last turn"),
    (pro(suffix=["a", ""]), "suffix 1 is empty"),
    (pro(suffix=["a"]), "2 prefixes and 1 suffixes"),
    (pro(reward=[1.0, float("nan")]), "a reward is nan"),
    (pro(reward=[1.0, None]), "a reward is nothing"),
    (pro(reward=[1.0]), "2 suffixes and 1 rewards"),
    (pro(reward=1.0), "`reward` is a number, expected a list"),
    (pro(prefix=[[f"{H}a", A], [f"{H}b", A]]), "not the same"),
    (pro(prefix=[[f"{H}a"]] * 2), "does not end with"),
    (pro(prefix=[["a", A]] * 2), "does not begin with"),
    ({"prompt": "a"}, "neither `chosen` and `rejected` nor `prefix` and `suffix`"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_bad_rows_are_named_and_refused_or_left_out(tmp_path, row, why):
    rows = [transcripts(), row]
    with pytest.raises(ConfigError, match="1 of 2 rows cannot be used") as caught:
        train(tmp_path, rows, bad_rows="error")
    assert "train.jsonl:2: " in str(caught.value) and why in str(caught.value)
    with pytest.warns(UserWarning, match=r"1 of 2 rows left out:\n  train\.jsonl:2: "):
        assert len(train(tmp_path, rows)) == 1


def test_only_what_is_learned_from_must_hold_something(tmp_path):
    rows = [transcripts(bad=""), pro(suffix=["Tea.", ""])]
    assert [e.responses for e in train(tmp_path, rows, responses="chosen")] == [("Tea.",)] * 2
    for asked in ("pair", "rejected"):
        with pytest.raises(ConfigError, match="none of 2 rows can be used"):
            train(tmp_path, rows, responses=asked)
    bad = [transcripts(good=""), pro(suffix=["", "No."]), pro(suffix=["Tea.", None])]
    with pytest.raises(ConfigError, match="none of 3 rows can be used"):
        train(tmp_path, bad, responses="chosen")


def test_anthropics_folders_as_they_are_published(tmp_path):
    """Packed, and nothing is read twice where some were unpacked too."""
    for split in ("train", "test"):
        path = jsonl(
            tmp_path / "helpful-base" / f"{split}.jsonl", [transcripts(good=f"{split} {i}") for i in range(3)]
        )
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        if split == "train":
            path.unlink()
    task = hh(tmp_path)
    assert task.splits() == ["test", "train", "test/helpful-base"]
    assert [e.id for e in task.examples("test")] == [f"helpful-base/test.jsonl:{i}" for i in (1, 2, 3)]
    found = task.examples("train")
    assert [(e.id, e.responses[0]) for e in found] == [
        (f"helpful-base/train.jsonl.gz:{i + 1}", f"train {i}") for i in range(3)
    ]


def test_anthropics_folders(tmp_path):
    for n, folder in enumerate(("helpful-base", "harmless-base", "red-team-attempts")):
        for split in ("train", "test"):
            jsonl(tmp_path / folder / f"{split}.jsonl", [transcripts(good=f"{n} {split}")])
    task = hh(tmp_path)
    assert task.splits() == ["test", "train", "test/harmless-base", "test/helpful-base"]
    assert [e.responses[0] for e in task.examples("train")] == ["1 train", "0 train"]
    assert [e.responses[0] for e in task.examples("test/helpful-base")] == ["0 test"]
    assert len(task.examples("test")) == 2
    assert [e.id for e in hh(tmp_path, subsets=("helpful-base",)).examples("train")] == [
        "helpful-base/train.jsonl:1"
    ]
    with pytest.raises(ConfigError, match=r"has no split `val` \(splits: test, train"):
        task.examples("val")


def test_a_share_of_train_is_held_out_by_prompt(tmp_path):
    rows = [transcripts(before=f"\n\nHuman: {i % 50}") for i in range(200)]
    task = hh(jsonl(tmp_path / "train.jsonl", rows), held_out=0.3)
    assert task.splits() == ["train", "val"]
    training, val = ({e.prompt for e in task.examples(split)} for split in ("train", "val"))
    assert not training & val and len(training | val) == 50 and 5 < len(val) < 25
    assert task.fingerprint("train") != task.fingerprint("val")
    jsonl(tmp_path / "dev.jsonl", rows)
    with pytest.raises(ConfigError, match="has a split `val`; leave out `held_out`"):
        hh(tmp_path, held_out=0.3).examples("train")


def test_a_lols_files(tmp_path):
    jsonl(tmp_path / "hh_train_len2/train.json", [pro()])
    jsonl(tmp_path / "hh_dev/sampled_dev.json", [pro()])
    jsonl(tmp_path / "hh_test/helpful_base.json", [pro(good=str(i)) for i in range(4)])
    (tmp_path / "hh_test/bad_test_indices.json").write_text(
        '{"helpful_base.json": [0, 2], "other.json": [1]}'
    )
    # The same rows by other numbers, as A-LoL's own folder has them beside.
    jsonl(tmp_path / "hh_test/bad_test_indices.jsonl", [{"bad_index": 0}, {"bad_index": 2}])
    task = hh(tmp_path)
    assert set(task.splits()) == {"train", "val", "test", "test/helpful_base"}
    with pytest.warns(
        UserWarning, match=r"2 of 4 examples kept; left out:\n  2 are listed in bad_test_indices"
    ):
        assert [e.responses[0] for e in task.examples("test")] == ["1", "3"]
    assert len(hh(tmp_path, exclude=False).examples("test")) == 4
    before = {split: task.fingerprint(split) for split in task.splits()}
    (tmp_path / "hh_test/bad_test_indices.json").write_text('{"helpful_base.json": [0]}')
    after = {split: hh(tmp_path).fingerprint(split) for split in task.splits()}
    assert {s for s in before if before[s] != after[s]} == {"test", "test/helpful_base"}
    (tmp_path / "hh_test/bad_test_indices.json").write_text("[1]")
    with pytest.raises(ConfigError, match="expected an object of lists of row numbers"):
        hh(tmp_path).examples("test")
    with pytest.raises(ConfigError, match=r"`val` holds 1 rows, expected 280; `whole: false` takes"):
        hh(tmp_path, whole=True).examples("val")
    jsonl(tmp_path / "hh_dev/sampled_dev.json", [pro()] * 280)
    assert len(hh(tmp_path, whole=True).examples("val")) == 280


def test_a_lols_files_packed(tmp_path):
    path = jsonl(tmp_path / "hh_test/helpful_base.json", [pro(good=str(i)) for i in range(4)])
    path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    (tmp_path / "hh_test/bad_test_indices.json").write_text('{"helpful_base.json": [0, 2]}')
    task = hh(tmp_path)
    assert task.splits() == ["test", "test/helpful_base"]
    with pytest.warns(UserWarning, match="2 are listed in bad_test_indices"):
        assert [e.responses[0] for e in task.examples("test/helpful_base")] == ["1", "3"]


def test_the_sample_shows_what_is_left_out(tmp_path):
    with pytest.warns(UserWarning, match="1 are listed in bad_test_indices"):
        assert len(HH(HH.Config(sample=True)).examples("test/harmless_base")) == 1
    assert len(HH(HH.Config(sample=True, exclude=False)).examples("test/harmless_base")) == 2


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" Tea. ###", "Tea."),
        ("Tea.\n Human: more", "Tea."),
        ("Tea.\nHuman: more", "Tea."),
        ("Tea.\n\n### Human: more", "Tea."),
        ("Tea.\n### Humans", "Tea."),
        ("### a ###", "### a"),
        ("Human: a", "Human: a"),
        ("", ""),
    ],
)
def test_what_is_read_of_a_response(text, read):
    assert HH(HH.Config(sample=True)).postprocess(text) == read


def test_generation_is_a_lols():
    assert HH.generation == {"greedy": True, "max_new_tokens": 128, "stop": ("###",)}


def test_options():
    with pytest.raises(ValidationError, match="not both"):
        HH.Config(path=Path("x"), sample=True)
    with pytest.raises(ValidationError):
        HH.Config(subsets=("red-team-attempts",))  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        HH.Config(subsets=())
