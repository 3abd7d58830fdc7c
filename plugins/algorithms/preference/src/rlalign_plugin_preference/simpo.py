"""SimPO (Meng et al. 2024). Legend: N responses, P pairs, T steps."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlalign import Batch, Outputs
from rlalign_plugin_preference.comparing import Pairwise
from rlalign_plugin_preference.pairs import mean_logprob


def simpo_loss(margin_P: Tensor, gamma: float) -> Tensor:
    """[P]: −log σ(z − γ), z = β times the difference of mean token log-probs (Meng et al. 2024, eq. 6)."""
    return -logsigmoid(margin_P - gamma)


class SimPO(Pairwise):
    """Simple preference optimisation (Meng et al. 2024): mean token log-probs, a target margin, no reference."""

    equation = "−log σ(β(l_w − l_l) − γ), l = the mean token log-prob"

    paper = "Yu Meng et al., SimPO: simple preference optimization with a reference-free reward, 2024"

    class Config(Pairwise.Config):
        """Options of `simpo`."""

        beta: float = Field(2.5, gt=0, description="β: scale of the mean token log-prob")
        gamma: float = Field(
            1.375, ge=0, description="γ: the margin between chosen and rejected that is aimed at"
        )

    config: Config

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        return self.config.beta * mean_logprob(now.full_logprobs_NT, batch.rollout.mask_NT)

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return simpo_loss(margin_P, self.config.gamma)
