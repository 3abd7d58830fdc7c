"""PRO (Song et al. 2023). Legend: N responses, G groups, K responses of a group, T steps."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, ComponentError, Loss, Options, Outputs, hookimpl
from rlalign.data.statistics import ranked
from rlalign_plugin_preference.comparing import Comparing
from rlalign_plugin_preference.pairs import mean_logprob, pairs
from rlalign_plugin_preference.rdo import GAIN


def pro_loss(score_GK: Tensor, reward_GK: Tensor, real_GK: Tensor) -> Tensor:
    """[G]: Σ_k −log( e^{s_k/T_kk} / (e^{s_k/T_kk} + Σ_{i>k} e^{s_i/T_ki}) ), groups sorted best first.

    Song et al. (2023). 1/T_ki = r_k − r_i and 1/T_kk = max_{i>k}(r_k − r_i): with two responses a logistic loss
    of slope r_1 − r_2.
    """
    places_K = torch.arange(score_GK.shape[1], device=score_GK.device)
    later_GKK = (places_K[:, None] < places_K) & real_GK[:, None, :] & real_GK[:, :, None]
    gap_GKK = torch.where(later_GKK, reward_GK[:, :, None] - reward_GK[:, None, :], 0.0)
    own_GK = score_GK * gap_GKK.amax(2)
    others_GKK = (score_GK[:, None, :] * gap_GKK).masked_fill(~later_GKK, -torch.inf)
    all_GK = torch.cat([own_GK[..., None], others_GKK], 2).logsumexp(2)
    return (all_GK - own_GK).sum(1)


def sft_weight(count_G: Tensor, weight: float) -> Tensor:
    """[G]: the weight of imitation, `weight`·(K−1)² for K responses (Song et al. 2023, released code)."""
    return weight * (count_G - 1) ** 2


class PRO(Comparing):
    """Preference ranking optimisation (Song et al. 2023): each response against all worse ones, and − log π(best).

    A mean over prompts. Imitation is weighted by `sft`·(K−1)² for K responses, as in the released code.
    """

    paper = "Feifan Song et al., Preference ranking optimization for human alignment, 2023"

    class Config(Options):
        """Options of `pro`."""

        sft: float = Field(0.05, ge=0, description="imitation of the best weighs this times (responses − 1)²")
        unpaired: Literal["error", "skip"] = Field(
            "error",
            description="what a prompt with one response does: end the run, or be left out and counted",
        )

    config: Config

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        if self.config.unpaired == "error":
            self.refuse_single(batch)
        if GAIN in batch.columns:
            raise ComponentError(f"`{self.name}` weighs responses by their rewards already; take `rdo` out")
        rows_GK, real_GK = ranked(batch.reward.total_N, *batch.rollout.groups())
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        score_N = mean_logprob(now.full_logprobs_NT, batch.rollout.mask_NT)
        ranking = batch.mean_over_groups(pro_loss(score_N[rows_GK], batch.reward.total_N[rows_GK], real_GK))
        weight_G = sft_weight(real_GK.sum(1).to(logp_N), self.config.sft)
        sft = batch.mean_over_groups(-weight_G * logp_N[rows_GK[:, 0]])
        metrics = self.metrics(batch, *pairs(batch, self.which), score_N, logp_N)
        return Loss(ranking + sft, {**metrics, "ranking": ranking, "sft": sft})
