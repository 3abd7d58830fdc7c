"""Leftover Lunch: learning from logged responses by their advantage (A-LoL, Baheti et al. 2024) or reward (R-LoL).

A response is one action. With A = R − V(x), V the value of the frozen reference, and A⁺ = max(A, 0), the rows with
A⁺ > 0 are what is left to learn from:

    L = mean of  A⁺ · sg(clip(π/π_ref, 1 − ε, 1 + ε)) · (−log π(y))

The weight π/π_ref is a constant: no gradient flows through it, and a clipped response still learns.
"""

from rlalign_plugin_a_lol.a_lol import ALoL
from rlalign_plugin_a_lol.attention_value import AttentionValue, between
from rlalign_plugin_a_lol.fit_value import FitValue, fit_quality, squared_error
from rlalign_plugin_a_lol.leftover import first_of_each
from rlalign_plugin_a_lol.objective import importance_weight, kl_loss, weighted_logprob
from rlalign_plugin_a_lol.r_lol import RLoL

__all__ = [
    "ALoL",
    "AttentionValue",
    "FitValue",
    "RLoL",
    "between",
    "first_of_each",
    "fit_quality",
    "importance_weight",
    "kl_loss",
    "squared_error",
    "weighted_logprob",
]
