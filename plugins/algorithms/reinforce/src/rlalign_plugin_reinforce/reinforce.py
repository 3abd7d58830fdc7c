"""REINFORCE (Williams 1992) with a moving-average baseline, as in Ahmadian et al. (2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from rlalign import Batch, Reward, Rollout, hookimpl
from rlalign_plugin_reinforce.loss import PolicyGradient


def mean_baseline(total: float, count: int) -> float:
    """b: the mean reward of all earlier responses, 0 before there are any (Ahmadian et al. 2024, sec. 2)."""
    return total / count if count else 0.0


class Reinforce(PolicyGradient):
    """REINFORCE with a moving-average baseline: the mean reward of all responses of earlier iterations."""

    paper = (
        "Ronald J. Williams, Simple statistical gradient-following algorithms for connectionist reinforcement "
        "learning, 1992"
    )

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.count, self.total = 0, 0.0

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N - mean_baseline(self.total, self.count))

    @hookimpl
    def iteration_done(self, reward: Reward) -> None:
        self.count += len(reward.total_N)
        self.total += float(reward.total_N.double().sum())

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.total = int(state["count"]), float(state["total"])
