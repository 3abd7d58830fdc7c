"""RLOO (Ahmadian et al. 2024): REINFORCE whose baseline is the mean reward of the other responses to the prompt.

Legend: N responses, G groups (prompts).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign import Batch, ComponentError, Reward, Rollout, hookimpl
from rlalign.data.statistics import first_single
from rlalign_plugin_reinforce.loss import PolicyGradient


def leave_one_out(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: A_i = R_i − mean of the other k−1 rewards of the same prompt (Kool et al. 2019).

    Groups may differ in size.
    """
    count_G = torch.bincount(group_N)
    sum_G = torch.zeros(len(count_G), dtype=reward_N.dtype, device=reward_N.device).index_add(
        0, group_N, reward_N
    )
    others_N = (sum_G[group_N] - reward_N) / (count_G[group_N] - 1)
    return reward_N - others_N


class RLOO(PolicyGradient):
    """REINFORCE leave-one-out: the baseline of a response is the mean reward of its siblings."""

    paper = (
        "Arash Ahmadian et al., Back to basics: revisiting REINFORCE style optimization for learning from human "
        "feedback in LLMs, 2024"
    )

    min_samples = 2

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        if single := first_single(rollout):
            raise ComponentError(
                f"`{self.name}` compares a response with its siblings, and example `{single.id}` has one response only"
            )
        return Batch.of(rollout, reward, leave_one_out(reward.total_N, rollout.group_N))
