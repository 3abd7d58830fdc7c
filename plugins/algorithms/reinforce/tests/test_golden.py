"""Published formulas as numbers, through component, engine and policy, however the step is cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.testing import Bench
from rlalign.testing.golden import GIVEN, golden

from .conftest import CASES, NEAR, by_place, close, cut, in_every_route, move, prepare


def single(table: list[list[float]]) -> list[list[list[float]]]:
    """[prompt][response] as responses of one step."""
    return [[[x] for x in row] for row in table]


def split(table: list[list[float]], share: float) -> list[list[list[float]]]:
    """The same log-probs of responses of two steps."""
    return [[[x * share, x * (1 - share)] for x in row] for row in table]


# -- RLOO and REINFORCE -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_rloo_k4_kl_in_reward(steps: int, tmp_path: Path) -> None:
    case = CASES["rloo_k4_kl_in_reward"]
    inputs, expected = case["inputs"], case["expected"]
    logp, ref = inputs["logp"], inputs["ref_logp"]
    tables = [single(logp), single(ref)] if steps == 1 else [split(logp, 0.3), split(ref, 0.6)]
    say = {**golden(*tables, inputs["reward"]), "algorithm": "rloo"}
    say["rewards"] = ["logged", {"kl": {"coef": case["hyperparameters"]["beta"]}}]
    bench = Bench(tmp_path, say, GIVEN)
    batch = bench.batch()
    shaped = batch.reward.total_N
    close(by_place(batch, shaped), expected["shaped_rewards"])
    advantage_N = batch.advantage_NT[:, 0]
    close(by_place(batch, advantage_N), expected["advantages"])
    close(by_place(batch, shaped - advantage_N), expected["baselines"])
    spread = [[[g] * steps for g in row] for row in expected["grad"]["logp"]]
    in_every_route(bench, batch, expected["loss"], spread)


def test_rloo_hand_example(tmp_path: Path) -> None:
    case = CASES["rloo_hand_example"]
    say = {**golden([[[-1.5]] * 4], scores=case["inputs"]["reward"]), "algorithm": "rloo"}
    batch = Bench(tmp_path, say, GIVEN).batch()
    close(by_place(batch, batch.advantage_NT[:, 0]), case["expected"]["advantages"])


HISTORY = CASES["reinforce_moving_average_baseline"]


def with_a_history(folder: Path) -> tuple[Bench, Any]:
    """A phase of `reinforce`, and the component with the state of earlier iterations, as on resume."""
    inputs = HISTORY["inputs"]
    logp, ref, reward = ([[x] for x in inputs[k]] for k in ("logp", "ref_logp", "reward"))
    say = {**golden(single(logp), single(ref), reward), "algorithm": "reinforce"}
    say["rewards"] = ["logged", {"kl": {"coef": HISTORY["hyperparameters"]["beta"]}}]
    bench = Bench(folder, say, GIVEN)
    (component,) = [c for c in bench.phase.plan.components if c.name == "reinforce"]
    component.load_state_dict({"count": inputs["history_count"], "total": inputs["history_sum"]})
    return bench, component


def test_reinforce_moving_average_baseline(tmp_path: Path) -> None:
    expected = HISTORY["expected"]
    bench, _ = with_a_history(tmp_path)
    batch = bench.batch()
    close(by_place(batch, batch.reward.total_N), [[x] for x in expected["shaped_rewards"]])
    baseline = batch.reward.total_N - batch.advantage_NT[:, 0]
    assert baseline.tolist() == pytest.approx([expected["baseline_used"]] * 3, **NEAR)
    in_every_route(bench, batch, expected["loss"], [[g] for g in expected["grad"]["logp"]])


def test_the_moving_average_after_an_iteration(tmp_path: Path) -> None:
    bench, component = with_a_history(tmp_path)
    assert bench.iterate()["loss"] == pytest.approx(HISTORY["expected"]["loss"], **NEAR)
    state = component.state_dict()
    assert state["total"] / state["count"] == pytest.approx(
        HISTORY["expected"]["baseline_after_update"], **NEAR
    )


# -- GRPO and its relatives -------------------------------------------------------------------------------

GROUPS = {
    "grpo_sample_std": {"grpo": {}},
    "grpo_population_std": {"grpo": {"bessel": False}},
    "dr_grpo": {"dr-grpo": {"longest": 6}},
    "dapo": {"dapo": {"bessel": False, "delta": 0.0}},
    "gspo_paper_clip": {"gspo": {}},
    "gspo_wide_clip": {"gspo": {"clip": [0.2, 0.2]}},
}


@pytest.mark.parametrize("name", GROUPS)
def test_group_relative(name: str, tmp_path: Path) -> None:
    case, algorithm = CASES[name], GROUPS[name]
    expected, (member,) = case["expected"], algorithm
    bench, batch = prepare(tmp_path, case, algorithm)
    close(by_place(batch, batch.advantage_NT[:, 0]), [expected["advantages"]])
    by_logprob = cut(expected["grad"]["new_token_logp"], case["inputs"]["mask"])
    metrics = in_every_route(bench, batch, expected["loss"], by_logprob)
    if "clipped" in expected:  # a ratio that left the bounds, and whose surrogate gains by it
        acts = [
            c and (r > 1) == (a > 0)
            for c, r, a in zip(
                expected["clipped"], expected["sequence_ratio"], expected["advantages"], strict=True
            )
        ]
        assert metrics[f"{member}/clip_fraction"] == pytest.approx(sum(acts) / 3)
    if "k3_per_token" in expected:
        rows = cut(expected["k3_per_token"], case["inputs"]["mask"])[0]
        assert metrics[f"{member}/reference_kl"] == pytest.approx(
            sum(sum(row) / len(row) for row in rows) / 3, **NEAR
        )


def test_the_two_deviations_are_not_the_same(tmp_path: Path) -> None:
    """Neither golden case of GRPO would pass with the other's options."""
    for name, other in (
        ("grpo_sample_std", "grpo_population_std"),
        ("grpo_population_std", "grpo_sample_std"),
    ):
        bench, batch = prepare(tmp_path / name, CASES[name], GROUPS[other])
        metrics, _ = bench.gradient(batch)
        assert abs(metrics["loss"] - CASES[name]["expected"]["loss"]) > 1e-3


