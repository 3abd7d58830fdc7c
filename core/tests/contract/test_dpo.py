"""DPO on logged pairs, iterative DPO on the best and the worst of what was sampled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rlalign import Example, Task
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, component, metrics
from .methods import DPO, same


class Pairs(Task):
    """Two responses to each prompt, the second or the first of them preferred."""

    def examples(self, split: str) -> Sequence[Example]:
        good, bad = "1 2 3", "4 4"
        return [
            Example(
                id=str(i),
                prompt=str(i % 3),
                responses=(bad, good) if i % 2 else (good, bad),
                scores=(0.0, 1.0) if i % 2 else (1.0, 0.0),
            )
            for i in range(12)
        ]


PIPELINE: dict[str, Any] = {
    "task": "pairs",
    "policy": {"logits": {"prompts": 3, "responses": 1, "steps": 5, "vocabulary": 6, "hidden": 8}},
    "algorithm": {"dpo": {"beta": 0.5}},
    "train": {"passes": 10, "prompts": 12, "lr": 0.03, "minibatches": 3, "dtype": "float64"},
}


def test_it_prefers_the_chosen_and_samples_nothing(runs: Runs, calls: Counter[str]) -> None:
    session = runs(PIPELINE, pairs=Pairs)
    lines = metrics(session)
    assert len(lines) == 10
    assert lines[-1]["dpo/loss"] < 0.2
    assert lines[-1]["dpo/accuracy"] == 1
    assert calls == {"reference.full_logprobs": 10}


def test_the_first_loss_is_log_2(runs: Runs) -> None:
    once = {**PIPELINE, "train": {**PIPELINE["train"], "passes": None, "iterations": 1, "minibatches": 1}}
    (line,) = metrics(runs(once, pairs=Pairs))
    assert line["dpo/loss"] == pytest.approx(math.log(2), rel=1e-14)
    assert line["dpo/accuracy"] == 0  # no margin yet


ITERATIVE: dict[str, Any] = {
    "task": {"numbers": {"size": 12, "prompts": 3}},
    "policy": {"logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6}},
    "rewards": ["token-sum"],
    "phases": [{"name": "round", "algorithm": ["dpo", "best-vs-worst", "watch"], "responses": "sampled"}],
    "repeat": 3,
    "generation": {"samples": 4, "max_new_tokens": 4},
    "train": {"iterations": 4, "prompts": 12, "lr": 0.1, "epochs": 2},
}


def test_iterative_dpo_renews_its_reference_in_each_phase(runs: Runs) -> None:
    session = runs(ITERATIVE)
    lines = metrics(session)
    assert [(line["repeat"], line["iteration"]) for line in lines] == [
        (r, i + 1) for r in range(3) for i in range(4)
    ]
    assert lines[-1]["reward/token-sum"] > lines[0]["reward/token-sum"] + 0.5
    watch = component(session, "watch")
    for batch in watch.batches:
        rows_G2, real_G2 = batch.rollout.groups()
        assert rows_G2.shape[1] == 2 and bool(real_G2.all())
        assert bool((batch.reward.total_N[rows_G2].amax(1) > batch.reward.total_N[rows_G2].amin(1)).all())
    for weights in watch.started:
        assert same(weights["reference"], weights["policy"])
    assert not same(watch.started[0]["reference"], watch.started[1]["reference"])


def test_or_keeps_the_first_policy_as_reference(runs: Runs) -> None:
    session = runs({**ITERATIVE, "models": {"reference": {"of": "start"}}})
    watch = component(session, "watch")
    first = watch.started[0]["policy"]
    for weights in (*watch.started, *watch.done):
        assert same(weights["reference"], first)
    assert not same(watch.started[1]["policy"], first)


class TestDPO(ComponentTests):
    component = DPO
    pipeline = {"generation": {"samples": 2, "max_new_tokens": 6}, "responses": "sampled"}


def test_a_step_moves_the_pair_apart(runs: Runs) -> None:
    """One step of Adam: the chosen response's tokens go up by the learning rate, the other's down."""
    train = {**PIPELINE["train"], "passes": None, "iterations": 1, "minibatches": 1, "lr": 0.1, "clip": None}
    policy = {"logits": {"prompts": 3, "responses": 1, "steps": 5, "vocabulary": 6}}
    session = runs({**PIPELINE, "policy": policy, "train": train, "algorithm": ["dpo", "watch"]}, pairs=Pairs)
    watch = component(session, "watch")
    before, after = watch.started[0]["policy"]["free"], watch.done[0]["policy"]["free"]
    # Adam's first step is the gradient's sign: up for the chosen's tokens where the pair differs.
    moved = (after - before)[:, :4]
    good, bad = (1, 2, 3, 5), (4, 4, 5)
    for t in range(4):
        assert bool((moved[:, t, good[t]] > 0).all())
        if t < 3 and bad[t] != good[t]:
            assert bool((moved[:, t, bad[t]] < 0).all())
    torch.testing.assert_close(moved.abs().max(), torch.tensor(0.1, dtype=torch.float64), rtol=1e-4, atol=0)
