"""PPO with a shared trunk: nothing of it needs a word in the core."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Batch, Loss, Outputs, Run, hookimpl
from rlalign.builtin.kl import rl4lms_coefficient
from rlalign.testing import Bench, FreeValue
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, component, metrics
from .methods import METHODS, PPO

PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 12, "prompts": 3}},
    "policy": {
        "logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6, "hidden": 8, "scale": 0.3}
    },
    "rewards": ["token-sum", {"kl": {"coef": 0.05, "target": 0.02}}],
    "algorithm": {"ppo": {"entropy": 0.01}},
    "models": {"value": {"linear-value": {"trunk": "policy"}}},
    "generation": {"samples": 4, "max_new_tokens": 4, "temperature": 0.9},
    "train": {"iterations": 25, "prompts": 12, "epochs": 3, "minibatches": 2, "lr": 0.03, "dtype": "float64"},
}


class Watched(PPO):
    """Remembers the largest |log ratio| of every optimiser step."""

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        seen = self.__dict__.setdefault("seen", {})
        x_NT = torch.where(batch.rollout.mask_NT, now.logprobs_NT - batch.old_logprobs_NT, 0.0)
        key = (run.iteration, run.step)
        seen[key] = max(seen.get(key, 0.0), float(x_NT.detach().abs().max()))
        return super().loss(batch, now)


def test_it_learns_with_one_trunk(runs: Runs, calls: Counter[str]) -> None:
    session = runs(PIPELINE, ppo=Watched)
    lines = metrics(session)
    assert lines[0]["reward/token-sum"] < 0.9
    assert lines[-1]["reward/token-sum"] > 1.4, [round(x["reward/token-sum"], 2) for x in lines]
    assert lines[-1]["ppo/value"] < lines[0]["ppo/value"] / 2

    # What the sampler said is not computed again, neither for the KL nor for the ratio.
    assert not [name for name in calls if name.startswith("policy.")], calls
    assert calls["reference.full_logprobs"] == calls["value.state_values"] == calls["sample"] == 25

    # The ratio is 1 at the first optimiser step of every iteration, and not after it.
    seen = component(session, "ppo").seen
    firsts = {i: min(step for j, step in seen if j == i) for i, _ in seen}
    assert max(seen[item] for item in firsts.items()) < 1e-14
    assert min(x for (i, step), x in seen.items() if step != firsts[i]) > 1e-6

    # The KL's coefficient follows its controller, iteration by iteration.
    coefficient = 0.05
    for line in lines:
        assert line["kl/coef"] == pytest.approx(coefficient, rel=1e-12)
        coefficient = rl4lms_coefficient(coefficient, line["kl/k1"], 0.02)
    assert coefficient != 0.05


def test_the_score_is_paid_on_the_last_step_and_the_kl_on_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PIPELINE, METHODS)
    with torch.no_grad():
        bench.engine.models["policy"].free.mul_(1.5)  # away from the reference
    rollout, reward = bench.rollout()
    rows_N = torch.arange(len(rollout))
    last_N = rollout.length_N - 1
    assert len(last_N.unique()) > 1, "responses of one length would test nothing"
    assert rollout.columns["value.state_values"].shape == (48, rollout.steps + 1)
    without = reward.tokens_NT - torch.where(rollout.mask_NT, reward.parts["kl"], 0.0)
    torch.testing.assert_close(without[rows_N, last_N], reward.parts["token-sum"])
    without[rows_N, last_N] = 0.0
    assert without.abs().max() < 1e-15
    assert reward.parts["kl"][rollout.mask_NT].abs().min() > 0


def test_the_update_ends_at_too_large_a_step(runs: Runs) -> None:
    algorithm = {"ppo": {"target_kl": 1e-4}}
    session = runs({**PIPELINE, "algorithm": algorithm, "train": {**PIPELINE["train"], "iterations": 2}})
    for line in metrics(session):
        assert line["dropped_steps"] == 1
        assert line["optimiser_steps"] == 1  # at ratio 1; the next one was dropped
    assert session.step == 2


def test_a_value_of_its_own_needs_no_other_component(runs: Runs) -> None:
    session = runs({**PIPELINE, "models": None, "train": {**PIPELINE["train"], "iterations": 2}})
    assert isinstance(session.models["value"], FreeValue)


class TestPPO(ComponentTests):
    component = Watched
    options = {"entropy": 0.01}
    pipeline = {
        **{k: PIPELINE[k] for k in ("models", "rewards")},
        "algorithm": {"under-test": {"entropy": 0.01}},
    }
