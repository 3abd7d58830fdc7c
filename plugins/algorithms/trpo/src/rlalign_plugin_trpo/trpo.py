"""TRPO (Schulman et al. 2015). Legend: N responses, T steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import (
    Batch,
    Component,
    ComponentError,
    Learner,
    Loss,
    Options,
    Outputs,
    Reward,
    Rollout,
    Run,
    hookimpl,
)
from rlalign.data.statistics import standardised, turns_of
from rlalign_plugin_ppo import gae
from rlalign_plugin_trpo.conjugate_gradient import conjugate_gradient
from rlalign_plugin_trpo.fisher import fisher_product, policy_kl


def surrogate(logprobs_NT: Tensor, old_NT: Tensor, advantage_NT: Tensor) -> Tensor:
    """ρA, ρ = π/π_old, elementwise [N,T]; its mean over tokens is maximised (Schulman et al. 2015, eq. 14)."""
    return (logprobs_NT - old_NT).exp() * advantage_NT


def step_length(delta: float, curvature: float) -> float:
    """β = √(2δ / sᵀFs), how far along s the quadratic model of the KL reaches δ (appendix C)."""
    return math.sqrt(2 * delta / curvature)


class TRPO(Component):
    """Trust region policy optimisation: the natural step of KL δ, shortened until the surrogate improves within δ."""

    equation = "the largest mean of ρ A with KL(π_old ‖ π) ≤ δ, by one natural-gradient step"

    paper = "John Schulman et al., Trust region policy optimization, 2015"

    class Config(Options):
        """Options of `trpo`."""

        delta: float = Field(
            0.01, gt=0, description="δ: the largest KL(old‖new) of an update, a mean over tokens"
        )
        damping: float = Field(0.1, ge=0, description="this times the identity is added to the Fisher matrix")
        cg_steps: int = Field(15, gt=0, description="steps of conjugate gradient, a Fisher product each")
        cg_tolerance: float = Field(
            1e-10, ge=0, description="squared norm of the residual that ends them earlier"
        )
        sub_sampling: int = Field(
            1, gt=0, description="the Fisher matrix is that of every n-th response; 1: of all"
        )
        tries: int = Field(10, gt=0, description="lengths the line search tries before it gives the step up")
        shrink: float = Field(0.8, gt=0, lt=1, description="each is this times the one before")
        gamma: float = Field(0.99, ge=0, le=1, description="γ: the discount per step")
        discount: Literal["token", "turn"] = Field(
            "token", description="what γ and λ count: tokens, or in an environment turns"
        )
        lam: float = Field(
            0.95, ge=0, le=1, description="λ of the advantage estimate: 1 trusts returns, 0 the values"
        )
        passes: int = Field(
            10, gt=0, description="times the value then goes through `train.epochs` × `train.minibatches`"
        )

    config: Config
    needs = ("logprobs", "old_logprobs", "values", "value.state_values")
    trains = ("policy", "value")
    unit = "response"
    responses = "sampled"

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.fitting = False
        """Whether the loss is the value's, or the policy's surrogate."""

    @hookimpl
    def phase_started(self, run: Run) -> None:
        if getattr(run.models["value"], "trunk", None) in self.trains:
            raise ComponentError(
                f"`{self.name}` fits its value apart from the policy, and this value reads the states of the policy's "
                "own trunk, which only a step within δ may move; give it another: "
                "`models: {value: {value-head: {trunk: own}}}` (a copy that learns) or `trunk: reference`"
            )

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        values_NT1, c = rollout.columns["value.state_values"], self.config
        turn_NT = turns_of(rollout, f"`{self.name}: {{discount: turn}}`") if c.discount == "turn" else None
        paid = reward.tokens_NT, values_NT1, rollout.mask_NT, rollout.length_N
        advantage_NT = gae(*paid, c.gamma, c.lam, turn_NT)
        return Batch.of(rollout, reward, advantage_NT, returns=advantage_NT + values_NT1[:, :-1])

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        """Minus the surrogate, a mean over tokens, or while the value is fitted its squared error."""
        if self.fitting:
            return Loss(batch.mean_over_tokens((now.values_NT - batch.columns["returns"]) ** 2))
        gain_NT = surrogate(now.logprobs_NT, batch.old_logprobs_NT, batch.advantage_NT)
        return Loss(-batch.mean_over_tokens(gain_NT))

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        white_NT = standardised(batch.advantage_NT, batch.rollout.mask_NT)
        metrics = self._natural_step(run, learner, replace(batch, advantage_NT=white_NT))
        self.fitting = True
        try:
            for _ in range(self.config.passes):
                fitted = learner.learn(batch, only=["value"])
        finally:
            self.fitting = False
        kept = {name: fitted[name] for name in ("lr", "grad_norm") if name in fitted}
        return {**kept, **metrics, f"{self.name}/value": fitted[f"{self.name}/loss"]}

    def _natural_step(self, run: Run, learner: Learner, batch: Batch) -> dict[str, float]:
        """Move the policy; of the value's weights neither gradient nor Fisher matrix knows."""
        c, gradient = self.config, -learner.gradient(batch)
        seen = batch.take(torch.arange(0, len(batch), c.sub_sampling, device=gradient.device))
        direction, residual = conjugate_gradient(
            lambda v: fisher_product(run, learner, seen, v) + c.damping * v,
            gradient,
            c.cg_steps,
            c.cg_tolerance,
        )
        curvature = float(direction @ (gradient - residual))  # xᵀ(F + damping·I)x
        if not math.isfinite(curvature):
            raise ComponentError(f"`{self.name}`: a product with the Fisher matrix is not finite")
        metrics = {"kl": 0.0, "gain": 0.0, "tries": 0.0, "step_norm": 0.0}
        if curvature > 0:
            metrics = self._search(run, learner, batch, direction * step_length(c.delta, curvature))
        metrics["cg_residual"] = float(residual.norm() / gradient.norm().clamp_min(1e-30))
        return {f"{self.name}/{metric}": value for metric, value in metrics.items()}

    def _search(self, run: Run, learner: Learner, batch: Batch, step: Tensor) -> dict[str, float]:
        """The longest of some lengths that improves the surrogate within δ; none: all stays as it was."""
        c, start, before = self.config, learner.parameters(), learner.loss(batch)
        for i in range(c.tries):
            share = c.shrink**i
            learner.assign(start + share * step)
            kl, gain = policy_kl(run, learner, batch, start), before - learner.loss(batch)
            if kl < c.delta and gain > 0:
                return {"kl": kl, "gain": gain, "tries": i + 1.0, "step_norm": share * float(step.norm())}
        learner.assign(start)
        return {"kl": 0.0, "gain": 0.0, "tries": c.tries + 1.0, "step_norm": 0.0}
