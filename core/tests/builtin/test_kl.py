"""`kl`: a penalty at every step, between full distributions at the temperature sampled at; its two controllers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlalign.builtin.kl import KL, rl4lms_coefficient, ziegler_coefficient
from rlalign.data.statistics import kl_estimates
from rlalign.errors import ConfigError
from rlalign.testing import Bench, ComponentTests, PolicyGradient, run, session

PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {}},
    "rewards": [{"kl": {"coef": 0.25}}],
    "algorithm": "once",
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 3, "lr": 0.3, "dtype": "float64"},
}
EXTRA = {"once": PolicyGradient}


# -- values -----------------------------------------------------------------------------------------


def test_estimators_by_hand() -> None:
    found = kl_estimates(torch.tensor([-1.0, -2.0]) - torch.tensor([-1.5, -1.0]))
    assert found["k1"].tolist() == [0.5, -1.0]
    assert found["k2"].tolist() == [0.125, 0.5]
    assert found["k3"].tolist() == pytest.approx([0.6065307 - 1 + 0.5, 2.7182818 - 1 - 1.0], abs=1e-6)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.data())
def test_estimators_are_right_on_average(p: list[float], data: st.DataObject) -> None:
    """Under π, k1 and k3 average to KL(π‖π_ref); k2 and k3 are never negative."""
    q = data.draw(st.lists(st.floats(0.01, 1), min_size=len(p), max_size=len(p)))
    p_V, q_V = (torch.tensor(x, dtype=torch.float64) / sum(x) for x in (p, q))
    found = kl_estimates(p_V.log() - q_V.log())
    exact = float((p_V * (p_V / q_V).log()).sum())
    assert float((p_V * found["k1"]).sum()) == pytest.approx(exact, abs=1e-9)
    assert float((p_V * found["k3"]).sum()) == pytest.approx(exact, abs=1e-9)
    assert bool((found["k2"] >= 0).all()) and bool((found["k3"] >= -1e-12).all())


def test_penalty_is_paid_at_every_step_between_full_distributions_at_one_temperature(tmp_path: Path) -> None:
    generation = {"samples": 4, "max_new_tokens": 7, "temperature": 0.5, "top_k": 3, "min_new_tokens": 2}
    bench = Bench(tmp_path, {**PIPELINE, "generation": generation}, EXTRA)
    with torch.no_grad():
        for p in bench.run.models.policy.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    rollout, reward = bench.rollout()
    row_M, step_M = rollout.chosen
    action_M = rollout.actions_NT[row_M, step_M]

    def logprobs(name: str) -> torch.Tensor:
        policy: Any = bench.run.models[name]
        logits = policy.head(policy.features(rollout)).detach() / 0.5  # nothing banned, nothing truncated
        return logits.log_softmax(1)[torch.arange(len(action_M)), action_M]

    expected = -0.25 * (logprobs("policy") - logprobs("reference"))
    assert reward.parts["kl"].shape == rollout.mask_NT.shape
    torch.testing.assert_close(reward.tokens_NT[row_M, step_M], expected)
    assert float(reward.tokens_NT[~rollout.mask_NT].abs().sum()) == 0.0
    sampled = rollout.logprobs_NT[row_M, step_M]
    assert not torch.allclose(sampled, logprobs("policy"))  # what was sampled from is narrower


def test_penalty_is_nothing_before_anything_is_learned(tmp_path: Path) -> None:
    _, done = run(tmp_path, PIPELINE, EXTRA)
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["reward/kl"] == pytest.approx(0.0, abs=1e-12)
    for row in rows:
        tokens_each = row["tokens"] / row["responses"]
        assert row["reward/kl"] == pytest.approx(-0.25 * row["kl/k1"] * tokens_each)
        assert row["kl/per_response"] == pytest.approx(row["kl/k1"] * tokens_each)
        assert row["kl/coef"] == 0.25


# -- controllers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kl, factor",
    [(0.5, 1.0), (0.55, 1.01), (0.6, 1.02), (9.0, 1.02), (0.45, 0.99), (0.0, 0.98), (-3.0, 0.98)],
)
def test_rl4lms_controller(kl: float, factor: float) -> None:
    assert rl4lms_coefficient(0.2, kl, 0.5) == pytest.approx(0.2 * factor)


@pytest.mark.parametrize(
    "kl, share", [(6.0, 0.0), (6.6, 0.1), (7.2, 0.2), (99.0, 0.2), (5.4, -0.1), (0.0, -0.2)]
)
def test_ziegler_controller(kl: float, share: float) -> None:
    assert ziegler_coefficient(0.2, kl, 6.0, 512, 10000) == pytest.approx(0.2 * (1 + share * 512 / 10000))


@pytest.mark.parametrize("controller", ["rl4lms", "ziegler"])
def test_controllers_move_the_coefficient_once_an_iteration(controller: str, tmp_path: Path) -> None:
    options = {"coef": 0.3, "target": 0.01, "controller": controller, "horizon": 100}
    rewards = ["token-sum", {"kl": options, "as": "leash", "weight": 2.0}]
    _, done = run(tmp_path, {**PIPELINE, "rewards": rewards}, EXTRA)
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    coef = 0.3
    for row in rows:
        assert row["leash/coef"] == pytest.approx(coef)
        if controller == "rl4lms":
            coef = rl4lms_coefficient(coef, row["leash/k1"], 0.01)
        else:
            coef = ziegler_coefficient(coef, row["leash/per_response"], 0.01, 12, 100)
    (leash,) = [c for c in done.builder.built.values() if isinstance(c, KL)]
    assert leash.coef == pytest.approx(coef) != 0.3
    again = KL(leash.config)
    again.load_state_dict(json.loads(json.dumps(leash.state_dict())))
    assert again.coef == leash.coef


@pytest.mark.parametrize("controller", ["rl4lms", "ziegler"])
def test_a_coefficient_on_target_stands_still(controller: Any, tmp_path: Path) -> None:
    """`rl4lms` looks at a mean over tokens, `ziegler` at one over responses: at that the other would move."""
    bench = Bench(tmp_path, PIPELINE, EXTRA)
    with torch.no_grad():
        for p in bench.run.models.policy.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    rollout, reward = bench.rollout()
    kl_NT = torch.where(rollout.mask_NT, reward.metrics["kl/k1"], 0.0)
    spoiled_NT = rollout.columns["policy.full_logprobs"] + torch.where(rollout.mask_NT, 0.0, 7.0)
    score = KL(KL.Config()).reward(rollout.with_columns(**{"policy.full_logprobs": spoiled_NT}))
    torch.testing.assert_close(score.metrics["per_response"], kl_NT.sum(1), rtol=1e-12, atol=0)
    seen = float(kl_NT.sum() / (rollout.mask_NT.sum() if controller == "rl4lms" else len(rollout)))
    for target, direction in ((seen, 0), (seen / 1.1, 1), (seen / 0.9, -1)):
        leash = KL(KL.Config(coef=0.3, target=target, controller=controller))
        leash.name = "kl"
        leash.iteration_done(rollout, reward)
        assert (leash.coef > 0.3 * (1 + 1e-9)) - (leash.coef < 0.3 * (1 - 1e-9)) == direction


# -- beside other penalties -------------------------------------------------------------------------


class Regularised(PolicyGradient):
    regularises = True


def test_a_second_penalty_is_refused_unless_asked_for(tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "algorithm": "regularised"}
    with pytest.raises(ConfigError, match=r"`kl` .* and `regularised` .* each penalise the KL"):
        session(tmp_path, pipeline, {"regularised": Regularised})
    run(tmp_path, {**pipeline, "rewards": [{"kl": {"together": True}}]}, {"regularised": Regularised})


class TestKL(ComponentTests):
    component = "kl"
    options = {"target": 0.1}
