"""An algorithm for rlalign: PPO with an adaptive KL penalty, each response beside the others of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from rlalign import Batch, Component, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from torch import Tensor

__all__ = ["PpoPenalty", "above_the_others", "penalised", "steered"]

# Letters at the end of a name are the shape of a tensor: N responses, T steps.


def above_the_others(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: each reward, less the mean of the other rewards of its group (at least two)."""
    count_G = torch.bincount(group_N)
    sum_G = reward_N.new_zeros(len(count_G)).index_add(0, group_N, reward_N)
    others_N = (sum_G[group_N] - reward_N) / (count_G[group_N] - 1)
    return reward_N - others_N


def penalised(logprobs: Tensor, old: Tensor, advantage: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """ρA − β·KL with ρ = π/π_old, elementwise (Schulman et al., eq. 8); and the KL."""
    ratio = (logprobs - old).exp()
    kl = ratio - 1 - (logprobs - old)  # never negative; its mean over what π_old sampled is KL(π_old ‖ π)
    return ratio * advantage - beta * kl, kl


def steered(beta: float, kl: float, target: float) -> float:
    """The next β: half where the update moved too little, double where it moved too much (section 4)."""
    if kl < target / 1.5:
        return max(beta / 2, 1e-6)  # a price of 0 could never double
    if kl > target * 1.5:
        return beta * 2
    return beta


class PpoPenalty(Component):
    """PPO with a price on the KL in place of a clip; the price steers itself."""

    # For `rlalign plugins ppo-penalty`: where the method was published.
    paper = "John Schulman et al., Proximal policy optimization algorithms, 2017, section 4"
    equation = "max E[ρA − β·KL(π_old ‖ π)] (eq. 8); β/2 where KL < target/1.5, 2β where KL > 1.5·target"

    class Config(Options):
        """Options of `ppo-penalty`."""

        target: float = Field(0.01, gt=0, description="the KL per token that an iteration should move by")
        beta: float = Field(1.0, gt=0, description="the price at first; it steers itself")

    config: Config
    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"  # the loss of some responses can be computed without the rest of their group
    responses = "sampled"
    min_samples = 2  # a prompt's; alone, a response has no others

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.beta = self.config.beta

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, above_the_others(reward.total_N, rollout.group_N))

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain_NT, kl_NT = penalised(now.logprobs_NT, batch.old_logprobs_NT, batch.advantage_NT, self.beta)
        metrics = {"kl": batch.mean_over_tokens(kl_NT.detach())}
        return Loss(-batch.mean_over_tokens(gain_NT), metrics)

    # All optimiser steps of the iteration are done: how far did they move the policy?
    @hookimpl
    def iteration_done(self, run: Run, rollout: Rollout) -> None:
        now_NT = run.score("policy", rollout, ["logprobs"]).logprobs_NT
        _, kl_NT = penalised(now_NT, rollout.logprobs_NT, torch.zeros_like(now_NT), 0.0)
        self.beta = steered(self.beta, float(kl_NT[rollout.mask_NT].mean()), self.config.target)

    # What a run that was stopped must know to go on as if it had not been.
    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.beta = float(state["beta"])
