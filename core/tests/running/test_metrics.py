"""What is logged of the rounds of a refilled iteration."""

from __future__ import annotations

from typing import Any

import torch

from rlalign.data.batch import Reward
from rlalign.running.metrics import of_responses
from rlalign.testing import Bench


def test_a_metric_that_some_rounds_lack_is_a_mean_over_the_others(tmp_path: Any) -> None:
    """An environment gives a metric in those turns that have it."""
    say = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 4}},
        "rewards": ["length"],
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 3},
        "train": {"iterations": 1, "prompts": 2},
    }
    rollout, reward = Bench(tmp_path, say).rollout()

    def round(**metrics: list[float]) -> tuple[Any, Reward]:
        return rollout, Reward(
            reward.tokens_NT, reward.parts, {k: torch.tensor(x) for k, x in metrics.items()}
        )

    seen = [
        round(turns=[1.0, 1.0, 1.0, 1.0]),
        round(won=[1.0, 0.0, 0.0, 0.0], turns=[2.0, 2.0, 2.0, 2.0]),
        round(turns=[3.0, 3.0, 3.0, 3.0], lost=[2.0, 2.0, 2.0, 2.0], won=[1.0, 1.0, 0.0, 0.0]),
    ]
    found = of_responses(seen)
    assert (found["turns"], found["won"], found["lost"]) == (2.0, 3 / 8, 2.0)
    assert list(found)[-3:] == ["turns", "won", "lost"]
