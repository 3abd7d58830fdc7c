"""`overlong` as DAPO's equation 13 says, and `per-length`, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlalign.builtin.lengths import Overlong, PerLength
from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.testing import Bench, ComponentTests, Logits, PolicyGradient


def responses(lengths: list[int], finished: list[bool]) -> Rollout:
    """Of so many tokens, the one that ends a response counted."""
    texts = [" ".join("1" * (n - ended)) for n, ended in zip(lengths, finished, strict=True)]
    policy = Logits(Logits.Config(steps=20))
    policy.setup()
    rollout = policy.encode([Example("0", "0", tuple(texts), finished=tuple(finished))])
    assert rollout.length_N.tolist() == lengths
    return rollout


RUN: Any = SimpleNamespace(generation=SimpleNamespace(max_new_tokens=10))


@pytest.mark.parametrize(
    "options, expected",
    [
        # L_max = 10 of the run, L_cache a fifth of it: 0 up to 8.
        ({}, [0.0, 0.0, -0.5, -1.0, -1.0, -1.0]),
        ({"cache": 4}, [0.0, -0.5, -0.75, -1.0, -1.0, -1.0]),
        ({"longest": 12, "cache": 6}, [0.0, -1 / 3, -0.5, -2 / 3, -1.0, -1.0]),
        ({"longest": 12}, [0.0, 0.0, 0.0, 0.0, -1.0, -1.0]),
    ],
)
def test_overlong_falls_with_every_token_of_the_cache(options: dict[str, int], expected: list[float]) -> None:
    rollout = responses([3, 8, 9, 10, 14, 5], [True] * 5 + [False])
    score = Overlong(Overlong.Config(**options)).reward(RUN, rollout)
    assert score.value.tolist() == pytest.approx(expected)


def test_what_an_environment_said_is_no_part_of_a_length() -> None:
    """Of an episode of ten tokens every other one was told."""
    rollout = responses([10], [True])
    told = replace(rollout, mask_NT=rollout.mask_NT & (torch.arange(rollout.steps) % 2 > 0))
    assert Overlong(Overlong.Config()).reward(RUN, told).value.tolist() == [0.0]
    episodes = told.with_columns(turn=torch.zeros_like(told.actions_NT))
    with pytest.raises(ComponentError, match="which is that of a turn"):
        Overlong(Overlong.Config()).reward(RUN, episodes)
    assert Overlong(Overlong.Config(longest=5, cache=1)).reward(RUN, episodes).value.tolist() == [-1.0]
    wrapper = PerLength(PerLength.Config()).reward(told)
    next(wrapper)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send([Score(torch.tensor([10.0]), "a")])
    assert stopped.value.value[0].value.tolist() == [2.0]


def test_a_cache_is_part_of_the_longest() -> None:
    with pytest.raises(ValidationError, match="`cache` is part of `longest`"):
        Overlong.Config(longest=4, cache=5)


def test_per_length_divides_by_every_token_the_policy_wrote() -> None:
    rollout = responses([2, 4, 3], [True, True, False])
    wrapper = PerLength(PerLength.Config()).reward(rollout)
    next(wrapper)
    steps = torch.where(rollout.mask_NT, 6.0, 0.0)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send([Score(torch.tensor([1.0, 2.0, -9.0]), "a"), Score(steps, "steps")])
    whole, each = stopped.value.value
    assert whole.value.tolist() == [0.5, 0.5, -3.0]
    assert each.value.sum(1).tolist() == [6.0, 6.0, 6.0]  # the mean of its steps


def test_what_stands_below_per_length_keeps_its_size(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path,
        {
            "task": "numbers",
            "policy": "logits",
            "rewards": ["length", "per-length", {"overlong": {"cache": 7}, "weight": 2}],
            "algorithm": "once",
            "generation": {"samples": 4, "max_new_tokens": 7},
            "train": {"iterations": 1, "prompts": 3},
        },
        {"once": PolicyGradient},
    )
    rollout, reward = bench.rollout()
    assert bool(rollout.finished_N.any())
    for i, text in enumerate(rollout.texts):
        tokens, words = int(rollout.length_N[i]), len(text.split())
        over = -tokens / 7 if rollout.finished_N[i] else -1.0
        assert reward.parts["length"][i] == pytest.approx(words / tokens)
        assert reward.total_N[i] == pytest.approx(words / tokens + 2 * over)


class TestOverlong(ComponentTests):
    component = "overlong"


class TestPerLength(ComponentTests):
    component = "per-length"
