"""F·v and the KL on free logits and small networks, against dense matrices and distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch
from rlalign.testing import Bench, Logits
from rlalign_plugin_trpo import fisher_product, kl_divergence, policy_kl, softmax_fisher

SAMPLED = [
    {"samples": 2},
    {"samples": 2, "temperature": 0.6, "min_new_tokens": 2},
    {"samples": 2, "temperature": 1.7, "top_p": 0.7},
]


def small(folder: Path, algorithm: str, hidden: int | None, generation: dict[str, Any]) -> Bench:
    """Three prompts, five tokens, three steps: as many parameters as a dense matrix can have."""
    logits = {"prompts": 3, "responses": 2, "steps": 3, "vocabulary": 5, "hidden": hidden}
    say = {
        "task": {"numbers": {"size": 3, "prompts": 3}},
        "policy": {"logits": logits},
        "rewards": ["token-sum"],
        "algorithm": algorithm,
        "generation": {**generation, "max_new_tokens": 3},
        "train": {"iterations": 1, "prompts": 3, "dtype": "float64"},
    }
    return Bench(folder, say)


def trained(b: Bench) -> dict[str, torch.nn.Parameter]:
    assert b.phase.learner is not None
    return b.phase.learner.optimiser.parameters


# -- the formulas on literal numbers ------------------------------------------------------------------------


def test_the_fisher_matrix_of_a_softmax() -> None:
    p, x, tau = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[1.0, -2.0, 4.0]]), torch.tensor([0.7])
    expected = (p[0].diag() - p[0][:, None] * p[0]) @ x[0] / 0.7**2
    torch.testing.assert_close(softmax_fisher(p, x, tau)[0], expected)


def test_the_kl_of_two_distributions() -> None:
    """What both rule out adds nothing."""
    then, now = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(kl_divergence(then.log(), now.log())) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(then.log(), then.log())) == 0


# -- the Fisher matrix -----------------------------------------------------------------------------------------


def dense_fisher(b: Bench, batch: Batch) -> Tensor:
    """Σ_t Jᵀ(diag p − ppᵀ)J / τ² / M, J row by row, over all trained parameters."""
    policy, rollout = b.run.models.policy, batch.rollout
    assert isinstance(policy, Logits)
    parameters = trained(b)
    own = [p for name, p in parameters.items() if name.startswith("policy/")]
    size = sum(p.numel() for p in parameters.values())
    logits_MV = policy.head(policy.features(rollout))
    total = torch.zeros(size, size, dtype=torch.float64)
    for m, (i, t) in enumerate(zip(*(x.tolist() for x in rollout.chosen), strict=True)):
        how = rollout.settings[int(rollout.setting_N[i])]
        kept = torch.ones(logits_MV.shape[1], dtype=torch.bool)
        if rollout.allowed is not None:
            kept = rollout.allowed.mask(torch.tensor([i]), torch.tensor([t]))[0]
        if t < how.min_new_tokens:
            kept[list(policy.ends)] = False
        p = (logits_MV[m].detach() / how.temperature).masked_fill(~kept, -math.inf).softmax(0)
        rows = []
        for v in range(len(p)):
            grads = torch.autograd.grad(logits_MV[m, v], own, retain_graph=True, allow_unused=True)
            row = [torch.zeros_like(x) if g is None else g for x, g in zip(own, grads, strict=True)]
            rows.append(torch.cat([g.reshape(-1) for g in row]))
        j = torch.zeros(len(p), size, dtype=torch.float64)
        j[:, : len(rows[0])] = torch.stack(rows)
        total += j.T @ (p.diag() - p[:, None] * p) @ j / how.temperature**2
    return total / int(rollout.mask_NT.sum())


@pytest.mark.parametrize("algorithm", ["policy-gradient", "policy-and-value"])
@pytest.mark.parametrize("hidden", [None, 3])
@pytest.mark.parametrize("generation", SAMPLED)
def test_the_fisher_product_is_that_of_the_dense_matrix(
    generation: dict[str, Any], hidden: int | None, algorithm: str, tmp_path: Path
) -> None:
    b = small(tmp_path, algorithm, hidden, generation)
    batch = b.batch()
    fisher = dense_fisher(b, batch)
    start, generator = b.learner.parameters(), torch.Generator().manual_seed(0)
    for budget in (10**9, 9, 1):
        b.engine.budget = budget
        vector = torch.randn(len(start), generator=generator, dtype=torch.float64)
        product = fisher_product(b.run, b.learner, batch, vector)
        torch.testing.assert_close(product, fisher @ vector, rtol=0, atol=1e-12)
    assert float(fisher.abs().max()) > 1e-4
    assert torch.equal(b.learner.parameters(), start)
    assert all(p.grad is None for p in trained(b).values())


def test_the_fisher_matrix_is_the_curvature_of_the_kl(tmp_path: Path) -> None:
    """KL(π_θ ‖ π_{θ+εv}) ≈ ½ ε² vᵀFv, on distributions nothing was removed from."""
    b = small(tmp_path, "policy-gradient", 5, {"samples": 4})
    batch = b.batch()
    policy, start = b.run.models.policy, b.learner.parameters()
    vector = torch.randn(len(start), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def logp() -> Tensor:
        with torch.no_grad():
            return policy.head(policy.features(batch.rollout)).log_softmax(1)

    old, eps = logp(), 1e-4
    curvature = float(vector @ fisher_product(b.run, b.learner, batch, vector))
    kls = []
    for sign in (1, -1):  # the third order cancels
        b.learner.assign(start + sign * eps * vector)
        kls.append(float((old.exp() * (old - logp())).sum(1).mean()))
    assert sum(kls) / eps**2 == pytest.approx(curvature, rel=1e-5)


# -- the KL ----------------------------------------------------------------------------------------------------


def log_distribution(b: Bench, batch: Batch) -> Tensor:
    """[M,V] at the chosen steps, under the distribution sampled from, row by row."""
    policy, rollout, rows = b.run.models.policy, batch.rollout, []
    with torch.no_grad():
        logits_MV = policy.head(policy.features(rollout))
    for m, (i, t) in enumerate(zip(*(x.tolist() for x in rollout.chosen), strict=True)):
        how = rollout.settings[int(rollout.setting_N[i])]
        kept = torch.ones(logits_MV.shape[1], dtype=torch.bool)
        if rollout.allowed is not None:
            kept = rollout.allowed.mask(torch.tensor([i]), torch.tensor([t]))[0]
        if t < how.min_new_tokens:
            kept[list(policy.ends)] = False
        rows.append((logits_MV[m] / how.temperature).masked_fill(~kept, -math.inf).log_softmax(0))
    return torch.stack(rows)


@pytest.mark.parametrize("hidden", [None, 3])
@pytest.mark.parametrize("generation", SAMPLED)
def test_the_kl_is_that_of_the_dense_distributions(
    generation: dict[str, Any], hidden: int | None, tmp_path: Path
) -> None:
    b = small(tmp_path, "policy-and-value", hidden, generation)
    batch = b.batch()
    start, then_MV = b.learner.parameters(), log_distribution(b, batch)
    assert policy_kl(b.run, b.learner, batch, start) == 0
    noise = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b.learner.assign(start + 0.3 * noise)
    moved, now_MV = b.learner.parameters(), log_distribution(b, batch)
    kept_MV = then_MV > -math.inf
    assert bool(kept_MV.all()) == (len(generation) == 1)
    kl_MV = torch.where(kept_MV, then_MV.exp() * (then_MV - now_MV), 0.0)
    for budget, chunk in ((10**9, 10**9), (9, 4), (1, 1)):
        b.engine.budget, b.engine.head_chunk = budget, chunk
        assert policy_kl(b.run, b.learner, batch, start) == pytest.approx(
            float(kl_MV.sum(1).mean()), rel=1e-12
        )
    assert float(kl_MV.sum(1).mean()) > 1e-3
    assert torch.equal(b.learner.parameters(), moved)
