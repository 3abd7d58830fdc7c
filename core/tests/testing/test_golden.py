"""Golden numbers of what the core ships, through component, engine and policy of a real phase, to 1e-9."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Batch, Component, Loss, Outputs, hookimpl
from rlalign.data.statistics import kl_estimates
from rlalign.testing import Bench, PolicyGradient, session
from rlalign.testing.golden import GIVEN, golden, golden_gradient

CASES = {c["id"]: c for c in json.loads((Path(__file__).parent / "golden/losses.json").read_text())["cases"]}
NEAR = {"rel": 0, "abs": 1e-9}


class Estimated(Component):
    """The three estimators of the KL as losses, summed over the responses."""

    needs = ("full_logprobs", "reference.full_logprobs")
    trains = ("policy",)
    models = {"reference": "frozen"}
    unit = "response"
    which = "k1"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        x = kl_estimates(now.full_logprobs_NT - batch.rollout.columns["reference.full_logprobs"])
        total = batch.mean_over_responses(batch.sum_over_chosen(x[self.which])) * len(batch.step)
        return Loss(total)


class Second(Estimated):
    which = "k2"


class Third(Estimated):
    which = "k3"


COMPONENTS = {**GIVEN, "gradient": PolicyGradient, "k1": Estimated, "k2": Second, "k3": Third}


def iterations(folder: Path, say: Mapping[str, Any]) -> list[dict[str, float]]:
    started = session(folder, say, COMPONENTS)
    started.run()
    lines = (started.dir.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_policy_has_the_log_probs_it_is_given(tmp_path: Path) -> None:
    logp = [[[-5.0, -0.1], [-0.25]], [[-1e-9], [-33.0, -2.0]]]
    bench = Bench(tmp_path, {**golden(logp, scores=[[0, 0], [0, 0]]), "algorithm": "gradient"}, COMPONENTS)
    rollout = bench.batch().rollout
    found = bench.engine.score("policy", rollout, ["logprobs", "full_logprobs"])
    for i in range(4):
        g, slot = int(rollout.examples[int(rollout.group_N[i])].id), int(rollout.columns["slot"][i])
        for x_NT in (found.logprobs_NT, found.full_logprobs_NT):
            assert x_NT[i][rollout.mask_NT[i]].tolist() == pytest.approx(logp[g][slot], rel=0, abs=1e-14)


def test_kl_estimators(tmp_path: Path) -> None:
    """One response an iteration, so that each metric is the value of one."""
    case = CASES["kl_estimators"]
    ratios = case["inputs"]["log_ratio"]
    logp = [-2.0, -3.0, -0.5, -1.25]
    numbers = [[[x]] for x in logp]
    reference = [[[x - r]] for x, r in zip(logp, ratios, strict=True)]
    say = golden(numbers, reference, [[0.0]] * 4, prompts=1, iterations=4)
    say |= {"algorithm": "gradient", "rewards": ["logged", {"kl": {"coef": 0.5}}]}
    seen = iterations(tmp_path, say)
    assert len(seen) == 4
    order = sorted(range(4), key=ratios.__getitem__)
    for metrics, i in zip(sorted(seen, key=lambda m: m["kl/k1"]), order, strict=True):
        for name in ("k1", "k2", "k3"):
            assert metrics[f"kl/{name}"] == pytest.approx(case["expected"][name][i], **NEAR)
        assert metrics["kl/per_response"] == pytest.approx(ratios[i], **NEAR)
        assert metrics["reward/kl"] == pytest.approx(-0.5 * ratios[i], **NEAR)
        assert metrics["reward/total"] == pytest.approx(-0.5 * ratios[i], **NEAR)


@pytest.mark.parametrize("route", ["A", "B", "T"])
@pytest.mark.parametrize("which", ["k1", "k2", "k3"])
def test_gradients_of_the_kl_estimators(which: str, route: str, tmp_path: Path) -> None:
    case = CASES["kl_estimators"]
    ratios, logp = case["inputs"]["log_ratio"], [-2.0, -3.0, -0.5, -1.25]
    reference = [[[x - r] for x, r in zip(logp, ratios, strict=True)]]
    say = {**golden([[[x] for x in logp]], reference, [[0.0] * 4]), "algorithm": which}
    bench = Bench(tmp_path, say, COMPONENTS)
    metrics, gradients = bench.gradient(bench.batch(), route=route, budget=4, head_chunk=2)
    assert metrics["loss"] == pytest.approx(sum(case["expected"][which]), **NEAR)
    expected = golden_gradient(bench.run.models.policy, [case["expected"][f"d_{which}"]])  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], expected, rtol=0, atol=1e-9)


def of_kl(kl: float, responses: int, share: int = 1) -> dict[str, Any]:
    """A log of that many responses of one step each, whose KL to the reference is `kl`."""
    logp = [[[-0.5]] * share for _ in range(responses // share)]
    reference = [[[-0.5 - kl]] * share for _ in range(responses // share)]
    return golden(logp, reference, [[0.0] * share for _ in range(responses // share)])


@pytest.mark.parametrize("which", range(4))
def test_adaptive_kl_controller(which: int, tmp_path: Path) -> None:
    """Ziegler's controller: 512 responses of an iteration move the coefficient."""
    case = CASES["adaptive_kl_controller"]
    inputs, hyper = case["inputs"], case["hyperparameters"]
    options = {"coef": inputs["beta"], "controller": "ziegler", **hyper}
    say = {**of_kl(inputs["kl"][which], inputs["n"], share=4), "algorithm": "gradient"}
    say["rewards"] = ["logged", {"kl": options}]
    started = session(tmp_path, say, COMPONENTS)
    started.run()
    (kl,) = [c for c in started.builder.built.values() if c.name == "kl"]
    assert kl.state_dict()["coef"] == pytest.approx(case["expected"]["beta_after"][which], **NEAR)


