"""The sampler that docs/samplers.md shows, in a run with a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Sampling
from rlalign.testing import Bench, PolicyGradient, SamplerTests, run
from rlalign.testing.bench import logged, stopped_and_resumed
from rlalign_plugin_hf.testing import tiny_model

from .continuous import Continuous
from .generating import Generate


class Gain(PolicyGradient):
    """Plain policy gradient of sampled responses."""

    responses = "sampled"


COMPONENTS = {"generate": Generate, "gain": Gain}


def pipeline(folder: Path, **how: Any) -> dict[str, Any]:
    return {
        "task": {"numbers": {"size": 8}},
        "policy": {"causal-lm": {"path": str(tiny_model(folder, "causal-lm"))}},
        "rewards": ["length"],
        "algorithm": "gain",
        "models": {"sampler": "generate"},
        "generation": {"samples": 2, "max_new_tokens": 4, **how},
        "train": {"iterations": 2, "prompts": 3, "lr": 0.01},
    }


class TestGenerate(SamplerTests):
    component = Generate

    @pytest.fixture(autouse=True)
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        said = {name: pipeline(tmp_path_factory.mktemp("model"))[name] for name in ("task", "policy")}
        type(self).pipeline = said


class TestContinuous(TestGenerate):
    component = Continuous
    exact = False


def test_a_run_by_continuous_batching(tmp_path: Path) -> None:
    """Its log-probs are the policy's, each iteration with the weights of then."""
    said = {**pipeline(tmp_path / "model", temperature=0.7), "models": {"sampler": "continuous"}}
    _, done = run(tmp_path, said, {**COMPONENTS, "continuous": Continuous})
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["sampler/version"] for row in rows] == [0, 1]
    assert all(row["sampler/largest"] < 1e-4 for row in rows)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.8, "min_new_tokens": 2, "min_p": 0.05},
        {"greedy": True},
    ],
)
def test_it_says_what_a_rescoring_says(how: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(tmp_path / "model"), COMPONENTS)
    policy, (one,) = bench.phase.models.policy, bench.session.samplers
    one.take(policy)
    seeds = bench.session.seeds.numbers("x", positions=range(4), samples=2)
    examples = bench.phase.draw.next(4)
    rollout = one.sample(policy, examples, Sampling(samples=2, max_new_tokens=6, **how), seeds)
    assert rollout.flaw() is None and (rollout.allowed is not None) == bool({"top_k", "top_p"} & set(how))
    exact = bench.engine.score("policy", rollout, ["logprobs"]).logprobs_NT[rollout.mask_NT]
    torch.testing.assert_close(rollout.logprobs_NT[rollout.mask_NT], exact, atol=1e-4, rtol=0)


def test_a_run_stopped_and_resumed_to_the_bit(tmp_path: Path) -> None:
    said = pipeline(tmp_path / "model", top_p=0.9)
    _, whole = run(tmp_path, said, COMPONENTS, name="whole")
    again = stopped_and_resumed(tmp_path, said, COMPONENTS)
    assert logged(whole.dir.path) == logged(again.dir.path)
    rows = [json.loads(line) for line in (whole.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["sampler/version"] for row in rows] == [0, 1]
    assert all(row["sampler/largest"] < 1e-4 for row in rows)
