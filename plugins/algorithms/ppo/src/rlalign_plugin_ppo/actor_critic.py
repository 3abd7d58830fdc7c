"""What every method with a critic shares: advantages from values, the value loss, the entropy bonus.

Legend: N responses, T steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign.data.statistics import moments, turns_of, whitened
from rlalign_plugin_ppo.gae import gae


def clipped_value_error(
    values_NT: Tensor, old_NT: Tensor, returns_NT: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """(max((V − R)², (V_clip − R)²), whether the second is the larger), elementwise [N,T].

    V_clip lies within `clip` of what V was, `old_NT` (Ziegler et al. 2019, released code).
    """
    error_NT = (values_NT - returns_NT) ** 2
    near_NT = old_NT + (values_NT - old_NT).clamp(-clip, clip)
    clipped_NT = (near_NT - returns_NT) ** 2
    return torch.maximum(error_NT, clipped_NT), clipped_NT > error_NT


def explained_variance(values_NT: Tensor, returns_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """1 − Var(R − V)/Var(R) over the chosen steps, a scalar; 0 where all returns are equal."""
    _, left = moments(returns_NT - values_NT, mask_NT)
    _, spread = moments(returns_NT, mask_NT)
    return torch.where(spread > 0, 1 - left / spread.clamp_min(1e-30), torch.zeros_like(spread))


class ActorCritic(Component):
    """What every method with a critic shares: advantages from values, the value loss, the entropy bonus."""

    class Config(Options):
        """Options that `ppo`, `a2c` and `vanilla-pg` share."""

        gamma: float = Field(1.0, ge=0, le=1, description="γ: the discount per step")
        discount: Literal["token", "turn"] = Field(
            "token", description="what γ and λ count: tokens, or in an environment turns"
        )
        lam: float = Field(
            0.95, ge=0, le=1, description="λ of the advantage estimate: 1 trusts returns, 0 the values"
        )
        value: float = Field(0.1, ge=0, description="weight of the value loss ½(V − return)²")
        value_clip: float | None = Field(
            None,
            gt=0,
            description="V counts as moved by at most this from what it was; the larger loss counts; null: no clip",
        )
        entropy: float = Field(0.0, description="weight of the entropy bonus")
        whiten: Literal["minibatch", "batch", "none"] = Field(
            "minibatch",
            description="advantages with mean 0 and variance 1 over each optimiser step's tokens, over all of the "
            "iteration's, or as they are",
        )
        whiten_rewards: bool = Field(
            False, description="scale token rewards to variance 1 over the iteration; their mean stays"
        )
        truncated: Literal["bootstrap", "terminal"] = Field(
            "bootstrap",
            description="a response cut by the token limit: V of its last state counts as what would have come, "
            "or nothing does, as if it had ended",
        )
        warmup: int = Field(
            0,
            ge=0,
            description="iterations at first in which only the value learns; needs a trunk of its own",
        )

    config: Config
    needs: tuple[str, ...] = ("logprobs", "entropy", "values", "value.state_values")
    trains = ("policy", "value")
    unit = "response"
    responses = "sampled"

    @hookimpl
    def phase_started(self, run: Run) -> None:
        if self.config.warmup and getattr(run.models["value"], "trunk", None) == "policy":
            raise ComponentError(
                f"`{self.name}: {{warmup: {self.config.warmup}}}` lets the value learn alone, but it reads the "
                "policy's trunk, which would move with it; write `models: {value: {value-head: {trunk: own}}}`"
            )

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        c, mask_NT, reward_NT = self.config, rollout.mask_NT, reward.tokens_NT
        values_NT1 = rollout.columns["value.state_values"]
        values_NT = values_NT1[:, :-1]
        if c.truncated == "terminal":
            values_NT1 = values_NT1.scatter(1, rollout.length_N[:, None], 0.0)
        if c.whiten_rewards:
            reward_NT = whitened(reward_NT, *moments(reward_NT, mask_NT), shift=False)
        turn_NT = turns_of(rollout, f"`{self.name}: {{discount: turn}}`") if c.discount == "turn" else None
        advantage_NT = gae(reward_NT, values_NT1, mask_NT, rollout.length_N, c.gamma, c.lam, turn_NT)
        returns_NT = advantage_NT + values_NT
        if c.whiten == "batch":
            advantage_NT = whitened(advantage_NT, *moments(advantage_NT, mask_NT))
        return Batch.of(rollout, reward, advantage_NT, returns=returns_NT, values=values_NT)

    def advantage_of(self, batch: Batch) -> Tensor:
        """The advantages, whitened over the optimiser step if asked for."""
        if self.config.whiten != "minibatch":
            return batch.advantage_NT
        step = batch.step
        return whitened(batch.advantage_NT, *moments(step.advantage_NT, step.rollout.mask_NT))

    def total(self, run: Run, batch: Batch, now: Outputs, policy: Tensor) -> Loss:
        """policy + value·L_V − entropy·H, and what is worth watching."""
        c, returns_NT, old_NT = self.config, batch.columns["returns"], batch.columns["values"]
        metrics = {"policy": policy}
        if c.value_clip is None:
            error_NT = (now.values_NT - returns_NT) ** 2
        else:
            error_NT, acts_NT = clipped_value_error(now.values_NT, old_NT, returns_NT, c.value_clip)
            metrics["value_clip_fraction"] = batch.mean_over_tokens(acts_NT.to(error_NT))
        value = batch.mean_over_tokens(error_NT) / 2
        entropy = batch.mean_over_tokens(now.entropy_NT)
        step = batch.step  # its values are those of when the iteration began
        explained = explained_variance(step.columns["values"], step.columns["returns"], step.rollout.mask_NT)
        metrics |= {"value": value, "entropy": entropy}
        metrics["explained_variance"] = batch.mean_over_tokens(explained.expand_as(now.values_NT))
        if run.iteration < c.warmup:
            return Loss(c.value * value, metrics)
        return Loss(policy + c.value * value - c.entropy * entropy, metrics)
