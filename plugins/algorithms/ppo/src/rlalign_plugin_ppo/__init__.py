"""PPO, A2C and vanilla PG: a critic says what each token was worth, PPO's clipped ratio how far to follow it.

Every token is a step, the state is the prompt and the tokens before it. The KL to the reference belongs into
the reward (`kl` under `rewards`), as in Ziegler et al. (2019) and Ramamurthy et al. (2023). Legend: N responses,
T steps.
"""

from rlalign_plugin_ppo.a2c import A2C, policy_gradient_objective
from rlalign_plugin_ppo.actor_critic import ActorCritic, clipped_value_error, explained_variance
from rlalign_plugin_ppo.gae import gae
from rlalign_plugin_ppo.ppo import PPO
from rlalign_plugin_ppo.vanilla_pg import VanillaPG

__all__ = [
    "A2C",
    "PPO",
    "ActorCritic",
    "VanillaPG",
    "clipped_value_error",
    "explained_variance",
    "gae",
    "policy_gradient_objective",
]