# -- REINFORCE++ ------------------------------------------------------------------------------------------


def test_reinforce_pp(tmp_path: Path) -> None:
    case = CASES["reinforce_pp"]
    expected, kl = case["expected"], {"kl": {"coef": case["hyperparameters"]["kl_coef"]}}
    bench, batch = prepare(tmp_path, case, "reinforce-pp", [kl])
    mask_NT = batch.rollout.mask_NT
    tokens_NT = torch.where(mask_NT, batch.reward.tokens_NT, 0.0)
    close(by_place(batch, tokens_NT), [expected["token_rewards"]])
    close(by_place(batch, batch.advantage_NT), [expected["advantages_normalised"]])
    by_logprob = cut(expected["grad"]["new_token_logp"], case["inputs"]["mask"])
    in_every_route(bench, batch, expected["loss"], by_logprob)


def test_reinforce_pp_baseline_is_scaled_by_the_batch_and_not_by_the_group(tmp_path: Path) -> None:
    case = CASES["reinforce_pp_baseline_advantages"]
    rewards = case["inputs"]["reward"]
    found = {}
    for name in ("reinforce-pp-baseline", "grpo"):
        options = {"bessel": False, "delta": 1e-8}
        say = {**golden(single([[-1.0, -2.0]] * 2), scores=rewards), "algorithm": {name: options}}
        if name == "grpo":
            say["algorithm"][name] = {**options, "kl": 0.0}
        batch = Bench(tmp_path / name, say, GIVEN).batch()
        found[name] = by_place(batch, batch.advantage_NT[:, 0])
    close(found["reinforce-pp-baseline"], case["expected"]["advantages"])
    close(found["grpo"], case["expected"]["grpo_population_std_for_contrast"])


# -- what has no published numbers: by hand ---------------------------------------------------------------


def test_cispo_by_hand(tmp_path: Path) -> None:
    """−(1/Σ|o|) Σ sg(min(ρ, cap))·A·log π (MiniMax-M1, equations 4 and 5): no token loses its gradient."""
    inputs = CASES["grpo_sample_std"]["inputs"]
    bench, batch = prepare(tmp_path, CASES["grpo_sample_std"], {"cispo": {"clip": [None, 0.1]}})
    old, new = (cut(inputs[name], inputs["mask"])[0] for name in ("old_token_logp", "new_token_logp"))
    advantages = CASES["grpo_sample_std"]["expected"]["advantages"]
    loss, by_logprob, cut_off = 0.0, [], 0
    for before, now, advantage in zip(old, new, advantages, strict=True):
        weights = [min(math.exp(n - b), 1.1) for b, n in zip(before, now, strict=True)]
        cut_off += weights.count(1.1)
        loss -= sum(w * advantage * n for w, n in zip(weights, now, strict=True)) / 9
        by_logprob.append([-w * advantage / 9 for w in weights])
    metrics = in_every_route(bench, batch, loss, [by_logprob])
    assert metrics["cispo/clip_fraction"] == pytest.approx(cut_off / 9) and 0 < cut_off < 9
    assert all(g != 0 for row in by_logprob for g in row)


def test_rloo_with_a_clipped_ratio_of_whole_responses_by_hand(tmp_path: Path) -> None:
    """−(1/k) Σ min(ρA, clip(ρ)A), ρ the product over tokens; at ρ = 1 the gradient is RLOO's."""
    inputs = CASES["grpo_sample_std"]["inputs"]
    options = {"ratio": "sequence", "clip": [0.2, 0.2]}
    bench, batch = prepare(tmp_path, CASES["grpo_sample_std"], {"rloo": options})
    old, new = (cut(inputs[name], inputs["mask"])[0] for name in ("old_token_logp", "new_token_logp"))
    advantages = [1.0 - 0.125, 0.0 - 0.625, 0.25 - 0.5]
    loss, by_logprob = 0.0, []
    for before, now, advantage in zip(old, new, advantages, strict=True):
        ratio = math.exp(sum(now) - sum(before))
        free, held = ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage
        loss -= min(free, held) / 3
        by_logprob.append([-free / 3 if free <= held else 0.0] * len(now))
    assert any(row[0] == 0 for row in by_logprob) and any(row[0] != 0 for row in by_logprob)
    in_every_route(bench, batch, loss, [by_logprob])
    move(bench, [old])
    plain = [[-a / 3] * len(row) for a, row in zip(advantages, old, strict=True)]
    in_every_route(bench, batch, -sum(advantages) / 3, [plain])
