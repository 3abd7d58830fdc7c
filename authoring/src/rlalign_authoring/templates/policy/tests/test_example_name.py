"""What it reads and writes, and the tests that every policy inherits."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import pytest
import torch
from rlalign import Example, RLAlignError
from rlalign.testing import PolicyTests

from rlalign_plugin_example_name import ExampleName

ROOT = Path(__file__).parents[1]


def policy(*words: str) -> ExampleName:
    made = ExampleName(ExampleName.Config(words=words))
    made.setup()
    return made


def test_words_are_tokens() -> None:
    made = policy("yes", "no")
    rollout = made.encode([Example("1", "is it no", responses=("no yes", ""))])
    assert rollout.actions_NT.tolist()[0] == [1, 0, 2]
    assert rollout.texts == ("no yes", "")
    assert [prompt.tolist() for prompt in rollout.inputs] == [[3, 3, 1]]
    assert made.text(torch.tensor([1, 0, 2])) == "no yes"


def test_a_foreign_word_is_refused() -> None:
    with pytest.raises(RLAlignError, match=r"example `1`: `maybe` is not among the words"):
        policy("yes", "no").encode([Example("1", "", responses=("maybe",))])


# Sampling and learning agree on every log-prob; padding and the order of rows change nothing; the gradient is that of
# finite differences; copies are equal and stay apart; what is saved is what is there; a stopped run goes on to the bit.
class TestExampleName(PolicyTests):
    component = ExampleName
    options = {"words": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["example-name"]
    assert pkgutil.resolve_name(value) is ExampleName
