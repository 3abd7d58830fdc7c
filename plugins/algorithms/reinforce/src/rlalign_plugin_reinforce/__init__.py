"""Policy gradients without a value function: one family, whose members differ in their options' defaults.

`family` holds the component, `options` what may be said of it; `advantages`, `surrogates` and `importance` the
mathematics, as pure functions; `reinforce` and `grpo` the members by the names of their papers.
"""

from rlalign_plugin_reinforce.family import PolicyGradient
from rlalign_plugin_reinforce.grpo import CISPO, DAPO, GRPO, GSPO, DrGRPO
from rlalign_plugin_reinforce.reinforce import RLOO, Reinforce, ReinforcePP, ReinforcePPBaseline

__all__ = [
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "DrGRPO",
    "PolicyGradient",
    "Reinforce",
    "ReinforcePP",
    "ReinforcePPBaseline",
]
