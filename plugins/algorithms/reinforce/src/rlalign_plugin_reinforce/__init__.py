"""REINFORCE and RLOO: the whole response is one action, its reward less a baseline weighs its log-prob.

Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
in LLMs" (2024). Loss −mean over responses of A·log π(y), A without gradient, log π(y) a sum over tokens.
The KL to the reference belongs into the reward: put `kl` under `rewards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Outputs, Reward, Rollout, Run, hookimpl

__all__ = ["RLOO", "Reinforce", "leave_one_out"]


def leave_one_out(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """A_i = R_i − mean of the other k−1 rewards of the same prompt; groups may differ in size."""
    count_G = torch.bincount(group_N)
    sum_G = torch.zeros(len(count_G), dtype=reward_N.dtype, device=reward_N.device).index_add(
        0, group_N, reward_N
    )
    others_N = (sum_G[group_N] - reward_N) / (count_G[group_N] - 1)
    return reward_N - others_N


class _PolicyGradient(Component):
    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-batch.mean_over_responses(batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)))


class RLOO(_PolicyGradient):
    """REINFORCE leave-one-out: the baseline of a response is the mean reward of its siblings."""

    min_samples = 2

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        alone = (torch.bincount(rollout.group_N, minlength=1) == 1).nonzero()[:, 0].tolist()
        if alone:
            raise ComponentError(
                f"`{self.name}` compares a response with its siblings, and example "
                f"`{rollout.examples[alone[0]].id}` has one response only"
            )
        return Batch.of(rollout, reward, leave_one_out(reward.total_N, rollout.group_N))


class Reinforce(_PolicyGradient):
    """REINFORCE with a moving-average baseline: the mean reward of all responses of earlier iterations."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.count, self.total = 0, 0.0
        self._new: list[Tensor] = []

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        self._new.append(reward.total_N)
        baseline = self.total / self.count if self.count else 0.0
        return Batch.of(rollout, reward, reward.total_N - baseline)

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        for total_N in self._new:
            self.count += len(total_N)
            self.total += float(total_N.double().sum())
        self._new = []

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.total = int(state["count"]), float(state["total"])
