"""ORPO (Hong et al. 2024). Legend: N responses, P pairs, T steps."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Loss, Outputs, hookimpl
from rlalign_plugin_preference.comparing import Pairwise
from rlalign_plugin_preference.dpo import dpo_loss
from rlalign_plugin_preference.pairs import mean_logprob, pairs


def log_odds(mean_N: Tensor) -> Tensor:
    """[N]: log p/(1 − p), p = exp of a mean token log-prob (Hong et al. 2024, sec. 4); finite where p rounds to 1."""
    mean_N = mean_N.clamp_max(-torch.finfo(mean_N.dtype).eps)
    near_N = torch.log(-torch.expm1(mean_N))
    return mean_N - torch.where(mean_N > -math.log(2), near_N, torch.log1p(-mean_N.exp()))


class ORPO(Pairwise):
    """Odds ratio preference optimisation (Hong et al. 2024): imitate the best, and raise its odds over the worse."""

    equation = (
        "−log π(y_w) a token + λ(−log σ(log odds_w − log odds_l)), odds = p/(1−p), "
        "p = e^(mean token log-prob)"
    )

    paper = "Jiwoo Hong et al., ORPO: monolithic preference optimization without reference model, 2024"

    class Config(Pairwise.Config):
        """Options of `orpo`."""

        lam: float = Field(
            0.1, ge=0, description="λ: weight of the odds ratio beside the imitation of the best"
        )

    config: Config

    def best(self, batch: Batch) -> Tensor:
        """[N]: the best response of each group that has a pair."""
        best_N = torch.zeros_like(batch.rollout.group_N, dtype=torch.bool)
        best_N[pairs(batch, "best-worst")[0]] = True
        return best_N

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        return log_odds(mean_logprob(now.full_logprobs_NT, batch.rollout.mask_NT))

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return dpo_loss(margin_P)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        odds = super().loss(batch, now)
        nll = batch.mean_over_tokens(-now.full_logprobs_NT, where=self.best)
        return Loss(nll + self.config.lam * odds.value, {**odds.metrics, "nll": nll, "odds": odds.value})
