"""A choice is one token under an exact softmax over the choices, and nothing else of the head is moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Environment, Example, Turn
from rlalign.testing import Bench
from rlalign.testing.bench import plain_gradient

CASE = json.loads((Path(__file__).parent / "golden.json").read_text())["reflect_rl_masked_choice_pg"]


class Ask(Environment):
    """One question with a few answers, each worth the same."""

    rewrites = True
    turns = 1

    def examples(self, split: str) -> list[Example]:
        return [Example(str(i), "") for i in range(8)]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Any, Turn]:
        return self, Turn("which? ", choices=tuple(map(str, CASE["choices"])))

    def step(self, text: str) -> Turn:
        return Turn(reward=CASE["advantage"], done=True)


def bench(folder: Path, logits: list[float]) -> Bench:
    made = Bench(
        folder,
        {
            "task": "ask",
            "policy": {"table": {"actions": 10}},
            "algorithm": "reflect-rl",
            "generation": {"samples": 8},
            "train": {"iterations": 1, "prompts": 8, "lr": 0.1, "dtype": "float64"},
        },
        {"ask": Ask},
    )
    with torch.no_grad():
        made.run.models.policy.table.copy_(torch.tensor([logits], dtype=torch.float64))
    return made


def test_the_published_gradient(tmp_path: Path) -> None:
    opened = bench(tmp_path, CASE["logits"])
    batch = opened.batch()
    chosen = (batch.rollout.actions_NT[:, 0] == CASE["chosen"]).nonzero()[:1, 0]
    one = batch.take(chosen).as_step()
    assert one.advantage_NT.tolist() == [[CASE["advantage"]]]
    for metrics, gradients in (opened.gradient(one), plain_gradient(opened, one)):
        assert metrics["loss"] == pytest.approx(CASE["loss"], abs=1e-9)
        assert gradients["policy/table"][0].tolist() == pytest.approx(CASE["gradient"], abs=1e-9)
    chances = dict(zip(CASE["choices"], CASE["probabilities"], strict=True))
    actions = batch.rollout.actions_NT[:, 0].tolist()
    assert set(actions) <= set(chances) and len(set(actions)) > 2
    expected = [chances[action] for action in actions]
    assert batch.rollout.logprobs_NT[:, 0].exp().tolist() == pytest.approx(expected, abs=1e-9)


def test_what_is_no_choice_has_no_say(tmp_path: Path) -> None:
    """Other logits are others': the same answers, probabilities and gradient; and none of it for them."""
    others = [i for i in range(10) if i not in CASE["choices"]]
    moved = [x + (5.0 if i in others else 0.0) for i, x in enumerate(CASE["logits"])]
    first, second = bench(tmp_path / "a", CASE["logits"]), bench(tmp_path / "b", moved)
    one, other = first.batch(), second.batch()
    assert torch.equal(one.rollout.actions_NT, other.rollout.actions_NT)
    torch.testing.assert_close(one.rollout.logprobs_NT, other.rollout.logprobs_NT, rtol=0, atol=1e-12)
    (_, mine), (_, theirs) = first.gradient(one), second.gradient(other)
    torch.testing.assert_close(mine["policy/table"], theirs["policy/table"], rtol=0, atol=1e-12)
    assert not bool(mine["policy/table"][0, others].any()) and bool(mine["policy/table"].any())
