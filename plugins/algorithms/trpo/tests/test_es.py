"""The evolution strategy: its step by hand, and that it learns without a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.records import logs
from rlalign.running.updating import update
from rlalign.testing import Bench, ComponentTests, session


class TestEvolutionStrategy(ComponentTests):
    component = "es"
    options = {"pairs": 2}


def say(**options: Any) -> dict[str, Any]:
    return {
        "task": {"numbers": {"size": 12, "prompts": 1}},
        "policy": {"table": {"actions": 6, "steps": 3}},
        "rewards": ["token-sum"],
        "algorithm": {"es": options},
        "generation": {"samples": 8},
        "train": {"iterations": 8, "prompts": 12, "dtype": "float64"},
    }


def test_the_step_by_hand(tmp_path: Path) -> None:
    """θ + α/(2nσ) Σ (R₊ − R₋) ε, the trials' responses drawn as the update draws them."""
    bench = Bench(tmp_path, say(pairs=3, sigma=0.5, rate=2.0))
    batch, learner = bench.batch(), bench.phase.learner
    assert learner is not None
    start = learner.parameters()
    metrics = update(bench.phase, batch)
    found = learner.parameters()
    expected = start.clone()
    for i in range(3):
        noise = torch.randn(len(start), generator=bench.run.rng("es", 0, i), dtype=torch.float64)
        for sign in (1, -1):
            learner.assign(start + sign * 0.5 * noise)
            _, reward = bench.learner.respond(batch.rollout.examples)
            expected += sign * 2.0 / (2 * 3 * 0.5) * float(reward.total_N.mean()) * noise
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert metrics["es/step_norm"] == pytest.approx(float((expected - start).norm()))
    assert metrics["es/spread"] > 0


def test_it_learns(tmp_path: Path) -> None:
    started = session(tmp_path, say(sigma=0.5, rate=3.0), {})
    started.run()
    rows = [row["reward/token-sum"] for row in logs.read(started.dir.path / "metrics.jsonl")]
    assert rows[-1] > rows[0] + 0.3
