"""REINFORCE and RLOO: the whole response is one action, its reward less a baseline weighs its log-prob.

Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
in LLMs" (2024). Loss −mean over responses of A·log π(y), A without gradient, log π(y) a sum over tokens.
The KL to the reference belongs into the reward: put `kl` under `rewards`.
"""

from rlalign_plugin_reinforce.loss import reinforce_objective
from rlalign_plugin_reinforce.reinforce import Reinforce, mean_baseline
from rlalign_plugin_reinforce.rloo import RLOO, leave_one_out

__all__ = ["RLOO", "Reinforce", "leave_one_out", "mean_baseline", "reinforce_objective"]
