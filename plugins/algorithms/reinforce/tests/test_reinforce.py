"""REINFORCE and RLOO: by hand, against golden numbers through a real phase, and the conformance kit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlalign import Batch, ComponentError, ConfigError
from rlalign.testing import Bench, ComponentTests, session
from rlalign.testing.golden import GIVEN, golden, golden_gradient
from rlalign_plugin_reinforce import leave_one_out, mean_baseline

CASES = {c["id"]: c for c in json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]}
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES = [("A", 10**9, 10**9), ("A", 4, 2), ("B", 10**9, 2), ("T", 2, 3), (None, 1, 1)]


class TestRLOO(ComponentTests):
    component = "rloo"


class TestReinforce(ComponentTests):
    component = "reinforce"


class TestGRPO(ComponentTests):
    component = "grpo"


class TestDrGRPO(ComponentTests):
    component = "dr-grpo"


class TestDAPO(ComponentTests):
    component = "dapo"


class TestGSPO(ComponentTests):
    component = "gspo"


class TestCISPO(ComponentTests):
    component = "cispo"


class TestReinforcePP(ComponentTests):
    component = "reinforce-pp"


class TestReinforcePPBaseline(ComponentTests):
    component = "reinforce-pp-baseline"


class TestImportance(ComponentTests):
    component = "grpo"
    options: ClassVar = {"importance": {"cap": 1.5}, "estimator": "k2"}


class TestWholeResponses(ComponentTests):
    component = "rloo"
    options: ClassVar = {"ratio": "sequence", "clip": [0.2, None], "importance": {"level": "sequence"}}


# -- the formula ------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand() -> None:
    reward = torch.tensor([2.0, 1.0, 5.0, 4.0, 0.0], dtype=torch.float64)
    group = torch.tensor([0, 1, 0, 0, 1])
    expected = [2 - (5 + 4) / 2, 1 - 0, 5 - (2 + 4) / 2, 4 - (2 + 5) / 2, 0 - 1]
    assert leave_one_out(reward, group).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_baseline_is_a_mean() -> None:
    assert mean_baseline(0.0, 0) == 0.0
    assert mean_baseline(6.0, 4) == 1.5


@given(st.lists(st.lists(st.floats(-100, 100), min_size=2, max_size=5), min_size=1, max_size=4), st.randoms())
def test_leave_one_out_does_not_know_order_or_level(groups: list[list[float]], random: Any) -> None:
    rows = [(g, r) for g, rewards in enumerate(groups) for r in rewards]
    random.shuffle(rows)
    group_N = torch.tensor([g for g, _ in rows])
    reward_N = torch.tensor([r for _, r in rows], dtype=torch.float64)
    found = leave_one_out(reward_N, group_N)
    for g, rewards in enumerate(groups):
        mine = found[group_N == g]
        assert float(mine.sum()) == pytest.approx(0, abs=1e-9)
        k, mean = len(rewards), sum(rewards) / len(rewards)
        theirs = [k / (k - 1) * (r - mean) for r in reward_N[group_N == g].tolist()]
        assert mine.tolist() == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    shifted = leave_one_out(reward_N + 7.0 * group_N, group_N)
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-9)
    assert float(leave_one_out(group_N.double(), group_N).abs().max()) == 0


# -- golden numbers ----------------------------------------------------------------------------------------


def by_place(bench: Bench, batch: Batch, x_N: torch.Tensor) -> list[list[float]]:
    """[N] as [prompt][response]: the draw shuffles prompts."""
    rollout = batch.rollout
    found: dict[int, dict[int, float]] = {}
    for i, value in enumerate(x_N.tolist()):
        prompt = int(rollout.examples[int(rollout.group_N[i])].id)
        found.setdefault(prompt, {})[int(rollout.columns["slot"][i])] = value
    return [[row[j] for j in sorted(row)] for _, row in sorted(found.items())]


def close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, **NEAR)


def single(table: list[list[float]]) -> list[list[list[float]]]:
    """[prompt][response] as responses of one step."""
    return [[[x] for x in row] for row in table]


def split(table: list[list[float]], share: float) -> list[list[list[float]]]:
    """The same log-probs of responses of two steps."""
    return [[[x * share, x * (1 - share)] for x in row] for row in table]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("route, budget, chunk", ROUTES)
def test_rloo_k4_kl_in_reward(route: Any, budget: int, chunk: int, steps: int, tmp_path: Path) -> None:
    case = CASES["rloo_k4_kl_in_reward"]
    inputs, expected = case["inputs"], case["expected"]
    logp, ref = inputs["logp"], inputs["ref_logp"]
    cut = [single(logp), single(ref)] if steps == 1 else [split(logp, 0.3), split(ref, 0.6)]
    say = {**golden(*cut, inputs["reward"]), "algorithm": "rloo"}
    say["rewards"] = ["logged", {"kl": {"coef": case["hyperparameters"]["beta"]}}]
    bench = Bench(tmp_path, say, GIVEN)
    batch = bench.batch()
    shaped = batch.reward.total_N
    close(by_place(bench, batch, shaped), expected["shaped_rewards"])
    advantage_N = batch.advantage_NT[:, 0]
    close(by_place(bench, batch, advantage_N), expected["advantages"])
    close(by_place(bench, batch, shaped - advantage_N), expected["baselines"])
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    spread = [[[g] * steps for g in row] for row in expected["grad"]["logp"]]
    by_logit = golden_gradient(bench.run.models.policy, spread)  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)


def test_rloo_hand_example(tmp_path: Path) -> None:
    case = CASES["rloo_hand_example"]
    say = {**golden([[[-1.5]] * 4], scores=case["inputs"]["reward"]), "algorithm": "rloo"}
    bench = Bench(tmp_path, say, GIVEN)
    batch = bench.batch()
    close(by_place(bench, batch, batch.advantage_NT[:, 0]), case["expected"]["advantages"])


@pytest.mark.parametrize("route, budget, chunk", ROUTES)
def test_reinforce_moving_average_baseline(route: Any, budget: int, chunk: int, tmp_path: Path) -> None:
    """The history is a state taken back, as on resume; the phase's own iteration then moves the baseline."""
    case = CASES["reinforce_moving_average_baseline"]
    inputs, expected = case["inputs"], case["expected"]
    logp, ref, reward = ([[x] for x in inputs[k]] for k in ("logp", "ref_logp", "reward"))
    say = {**golden(single(logp), single(ref), reward), "algorithm": "reinforce"}
    say["rewards"] = ["logged", {"kl": {"coef": case["hyperparameters"]["beta"]}}]
    history = {"count": inputs["history_count"], "total": inputs["history_sum"]}

    bench = Bench(tmp_path, say, GIVEN)
    (component,) = [c for c in bench.phase.plan.components if c.name == "reinforce"]
    component.load_state_dict(history)
    batch = bench.batch()
    close(by_place(bench, batch, batch.reward.total_N), [[x] for x in expected["shaped_rewards"]])
    baseline = batch.reward.total_N - batch.advantage_NT[:, 0]
    assert baseline.tolist() == pytest.approx([expected["baseline_used"]] * 3, **NEAR)
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    by_logit = golden_gradient(bench.run.models.policy, [[g] for g in expected["grad"]["logp"]])  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)


