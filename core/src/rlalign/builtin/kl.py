"""The KL penalty to the reference, as a reward at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field

from rlalign.data.batch import Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options, Role
from rlalign.data.statistics import kl_estimates
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl


def rl4lms_coefficient(coef: float, kl: float, target: float) -> float:
    """RL4LMs' controller: β ← β(1 + 0.1·clip((KL − target)/target, ±0.2)), KL a mean per token."""
    return coef * (1 + 0.1 * max(-0.2, min(0.2, (kl - target) / target)))


def ziegler_coefficient(coef: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """Ziegler et al. (2019), section 2.2: β ← β(1 + clip(KL/target − 1, ±0.2)·n/horizon), KL a mean per response."""
    return coef * (1 + max(-0.2, min(0.2, kl / target - 1)) * responses / horizon)


class KL(Component):
    """−coef · (log π − log π_ref) at every step, both over the full distribution at the same temperature."""

    class Config(Options):
        """Options of `kl`."""

        coef: float = Field(
            0.1, ge=0, description="the penalty's coefficient β, at first if `target` is given"
        )
        target: float | None = Field(
            None, gt=0, description="KL to steer for by moving the coefficient; null: fixed"
        )
        controller: Literal["rl4lms", "ziegler"] = Field(
            "rl4lms", description="how it moves: `rl4lms` targets a KL per token, `ziegler` one per response"
        )
        horizon: int = Field(
            10000, gt=0, description="ziegler: responses over which the coefficient may move by a fifth"
        )
        together: bool = Field(False, description="allow it beside a loss that holds a KL already")

    config: Config
    models: Mapping[str, Role] = {"reference": "frozen"}
    needs = ("policy.full_logprobs", "reference.full_logprobs")
    estimates = True

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.coef = self.config.coef
        self.regularises = not self.config.together

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        kl = kl_estimates(
            rollout.columns["policy.full_logprobs"] - rollout.columns["reference.full_logprobs"]
        )
        per_response_N = torch.where(rollout.mask_NT, kl["k1"], 0.0).sum(1)
        coef_N = torch.full_like(per_response_N, self.coef)
        return Score(-self.coef * kl["k1"], metrics={**kl, "per_response": per_response_N, "coef": coef_N})

    @hookimpl
    def iteration_done(self, rollout: Rollout, reward: Reward) -> None:
        target, name = self.config.target, self.name
        rollout, seen = rollout.take(rollout.new_N), reward.take(rollout.new_N).metrics
        if target is None or f"{name}/k1" not in seen or len(rollout) == 0:
            return
        if self.config.controller == "rl4lms":
            kl = float(seen[f"{self.name}/k1"][rollout.mask_NT].double().mean())
            self.coef = rl4lms_coefficient(self.coef, kl, target)
        else:
            kl = float(seen[f"{self.name}/per_response"].double().mean())
            self.coef = ziegler_coefficient(self.coef, kl, target, len(rollout), self.config.horizon)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.config.target is None else {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coef = float(state.get("coef", self.coef))
