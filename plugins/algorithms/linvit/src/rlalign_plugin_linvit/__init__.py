"""LINVIT and SLINVIT: reinforcement learning that a language model guides, as a prior.

Zhang et al., "How Can LLM Guide RL? A Value-Based Approach" (2024).
"""

from rlalign_plugin_linvit.linvit import LINVIT
from rlalign_plugin_linvit.planning import Plan, count_bonus, divergence, exact, plan, regularised
from rlalign_plugin_linvit.searched import Searched

__all__ = ["LINVIT", "Plan", "Searched", "count_bonus", "divergence", "exact", "plan", "regularised"]