def test_the_moving_average_after_an_iteration(tmp_path: Path) -> None:
    case = CASES["reinforce_moving_average_baseline"]
    inputs, expected = case["inputs"], case["expected"]
    logp, ref, reward = ([[x] for x in inputs[k]] for k in ("logp", "ref_logp", "reward"))
    say = {**golden(single(logp), single(ref), reward), "algorithm": "reinforce"}
    say["rewards"] = ["logged", {"kl": {"coef": case["hyperparameters"]["beta"]}}]
    bench = Bench(tmp_path, say, GIVEN)
    (component,) = [c for c in bench.phase.plan.components if c.name == "reinforce"]
    component.load_state_dict({"count": inputs["history_count"], "total": inputs["history_sum"]})
    metrics = bench.iterate()
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    state = component.state_dict()
    assert state["total"] / state["count"] == pytest.approx(expected["baseline_after_update"], **NEAR)


# -- in a pipeline -----------------------------------------------------------------------------------------


def say(algorithm: Any, **more: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum"],
        "algorithm": algorithm,
        "generation": {"samples": 4, "max_new_tokens": 3, "min_new_tokens": 3},
        "train": {"iterations": 60, "prompts": 6, "dtype": "float64", "lr": 0.1},
        **more,
    }


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce"])
def test_it_learns(algorithm: str, tmp_path: Path) -> None:
    started = session(tmp_path, say(algorithm), {})
    started.run()
    rows: list[Mapping[str, float]] = [
        json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()
    ]
    rewards = [m["reward/token-sum"] for m in rows]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5


def test_reinforce_has_no_baseline_before_it_has_seen_anything(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say("reinforce"))
    batch = bench.batch()
    assert torch.equal(batch.advantage_NT[:, 0], batch.reward.total_N)


def test_rloo_wants_siblings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`rloo` needs at least 2 responses"):
        Bench(tmp_path, say("rloo", generation={"samples": 1}))
    bench = Bench(tmp_path, say("rloo", responses="logged"))  # a log may hold groups of one
    with pytest.raises(ComponentError, match="has one response only"):
        bench.batch()


def test_constant_rewards_teach_rloo_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say("rloo", rewards=["length"]))  # all have three tokens
    assert float(bench.batch().advantage_NT.abs().max()) == 0
