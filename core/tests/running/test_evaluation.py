"""What an evaluation's figures mean: a key says the same of evaluated responses as of those learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign.builtin.kl import KL
from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, ConfigError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.running import evaluation
from rlalign.running.opening import open_run
from rlalign.running.report import describe
from rlalign.testing import PolicyGradient, registry, run, session

PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "algorithm": "once",
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 3, "lr": 0.05, "epochs": 2},
}
SAMPLED = {"greedy": False}


class Words(Component):
    """How many words a response has."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([float(len(text.split())) for text in rollout.texts]))


EXTRA: dict[str, Any] = {"once": PolicyGradient, "words": Words}


def evaluated(tmp_path: Path, rewards: list[Any], use: list[Any] | None, **settings: Any) -> dict[str, float]:
    """The figures of a run's last evaluation, under `eval/`."""
    evaluate = {"examples": 4, "generation": settings.pop("decoding", SAMPLED), **settings}
    if use is not None:
        evaluate["use"] = use
    finished, _ = run(tmp_path, {**PIPELINE, "rewards": rewards, "evaluate": evaluate}, EXTRA)
    return {name.removeprefix("eval/"): x for name, x in finished.metrics.items()}


SUM = {"token-sum": None, "weight": 3}
PENALTY = {"kl": {"coef": 0.7}}


@pytest.mark.parametrize("use", [None, ["token-sum", "kl"], ["words", "kl", "token-sum"]])
def test_the_total_is_the_phases_own_reward(use: list[Any] | None, tmp_path: Path) -> None:
    found = evaluated(tmp_path, [SUM, PENALTY], use)
    assert found["total"] == pytest.approx(3 * found["token-sum"] + found["kl"], rel=1e-5)
    assert found["kl"] == pytest.approx(-0.7 * found["kl/per_response"], rel=1e-5)
    assert found["kl/coef"] == pytest.approx(0.7)


@pytest.mark.parametrize("use", [["token-sum"], ["words"], [{"kl": {"coef": 0.1}, "as": "apart"}], []])
def test_without_all_of_the_reward_there_is_no_total(use: list[Any], tmp_path: Path) -> None:
    assert "total" not in evaluated(tmp_path, [SUM, PENALTY], use)


def test_training_and_evaluation_say_the_same_of_the_same_responses(tmp_path: Path) -> None:
    """Weights, wrappers and the coefficient that a controller has moved: one reward, whoever asks."""
    rewards = [
        SUM,
        "normalise",
        {"words": None, "weight": -0.5},
        {"kl": {"coef": 0.3, "target": 0.001}},
        {"gate": {"by": "words", "at_least": 3}},
        {"clip": {"low": -1, "high": 2}},
        "missing-eos",
    ]
    evaluate = {"examples": 4, "use": ["token-sum"], "generation": SAMPLED}
    _, done = run(tmp_path, {**PIPELINE, "rewards": rewards, "evaluate": evaluate}, EXTRA)
    (kl,) = (c for c in done.builder.built.values() if isinstance(c, KL))
    assert kl.coef != 0.3
    phase = done.phase
    sampled = evaluation.responses(phase, evaluation.examples(phase))
    rollout, reward = evaluation.scored(phase, sampled)
    training = phase.plan.training.reward(phase.run, rollout)
    assert list(training.parts) == list(reward.parts) == ["token-sum", "words", "kl"]
    assert all(torch.equal(reward.parts[name], part) for name, part in training.parts.items())
    assert torch.equal(reward.tokens_NT, training.tokens_NT)
    figures = evaluation.metrics_of(phase, rollout, reward)
    assert figures["eval/total"] == pytest.approx(float(training.total_N.mean()))
    assert figures["eval/kl/coef"] == pytest.approx(kl.coef)


