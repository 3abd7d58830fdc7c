"""Contrastive policy gradient: a policy gradient on any responses, sampled by whomever, without ratios or a critic.

Flet-Berliac et al., "Contrastive policy gradient: aligning LLMs on sequence-level scores in a supervised-friendly
fashion" (2024). Two responses y and y' to a prompt, ρ = log π − log π_ref, R_β = R − βρ under the policy as it is now:

    ∇ℓ = (R_β(y) − R_β(y')) (∇log π(y) − ∇log π(y'))
"""

from rlalign_plugin_copg.copg import CoPG
from rlalign_plugin_copg.loss import compared, copg_objective, detached_objective, gaps, squared_gap

__all__ = ["CoPG", "compared", "copg_objective", "detached_objective", "gaps", "squared_gap"]
