"""An evolution strategy: the policy's weights move towards random changes of them that earned more.

Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (2017), algorithm 1
with mirrored perturbations. No gradient is taken, so the reward may be anything and so may the policy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Learner, Options, Run, hookimpl


def slope_along(noise: Tensor, plus: float, minus: float, sigma: float, pairs: int) -> Tensor:
    """(R₊ − R₋)/(2σn) · ε: what one of n mirrored pairs adds to the gradient's estimate (Salimans et al. 2017)."""
    return (plus - minus) / (2 * sigma * pairs) * noise


class EvolutionStrategy(Component):
    """An evolution strategy: a step along Σ (R₊ − R₋) ε, R± the mean reward of the weights θ ± σε."""

    equation = "θ + α Σ (R₊ − R₋) ε"

    paper = (
        "Tim Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning, 2017"
    )

    class Config(Options):
        """Options of `es`."""

        sigma: float = Field(0.02, gt=0, description="σ: standard deviation of the perturbations")
        pairs: int = Field(16, gt=0, description="perturbations, each tried with both signs")
        rate: float = Field(
            0.01, gt=0, description="α: how far the weights move along the estimated gradient"
        )

    config: Config
    trains = ("policy",)
    responses = "sampled"

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        c, start = self.config, learner.parameters()
        slope, earned = torch.zeros_like(start), []
        for i in range(c.pairs):
            noise = torch.randn(len(start), generator=run.rng("es", run.iteration, i), dtype=start.dtype)
            noise = noise.to(start.device)
            for sign in (1, -1):
                learner.assign(start + sign * c.sigma * noise)
                _, reward = learner.respond(batch.rollout.examples)
                earned.append(float(reward.total_N.mean()))
            slope += slope_along(noise, earned[-2], earned[-1], c.sigma, c.pairs)
        learner.assign(start + c.rate * slope)
        spread = float(torch.tensor(earned).std(correction=0))
        return {f"{self.name}/step_norm": c.rate * float(slope.norm()), f"{self.name}/spread": spread}
