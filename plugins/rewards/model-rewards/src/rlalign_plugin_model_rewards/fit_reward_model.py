"""Training a reward model: on which of two responses is better, or on scores.

Legend: N responses, G groups, P pairs.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Run, hookimpl
from rlalign.data.statistics import best_and_worst, better_and_worse
from rlalign_plugin_model_rewards.scorer_policy import OwnScore, ScorerPolicy


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float = 0.0) -> Tensor:
    """[P]: −log σ(r_c − r_r − m) (Touvron et al. 2023, eq. 2; without m Ouyang et al. 2022, eq. 1)."""
    return -logsigmoid(chosen_P - rejected_P - margin_P)


def off_centre(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """[P]: (r_c + r_r)², which draws the mean of rewards to 0 (Eisenstein et al. 2023)."""
    return (chosen_P + rejected_P) ** 2


class FitRewardModel(Component):
    """Training of a `sequence-scorer` as a reward model: −log σ(r(better) − r(worse) − margin), or (r − score)²."""

    paper = (
        "Long Ouyang et al., Training language models to follow instructions with human feedback, 2022; margin: Hugo "
        "Touvron et al., Llama 2, 2023; centring: Jacob Eisenstein et al., Helping or herding?, 2023"
    )

    class Config(Options):
        """Options of `fit-reward-model`."""

        loss: Literal["bradley-terry", "regression"] = Field(
            "bradley-terry",
            description="`bradley-terry`: on pairs, a mean over the pairs of a step; `regression`: (r − score)², a "
            "mean over responses",
        )
        pairs: Literal["best-worst", "all"] = Field(
            "all",
            description="of a group of more than two: every better one against every worse one, or the best against "
            "the worst; equal scores make no pair",
        )
        margin: float = Field(
            0.0, ge=0, description="how far apart a pair should be, times the difference of its scores"
        )
        centre: float = Field(
            0.0,
            ge=0,
            description="factor of (r(better) + r(worse))², which keeps rewards round 0; 0.01 in the paper",
        )

    config: Config
    needs = ("values",)
    trains = ("policy",)
    responses = "logged"

    def setup(self, run: Run) -> None:
        policy = run.models.policy
        if not isinstance(policy, ScorerPolicy) or not isinstance(run.models["value"], OwnScore):
            raise ComponentError(
                f"`{self.name}` trains a `sequence-scorer` (`policy: {{sequence-scorer: {{path: …}}}}`, and no `value` "
                f"under `models`); here the policy is a {type(policy).__name__}"
            )

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(chosen_P, rejected_P): the rows of each pair."""
        compare = better_and_worse if self.config.pairs == "all" else best_and_worst
        return compare(batch.reward.total_N, *batch.rollout.groups())

    def each(self, batch: Batch) -> Tensor:
        """[P] True: what a mean over the pairs of a step counts."""
        return torch.ones_like(self.pairs(batch)[0], dtype=torch.bool)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        reward_N, score_N = now.values_NT[:, 0], batch.reward.total_N
        if self.config.loss == "regression":
            error = batch.mean_over_responses((reward_N - score_N) ** 2)
            return Loss(
                error, {"mse": error.detach(), "reward": batch.mean_over_responses(reward_N.detach())}
            )
        c = self.config
        chosen_P, rejected_P = self.pairs(batch)
        better_P, worse_P = reward_N[chosen_P], reward_N[rejected_P]
        loss_P = bradley_terry(better_P, worse_P, c.margin * (score_N[chosen_P] - score_N[rejected_P]))
        if c.centre:
            loss_P = loss_P + c.centre * off_centre(better_P, worse_P)
        count = batch.step.count(self.each).clamp_min(1)
        margin_P = (better_P - worse_P).detach()
        metrics = {
            "accuracy": (margin_P > 0).to(margin_P).sum() / count,
            "margin": margin_P.sum() / count,
            "chosen_reward": better_P.detach().sum() / count,
            "rejected_reward": worse_P.detach().sum() / count,
            "pairs": margin_P.new_tensor(float(len(margin_P))),
        }
        return Loss(loss_P.sum() / count, metrics)
