"""F·v and the KL on language models, against graphs of second order and dense distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlalign import Batch
from rlalign.testing import Bench
from rlalign_plugin_trpo import fisher_product, policy_kl

FAMILIES = ("gpt2", "llama", "t5", "bart")


def opened(
    folder: Path,
    model: Path,
    policy: Mapping[str, Any] = {},
    train: Mapping[str, Any] = {"dtype": "float64"},
    **generation: Any,
) -> Bench:
    """A phase of `trpo` on a language model, in its update."""
    kind = "seq2seq-lm" if model.name in ("t5", "bart") else "causal-lm"
    bench = Bench(
        folder,
        {
            "task": "numbers",
            "policy": {kind: {"path": str(model), **policy}},
            "rewards": ["length"],
            "algorithm": "trpo",
            "models": {"value": {"value-head": {"trunk": "own"}}},
            "generation": {"samples": 2, "max_new_tokens": 4, **generation},
            "train": {"iterations": 1, "prompts": 3, **train},
        },
    )
    return bench


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes norms and softmax in float32 whatever the weights are: not here, to compare digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)


def log_distribution(bench: Bench, batch: Batch) -> Tensor:
    """[M,V] log-probs at the chosen steps, with a graph: temperature, bans and truncation by hand."""
    policy, rollout = bench.run.models.policy, batch.rollout
    logits_MV = policy.head(policy.features(rollout))
    rows = []
    for m, (i, t) in enumerate(zip(*(x.tolist() for x in rollout.chosen), strict=True)):
        how = rollout.settings[int(rollout.setting_N[i])]
        gone = torch.zeros(logits_MV.shape[1], dtype=torch.bool)
        if rollout.allowed is not None:
            gone = ~rollout.allowed.mask(torch.tensor([i]), torch.tensor([t]))[0]
        if t < how.min_new_tokens:
            gone[list(policy.ends)] = True
        rows.append((logits_MV[m] / how.temperature).masked_fill(gone, -math.inf).log_softmax(0))
    return torch.stack(rows)


def mean_kl(old_MV: Tensor, new_MV: Tensor) -> Tensor:
    here = old_MV > -math.inf
    return (old_MV.exp()[here] * (old_MV[here] - new_MV[here])).sum() / len(old_MV)


def hessian_product(bench: Bench, batch: Batch, vector: Tensor) -> Tensor:
    """∇(∇KL(θ‖·)·v) at θ: two passes backward through the whole graph."""
    parameters = list(bench.phase.learner.optimiser.parameters.values())  # type: ignore[union-attr]
    with sdpa_kernel(SDPBackend.MATH):
        new_MV = log_distribution(bench, batch)
        first = _flat(
            torch.autograd.grad(
                mean_kl(new_MV.detach(), new_MV), parameters, create_graph=True, allow_unused=True
            ),
            parameters,
        )
        return _flat(torch.autograd.grad(first @ vector, parameters, allow_unused=True), parameters)


def direction(bench: Bench, batch: Batch) -> Tensor:
    """A random vector of those conjugate gradient meets: zero where no gradient goes.

    (torch gives the embedding of the padding token none, though it lets it move.)
    """
    gradient = bench.learner.gradient(batch)
    noise = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * (gradient != 0)


def _flat(grads: Any, parameters: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for g, p in zip(grads, parameters, strict=True)
        ]
    )


CASES = [
    *((family, policy) for family in FAMILIES for policy in ({}, {"attention": "eager"})),
    *((family, {"lora": {"r": 2}}) for family in ("gpt2", "t5")),
]


def test_of_weights_in_half_precision_the_kl_to_themselves_is_none(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """The vector is of float32 masters, which the policy's weights are rounded from."""
    bench = opened(tmp_path, folders["gpt2"], train={"dtype": "bfloat16", "weights": "bfloat16"})
    batch, start = bench.batch(), bench.learner.parameters()
    bench.learner.assign(start * 1.1)
    assert policy_kl(bench.run, bench.learner, batch, bench.learner.parameters()) == 0
    assert policy_kl(bench.run, bench.learner, batch, start) > 0


@pytest.mark.parametrize("family, policy", CASES)
def test_the_fisher_product_is_the_curvature_of_the_kl(
    family: str,
    policy: Mapping[str, Any],
    folders: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = opened(tmp_path, folders[family], policy, temperature=0.7, min_new_tokens=2)
    in_float64(monkeypatch)
    if "lora" in policy:  # the second factors are zero at first, and so is what the first ones do
        start = bench.learner.parameters()
        bench.learner.assign(
            start + 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(1))
        )
    batch, start = bench.batch(), bench.learner.parameters()
    vector = direction(bench, batch)
    expected = hessian_product(bench, batch, vector)
    bench.engine.head_chunk = 5
    for budget in (10**9, 30):
        bench.engine.budget = budget
        found = fisher_product(bench.run, bench.learner, batch, vector)
        off = float((found - expected).norm() / expected.norm())
        print(f"{family} {policy} budget {budget}: off by {off:.1e}")
        assert off < 1e-10
    assert float(expected.norm()) > 1e-3
    assert torch.equal(bench.learner.parameters(), start)


@pytest.mark.parametrize(
    "family, policy", [*((family, {}) for family in FAMILIES), ("gpt2", {"lora": {"r": 2}})]
)
def test_the_kl_is_that_of_the_dense_distributions(
    family: str,
    policy: Mapping[str, Any],
    folders: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = opened(tmp_path, folders[family], policy, temperature=1.3, min_new_tokens=2, top_p=0.9)
    in_float64(monkeypatch)
    batch, start = bench.batch(), bench.learner.parameters()
    noise = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        then_MV = log_distribution(bench, batch)
        bench.learner.assign(start + 0.05 * noise)
        now_MV = log_distribution(bench, batch)
    expected = float(mean_kl(then_MV, now_MV))
    bench.engine.head_chunk = 5
    for budget in (10**9, 30):
        bench.engine.budget = budget
        assert policy_kl(bench.run, bench.learner, batch, start) == pytest.approx(expected, rel=1e-10)
    assert expected > 1e-3
    assert abs(policy_kl(bench.run, bench.learner, batch, bench.learner.parameters())) < 1e-12
