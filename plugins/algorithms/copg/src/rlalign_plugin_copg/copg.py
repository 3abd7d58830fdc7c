"""CoPG as a component. Legend: N responses, G groups, K responses of a group, T steps."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Loss, Options, Outputs, hookimpl
from rlalign_plugin_copg.loss import copg_objective, detached_objective, squared_gap
from rlalign_plugin_copg.pairs import Pairs, Which, refuse_incomparable

REFERENCE = "reference.full_logprobs"


class CoPG(Component):
    """Contrastive policy gradient (Flet-Berliac et al. 2024) over the pairs of a group, whoever wrote its responses.

    A mean over responses: each counts half the mean of −ℓ over its siblings. For a group of k that adds up to
    1/(k−1) Σ_{i>j} −ℓ(y_i, y_j), whose gradient is RLOO's for rewards regularised by the policy as it is now.
    """

    equation = "−(ΔR − (β/2) Δρ) Δρ over pairs of a group, ρ = log π(y) − log π_ref(y)"

    paper = (
        "Yannis Flet-Berliac et al., Contrastive policy gradient: aligning LLMs on sequence-level scores in a "
        "supervised-friendly fashion, 2024"
    )

    class Config(Options):
        """Options of `copg`."""

        beta: float = Field(
            0.06,
            gt=0,
            description="β: strength of the KL to the reference, on the scale of the reward; the paper's best",
        )
        pairs: Which = Field(
            "all",
            description="what is compared: `all` responses to a prompt, or those `across` different sources of a `mix`",
        )
        ties: Literal["keep", "drop"] = Field(
            "keep",
            description="equal rewards draw log π − log π_ref of both together; `drop`: they say nothing",
        )
        form: Literal["autodiff", "detached", "squared"] = Field(
            "autodiff",
            description="−ℓ with β/2; `detached`: −ΔR_β·Δlog π, of the same gradient; `squared`: ΔR_β², of 2β times it",
        )

    config: Config
    needs = ("full_logprobs", REFERENCE)
    trains = ("policy",)
    responses = "logged"
    min_samples = 2
    regularises = True

    def pairs(self, batch: Batch) -> Pairs:
        """What is compared."""
        return Pairs.of(batch, self.config.pairs)

    def per_pair(self, reward_GKK: Tensor, rho_GKK: Tensor, logp_GKK: Tensor) -> Tensor:
        """[G,K,K]: what is minimised."""
        beta = self.config.beta
        if self.config.form == "squared":
            return squared_gap(reward_GKK, rho_GKK, beta)
        if self.config.form == "detached":
            return -detached_objective(reward_GKK, rho_GKK, logp_GKK, beta)
        return -copg_objective(reward_GKK, rho_GKK, beta)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        refuse_incomparable(self.name, batch, self.config.pairs)
        pairs = self.pairs(batch)
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        rho_N = batch.sum_over_chosen(now.full_logprobs_NT - batch.rollout.columns[REFERENCE])
        reward_N = batch.reward.total_N
        reward_GKK, rho_GKK, logp_GKK = (pairs.gaps(x_N) for x_N in (reward_N, rho_N, logp_N))
        loss_GKK = self.per_pair(reward_GKK, rho_GKK, logp_GKK)
        if self.config.ties == "drop":
            loss_GKK = torch.where(reward_GKK == 0, 0.0, loss_GKK)
        metrics = {
            "regularised_reward": batch.mean_over_responses((reward_N - self.config.beta * rho_N).detach()),
            "log_ratio": batch.mean_over_responses(rho_N.detach()),
            **self.fit(batch, pairs, reward_GKK, rho_GKK.detach()),
        }
        return Loss(batch.mean_over_responses(pairs.mean(loss_GKK) / 2), metrics)

    def fit(self, batch: Batch, pairs: Pairs, reward_GKK: Tensor, rho_GKK: Tensor) -> dict[str, Tensor]:
        """How well βΔρ tells ΔR. A mean over pairs is one over responses of their means, as the loss is."""
        tie_GKK = reward_GKK == 0
        right_GKK = (rho_GKK.sign() == reward_GKK.sign()).to(rho_GKK)
        right_N = pairs.mean(right_GKK, among_GKK=pairs.compared_GKK & ~tie_GKK)
        residual_N = pairs.mean(squared_gap(reward_GKK, rho_GKK, self.config.beta))
        spread = batch.step.count(self.spread)
        explained = (pairs.mean(reward_GKK**2) - residual_N).sum() / spread.where(spread > 0, torch.inf)
        fit = {
            "accuracy": batch.mean_over_responses(right_N, where=self.differs),
            "explained": explained,
            "residual": batch.mean_over_responses(residual_N),
            "ties": batch.mean_over_responses(pairs.mean(tie_GKK.to(rho_GKK))),
        }
        if self.config.pairs == "across":
            alone_N = pairs.flat(~pairs.compared_GKK.any(2))
            fit["alone"] = batch.mean_over_responses(alone_N.to(residual_N))
        return fit

    def spread(self, batch: Batch) -> Tensor:
        """[N]: each response's mean of ΔR²: what there is to explain."""
        pairs = self.pairs(batch)
        return pairs.mean(pairs.gaps(batch.reward.total_N.double()) ** 2)

    def differs(self, batch: Batch) -> Tensor:
        """[N]: which responses are compared with one of another reward."""
        pairs = self.pairs(batch)
        return pairs.flat((pairs.compared_GKK & (pairs.gaps(batch.reward.total_N) != 0)).any(2))