def test_what_no_wrapper_joins_is_asked_alone(tmp_path: Path) -> None:
    rewards = ["token-sum", {"clip": {"high": 0.0}}, "words"]
    found = evaluated(tmp_path / "above", rewards, ["token-sum"])
    assert found["token-sum"] == 0.0 and "words" not in found  # clipped, as `reward/token-sum` is
    found = evaluated(tmp_path / "below", rewards, ["words"])
    assert found["words"] >= 1.0 and "token-sum" not in found
    raw = {"token-sum": None, "as": "raw"}
    found = evaluated(tmp_path / "both", rewards, ["token-sum", raw, "words"])
    assert found["raw"] > 0.0 == found["token-sum"]
    assert found["total"] == pytest.approx(found["words"])


def test_a_wrapper_of_measures_leaves_the_rewards_alone(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "a", ["token-sum"], ["token-sum", "words", {"clip": {"high": 0.0}}])
    assert found["words"] == 0.0 < found["token-sum"] == found["total"]
    gated = [
        {"token-sum": None, "as": "apart"},
        {"gate": {"by": "token-sum", "at_least": 99, "otherwise": -7}},
    ]
    found = evaluated(tmp_path / "gate", ["token-sum"], ["token-sum", *gated])
    assert found["apart"] == -7 and -7 < found["token-sum"] == found["total"] < 99
    with pytest.raises(ConfigError, match="the phase's rewards are wrapped as in training"):
        evaluated(tmp_path / "b", ["token-sum"], ["token-sum", {"clip": {"high": 0.0}}])


def test_no_score_hides_another_figure(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "a", [{"token-sum": None, "as": "length"}], None)
    assert found["reward/length"] == found["total"] != found["length"] >= 1
    with pytest.raises(ConfigError, match="`total` is what the weighted sum is called"):
        evaluated(tmp_path / "b", [{"token-sum": None, "as": "total"}], None)


