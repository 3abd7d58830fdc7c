"""Learning from preferences: pairs and ranked groups of responses to one prompt, and single ones judged good or bad.

What is better is said by the reward: stored scores of logged responses (`chosen` 1, `rejected` 0), or any reward
of sampled ones. Log-probs are those of the whole distribution, nothing truncated.
"""

from rlalign.data.statistics import better_and_worse
from rlalign_plugin_preference.dpo import DPO, dpo_loss, implicit_reward
from rlalign_plugin_preference.ipo import IPO, ipo_loss
from rlalign_plugin_preference.kto import KTO, kto_loss, next_other, reference_point
from rlalign_plugin_preference.orpo import ORPO, log_odds
from rlalign_plugin_preference.pairs import mean_logprob, pairs
from rlalign_plugin_preference.pro import PRO, pro_loss, sft_weight
from rlalign_plugin_preference.rdo import RDO, mean_distance, reward_difference
from rlalign_plugin_preference.rrhf import RRHF, ranking_loss
from rlalign_plugin_preference.simpo import SimPO, simpo_loss

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "ORPO",
    "PRO",
    "RDO",
    "RRHF",
    "SimPO",
    "better_and_worse",
    "dpo_loss",
    "implicit_reward",
    "ipo_loss",
    "kto_loss",
    "log_odds",
    "mean_distance",
    "mean_logprob",
    "next_other",
    "pairs",
    "pro_loss",
    "ranking_loss",
    "reference_point",
    "reward_difference",
    "sft_weight",
    "simpo_loss",
]
