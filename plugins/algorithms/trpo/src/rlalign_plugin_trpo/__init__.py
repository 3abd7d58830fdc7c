"""TRPO: the natural gradient, a step of known size, and a line search that keeps its promise.

Schulman et al., "Trust Region Policy Optimization" (2015), appendix C, with advantages of Schulman et al., "High-
Dimensional Continuous Control Using Generalized Advantage Estimation" (2016). Every token is a step. The KL to
the reference belongs into the reward: put `kl` under `rewards`. Legend: N responses, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

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
from rlalign_plugin_ppo import gae

__all__ = ["TRPO", "conjugate_gradient", "whitened"]


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """(x, b − A·x) with A·x ≈ b, from products A·v; it ends early once ‖b − A·x‖² is within the tolerance."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = b, b @ b
    for _ in range(steps):
        if squared <= tolerance:
            break
        a = product(direction)
        alpha = squared / (direction @ a)
        x, residual = x + alpha * direction, residual - alpha * a
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x, residual


def whitened(x_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the chosen steps. Equal numbers become 0: rounding is no reason for a step."""
    variance, mean = torch.var_mean(x_NT[mask_NT].double(), correction=0)
    deviation = variance.sqrt()
    scale = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0.0)
    return torch.where(mask_NT, ((x_NT - mean) * scale).to(x_NT), 0.0)


class TRPO(Component):
    """Schulman et al. (2015): the natural step of KL δ, shortened until it improves the surrogate within δ."""

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
            1, gt=0, description="the Fisher matrix is that of every so many-th response; 1: of all"
        )
        tries: int = Field(10, gt=0, description="lengths the line search tries before it gives the step up")
        shrink: float = Field(0.8, gt=0, lt=1, description="each is this times the one before")
        gamma: float = Field(0.99, ge=0, le=1, description="γ: how much a step later counts")
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
        advantage_NT = gae(reward.tokens_NT, values_NT1, rollout.mask_NT, rollout.length_N, c.gamma, c.lam)
        return Batch.of(rollout, reward, advantage_NT, returns=advantage_NT + values_NT1[:, :-1])

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        """The surrogate −mean ρA (eq. 14), or while the value is fitted its squared error."""
        if self.fitting:
            return Loss(batch.mean_over_tokens((now.values_NT - batch.columns["returns"]) ** 2))
        ratio_NT = (now.logprobs_NT - batch.old_logprobs_NT).exp()
        return Loss(-batch.mean_over_tokens(ratio_NT * batch.advantage_NT))

    @hookimpl
    def update(self, batch: Batch, learner: Learner) -> Mapping[str, float]:
        white_NT = whitened(batch.advantage_NT, batch.rollout.mask_NT)
        metrics = self._natural_step(learner, replace(batch, advantage_NT=white_NT))
        self.fitting = True
        try:
            for _ in range(self.config.passes):
                fitted = learner.learn(batch, only=["value"])
        finally:
            self.fitting = False
        kept = {name: fitted[name] for name in ("lr", "grad_norm") if name in fitted}
        return {**kept, **metrics, f"{self.name}/value": fitted[f"{self.name}/loss"]}

    def _natural_step(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Move the policy; of the value's weights neither gradient nor Fisher matrix knows."""
        c, gradient = self.config, -learner.gradient(batch)
        seen = batch.take(torch.arange(0, len(batch), c.sub_sampling, device=gradient.device))
        direction, residual = conjugate_gradient(
            lambda v: learner.fisher_product(seen, v) + c.damping * v, gradient, c.cg_steps, c.cg_tolerance
        )
        curvature = float(direction @ (gradient - residual))  # xᵀ(F + damping·I)x
        if not math.isfinite(curvature):
            raise ComponentError(f"`{self.name}`: a product with the Fisher matrix is not finite")
        metrics = {"kl": 0.0, "gain": 0.0, "tries": 0.0, "step_norm": 0.0}
        if curvature > 0:
            metrics = self._search(learner, batch, direction * math.sqrt(2 * c.delta / curvature))
        metrics["cg_residual"] = float(residual.norm() / gradient.norm().clamp_min(1e-30))
        return {f"{self.name}/{metric}": value for metric, value in metrics.items()}

    def _search(self, learner: Learner, batch: Batch, step: Tensor) -> dict[str, float]:
        """The longest of some lengths that improves the surrogate within δ; none: all stays as it was."""
        c, start, before = self.config, learner.parameters(), learner.loss(batch)
        for i in range(c.tries):
            share = c.shrink**i
            learner.assign(start + share * step)
            kl, gain = learner.kl(batch, start), before - learner.loss(batch)
            if kl < c.delta and gain > 0:
                return {"kl": kl, "gain": gain, "tries": i + 1.0, "step_norm": share * float(step.norm())}
        learner.assign(start)
        return {"kl": 0.0, "gain": 0.0, "tries": c.tries + 1.0, "step_norm": 0.0}
