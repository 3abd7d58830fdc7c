"""DPO (Rafailov et al. 2023), cDPO (Mitchell 2023) and robust DPO (Chowdhury et al. 2024).

Legend: N responses, P pairs, T steps.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlalign import Batch, Outputs
from rlalign_plugin_preference.comparing import REFERENCE, Pairwise
from rlalign_plugin_preference.pairs import mean_logprob


def implicit_reward(log_ratio_NT: Tensor, mask_NT: Tensor, beta: float) -> Tensor:
    """[N]: β log(π(y)/π_ref(y)), the logarithm summed over the chosen steps (Rafailov et al. 2023, sec. 5)."""
    return beta * torch.where(mask_NT, log_ratio_NT, 0.0).sum(1)


def dpo_loss(margin_P: Tensor, smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """[P]: −log σ(z), z = β(ρ_w − ρ_l) (Rafailov et al. 2023, eq. 7).

    With label smoothing ε, cDPO: (1−ε)(−log σ(z)) + ε(−log σ(−z)). Robust: ((1−ε)(−log σ(z)) −
    ε(−log σ(−z))) / (1−2ε), whose mean over labels that are wrong with probability ε is DPO's loss on right ones.
    """
    right_P, wrong_P = -logsigmoid(margin_P), -logsigmoid(-margin_P)
    if robust:
        return ((1 - smoothing) * right_P - smoothing * wrong_P) / (1 - 2 * smoothing)
    return (1 - smoothing) * right_P + smoothing * wrong_P


class DPO(Pairwise):
    """Direct preference optimisation (Rafailov et al. 2023), with label smoothing cDPO or robust DPO."""

    equation = "−log σ(β(ρ_w − ρ_l)), ρ = log π(y) − log π_ref(y)"

    paper = (
        "Rafael Rafailov et al., Direct preference optimization: your language model is secretly a reward model, "
        "2023"
    )

    class Config(Pairwise.Config):
        """Options of `dpo`."""

        beta: float = Field(0.1, gt=0, description="β: strength of the implicit KL to the reference")
        label_smoothing: float = Field(
            0.0, ge=0, lt=0.5, description="ε: the share of preferences taken to be the wrong way round"
        )
        robust: bool = Field(False, description="with ε, the unbiased loss of robust DPO instead of cDPO's")
        reference_free: bool = Field(False, description="log π alone, as if the reference were uniform")
        average: bool = Field(
            False,
            description="ρ a mean over a response's tokens (length-normalised DPO); false: a sum, as the paper has it",
        )

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.regularises = not self.config.reference_free
        if not self.config.reference_free:
            self.needs = ("full_logprobs", REFERENCE)

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        log_ratio_NT = now.full_logprobs_NT
        if not self.config.reference_free:
            log_ratio_NT = log_ratio_NT - batch.rollout.columns[REFERENCE]
        if self.config.average:
            return self.config.beta * mean_logprob(log_ratio_NT, batch.rollout.mask_NT)
        return implicit_reward(log_ratio_NT, batch.rollout.mask_NT, self.config.beta)

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return dpo_loss(margin_P, self.config.label_smoothing, self.config.robust)
