"""A2C (Mnih et al. 2016): a policy gradient with a critic. Legend: N responses, T steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rlalign import Batch, Loss, Outputs, Run, hookimpl
from rlalign_plugin_ppo.actor_critic import ActorCritic


def policy_gradient_objective(logprobs_NT: Tensor, advantage_NT: Tensor) -> Tensor:
    """A·log π, elementwise [N,T]; A is a constant (Mnih et al. 2016, sec. 4)."""
    return advantage_NT * logprobs_NT


class A2C(ActorCritic):
    """Advantage actor–critic, synchronous: −A·log π, a mean over tokens; one optimiser step per iteration."""

    equation = "−A_t log π(y_t) + c (V_t − return_t)², A_t by GAE"

    paper = "Volodymyr Mnih et al., Asynchronous methods for deep reinforcement learning, 2016"

    class Config(ActorCritic.Config):
        """Options of `a2c`."""

        whiten: Literal["minibatch", "batch", "none"] = Field(
            "none", description=str(ActorCritic.Config.model_fields["whiten"].description)
        )

    config: Config

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        gain_NT = policy_gradient_objective(now.logprobs_NT, self.advantage_of(batch))
        policy = -batch.mean_over_tokens(gain_NT)
        return self.total(run, batch, now, policy)
