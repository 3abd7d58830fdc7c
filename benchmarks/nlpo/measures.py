"""A measure of this study's own: the reward where a run's KL first reaches a value."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any


def derive(row: Any, given: dict[str, float]) -> dict[str, float]:
    found = reward_at(row.curve["reward"], row.curve["kl"], given["kl_at"])
    return {} if found is None else {"reward_at_kl": found}


def reward_at(rewards: list[float], kls: list[float], kl: float) -> float | None:
    """The reward where the run's KL first reached this value, or None if it never did.

    Between two evaluations reward is taken as linear in √KL, in which such curves are nearly straight
    (Gao et al. 2023).
    """
    for (low, high), (before, after) in zip(pairwise(kls), pairwise(rewards), strict=True):
        if low < kl <= high:
            start, end = math.sqrt(max(0.0, low)), math.sqrt(high)
            return before + (math.sqrt(kl) - start) / (end - start) * (after - before)
    return None
