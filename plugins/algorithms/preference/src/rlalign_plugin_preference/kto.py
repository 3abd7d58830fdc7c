"""KTO (Ethayarajh et al. 2024): responses judged good or bad, each for itself.

Legend: N responses, G groups, T steps. ρ is a log-ratio to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign_plugin_preference.comparing import REFERENCE
from rlalign_plugin_preference.rdo import DISTANCE


def kto_loss(
    rho_N: Tensor,
    desirable_N: Tensor,
    z: Tensor,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """[N]: λ_D(1 − σ(β(ρ − z))) for a desirable response, λ_U(1 − σ(β(z − ρ))) for another (their eq. 8)."""
    far_N = beta * (rho_N - z)
    return torch.where(desirable_N, desirable * torch.sigmoid(-far_N), undesirable * torch.sigmoid(far_N))


def reference_point(log_ratio_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """z = max(0, mean of ρ over mismatched responses), a scalar; ρ summed over the chosen steps (their sec. 4.2)."""
    return torch.where(mask_NT, log_ratio_NT, 0.0).sum(1).mean().clamp_min(0)


def next_other(prompts: Sequence[Any]) -> list[int | None]:
    """[G]: of each prompt the place of the next different one, around the end; None where all are equal."""
    count = len(prompts)

    def after(g: int) -> int | None:
        places = ((g + step) % count for step in range(1, count))
        return next((i for i in places if prompts[i] != prompts[g]), None)

    return [after(g) for g in range(count)]


class KTO(Component):
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024): responses good or bad each for itself.

    Their point of reference z is the mean ρ of the step's responses put after other prompts, not below 0,
    without gradient, scored once per step.
    """

    equation = "λ(1 − σ(±β(ρ − z))), + where desirable and − where not, ρ = log π(y) − log π_ref(y)"

    paper = "Kawin Ethayarajh et al., KTO: model alignment as prospect theoretic optimization, 2024"

    class Config(Options):
        """Options of `kto`."""

        beta: float = Field(0.1, gt=0, description="β: strength of the KL to the reference")
        desirable: float = Field(1.0, ge=0, description="λ_D: weight of a desirable response")
        undesirable: float = Field(1.0, ge=0, description="λ_U: weight of an undesirable one")
        threshold: float = Field(0.0, description="a response is desirable whose reward is above this")

    config: Config
    needs = ("full_logprobs", REFERENCE)
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    regularises = True

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N, mismatched=self._mismatched(rollout))

    def _mismatched(self, rollout: Rollout) -> Rollout:
        """The same responses after another prompt each. What was computed of them by a model stays behind."""
        others = next_other([example.prompt for example in rollout.examples])
        if None in others:
            raise ComponentError(
                f"`{self.name}` puts responses after other prompts, and the iteration has one prompt only, that of "
                f"example `{rollout.examples[others.index(None)].id}`; draw more with `train.prompts`"
            )
        other_G = torch.tensor(others, device=rollout.group_N.device, dtype=torch.long)
        own = {name: column for name, column in rollout.columns.items() if "." not in name}
        moved = replace(rollout, group_N=other_G[rollout.group_N], columns=own)
        return moved.take(torch.arange(len(rollout)))  # which forgets prompts that nobody answers now

    def good(self, batch: Batch) -> Tensor:
        """[N]: the desirable ones."""
        return batch.reward.total_N > self.config.threshold

    def bad(self, batch: Batch) -> Tensor:
        """[N]: the others."""
        return ~self.good(batch)

    def _reference_point(self, run: Run, step: Batch) -> Tensor:
        """z. The run remembers what it scored when the step began, and pieces of the step share it."""
        others: Rollout = step.columns["mismatched"]
        now_NT, reference_NT = (
            run.score(model, others, ["full_logprobs"]).full_logprobs_NT for model in ("policy", "reference")
        )
        return reference_point(now_NT - reference_NT, others.mask_NT)

    @hookimpl
    def step_started(self, run: Run, batch: Batch) -> None:
        self._reference_point(run, batch)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        c, z = self.config, self._reference_point(run, batch.step)
        rho_N = batch.sum_over_chosen(now.full_logprobs_NT - batch.rollout.columns[REFERENCE])
        good_N = self.good(batch)
        loss_N = kto_loss(rho_N, good_N, z, c.beta, c.desirable, c.undesirable)
        reward_N = c.beta * rho_N.detach()
        metrics = {
            "kl": batch.mean_over_responses(z.expand(len(batch))),
            "desirable": batch.mean_over_responses(good_N.to(rho_N)),
            "desirable_reward": batch.mean_over_responses(reward_N, where=self.good),
            "undesirable_reward": batch.mean_over_responses(reward_N, where=self.bad),
        }
        if (weight_N := batch.columns.get(DISTANCE)) is not None:
            loss_N = weight_N * loss_N
            metrics["coefficient"] = batch.mean_over_responses(weight_N)
            metrics["weightless"] = batch.mean_over_responses((weight_N == 0).to(weight_N))
        return Loss(batch.mean_over_responses(loss_N), metrics)
