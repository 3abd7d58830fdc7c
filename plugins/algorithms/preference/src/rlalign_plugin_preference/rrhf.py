"""RRHF (Yuan et al. 2023). Legend: N responses, G groups, K responses of a group, P pairs, T steps."""

from __future__ import annotations

from torch import Tensor

from rlalign import Batch, Loss, Outputs, hookimpl
from rlalign.data.statistics import ranked
from rlalign_plugin_preference.comparing import Comparing
from rlalign_plugin_preference.pairs import mean_logprob, pairs
from rlalign_plugin_preference.rdo import coefficient


def ranking_loss(better_P: Tensor, worse_P: Tensor) -> Tensor:
    """[P]: max(0, p_worse − p_better), p the mean token log-prob of a response (Yuan et al. 2023, eq. 2)."""
    return (worse_P - better_P).clamp_min(0)


class RRHF(Comparing):
    """Rank responses by likelihood: Σ max(0, p_worse − p_better) over pairs, p a mean token log-prob, − log π(best).

    A mean over prompts; one with a single response is imitated.
    """

    equation = "Σ max(0, l_worse − l_better) − log π(y_best), l = the mean token log-prob"

    paper = "Zheng Yuan et al., RRHF: rank responses to align language models with human feedback without tears, 2023"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        rows_GK, _ = ranked(batch.reward.total_N, *batch.rollout.groups())
        chosen_P, rejected_P = pairs(batch, self.which)
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        score_N = mean_logprob(now.full_logprobs_NT, batch.rollout.mask_NT)
        hinge_P = ranking_loss(score_N[chosen_P], score_N[rejected_P])
        if (weight_P := coefficient(batch, chosen_P, rejected_P)) is not None:
            hinge_P = weight_P * hinge_P
        group_P = batch.rollout.group_N[chosen_P]
        ranking = batch.mean_over_groups(hinge_P.new_zeros(len(rows_GK)).index_add(0, group_P, hinge_P))
        sft = batch.mean_over_groups(-logp_N[rows_GK[:, 0]])
        metrics = self.metrics(batch, chosen_P, rejected_P, score_N, logp_N)
        return Loss(ranking + sft, {**metrics, "ranking": ranking, "sft": sft})
