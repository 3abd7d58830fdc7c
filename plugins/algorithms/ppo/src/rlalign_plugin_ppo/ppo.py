"""PPO: a ratio of probabilities, clipped, says how far to follow an advantage. Legend: N responses, T steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from rlalign import Batch, Loss, Outputs, Run, hookimpl
from rlalign.data.statistics import clipped_surrogate, kl_estimates
from rlalign_plugin_ppo.actor_critic import ActorCritic

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


class PPO(ActorCritic):
    """Proximal policy optimisation: −min(ρA, clip(ρ, 1−ε, 1+ε)A), a mean over tokens (Schulman et al. 2017, eq. 7)."""

    equation = "−min(ρ_t A_t, clip(ρ_t, 1−ε, 1+ε) A_t) + c (V_t − return_t)², ρ_t = π/π_old, A_t by GAE"

    paper = "John Schulman et al., Proximal policy optimization algorithms, 2017"

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

    def clipped(self, run: Run, batch: Batch, now: Outputs, log_ratio_NT: Tensor) -> Loss:
        """The loss at these logarithms of the ratio."""
        clip = (self.config.clip, self.config.clip)
        surrogate_NT, acts_NT = clipped_surrogate(log_ratio_NT, self.advantage_of(batch), clip)
        loss = self.total(run, batch, now, -batch.mean_over_tokens(surrogate_NT))
        kl = batch.mean_over_tokens(kl_estimates(-log_ratio_NT.detach())["k3"])  # KL(old ‖ now)
        fraction = batch.mean_over_tokens(acts_NT.to(surrogate_NT))
        return Loss(loss.value, {**loss.metrics, "kl": kl, "clip_fraction": fraction})

    @hookimpl
    def step_ready(self, metrics: Mapping[str, float]) -> bool:
        target = self.config.target_kl
        return target is None or metrics[f"{self.name}/kl"] <= 1.5 * target
