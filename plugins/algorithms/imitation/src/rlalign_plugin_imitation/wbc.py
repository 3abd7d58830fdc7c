"""Weighted behaviour cloning: imitation that weighs responses by what they earned. Legend: N responses, T steps."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Loss, Options, Outputs, Run, hookimpl
from rlalign.data.statistics import refuse_negative


def wbc_loss(logprobs_NT: Tensor, reward_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N]: R · −log π(y), log π(y) summed over the chosen steps; R is a constant (Baheti et al. 2024, sec. 3)."""
    return -torch.where(mask_NT, reward_NT * logprobs_NT, 0.0).sum(1)


def draw_by_reward(run: Run, name: str) -> None:
    """Draw logged responses in proportion to their rewards, with replacement (A-LoL's reward priority)."""
    reward = run.column("reward", lambda rollout, reward: reward.total_N)
    refuse_negative(
        reward,
        f"`priority` of `{name}` draws responses in proportion to them",
        "bound them, `rewards: [logged, clip: {low: 0}]`, or leave `priority` out",
    )
    run.draw.weights(reward)


class WBC(Component):
    """Weighted behaviour cloning: R · −log π(y), log π(y) a sum over tokens, a mean over responses.

    Baheti et al., "Leftover Lunch: Advantage-based Offline RL for Language Models" (2024). R is the advantage
    of each token, which is the response's reward unless another component says otherwise.
    """

    equation = "−R Σ_t log π(y_t)"

    paper = (
        "Ashutosh Baheti et al., Leftover lunch: advantage-based offline reinforcement learning for language models, "
        "2024"
    )

    class Config(Options):
        """Options of `wbc`."""

        priority: bool = Field(
            False,
            description="draw logged responses in proportion to their rewards; the reward multiplies the loss still",
        )

    config: Config
    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    @hookimpl
    def phase_started(self, run: Run) -> None:
        if self.config.priority:
            draw_by_reward(run, self.name)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        loss_N = wbc_loss(now.logprobs_NT, batch.advantage_NT, batch.rollout.mask_NT)
        nll = -batch.mean_over_tokens(now.logprobs_NT.detach())
        return Loss(batch.mean_over_responses(loss_N), {"nll": nll})
