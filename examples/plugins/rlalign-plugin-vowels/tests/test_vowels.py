"""The formulas on literal numbers, and the tests that every component inherits."""

from __future__ import annotations

import pytest
import torch

from rlalign.testing import ComponentTests, RewardTests, TaskTests, run
from rlalign_plugin_vowels import share_of, surrogate
from rlalign_plugin_vowels.missing_vowels import MissingVowels


@pytest.mark.parametrize(
    "text, share",
    [("a e i", 1.0), ("b c", 0.0), ("Ab", 0.5), ("banana!", 0.5), ("", 0.0), ("12", 0.0)],
)
def test_share_of_vowels(text, share):
    assert share_of("aeiou", text) == share


def test_surrogate_clips_only_what_would_gain():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    gain, acts = surrogate(ratio.log(), torch.zeros(5), advantage, 0.2)
    torch.testing.assert_close(gain, torch.tensor([2.4, -3.0, 1.0, -1.6, 2.2]))
    assert acts.tolist() == [True, False, False, True, False]


class TestVowels(RewardTests):
    component = "vowels"


class TestReinforceClipped(ComponentTests):
    component = "reinforce-clipped"
    options = {"clip": 0.1}


def test_it_learns(tmp_path):
    finished, _ = run(
        tmp_path,
        {
            "task": {"numbers": {"prompts": 1}},
            "policy": {"logits": {"prompts": 1, "responses": 1, "steps": 3}},
            "rewards": ["token-sum"],
            "algorithm": "reinforce-clipped",
            "generation": {"samples": 8},
            "train": {"iterations": 40, "prompts": 8, "epochs": 2, "minibatches": 2, "lr": 0.1},
            "evaluate": {"split": "train", "examples": 6, "generation": {"samples": 8}},
        },
    )
    assert finished.metrics["eval/token-sum"] > 2.0  # three nines earn 2.7


class TestMissingVowels(TaskTests):
    component = "missing-vowels"
    other_options = {"held_out": 0.5}


def test_a_word_loses_its_vowels_and_stays_with_those_it_is_like(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("banana\nbenene\nbanana\n")
    task = MissingVowels(MissingVowels.Config(words=words, held_out=0.999))
    assert [(e.id, e.prompt) for e in task.examples("val")] == [("banana", "bnn -> "), ("benene", "bnn -> ")]
    assert task.postprocess(" banana\nand more") == "banana"
