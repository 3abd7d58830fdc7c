"""PPO and A2C: a critic says what each token was worth, a clipped ratio says how far to follow it.

Every token is a step, the state is the prompt and the tokens before it. The KL to the reference belongs into
the reward (`kl` under `rewards`), as in Ziegler et al. (2019) and Ramamurthy et al. (2023). Legend: N responses,
T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl

__all__ = ["A2C", "PPO", "ActorCritic", "gae", "whitened"]


def gae(
    reward_NT: Tensor, values_NT1: Tensor, mask_NT: Tensor, length_N: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) at the chosen steps, zero elsewhere.

    Values have one entry more than there are steps: a response's last is that of the state after it, 0 where
    nothing follows. Steps that were given, not chosen, are passed over.
    """
    rows_N = torch.arange(len(reward_NT), device=reward_NT.device)
    next_N, carry_N = values_NT1[rows_N, length_N], torch.zeros_like(values_NT1[:, 0])
    advantage_NT = torch.zeros_like(values_NT1[:, :-1])
    for t in reversed(range(reward_NT.shape[1])):
        here_N = mask_NT[:, t]
        delta_N = reward_NT[:, t] + gamma * next_N - values_NT1[:, t]
        carry_N = torch.where(here_N, delta_N + gamma * lam * carry_N, carry_N)
        next_N = torch.where(here_N, values_NT1[:, t], next_N)
        advantage_NT[:, t] = torch.where(here_N, carry_N, 0.0)
    return advantage_NT


