"""IPO (Azar et al. 2023). Legend: N responses, P pairs, T steps."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from rlalign import Batch, Outputs
from rlalign_plugin_preference.comparing import REFERENCE, Pairwise
from rlalign_plugin_preference.pairs import mean_logprob


def ipo_loss(difference_P: Tensor, tau: float) -> Tensor:
    """[P]: (d − 1/(2τ))², d the difference of both log-ratios to the reference (Azar et al. 2023, eq. 17)."""
    return (difference_P - 1 / (2 * tau)) ** 2


class IPO(Pairwise):
    """Identity preference optimisation (Azar et al. 2023): the margin is drawn to a finite value."""

    equation = "(ρ_w − ρ_l − 1/(2τ))², ρ = log π(y) − log π_ref(y)"

    paper = (
        "Mohammad Gheshlaghi Azar et al., A general theoretical paradigm to understand learning from human "
        "preferences, 2023"
    )

    class Config(Pairwise.Config):
        """Options of `ipo`."""

        tau: float = Field(0.1, gt=0, description="τ: strength of the KL to the reference")
        average: bool = Field(
            True,
            description="ρ a mean over a response's tokens, as TRL has it; false: a sum, as the paper writes it",
        )

    config: Config
    needs = ("full_logprobs", REFERENCE)
    regularises = True

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        rho_NT = now.full_logprobs_NT - batch.rollout.columns[REFERENCE]
        if self.config.average:
            return self.config.tau * mean_logprob(rho_NT, batch.rollout.mask_NT)
        return self.config.tau * batch.sum_over_chosen(rho_NT)

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return ipo_loss(margin_P / self.config.tau, self.config.tau)
