"""Logged responses of several turns: text to whoever reads texts, messages to who encodes them."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlalign import Example, Turn
from rlalign.data.packed import pack, unpack
from rlalign.data.spoken import Part, Spoken, as_logged, as_response, messages_of
from rlalign.records.columns import data_fingerprint
from rlalign.records.rows import Rows
from rlalign.testing.text import Bytes

MESSAGES = [
    {"role": "assistant", "content": "one"},
    {"role": "environment", "content": "[two]"},
    {"role": "assistant", "content": "three", "cut": True, "reward": 0.5},
    {"role": "user", "content": "four"},
    {"role": "tool", "content": "five"},
    {"role": "assistant", "content": "six"},
]


def test_it_is_what_the_policy_said_and_holds_what_was_said_to_it() -> None:
    spoken = Spoken(MESSAGES)
    assert spoken == Spoken(MESSAGES) and f"{spoken}" == "one\nthree\nsix"
    assert spoken.parts == [
        Part("one", True, "[two]"),
        Part("three", False, MESSAGES[3:5]),
        Part("six", True, ""),
    ]
    other = Spoken([*MESSAGES[:1], {"role": "environment", "content": "[2]"}, *MESSAGES[2:]])
    assert str(other) == str(spoken) and other != spoken and spoken != "one\nthree\nsix"
    for again in (copy.deepcopy(spoken), pickle.loads(pickle.dumps(spoken)), as_response(as_logged(spoken))):
        assert isinstance(again, Spoken) and again.messages == spoken.messages


def test_it_begins_and_ends_with_the_assistant() -> None:
    for wrong in (MESSAGES[1:], MESSAGES[:2], []):
        with pytest.raises(ValueError, match="first and last are the assistant's"):
            Spoken(wrong)


def test_a_transcript_becomes_messages() -> None:
    transcript = [
        ("one", Turn("[two]")),
        ("three", Turn([{"role": "user", "content": "four"}], reward=0.5)),
        ("six", Turn("never told", done=True)),
    ]
    said = messages_of(transcript, [True, False, True])
    assert said == [*MESSAGES[:4], {**MESSAGES[5], "answer": "never told"}]
    assert messages_of([("a", Turn()), ("b", Turn())], [True, True]) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_an_example_takes_messages_and_its_policy_reads_them(tmp_path: Path) -> None:
    example = Example("0", "begin: ", responses=["plain", MESSAGES], scores=(1.0, 2.0))
    assert example.responses == ("plain", Spoken(MESSAGES))
    policy = Bytes(Bytes.Config())
    policy.setup()
    rollout = policy.encode([example])
    row = [*b"one", 256, *b"[two]", *b"three", *b"\nuser: four\ntool: five", *b"six", 256]
    told = [*[False] * 4, *[True] * 5, *[False] * 5, *[True] * 22, *[False] * 4]
    assert rollout.actions_NT[1].tolist() == row
    assert rollout.mask_NT[1].tolist() == [not each for each in told]
    assert rollout.texts == example.responses
    assert bool(rollout.logprobs_NT[rollout.mask_NT].isnan().all())
    assert not bool(rollout.logprobs_NT[~rollout.mask_NT].any())
    again = unpack(pack(rollout))
    assert again.examples[0].responses == example.responses and torch.equal(again.mask_NT, rollout.mask_NT)
    other = replace(example, responses=("plain", "one\nthree\nsix"))
    assert data_fingerprint([example]) != data_fingerprint([other])
    row = {
        "id": "0",
        "prompt": "begin: ",
        "responses": ["plain", MESSAGES],
        "finished": [True, True],
        "meta": {},
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert Rows(tmp_path / "rows.jsonl").example(0).responses == example.responses
