"""NLPO: PPO whose samples stay within the nucleus of a copy of the policy that lags behind it.

Ramamurthy et al., "Is Reinforcement Learning (Not) for Natural Language Processing: Benchmarks, Baselines, and
Building Blocks for Natural Language Policy Optimization" (2023).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from rlalign import Batch, Lagging, Loss, Nucleus, Outputs, Run, hookimpl
from rlalign_plugin_ppo import PPO

__all__ = ["NLPO"]


class NLPO(PPO):
    """Natural language policy optimisation: PPO that chooses among the tokens its lagging copy finds likely.

    It samples from its own distribution renormalised on that set; ratio and entropy are those of that
    distribution, so that the ratio is exact; the KL to the reference (`kl` under `rewards`) is of the full one.
    """

    equation = (
        "−min(ρ_t A_t, clip(ρ_t, 1−ε, 1+ε) A_t) + c (V_t − return_t)², "
        "π within the top-p set of a lagging copy"
    )

    paper = (
        "Rajkumar Ramamurthy et al., Is reinforcement learning (not) for natural language processing: benchmarks, "
        "baselines, and building blocks for natural language policy optimization, 2023"
    )

    class Config(PPO.Config):
        """Options of `nlpo`; those of `ppo` beside them."""

        mode: Literal["paper", "rl4lms"] = Field(
            "paper",
            description="`paper`: as published; `rl4lms`: as the first release computes it, with a mask that is never "
            "refreshed and the ratio of full probabilities",
        )
        top_p: float = Field(
            0.9, gt=0, le=1, description="the smallest set of the copy's tokens of this probability"
        )
        top_k: int = Field(0, ge=0, description="at most this many of the copy's tokens; 0: no limit")
        min_keep: int = Field(
            1, ge=1, description="this many of the copy's most probable tokens are always allowed"
        )
        refresh: int = Field(
            5, ge=1, description="iterations after which the copy takes the policy's weights"
        )

        @model_validator(mode="before")
        @classmethod
        def _as_released(cls, said: Any) -> Any:
            released = isinstance(said, dict) and said.get("mode") == "rl4lms"
            return {"min_keep": 100, **said} if released else said

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        c = self.config
        self.constraint = Nucleus("mask", top_p=c.top_p, top_k=c.top_k, min_keep=c.min_keep)
        self.models = {"mask": Lagging(every=c.refresh)}
        if c.mode == "rl4lms":
            self.models = {"mask": "frozen"}
            self.needs = (*self.needs, "full_logprobs", "policy.full_logprobs")

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        if self.config.mode == "paper":
            return super().loss(run, batch, now)
        old_NT = batch.rollout.columns["policy.full_logprobs"]
        return self.clipped(run, batch, now, now.full_logprobs_NT - old_NT)
