"""KTO: its baseline comes from responses beside other prompts, a rollout in a column scored once a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign.learning.batching import micro_batches
from rlalign.testing import Bench
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, metrics
from .methods import METHODS


class KTO(Component):
    """Mean of 1 − σ(±β(ρ − z)), z the mean ρ of mismatched pairs of prompt and response, not below 0."""

    class Config(Options):
        """Options of `kto`."""

        beta: float = Field(0.5, description="β")

    config: Config
    needs = ("full_logprobs", "reference.full_logprobs")
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    regularises = True

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        others = replace(rollout, group_N=(rollout.group_N + 1) % len(rollout.examples))
        return Batch.of(rollout, reward, reward.total_N, mismatched=others)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        baseline = self._baseline(run, batch.step)
        reference_NT = batch.rollout.columns["reference.full_logprobs"]
        rho_N = batch.sum_over_chosen(now.full_logprobs_NT - reference_NT)
        sign_N = torch.where(batch.reward.total_N > 0, 1.0, -1.0)
        loss_N = 1 - torch.sigmoid(sign_N * self.config.beta * (rho_N - baseline))
        return Loss(
            batch.mean_over_responses(loss_N),
            {"baseline": batch.mean_over_responses(baseline.expand(len(batch)))},
        )

    def _baseline(self, run: Run, step: Batch) -> Tensor:
        others = step.columns["mismatched"]
        now, reference = (
            run.score(model, others, ["full_logprobs"]).full_logprobs_NT for model in ("policy", "reference")
        )
        return torch.where(others.mask_NT, now - reference, 0.0).sum(1).mean().clamp_min(0)


PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 16, "prompts": 16, "logged": [4], "longest": 4, "vocabulary": 5}},
    "policy": {"logits": {"prompts": 16, "responses": 1, "steps": 5, "vocabulary": 6, "hidden": 8}},
    "algorithm": "kto",
    "train": {"iterations": 10, "prompts": 16, "lr": 0.02, "dtype": "float64"},
}


def test_micro_batches_change_nothing(tmp_path: Path, calls: Counter[str]) -> None:
    bench = Bench(tmp_path, PIPELINE, {**METHODS, "kto": KTO})
    with torch.no_grad():
        bench.engine.models["policy"].free.mul_(0.7)
        bench.engine.models["policy"].version += 1
    batch = bench.batch()
    mine, others = batch.rollout, batch.columns["mismatched"]
    assert len(batch) == 64
    assert torch.equal(mine.actions_NT, others.actions_NT)
    assert bool((mine.group_N != others.group_N).all())

    longest = int(batch.rollout.cost_N.max())
    found = []
    for rows in (64, 4):
        cut = micro_batches(batch.rollout, rows * longest)
        assert len(cut) == 64 // rows or (rows == 4 and len(cut) >= 12)
        calls.clear()
        again = replace(batch, columns={"mismatched": replace(others)})  # nothing remembered
        found.append(bench.gradient(again, budget=rows * longest))
        assert calls == {"policy.full_logprobs": 1, "reference.full_logprobs": 1}
    (metrics_64, whole), (metrics_4, pieces) = found
    assert metrics_64["kto/baseline"] > 0.01
    assert metrics_4 == pytest.approx(metrics_64, rel=1e-12)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=0, atol=1e-14)


def test_it_learns_and_the_baseline_is_scored_once_a_step(runs: Runs, calls: Counter[str]) -> None:
    pipeline = {**PIPELINE, "train": {**PIPELINE["train"], "minibatches": 2, "budget": 40}}
    lines = metrics(runs(pipeline, kto=KTO))
    assert lines[0]["kto/loss"] == pytest.approx(0.5, abs=0.02)
    assert lines[-1]["kto/loss"] < 0.4
    assert calls["policy.full_logprobs"] == 20  # 10 iterations of 2 steps
    assert "sample" not in calls


def test_beside_another_source_it_is_still_scored_once(runs: Runs, calls: Counter[str]) -> None:
    """What an item with a `source` sees as its step is one step, however many pieces there are."""
    pipeline = {
        **PIPELINE,
        "responses": {"mix": {"logged": 3, "sampled": 1}},
        "rewards": ["token-sum"],
        "algorithm": [{"kto": {}, "source": "logged"}],
        "generation": {"max_new_tokens": 4},
        "train": {**PIPELINE["train"], "iterations": 3, "budget": 40},
    }
    runs(pipeline, kto=KTO)
    assert calls["policy.full_logprobs"] == 3


class TestKTO(ComponentTests):
    component = KTO
    pipeline = {"responses": "logged", "rewards": ["token-sum"]}
