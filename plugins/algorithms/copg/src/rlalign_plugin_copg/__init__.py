"""Contrastive policy gradient: a policy gradient on any responses, whoever wrote them, without ratios or a critic.

Flet-Berliac et al., "Contrastive policy gradient: aligning LLMs on sequence-level scores in a supervised-friendly
fashion" (2024). For two responses y and y' to a prompt, ρ = log π − log π_ref and R_β = R − βρ, both of the policy
as it is now:

    ∇ℓ(y, y') = (R_β(y) − R_β(y')) (∇log π(y) − ∇log π(y'))

`loss` has the mathematics, `pairs` who is compared with whom, `copg` the component.
"""

from rlalign_plugin_copg.copg import CoPG
from rlalign_plugin_copg.loss import copg_objective, detached_objective, squared_gap
from rlalign_plugin_copg.pairs import Pairs

__all__ = ["CoPG", "Pairs", "copg_objective", "detached_objective", "squared_gap"]
