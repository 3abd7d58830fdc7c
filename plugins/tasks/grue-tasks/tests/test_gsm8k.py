"""gsm8k: prompts to the letter, the number that is checked, and what is set aside."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.gsm8k import GSM8K
from rlalign_plugin_text_metrics.numeric import NumericAnswer


def made(**options: Any) -> GSM8K:
    return GSM8K(GSM8K.Config(**options))


def rows(folder: Path, *pairs: tuple[str, str], name: str = "train.jsonl") -> Path:
    said = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs)
    (folder / name).write_text("".join(said), encoding="utf-8")
    return folder


def test_prompts_and_references():
    task = made(sample=True, bad_rows="error")
    assert {split: len(task.examples(split)) for split in task.splits()} == {"train": 8, "val": 2, "test": 2}
    third = task.examples("train")[2]
    assert third.prompt == (
        "Question: A train with 6 cars has 72 seats a car. How many people find a seat on 3 such trains?\nAnswer:"
    )
    assert third.references == ("1,296",)
    assert third.responses == (
        " One train has 6 * 72 = 432 seats.\nThree have 432 * 3 = 1296 seats.\n#### 1,296",
    )


def test_notes_for_a_calculator():
    third = made(sample=True, calculator=True).examples("train")[2]
    assert third.responses == (
        " One train has 6 * 72 = <<6*72=432>>432 seats.\nThree have 432 * 3 = <<432*3=1296>>1296 seats.\n#### 1,296",
    )


def test_as_a_chat():
    first = made(sample=True, style="chat").examples("test")[1]
    assert first.prompt == [
        {
            "role": "user",
            "content": "Tom walks 2 miles to school and back every day. How far is that in 5 days?\n\nSolve this step "
            "by step. End with a line that holds `####` and the answer, a number.",
        }
    ]
    assert first.responses == (
        "A day he walks 2 + 2 = 4 miles.\nIn 5 days that is 4 * 5 = 20 miles.\n#### 20",
    )


@pytest.mark.parametrize(
    ("at", "response", "score"),
    [
        (2, "so it is\n#### 1296", 1.0),
        (2, "so it is 1,296 seats.", 1.0),
        (2, "#### 1297", 0.0),
        (5, "#### -4", 1.0),
        (5, "#### 4", 0.0),
        (0, "48\n#### 47", 0.0),
    ],
)
def test_the_number_is_a_reward_that_can_be_checked(at, response, score):
    task = made(sample=True)
    example = task.examples("train")[at]
    reward = NumericAnswer(NumericAnswer.Config())
    assert reward.values([task.postprocess(response)], [example]) == [score]
    assert reward.values([example.responses[0]], [example]) == [1.0]


def test_a_response_ends_where_another_question_begins():
    assert made(sample=True).postprocess(" 20\n#### 20\n\nQuestion: And then? 7") == "20\n#### 20"


def test_what_is_set_aside(tmp_path):
    pairs = [(f"How many are {n} and {n}?", f"{n} + {n} = {2 * n}\n#### {2 * n}") for n in range(200)]
    task = made(path=rows(tmp_path, *pairs), held_out=0.2)
    train, val = task.examples("train"), task.examples("val")
    assert len(train) + len(val) == 200 and 20 < len(val) < 60
    asked = {example.meta["question"] for example in val}
    other = made(path=rows(tmp_path, *reversed(pairs)), held_out=0.2, style="chat")
    assert {example.meta["question"] for example in other.examples("val")} == asked
    rows(tmp_path, pairs[0], name="val.jsonl")
    assert len(made(path=tmp_path).examples("train")) == 200  # a split of that name is there


@pytest.mark.parametrize("answer", ["12", "#### 12", "a\n####", "a\n#### twelve"])
def test_solutions_without_a_number(tmp_path, answer):
    with pytest.raises(ConfigError, match="`answer` does not end with `####` and a number"):
        made(path=rows(tmp_path, ("How many?", answer))).examples("train")


def test_on_the_hub(monkeypatch):
    asked: list[Any] = []

    class Split(list[dict[str, Any]]):
        column_names = ("question", "answer")

    def load_dataset(path: str, **how: Any) -> Any:
        asked.append((path, how))
        return {
            split: Split([{"question": f"{split}?", "answer": "a\n#### 1"}]) for split in ("train", "test")
        }

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert made(whole=False).examples("test")[0].prompt == "Question: test?\nAnswer:"
    sha = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    assert asked == [("openai/gsm8k", {"name": "main", "revision": sha})]
    for split, size in (("train", "7,473"), ("test", "1,319")):
        with pytest.raises(ConfigError, match=rf"`{split}` holds 1 rows, expected {size}"):
            made(held_out=0).examples(split)
