"""The bandit of Flet-Berliac et al. (2024), section 5: its log of pairs, its two naive methods, its regret.

Legend: N responses, T steps, A arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Example, Loss, Options, Outputs, Rollout, Run, Task, hookimpl
from rlalign_study.file import module_of

exact = module_of(Path(__file__).with_name("fixed_points.py"))
REFERENCE = "reference.full_logprobs"


class Pairs(Task):
    """Logged pairs of pulled arms, y from μ1 and y' from μ2, drawn once for each `draw`."""

    class Config(Options):
        """Options of `pairs`."""

        payouts: tuple[float, ...] = Field((2.5, 2.0, 1.0), description="R: what each arm pays")
        first: tuple[float, ...] = Field((0.1, 0.2, 0.7), description="μ1: how likely y is each arm")
        second: tuple[float, ...] = Field((0.05, 0.05, 0.9), description="μ2: the same of y'")
        pairs: int = Field(10_000, gt=0, description="how many")
        draw: str = Field("0", description="another name, other pairs")
        preferences: bool = Field(
            False, description="scores are 1 and 0, drawn once with P(y before y') = σ(R(y) − R(y'))"
        )

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        c = self.config
        rng = torch.Generator().manual_seed(crc32(c.draw.encode()))
        drawn = [
            torch.multinomial(torch.tensor(mu), c.pairs, replacement=True, generator=rng)
            for mu in (c.first, c.second)
        ]
        arms_N2, pays = torch.stack(drawn, 1), torch.tensor(c.payouts, dtype=torch.float64)
        scores_N2 = pays[arms_N2]
        if c.preferences:
            before_N = torch.rand(c.pairs, dtype=torch.float64, generator=rng) < torch.sigmoid(
                scores_N2[:, 0] - scores_N2[:, 1]
            )
            scores_N2 = torch.stack([before_N, ~before_N], 1).double()
        meta = {"payouts": list(c.payouts)}
        return [
            Example(
                id=f"{split}-{i}", prompt="", responses=tuple(map(str, arms)), scores=tuple(scores), meta=meta
            )
            for i, (arms, scores) in enumerate(zip(arms_N2.tolist(), scores_N2.tolist(), strict=True))
        ]


def log_policy(run: Run, model: str, example: Example) -> Tensor:
    """[A]: what a model says of each arm of a bandit, log π."""
    arms = tuple(map(str, range(len(example.meta["payouts"]))))
    pulled = run.models.policy.encode([Example(id="arms", prompt=example.prompt, responses=arms)])
    return run.score(model, pulled, ["full_logprobs"]).full_logprobs_NT[:, 0]


class OffPolicyPG(Component):
    """The policy gradient on logged arms as if the policy had pulled them: (R_β − b) ∇log π on both of a pair."""

    class Config(Options):
        """Options of `off-policy-pg`."""

        beta: float = Field(0.5, ge=0, description="β: R_β = R − β log(π/π_ref)")
        baseline: Literal["none", "value", "regularised"] = Field(
            "none", description="b: 0, E_π[R] (exact), or E_π[R_β] (exact)"
        )

    config: Config
    needs = ("full_logprobs", REFERENCE)
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    regularises = True

    def baseline(self, run: Run, batch: Batch) -> float | Tensor:
        """b, of the policy as it is now."""
        if self.config.baseline == "none":
            return 0.0
        example = batch.step.rollout.examples[0]
        logp_A = log_policy(run, "policy", example)
        reward_A = logp_A.new_tensor(example.meta["payouts"])
        if self.config.baseline == "regularised":
            reward_A = reward_A - self.config.beta * (logp_A - log_policy(run, "reference", example))
        return logp_A.exp() @ reward_A

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        rho_N = logp_N - batch.sum_over_chosen(batch.rollout.columns[REFERENCE])
        advantage_N = batch.reward.total_N - self.config.beta * rho_N - self.baseline(run, batch)
        return Loss(-batch.mean_over_responses(advantage_N.detach() * logp_N))


class Regret(Component):
    """How far the policy is from the best one, exactly: no sample is looked at."""

    class Config(Options):
        """Options of `regret`."""

        beta: float = Field(0.5, gt=0, description="β of the objective E[R] − β KL(π‖π_ref)")

    config: Config
    models = {"reference": "frozen"}

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
        example = rollout.examples[0]
        policy_A, reference_A = (
            log_policy(run, model, example).double().exp().numpy() for model in ("policy", "reference")
        )
        bandit = example.meta["payouts"], reference_A, self.config.beta
        best_A = exact.optimum(*bandit)
        return {
            "regret": exact.objective(best_A, *bandit) - exact.objective(policy_A, *bandit),
            "distance": exact.distance(policy_A, best_A),
            **{f"arm-{i}": float(p) for i, p in enumerate(policy_A)},
        }


components: Mapping[str, type[Component] | type[Task]] = {
    "pairs": Pairs,
    "off-policy-pg": OffPolicyPG,
    "regret": Regret,
}
