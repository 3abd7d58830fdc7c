"""Imitation: raise the likelihood of responses that somebody wrote, prompt and all that is not theirs left out.

A prompt is never part of the loss, and it is never joined with a response: the policy reads both for itself,
and the token that ends a response is one of its steps (where it finished), so that ending is learned too.
`wbc` weighs responses by what they earned, `gold` tokens by how probable the policy finds them.
"""

from rlalign_plugin_imitation.gold import GOLD, gold_loss, gold_return, look_ahead
from rlalign_plugin_imitation.held_out import HeldOut, nll_and_perplexity
from rlalign_plugin_imitation.references import References, joined, references_of
from rlalign_plugin_imitation.sft import SFT, negative_log_likelihood
from rlalign_plugin_imitation.wbc import WBC, wbc_loss

__all__ = [
    "GOLD",
    "SFT",
    "WBC",
    "HeldOut",
    "References",
    "gold_loss",
    "gold_return",
    "joined",
    "look_ahead",
    "negative_log_likelihood",
    "nll_and_perplexity",
    "references_of",
    "wbc_loss",
]
