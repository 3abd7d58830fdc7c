"""What rounding alone moves between sampling and learning is logged, at the first optimiser step only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlalign import Batch, Component, Loss, Outputs, hookimpl
from rlalign.testing import Bench


class Ratio(Component):
    """PPO's ratio and nothing else; says how far it is from one."""

    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gap_NT = now.logprobs_NT - batch.old_logprobs_NT
        off = batch.mean_over_tokens(gap_NT.detach().abs())
        kl = batch.mean_over_tokens((gap_NT.exp() - 1 - gap_NT).detach())
        return Loss(-batch.mean_over_tokens(gap_NT.exp() * batch.advantage_NT), {"off": off, "kl": kl})


class Follow(Component):
    """Supervised learning, of whatever responses there are."""

    needs = ("full_logprobs",)
    trains = ("policy",)
    scored = False

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-batch.mean_over_tokens(now.full_logprobs_NT))


def bench(tmp_path: Path, algorithm: str, responses: Any = "sampled", **train: Any) -> Bench:
    say = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 16, "scale": 2.0}},
        "rewards": ["token-sum"],
        "algorithm": algorithm,
        "responses": responses,
        "generation": {"samples": 4, "max_new_tokens": 7, "temperature": 0.8},
        "train": {"iterations": 2, "prompts": 6, "lr": 0.05, **train},
    }
    return Bench(tmp_path, say, {"ratio": Ratio, "follow": Follow})


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("bfloat16", 0.3)])
def test_it_is_the_first_ratio(dtype: str, most: float, tmp_path: Path) -> None:
    opened = bench(tmp_path, "ratio", dtype=dtype)
    for _ in range(2):
        metrics = opened.iterate()
        assert metrics["sampler/gap"] == pytest.approx(metrics["ratio/off"], abs=1e-7)
        assert metrics["sampler/kl"] == pytest.approx(metrics["ratio/kl"], abs=1e-7)
        assert metrics["sampler/gap"] <= most


@pytest.mark.parametrize("budget", [None, 20])
def test_the_steps_after_the_first_do_not_count(budget: int | None, tmp_path: Path) -> None:
    """However the step is cut: it was sampled from what the first step starts from."""
    opened = bench(tmp_path, "ratio", epochs=3, minibatches=2, budget=budget)
    metrics = opened.iterate()
    assert metrics["ratio/off"] > 1e-3
    assert 0 <= metrics["sampler/gap"] < 1e-6


def test_full_logprobs_do_as_well(tmp_path: Path) -> None:
    assert bench(tmp_path, "follow").iterate()["sampler/gap"] < 1e-6


def test_logged_responses_have_no_sampler(tmp_path: Path) -> None:
    assert not any(name.startswith("sampler/") for name in bench(tmp_path, "follow", "logged").iterate())


def test_of_a_mix_the_sampled_ones_count(tmp_path: Path) -> None:
    opened = bench(tmp_path, "follow", {"mix": {"logged": 1, "sampled": 1}})
    assert 0 <= opened.iterate()["sampler/gap"] < 1e-6
