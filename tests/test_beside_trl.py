"""Losses and gradients equal TRL's on the same model and batch; TRL's numbers are recorded (`beside_trl/record.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlalign import Batch, Component, Example, Options, Rollout, Score, Task, hookimpl
from rlalign.running.iteration import with_old_logprobs
from rlalign.running.responses import rewarded
from rlalign.testing import Bench

sys.path.insert(0, str(Path(__file__).parent / "beside_trl"))
from trl_cases import (
    CASES,
    MAX_NEW,
    PAIRS,
    PROMPTS,
    RESPONSES,
    REWARDS,
    SCORED,
    SPREAD,
    Case,
    fingerprint,
    finished,
    sampler_logprobs,
    write_model,
)

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "beside_trl/recorded.json").read_text())
NEAR = 1e-5
A_FEW = 25
"""Tokens of a micro-batch: three or so responses, or a pair."""


class Given(Task):
    """The prompts with their responses, all of them or the pair of each."""

    class Config(Options):
        """Options of `given`."""

        pairs: bool

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        found = []
        for g, prompt in enumerate(PROMPTS):
            rows = PAIRS[g] if self.config.pairs else range(len(RESPONSES[g]))
            responses = [RESPONSES[g][i] for i in rows]
            scores = [1.0, 0.0] if self.config.pairs else REWARDS[g]
            ended = [finished(response) for response in responses]
            found.append(
                Example(id=str(g), prompt=prompt, responses=responses, scores=scores, finished=ended)
            )
        return found


class GivenScore(Component):
    """The rewards given with the responses."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(rollout.columns["score"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {which: write_model(folder / which, which) for which in SPREAD}


def computed(case: Case, models: Mapping[str, Path], folder: Path) -> tuple[float, Batch, dict[str, Tensor]]:
    """What we make of a case: loss, batch, gradient."""
    scored = case.trainer in SCORED
    say = {
        "task": {"given": {"pairs": not scored}},
        "policy": {"causal-lm": {"path": str(models["reference"])}},
        "responses": "sampled" if scored else "logged",
        "train": {"iterations": 1, "prompts": len(PROMPTS), "lr": 0.0},
        **case.ours,
    }
    say["generation"] = {"samples": len(RESPONSES[0]), "max_new_tokens": MAX_NEW, **say.get("generation", {})}
    bench = Bench(folder, say, {"given": Given, "given-score": GivenScore})
    become(bench, models["old"])
    batch = batch_of(bench, case, scored)
    become(bench, models["now"])
    # In pieces where TRL's is whole, and the other way round.
    metrics, gradient = bench.gradient(batch, **({"budget": A_FEW} if case.pieces == 1 else {}))
    return (
        case.times * metrics["loss"],
        batch,
        {name.removeprefix("policy/model."): case.times * g for name, g in gradient.items()},
    )


def batch_of(bench: Bench, case: Case, scored: bool) -> Batch:
    """The given responses as the batch of an update, in the order they are given in."""
    rollout = bench.run.logged(bench.phase.plan.task.examples("train"))
    if scored:
        rollout = as_sampled(bench, rollout, case.sampler)
    rollout, reward = rewarded(bench.phase, bench.stages, rollout, bench.phase.plan.columns)
    return with_old_logprobs(bench.phase, bench.stages.advantage(bench.run, rollout, reward).as_step())


def as_sampled(bench: Bench, rollout: Rollout, elsewhere: bool) -> Rollout:
    """As if the policy had sampled them a moment ago, or another sampler in its place."""
    rollout = replace(rollout, settings=(bench.run.generation,))
    known = bench.run.score("policy", rollout, ["logprobs", "full_logprobs"])
    logprobs_NT = known.logprobs_NT
    if elsewhere:
        length_N = rollout.length_N.tolist()
        said = sampler_logprobs([row[:t] for row, t in zip(logprobs_NT.tolist(), length_N, strict=True)])
        for i, row in enumerate(said):
            logprobs_NT[i, : len(row)] = torch.tensor(row)
    return replace(rollout, logprobs_NT=logprobs_NT, full_logprobs_NT=known.full_logprobs_NT)


def become(bench: Bench, folder: Path) -> None:
    """Give the policy other weights, as optimiser steps would."""
    weights = load_file(folder / "model.safetensors")
    policy = bench.engine.policy("policy")
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            weight.copy_(weights[name.removeprefix("model.")])
    policy.version += 1


def far(found: Sequence[float], known: Sequence[float]) -> float:
    """The largest difference, relative to the largest number: of a gradient, its norm."""
    return max(abs(a - b) for a, b in zip(found, known, strict=True)) / max(map(abs, known))


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(name: str, models: Mapping[str, Path], tmp_path: Path) -> None:
    loss, batch, gradient = computed(CASES[name], models, tmp_path)
    known = RECORDED["cases"][name]
    assert loss == pytest.approx(
        known["loss"], rel=NEAR, abs=NEAR / 10
    )  # terms of about 1 that nearly cancel
    if "advantages" in known:
        given = [response for group in RESPONSES for response in group]
        kept = [a for a, text in zip(known["advantages"], given, strict=True) if text in batch.rollout.texts]
        assert far(batch.advantage_NT[:, 0].tolist(), kept) < NEAR
    found = fingerprint(gradient)
    assert found.keys() == known["gradient"].keys()
    assert max(far(found[weight], known["gradient"][weight]) for weight in found) < NEAR


@pytest.mark.slow
def test_the_numbers_are_those_of_trl() -> None:
    """Only where trl==1.16.0 is installed beside rlalign."""
    if find_spec("trl") is None or version("trl") != RECORDED["trl"]:
        pytest.skip(f"trl=={RECORDED['trl']} is not installed")
    script = Path(__file__).parent / "beside_trl/record.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
