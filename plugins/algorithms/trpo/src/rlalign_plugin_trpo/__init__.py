"""TRPO: the natural gradient, a step of known size, and a line search that keeps its promise.

Schulman et al., "Trust Region Policy Optimization" (2015), appendix C, with advantages of Schulman et al., "High-
Dimensional Continuous Control Using Generalized Advantage Estimation" (2016). Every token is a step. The KL to
the reference belongs into the reward: put `kl` under `rewards`.
"""

from rlalign_plugin_trpo.conjugate_gradient import conjugate_gradient
from rlalign_plugin_trpo.es import EvolutionStrategy, slope_along
from rlalign_plugin_trpo.fisher import fisher_product, kl_divergence, policy_kl, softmax_fisher
from rlalign_plugin_trpo.trpo import TRPO, step_length, surrogate

__all__ = [
    "TRPO",
    "EvolutionStrategy",
    "conjugate_gradient",
    "fisher_product",
    "kl_divergence",
    "policy_kl",
    "slope_along",
    "softmax_fisher",
    "step_length",
    "surrogate",
]