@pytest.mark.parametrize(
    "training, decoding, shown",
    [
        ({"temperature": 0.7}, {"temperature": 0.7}, True),
        ({}, {"temperature": 0.7}, True),
        ({}, {"min_new_tokens": 3}, False),
        ({}, {}, False),  # greedy, where nobody says otherwise
        ({}, {"greedy": True, "samples": 1}, False),
        ({}, {"top_k": 2}, False),
        ({"top_k": 2}, {"top_k": 2}, True),
        ({"top_k": 2}, {"top_k": 2, "temperature": 0.5}, False),
        ({"top_k": 2}, {"greedy": False}, True),
        ({"max_new_tokens": 5}, {"greedy": False}, True),
    ],
)
def test_a_kl_is_estimated_from_samples_or_not_shown(
    training: dict[str, Any], decoding: dict[str, Any], shown: bool, tmp_path: Path
) -> None:
    pipeline = {
        **PIPELINE,
        "rewards": [SUM, PENALTY],
        "generation": {**PIPELINE["generation"], **training},
        "evaluate": {"examples": 4, "generation": decoding},
    }
    started = session(tmp_path, pipeline, EXTRA)
    told = "`kl` left out: an estimate that holds for samples"
    assert (told in describe(started.pipeline, started.plans)) != shown
    found = started.run().metrics
    assert {name for name in found if name.startswith("eval/kl")} == (
        {f"eval/kl{key}" for key in ("", "/k1", "/k2", "/k3", "/per_response", "/coef")} if shown else set()
    )
    assert ("eval/total" in found) == shown and "eval/token-sum" in found
    rows = [json.loads(line) for line in (started.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert all("kl/k1" in row and "reward/kl" in row for row in rows if "loss" in row)


def test_a_reference_is_asked_for_nothing_that_is_left_out(tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "rewards": [SUM, PENALTY], "evaluate": {"examples": 4}}
    (plan,) = session(tmp_path, pipeline, EXTRA).plans
    assert plan.columns and not plan.evaluation_columns


def test_samples_say_what_each_token_earned(tmp_path: Path) -> None:
    """Where a score has a value for each: their sum is the response's score."""
    pipeline = {
        **PIPELINE,
        "rewards": [SUM, PENALTY],
        "evaluate": {"examples": 4, "generation": SAMPLED, "every": 1},
    }
    _, done = run(tmp_path, pipeline, EXTRA)
    rows = [json.loads(line) for line in (done.dir.path / "samples.jsonl").read_text().splitlines()]
    told = [row for row in rows if "steps" in row]
    assert told, "no sample has a token whose KL is not zero"
    for row in told:
        assert list(row["steps"]) == ["kl"]  # `token-sum` scores responses
        assert len(row["tokens"]) == len(row["steps"]["kl"])
        assert "".join(row["tokens"]) == row["response"]
        assert sum(row["steps"]["kl"]) == pytest.approx(row["scores"]["kl"], rel=2e-3, abs=1e-6)


class Noisy(Component):
    """Random numbers."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.rand(len(rollout)))


def test_random_numbers_of_a_hook_are_those_of_the_run_however_often_it_is_asked(tmp_path: Path) -> None:
    said = {**PIPELINE, "rewards": ["noisy"], "evaluate": {"examples": 4, "generation": SAMPLED}}
    components = {**EXTRA, "noisy": Noisy}
    done, _ = run(tmp_path, said, components)
    rows = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    logged = [row["eval/noisy"] for row in rows if "eval/noisy" in row][-1]
    opened = open_run(done.path, {}, registry=registry(components)).ready()
    assert [opened.evaluate()["eval/noisy"] for _ in range(2)] == [logged] * 2


class Telling(Words):
    """Writes down what it is told; `setup` opens what `run_ended` closes."""

    told: ClassVar[list[str]] = []

    def setup(self, run: Run) -> None:
        self.told.append(f"{self.name} set up")

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.told.append(f"{self.name} {run.phase}")

    @hookimpl
    def evaluated(self, run: Run) -> None:
        self.told.append(f"{self.name} evaluated")

    @hookimpl
    def run_ended(self, run: Run, error: Exception | None) -> None:
        self.told.append(f"{self.name} {'over' if error is None else 'stopped'}")


class Fails(PolicyGradient):
    """Learns nothing."""

    @hookimpl
    def step_ready(self) -> bool:
        raise ValueError("no")


@pytest.fixture
def told() -> Iterator[list[str]]:
    yield Telling.told
    Telling.told.clear()


def test_who_only_evaluates_is_told_of_events_after_those_that_train(told: list[str], tmp_path: Path) -> None:
    """Each once, also one that does both, or that trains in a later phase."""
    measures = [{"telling": None, "as": name} for name in ("measure", "reward")]
    phases = [
        {"name": "a", "rewards": measures[1:], "evaluate": {"examples": 2, "use": measures}},
        {"name": "b", "rewards": measures[:1], "evaluate": None},
    ]
    given = {**PIPELINE, "train": {"iterations": 1, "prompts": 2}, "phases": phases}
    run(tmp_path, given, {**EXTRA, "telling": Telling})
    assert told == [
        *("reward set up", "measure set up", "reward a", "measure a"),
        *(["reward evaluated", "measure evaluated"] * 2),
        *("measure b", "reward over", "measure over"),
    ]


def test_who_only_evaluates_is_told_of_a_failure(told: list[str], tmp_path: Path) -> None:
    given = {**PIPELINE, "rewards": ["token-sum"], "algorithm": "fails"}
    begun = session(
        tmp_path,
        {**given, "evaluate": {"examples": 2, "use": ["telling"]}},
        {"fails": Fails, "telling": Telling},
    )
    assert begun.plans[0].acting()["run_ended"] == ["telling"]
    with pytest.raises(ComponentError, match="raised ValueError: no"):
        begun.run()
    name = begun.plans[0].settings.name
    assert told == [f"telling {what}" for what in ("set up", name, "evaluated", "stopped")]
