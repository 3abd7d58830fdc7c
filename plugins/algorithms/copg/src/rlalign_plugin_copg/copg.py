"""CoPG as a component. Legend: N responses, G groups, K responses of a group, T steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, hookimpl
from rlalign.data.statistics import first_single
from rlalign_plugin_copg.loss import (
    compared,
    copg_objective,
    detached_objective,
    gaps,
    mean_over_siblings,
    squared_gap,
)

REFERENCE = "reference.full_logprobs"


class CoPG(Component):
    """Contrastive policy gradient (Flet-Berliac et al. 2024) over all pairs of a group, whoever wrote its responses.

    A mean over responses: each counts half the mean of −ℓ over its siblings, which adds up to
    1/(k−1) Σ_{i>j} −ℓ(y_i, y_j) for each group of k, the gradient of RLOO(k) on regularised rewards.
    """

    paper = (
        "Yannis Flet-Berliac et al., Contrastive policy gradient: aligning LLMs on sequence-level scores in a "
        "supervised-friendly fashion, 2024"
    )

    class Config(Options):
        """Options of `copg`."""

        beta: float = Field(
            0.06, gt=0, description="β: strength of the KL to the reference, on the scale of the reward"
        )
        form: Literal["autodiff", "detached", "squared"] = Field(
            "autodiff", description="how the loss is written"
        )

    config: Config
    needs = ("full_logprobs", REFERENCE)
    trains = ("policy",)
    responses = "logged"
    min_samples = 2
    regularises = True

    def per_pair(self, reward_GKK: Tensor, rho_GKK: Tensor, logp_GKK: Tensor) -> Tensor:
        """[G,K,K]: what is minimised of every two responses."""
        if self.config.form == "squared":
            return squared_gap(reward_GKK, rho_GKK, self.config.beta)
        if self.config.form == "detached":
            return -detached_objective(reward_GKK, rho_GKK, logp_GKK, self.config.beta)
        return -copg_objective(reward_GKK, rho_GKK, self.config.beta)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        if single := first_single(batch.rollout):
            raise ComponentError(
                f"`{self.name}` compares responses to one prompt, and example `{single.id}` has one response only"
            )
        rows_GK, real_GK = batch.rollout.groups()
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        rho_N = batch.sum_over_chosen(now.full_logprobs_NT - batch.rollout.columns[REFERENCE])
        reward_N = batch.reward.total_N.to(rho_N)
        pairs_GKK = compared(real_GK)
        loss_GKK = self.per_pair(*(gaps(x_N, rows_GK) for x_N in (reward_N, rho_N, logp_N)))
        value_GK = mean_over_siblings(loss_GKK, pairs_GKK, pairs_GKK) / 2
        value_N = value_GK.new_zeros(len(batch)).index_put((rows_GK[real_GK],), value_GK[real_GK])
        return Loss(batch.mean_over_responses(value_N))