def test_the_controller_compounds_over_iterations_and_is_logged(tmp_path: Path) -> None:
    say = of_kl(3.0, 8)
    say["train"] |= {"iterations": 3}
    say |= {"algorithm": "gradient"}
    options = {"coef": 0.15, "controller": "ziegler", "target": 6.0, "horizon": 100}
    say["rewards"] = ["logged", {"kl": options}]
    seen = iterations(tmp_path, say)
    step = 1 - 0.2 * 8 / 100
    assert [m["kl/coef"] for m in seen] == pytest.approx([0.15, 0.15 * step, 0.15 * step**2], **NEAR)
    assert [m["reward/kl"] for m in seen] == pytest.approx([-0.45 * step**i for i in range(3)], **NEAR)


def test_rl4lms_controller_steers_the_kl_of_a_token(tmp_path: Path) -> None:
    """β(1 + 0.1·clip((KL − target)/target, ±0.2)), KL a mean over tokens, not over responses."""
    logp, ref = [[[-1.0, -1.0, -1.0]], [[-1.0]]], [[[-1.1, -1.1, -1.1]], [[-1.5]]]
    say = {**golden(logp, ref, [[0.0], [0.0]]), "algorithm": "gradient"}
    say["rewards"] = ["logged", {"kl": {"coef": 0.2, "target": 0.19, "controller": "rl4lms"}}]
    started = session(tmp_path, say, COMPONENTS)
    started.run()
    (kl,) = [c for c in started.builder.built.values() if c.name == "kl"]
    mean = (0.3 + 0.5) / 4
    assert kl.state_dict()["coef"] == pytest.approx(0.2 * (1 + 0.1 * (mean - 0.19) / 0.19), **NEAR)


def test_the_kl_is_of_the_full_distributions_at_the_sampling_temperature(tmp_path: Path) -> None:
    """Under τ and a truncation the penalty still compares full with full."""
    say = {
        "task": "numbers",
        "policy": "logits",
        "models": {"reference": {"logits": {"seed": 9}}},
        "rewards": ["token-sum", {"kl": {"coef": 1.0}}],
        "algorithm": "gradient",
        "responses": "sampled",
        "generation": {
            "samples": 3,
            "max_new_tokens": 4,
            "temperature": 0.5,
            "top_k": 2,
            "min_new_tokens": 2,
        },
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64"},
    }
    bench = Bench(tmp_path, say, COMPONENTS)
    rollout, reward = bench.rollout()
    policy, ref = (bench.run.models[m].free.detach() for m in ("policy", "reference"))
    assert not torch.equal(policy, ref)
    for i in range(len(rollout)):
        which = int(rollout.examples[int(rollout.group_N[i])].prompt) * 5 + int(rollout.columns["slot"][i])  # type: ignore[arg-type]
        for t in range(int(rollout.length_N[i])):
            y = int(rollout.actions_NT[i, t])
            full = [float((m[which, t] / 0.5).log_softmax(0)[y]) for m in (policy, ref)]
            assert float(reward.parts["kl"][i, t]) == pytest.approx(full[1] - full[0], **NEAR)
            assert not math.isclose(float(rollout.logprobs_NT[i, t]), full[0], abs_tol=1e-9)
