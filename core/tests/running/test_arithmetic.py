"""What an iteration comes to, and what is said where it does not come out even."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlalign.config.load import load_pipeline
from rlalign.data.example import Example
from rlalign.interface.environment import Environment
from rlalign.running.arithmetic import Arithmetic, arithmetic, nearest_divisor, sizes
from rlalign.running.costing import Lengths, work_of
from rlalign.running.display import NoDisplay
from rlalign.running.workspace import Workspace
from rlalign.testing import PolicyGradient, registry


class Silence(Environment):
    """It is over before anything is said, and could be long."""

    tokens = 60

    def examples(self, split: str) -> list[Example]:
        return [Example(f"{split}-0", "")]


GIVEN = {"learns": PolicyGradient, "silence": Silence}


def of(
    other: dict[str, Any] | None = None,
    *,
    samples: int = 8,
    tokens: int = 100,
    data: int | None = 640,
    **train: Any,
) -> Arithmetic:
    pipeline: dict[str, Any] = {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum"],
        "algorithm": "learns",
        "train": {"iterations": 50, "prompts": 16, **train},
        "generation": {"samples": samples, "max_new_tokens": tokens},
        **(other or {}),
    }
    known = registry(GIVEN)
    loaded = load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline))
    (plan,) = Workspace(loaded, known, NoDisplay()).plans
    horizon = 1 if isinstance(plan.task, Environment) else None
    work = work_of(plan, Lengths(prompt=20, read=True), horizon)
    return arithmetic(plan, work, data=data, budget=1024, once=True)


def test_every_product_is_written_out() -> None:
    found = of(epochs=2, minibatches=4)
    assert list(found.lines()) == [
        "16 prompts × 8 samples = 128 responses",
        "128 responses × 100 tokens = at most 12,800 tokens",
        "2 epochs × 4 minibatches of 4 prompts (32 responses) = 8 optimiser steps, each in 2 micro-batches",
        "50 iterations: 6,400 responses, 400 optimiser steps, 1.25 passes over 640 prompts",
    ]
    assert list(found.advice()) == []
    facts = found.facts()
    assert (facts["responses"], facts["steps"], facts["steps_in_all"]) == (128, 8, 400)
    assert facts["groups"] == {"least": 4, "most": 4}


def test_episodes_are_as_long_as_their_environment_allows() -> None:
    """A policy's horizon is of one turn."""
    found = of({"task": "silence", "policy": {"logits": {"steps": 1}}, "rewards": ["played"]})
    assert list(found.lines())[1] == "128 responses × 60 tokens = at most 7,680 tokens"


def test_a_token_is_one_token() -> None:
    assert list(of(tokens=1).lines())[1] == "128 responses × 1 token = at most 128 tokens"


def test_steps_are_cut_as_the_learner_cuts_them() -> None:
    assert sizes(10, None, 4) == (3, 3, 2, 2)
    assert sizes(2, None, 3) == (1, 1, 0)
    assert sizes(10, 4, 1) == (4, 4, 2)
    assert sizes(10, 16, 1) == (10,)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"minibatches": 3}, "say `train.minibatches: 2`, or `train.prompts` of 15 or 18"),
        ({"minibatch": 5}, "an optimiser step learns from 1 or from 5: say `train.minibatches: 4`"),
        ({"minibatches": 20}, "20 minibatches of 16 prompts: 4 of them are empty; say `train.minibatches` of 16"),
        ({"minibatches": 16, "samples": 2}, "from 2 responses, which is noisy: `train.minibatches: 4` gives it 8"),
        ({"prompts": 512}, "4,096 responses are one optimiser step: `train.minibatches: 8` learns in 8 steps of 512"),
        ({"tokens": 1200}, "a prompt with its longest response has 1,220 tokens, more than the 1,024 of a micro-batch"),
    ],
)  # fmt: skip
def test_what_does_not_come_out_even_is_told_with_what_does(train: dict[str, Any], told: str) -> None:
    (said,) = of(**train).advice()
    assert told in said


@pytest.mark.parametrize("train", [{}, {"minibatches": 4}, {"prompts": 1, "minibatches": 1, "samples": 1}])
def test_what_is_in_order_is_not_talked_about(train: dict[str, Any]) -> None:
    assert list(of(**train).advice()) == []


def test_the_advice_divides() -> None:
    assert [nearest_divisor(16, n) for n in (1, 3, 5, 20)] == [1, 2, 4, 16]
    assert nearest_divisor(7, 3) == 1


def test_passes_become_iterations() -> None:
    assert of(iterations=None, passes=2.0).iterations == 80
    assert of(iterations=None, passes=2.0, data=None).iterations is None
