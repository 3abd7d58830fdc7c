"""What the toy worlds are for: methods learn there, and learn nothing when the reward says nothing."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from rlalign import Component, Run, Score, hookimpl
from rlalign.data.rollout import Rollout
from rlalign.records import logs
from rlalign.running import evaluation
from rlalign.testing import bench

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SEEDS = (0, 1, 2)
PROGRESS = 0.3
"""The share of the way from the shipped model to the best of 64 of its samples."""
CHANCE = 0.15
KL = 8.0


class Shuffled(Component):
    """The scores of the items above, dealt out anew among all responses of the batch."""

    @hookimpl(wrapper=True)
    def reward(self, run: Run, rollout: Rollout) -> Generator[None, list[Score], list[Score]]:
        scores = yield
        order_N = torch.randperm(len(rollout), generator=run.rng("shuffled", run.iteration))
        return [replace(score, value=score.value[order_N]) for score in scores]


@dataclass(frozen=True)
class World:
    """A world by the example that aligns its model with `rloo`; `good`: the stored scores that `sft` imitates."""

    example: str
    reward: str
    suffix: str = ""
    good: float | None = None

    def pipeline(self, method: str, seed: int) -> dict[str, Any]:
        """The example of this method in this world."""
        made = _read(self.example)
        if method == "sft":
            made |= {"algorithm": ["sft", {"at-least": {"threshold": self.good}}], "rewards": ["logged"]}
            made["train"] |= {"prompts": 64, "iterations": 40}
        elif method == "rloo":
            made["train"]["iterations"] = 40
        elif method in NUMBERS and self.reward == "increasing-numbers":
            algorithm, train = NUMBERS[method]
            made |= {"algorithm": {method: algorithm}, "train": {"prompts": 16, **train}}
            made["rewards"] = ["increasing-numbers", {"kl": {"coef": 0.02}}]
            made["evaluate"]["examples"] = 256
        else:
            made = _read(f"algorithms/{method}{self.suffix}")
        made["seed"] = seed
        made["evaluate"]["every"] = None
        return made


def _read(example: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
    return made


_PASSES = {"iterations": 30, "epochs": 4, "minibatches": 4, "lr": 0.02}
NUMBERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo": ({"gamma": 0.95}, _PASSES),
    "nlpo": ({"gamma": 0.95, "top_p": 0.99}, _PASSES),
    "a2c": ({"gamma": 0.95, "whiten": "batch"}, {"iterations": 100, "lr": 0.05}),
    "trpo": (
        {"delta": 0.05, "gamma": 0.95, "passes": 4, "cg_steps": 10, "damping": 0.01},
        {"iterations": 20, "lr": 0.05},
    ),
}
"""How a table learns to write increasing numbers."""

WORLDS = {
    "toy-reviews": World("algorithms/rloo", "toy-sentiment", good=0.5),
    "toy-keywords": World("toy-keywords", "toy-coverage", "-seq2seq", good=1.0),
    "toy-numbers": World("toy-numbers", "increasing-numbers"),
}
ACTOR_CRITICS = ("ppo", "a2c", "nlpo", "trpo")
CASES = [
    *((name, method) for name in ("toy-reviews", "toy-keywords") for method in ("rloo", "sft")),
    *((name, method) for name in WORLDS for method in ACTOR_CRITICS),
]


class Measured(NamedTuple):
    """One run: the reward of held-out prompts before and after, and the way it went."""

    before: float
    after: float
    progress: float
    kl: float
    seconds: float
    """Of one core."""


@pytest.fixture(scope="module")
def best_of_64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """By world: the mean over held-out prompts of the best of 64 samples of the shipped model."""

    def best(world: World) -> float:
        pipeline = world.pipeline("rloo", seed=0)
        pipeline["evaluate"] |= {"examples": 64, "generation": {"samples": 64}}
        phase = bench.Bench(tmp_path_factory.mktemp("best"), pipeline).phase
        rollout, reward = evaluation.scored(phase, evaluation.responses(phase, evaluation.examples(phase)))
        rows_GK, real_GK = rollout.groups()
        assert rows_GK.shape[1] == 64
        assert real_GK.all()
        return float(reward.parts[world.reward][rows_GK].amax(1).mean())

    return {name: best(world) for name, world in WORLDS.items()}


def learn(
    folder: Path, name: str, method: str, seed: int, best: Mapping[str, float], *, shuffled: bool = False
) -> Measured:
    """Run it, and read what the evaluations before and after say."""
    world = WORLDS[name]
    pipeline = world.pipeline(method, seed)
    if shuffled:
        rewards = pipeline["rewards"]
        prices = [item for item in rewards if isinstance(item, dict) and "kl" in item]  # stay what they are
        pipeline["rewards"] = [item for item in rewards if item not in prices] + ["shuffled"] + prices
    started = time.process_time()
    finished, _ = bench.run(folder, pipeline, {"shuffled": Shuffled})
    seconds = time.process_time() - started
    rows = [row for row in logs.read(finished.path / "metrics.jsonl") if "eval/responses" in row]
    assert [row["iteration"] for row in rows] == [0, pipeline["train"]["iterations"]]
    before, after = (float(row[f"eval/{world.reward}"]) for row in rows)
    progress = (after - before) / (best[name] - before)
    measured = Measured(before, after, progress, float(rows[-1]["eval/kl/per_response"]), seconds)
    print(f"{name} {method} seed {seed}{' shuffled' * shuffled}: best of 64 {best[name]:.3f}, {measured}")
    return measured


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name, method", CASES)
def test_learns(name, method, seed, best_of_64, tmp_path):
    measured = learn(tmp_path, name, method, seed, best_of_64)
    assert measured.progress >= PROGRESS, measured
    assert measured.kl <= KL, measured
    assert measured.seconds <= 120, measured  # a minute on two cores


@pytest.mark.slow
@pytest.mark.parametrize("name, method, seed", [(*case, 0) for case in CASES])
def test_learns_nothing_from_shuffled_rewards(name, method, seed, best_of_64, tmp_path):
    measured = learn(tmp_path, name, method, seed, best_of_64, shuffled=True)
    assert measured.progress < CHANCE, measured
    assert measured.kl > 0.02, measured  # it was taught, though nothing