def moments(x_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the chosen steps."""
    count = mask_NT.sum().clamp_min(1)
    mean = torch.where(mask_NT, x_NT, 0.0).sum() / count
    return mean, torch.where(mask_NT, (x_NT - mean) ** 2, 0.0).sum() / count


def whitened(x_NT: Tensor, mean: Tensor, variance: Tensor, *, shift: bool = True) -> Tensor:
    """(x − mean)/√(variance + 10⁻⁸); without `shift` the mean is put back."""
    white_NT = (x_NT - mean) * torch.rsqrt(variance + 1e-8)
    return white_NT if shift else white_NT + mean


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "rl4lms": {"gamma": 0.99, "lam": 0.95, "value": 1.0, "whiten": "minibatch", "truncated": "terminal"},
    "rlhf": {
        **{"gamma": 1.0, "lam": 0.95, "value": 0.1, "value_clip": 0.2},
        **{"whiten": "batch", "truncated": "terminal"},
    },
}
"""Options of `ppo` as Ramamurthy et al. (2023) and Ziegler et al. (2019) set them."""

SURROUNDINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "rl4lms": {"train": {"epochs": 5, "clip": 0.5, "weight_decay": 1e-6}},
    "rlhf": {"train": {"epochs": 4, "lr": 3e-6, "eps": 1e-5}, "generation": {"temperature": 0.7}},
}
"""What the same papers set around it."""


class ActorCritic(Component):
    """What every method with a critic shares: advantages from values, the value loss, the entropy bonus."""

    class Config(Options):
        """Options that `ppo` and `a2c` share."""

        gamma: float = Field(1.0, ge=0, le=1, description="γ: how much a step later counts")
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
    needs: tuple[str, ...] = ("logprobs", "entropy", "values", "value.values")
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
        values_NT1 = rollout.columns["value.values"]
        values_NT = values_NT1[:, :-1]
        if c.truncated == "terminal":
            values_NT1 = values_NT1.scatter(1, rollout.length_N[:, None], 0.0)
        if c.whiten_rewards:
            reward_NT = whitened(reward_NT, *moments(reward_NT, mask_NT), shift=False)
        advantage_NT = gae(reward_NT, values_NT1, mask_NT, rollout.length_N, c.gamma, c.lam)
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
        c, returns_NT = self.config, batch.columns["returns"]
        error_NT = (now.values_NT - returns_NT) ** 2
        metrics = {"policy": policy}
        if c.value_clip is not None:
            old_NT = batch.columns["values"]
            near_NT = old_NT + (now.values_NT - old_NT).clamp(-c.value_clip, c.value_clip)
            clipped_NT = (near_NT - returns_NT) ** 2
            metrics["value_clip_fraction"] = batch.mean_over_tokens((clipped_NT > error_NT).to(error_NT))
            error_NT = torch.maximum(error_NT, clipped_NT)
        value = batch.mean_over_tokens(error_NT) / 2
        entropy = batch.mean_over_tokens(now.entropy_NT)
        metrics |= {"value": value, "entropy": entropy}
        metrics["explained_variance"] = batch.mean_over_tokens(
            _explained(batch.step).expand_as(now.values_NT)
        )
        if run.iteration < c.warmup:
            return Loss(c.value * value, metrics)
        return Loss(policy + c.value * value - c.entropy * entropy, metrics)


def _explained(step: Batch) -> Tensor:
    """1 − Var(return − V)/Var(return), V as it was when the iteration began."""
    mask_NT, returns_NT = step.rollout.mask_NT, step.columns["returns"]
    _, left = moments(returns_NT - step.columns["values"], mask_NT)
    _, spread = moments(returns_NT, mask_NT)
    return torch.where(spread > 0, 1 - left / spread.clamp_min(1e-30), torch.zeros_like(spread))


class PPO(ActorCritic):
    """Schulman et al. (2017), eq. 7: −min(ρA, clip(ρ, 1−ε, 1+ε)A), a mean over tokens."""

    class Config(ActorCritic.Config):
        """Options of `ppo`."""

        preset: Literal["rl4lms", "rlhf"] | None = Field(
            None, description="published values for all that is not said: of RL4LMs, or of PPO for RLHF"
        )
        clip: float = Field(0.2, gt=0, description="ε: how far from 1 the ratio of probabilities counts")
        target_kl: float | None = Field(
            None,
            gt=0,
            description="the update ends when its KL per token exceeds 1.5 times this; null: never",
        )

        @model_validator(mode="before")
        @classmethod
        def _published(cls, said: Any) -> Any:
            return {**PUBLISHED.get(str(said.get("preset")), {}), **said} if isinstance(said, dict) else said

    config: Config
    needs = (*ActorCritic.needs, "old_logprobs")

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.defaults = SURROUNDINGS.get(self.config.preset or "", {})

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        return self.clipped(run, batch, now, now.logprobs_NT - batch.old_logprobs_NT)

    def clipped(self, run: Run, batch: Batch, now: Outputs, x_NT: Tensor) -> Loss:
        """The loss at these logarithms of the ratio."""
        clip, advantage_NT = self.config.clip, self.advantage_of(batch)
        ratio_NT = x_NT.exp()
        free_NT = ratio_NT * advantage_NT
        held_NT = ratio_NT.clamp(1 - clip, 1 + clip) * advantage_NT
        loss = self.total(run, batch, now, -batch.mean_over_tokens(torch.minimum(free_NT, held_NT)))
        far_NT = x_NT.detach()
        kl = batch.mean_over_tokens(torch.expm1(far_NT) - far_NT)
        fraction = batch.mean_over_tokens((held_NT < free_NT).to(free_NT))
        return Loss(loss.value, {**loss.metrics, "kl": kl, "clip_fraction": fraction})

    @hookimpl
    def step_ready(self, metrics: Mapping[str, float]) -> bool:
        target = self.config.target_kl
        return target is None or metrics[f"{self.name}/kl"] <= 1.5 * target


class A2C(ActorCritic):
    """Mnih et al. (2016), synchronous: −A·log π, a mean over tokens; one optimiser step an iteration."""

    class Config(ActorCritic.Config):
        """Options of `a2c`."""

        whiten: Literal["minibatch", "batch", "none"] = Field(
            "none", description=str(ActorCritic.Config.model_fields["whiten"].description)
        )

    config: Config

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        policy = -batch.mean_over_tokens(self.advantage_of(batch) * now.logprobs_NT)
        return self.total(run, batch, now, policy)
