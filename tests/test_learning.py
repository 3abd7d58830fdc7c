"""What the toy worlds are for: methods learn there, and learn nothing when the reward says nothing."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from rlalign import Component, Run, Score, evaluation, hookimpl
from rlalign.records import logs
from rlalign.testing import bench
from rlalign.types import Rollout

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
    good: float

    def pipeline(self, method: str, seed: int) -> dict[str, Any]:
        """The example, as long as it takes; or `sft` on those logged responses that scored well."""
        made: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{self.example}.yaml").read_text())
        made["seed"] = seed
        made["train"]["iterations"] = 40
        made["evaluate"]["every"] = None
        if method == "sft":
            made |= {"algorithm": ["sft", {"at-least": {"threshold": self.good}}], "rewards": ["logged"]}
            made["train"]["prompts"] = 64
        return made


WORLDS = {
    "toy-reviews": World("quickstart", "toy-sentiment", 0.5),
    "toy-keywords": World("toy-keywords", "toy-coverage", 1.0),
}


class Measured(NamedTuple):
    """One run: the reward of held-out prompts before and after, and the way it went."""

    before: float
    after: float
    progress: float
    kl: float


@pytest.fixture(scope="module")
def best_of_64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """By world: the mean over held-out prompts of the best of 64 samples of the shipped model."""

    def best(world: World) -> float:
        pipeline = world.pipeline("rloo", seed=0)
        pipeline["evaluate"] |= {"examples": 64, "generation": {"samples": 64}}
        phase = bench.Bench(tmp_path_factory.mktemp("best"), pipeline).phase
        rollout, reward = evaluation.scored(phase, evaluation.responses(phase, evaluation.examples(phase)))
        rows_GK, real_GK = rollout.groups()
        assert rows_GK.shape == (64, 64)
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
    finished, _ = bench.run(folder, pipeline, {"shuffled": Shuffled})
    rows = [row for row in logs.read(finished.path / "metrics.jsonl") if "eval/total" in row]
    assert [row["iteration"] for row in rows] == [0, 40]
    before, after = (float(row[f"eval/{world.reward}"]) for row in rows)
    measured = Measured(
        before, after, (after - before) / (best[name] - before), float(rows[-1]["eval/kl/per_response"])
    )
    print(f"{name} {method} seed {seed}{' shuffled' * shuffled}: best of 64 {best[name]:.3f}, {measured}")
    return measured


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["rloo", "sft"])
@pytest.mark.parametrize("name", WORLDS)
def test_learns(name, method, seed, best_of_64, tmp_path):
    measured = learn(tmp_path, name, method, seed, best_of_64)
    assert measured.progress >= PROGRESS, measured
    assert measured.kl <= KL, measured


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["rloo", "sft"])
@pytest.mark.parametrize("name", WORLDS)
def test_learns_nothing_from_shuffled_rewards(name, method, seed, best_of_64, tmp_path):
    measured = learn(tmp_path, name, method, seed, best_of_64, shuffled=True)
    assert measured.progress < CHANCE, measured
    assert measured.kl > 0.02, measured  # it was taught, though nothing
