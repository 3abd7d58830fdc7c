"""Which gradients are those of the expected reward: by enumeration of all groups that could be sampled, in float64.

A bandit of three arms whose responses are 1, 2 and 3 tokens long: the first token says the arm, the others follow.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign.testing import Bench
from rlalign.testing.golden import GIVEN, golden
from rlalign_plugin_reinforce.surrogates import kl_estimate

from .conftest import by_logprob

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MU = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
R = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
K = 3
GROUPS = list(itertools.product(range(3), repeat=K))
TRUTH = PI * (R - PI @ R)
"""∇J by the logits θ of π = softmax(θ): ∂J/∂θ_j = π_j (R_j − J)."""


def expected_gradient(
    folder: Path, member: str, *, lengths: tuple[int, ...] = (1, 2, 3), sampler: Tensor = PI, **options: Any
) -> Tensor:
    """E over all groups of what is climbed, −∇loss by θ: each group is a step of its own."""
    logp = [[[math.log(PI[y])] + [-1e-9] * (lengths[y] - 1) for y in group] for group in GROUPS]
    say = {**golden(logp, None, [[float(R[y]) for y in g] for g in GROUPS]), "algorithm": {member: options}}
    bench = Bench(folder, say, GIVEN)
    (component,) = [c for c in bench.phase.plan.components if c.name == member]
    component.load_state_dict({"count": 4, "total": 3.0})  # a past, for those that compare with it
    rollout, reward = bench.rollout()
    arm_N = torch.tensor(
        [GROUPS[int(e.id)][j] for e, j in zip(rollout.answered, rollout.columns["slot"], strict=True)]
    )
    if sampler is not PI:
        sampled_NT = torch.zeros_like(rollout.logprobs_NT)
        sampled_NT[:, 0] = sampler.log()[arm_N]
        rollout = replace(rollout, logprobs_NT=sampled_NT)
    old_NT = bench.run.score("policy", rollout, ["logprobs"]).logprobs_NT
    total = torch.zeros(3, dtype=torch.float64)
    for g in range(len(GROUPS)):
        rows = (rollout.group_N == g).nonzero()[:, 0]
        batch = bench.stages.advantage(bench.run, rollout.take(rows), reward.take(rows)).as_step()
        climbed_N = -by_logprob(bench, replace(batch, old=old_NT[rows]))[:, 0]
        score_NA = torch.eye(3, dtype=torch.float64)[arm_N[rows]] - PI  # ∇ log π(y), of the first token only
        total += sampler[arm_N[rows]].prod() * (climbed_N[:, None] * score_NA).sum(0)
    return total


def along_the_truth(found: Tensor) -> tuple[float, float]:
    """(how long it is beside the truth, how far from its direction: 1 − cosine)."""
    cosine = torch.cosine_similarity(found, TRUTH, dim=0)
    return float(found @ TRUTH / (TRUTH @ TRUTH)), float(1 - cosine)


@pytest.mark.parametrize(
    "member, options",
    [
        ("reinforce", {}),
        ("reinforce", {"baseline": "none"}),
        ("reinforce", {"credit": "to-go"}),
        ("rloo", {}),
        ("rloo", {"ratio": "token", "clip": [0.2, 0.2]}),
        ("rloo", {"ratio": "sequence", "clip": [0.2, 0.2]}),
        ("rloo", {"ratio": "token", "clipped": "weight"}),
        ("rloo", {"credit": "to-go"}),
    ],
)
def test_unbiased(member: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = expected_gradient(tmp_path, member, **options)
    torch.testing.assert_close(found, TRUTH, rtol=0, atol=1e-12)


def test_a_mean_that_holds_the_response_itself_is_short_by_one_part_in_k(tmp_path: Path) -> None:
    found = expected_gradient(tmp_path, "rloo", baseline="group")
    torch.testing.assert_close(found, TRUTH * (K - 1) / K, rtol=0, atol=1e-12)


def test_dr_grpo_is_that_over_a_constant(tmp_path: Path) -> None:
    found = expected_gradient(tmp_path, "dr-grpo", longest=4)
    torch.testing.assert_close(found, TRUTH * (K - 1) / K / 4, rtol=0, atol=1e-12)


def test_a_deviation_of_the_group_is_a_bias(tmp_path: Path) -> None:
    """It counts groups that differ little as much as those that differ much."""
    _, off = along_the_truth(expected_gradient(tmp_path, "rloo", scale="group"))
    assert off > 0.001


@pytest.mark.parametrize("mean", ["response-means", "tokens"])
def test_a_mean_over_tokens_is_a_bias_where_lengths_differ(mean: str, tmp_path: Path) -> None:
    _, off = along_the_truth(expected_gradient(tmp_path / "differ", "rloo", mean=mean))
    assert off > 0.001
    size, off = along_the_truth(expected_gradient(tmp_path / "equal", "rloo", mean=mean, lengths=(2, 2, 2)))
    assert (size, off) == pytest.approx((1 / 2, 0), abs=1e-9)


@pytest.mark.parametrize("member", ["grpo", "dapo", "gspo", "cispo", "reinforce-pp", "reinforce-pp-baseline"])
def test_biased_members_still_climb(member: str, tmp_path: Path) -> None:
    options = {"kl": 0.0} if member == "grpo" else {}
    size, off = along_the_truth(expected_gradient(tmp_path, member, **options))
    assert size > 0 and off > 1e-4


# -- samples of another policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("member", ["reinforce", "rloo"])
def test_importance_takes_the_bias_of_another_sampler_away(member: str, level: str, tmp_path: Path) -> None:
    """One token a response, so that both levels are the same."""
    short = {"lengths": (1, 1, 1), "sampler": MU}
    without = expected_gradient(tmp_path / "without", member, **short)
    assert float((without - TRUTH).abs().max()) > 0.05
    free = {"importance": {"cap": None, "level": level}}
    torch.testing.assert_close(
        expected_gradient(tmp_path / "free", member, **short, **free), TRUTH, rtol=0, atol=1e-12
    )
    capped = expected_gradient(tmp_path / "capped", member, **short, importance={"cap": 1.2, "level": level})
    assert 1e-3 < float((capped - TRUTH).abs().max()) < float((without - TRUTH).abs().max())


# -- a KL in the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_of_a_kl_in_a_loss(estimator: str) -> None:
    """On samples of π: k2 descends KL(π ‖ ref), k3 descends KL(ref ‖ π), k1 nothing at all."""
    theta = PI.log().requires_grad_()
    logp, ref = theta.log_softmax(0), MU.log()
    x = logp - ref
    estimate = x if estimator == "k1" else kl_estimate(x, estimator)
    (found,) = torch.autograd.grad(
        (PI * estimate).sum(), theta, retain_graph=True
    )  # π that samples: a constant
    descended = {
        "k1": torch.zeros_like(theta).sum() * theta.sum(),
        "k2": (logp.exp() * x).sum(),
        "k3": -(MU * x).sum(),
    }[estimator]
    (expected,) = torch.autograd.grad(descended, theta)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
