"""Weights held in half precision, with float32 masters; and samplers that round otherwise than the learner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlalign.data.settings import Mismatch, Train
from rlalign.errors import ConfigError
from rlalign.learning.engine import importance
from rlalign.learning.optimiser import Optimiser
from rlalign.testing import Bench, PolicyGradient, run, session
from rlalign.testing.bench import logged, stopped_and_resumed

HALF = {"dtype": "bfloat16", "weights": "bfloat16"}


class Gain(PolicyGradient):
    """Plain policy gradient of sampled responses."""

    responses = "sampled"


COMPONENTS = {"gain": Gain}


def pipeline(**train: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": 16, "scale": 2.0}},
        "rewards": ["token-sum"],
        "algorithm": "gain",
        "generation": {"samples": 4, "max_new_tokens": 5, "temperature": 0.8},
        "train": {"iterations": 4, "prompts": 6, "lr": 0.02, **train},
    }


def test_masters_move_where_weights_in_half_precision_would_not() -> None:
    """Steps of 1e-4 on a weight of 1, which bfloat16 rounds away: its next numbers are 0.0039 and 0.0078 off."""
    half, full = nn.Linear(3, 2).bfloat16(), nn.Linear(3, 2)
    with torch.no_grad():
        for model in (half, full):
            for weight in model.parameters():
                weight.fill_(1.0)
    train = Train(lr=1e-4, clip=None)
    ours, exact = Optimiser({"policy": half}, train), Optimiser({"policy": full}, train)
    for _ in range(60):
        for model, optimiser in ((half, ours), (full, exact)):
            for weight in model.parameters():
                weight.grad = torch.full_like(weight, 0.3, dtype=torch.float32)
            optimiser.step(0.0, optimiser.gradient_norm())
    for mine, master, theirs in zip(half.parameters(), ours.masters.values(), full.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16 and master.dtype == torch.float32
        torch.testing.assert_close(master, theirs, rtol=0, atol=0)
        assert torch.equal(mine, theirs.bfloat16()) and bool((mine < 1).all())


def test_gradients_add_up_in_float32(tmp_path: Path) -> None:
    """A step cut into many micro-batches: what each adds is not rounded to half precision."""
    bench = Bench(tmp_path, pipeline(**HALF), COMPONENTS)
    batch = bench.batch()
    _, whole = bench.gradient(batch)
    _, pieces = bench.gradient(batch, budget=8)
    for name, gradient in whole.items():
        assert gradient.dtype == torch.float32
        assert float((pieces[name] - gradient).abs().max()) < 0.02 * float(gradient.abs().max())


def test_what_is_seen_of_the_policy_is_float32(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(**HALF), COMPONENTS)
    rollout, reward = bench.rollout()
    for x in (rollout.logprobs_NT, rollout.full_logprobs_NT, reward.tokens_NT):
        assert x.dtype == torch.float32
    logged_one = bench.phase.models.policy.encode(rollout.examples)
    assert logged_one.logprobs_NT.dtype == torch.float32


def test_stopped_and_resumed_to_the_bit(tmp_path: Path) -> None:
    _, whole = run(tmp_path, pipeline(**HALF), COMPONENTS, name="whole")
    again = stopped_and_resumed(tmp_path, pipeline(**HALF), COMPONENTS)
    assert logged(whole.dir.path) == logged(again.dir.path)
    for key, tensor in whole.models.policy.state_dict().items():
        assert tensor.dtype in (torch.bfloat16, torch.long)
        assert torch.equal(tensor, again.models.policy.state_dict()[key])


def test_an_update_hook_sees_the_masters(tmp_path: Path) -> None:
    """A vector that is written is read again to the bit, though the weights are it rounded."""
    bench = Bench(tmp_path, pipeline(**HALF), COMPONENTS)
    vector = bench.learner.parameters() + 1e-5
    bench.learner.assign(vector)
    assert vector.dtype == torch.float32 and torch.equal(bench.learner.parameters(), vector)
    held = torch.cat([p.detach().reshape(-1) for p in bench.phase.learner.optimiser.parameters.values()])  # type: ignore[union-attr]
    assert torch.equal(held, vector.bfloat16())


def test_it_learns(tmp_path: Path) -> None:
    finished, done = run(tmp_path, pipeline(**HALF, iterations=25, lr=0.1), COMPONENTS)
    lines = [json.loads(x) for x in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward/token-sum"] for row in lines if "reward/token-sum" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert finished.metrics["sampler/gap"] < 0.1


def test_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say `dtype: bfloat16` too"):
        session(tmp_path, pipeline(weights="bfloat16"), COMPONENTS)
    two = pipeline() | {"phases": [{"name": "a", "train": HALF}, {"name": "b"}]}
    with pytest.raises(ConfigError, match="weights: bfloat16 in one phase means bfloat16 in all"):
        session(tmp_path, two, COMPONENTS)


# -- importance weights ----------------------------------------------------------------------------------------


def test_the_gradient_of_a_token_counts_by_its_truncated_weight(tmp_path: Path) -> None:
    """By hand, of a sampler whose log-probs are off by a little, a lot, and unknown."""
    bench = Bench(tmp_path, pipeline(), COMPONENTS)
    batch = bench.batch()
    rollout = batch.rollout
    off_NT = torch.linspace(-1.5, 1.5, rollout.mask_NT.numel()).view_as(rollout.logprobs_NT)
    drawn_NT = rollout.logprobs_NT + off_NT
    drawn_NT[0] = torch.nan
    object.__setattr__(rollout, "logprobs_NT", drawn_NT)
    now = {"logprobs": (drawn_NT - off_NT)[rollout.mask_NT]}
    weight_M = importance(now, batch, Mismatch())
    expected_NT = (-off_NT).exp().clamp_max(2.0)
    expected_NT[0] = 1.0
    known_M = ~now["logprobs"].isnan()
    torch.testing.assert_close(weight_M[known_M], expected_NT[rollout.mask_NT][known_M])
    assert bool((weight_M[~known_M] == 1).all())
    advantage_NT = batch.advantage_NT * torch.where(rollout.mask_NT, expected_NT, 0.0)
    weighed = type(batch).of(rollout, batch.reward, advantage_NT).as_step()
    _, by_hand = bench.gradient(weighed)
    for route in ("A", "B", "T"):
        _, found = bench.gradient(batch, mismatch=Mismatch(), route=route, head_chunk=16, budget=40)
        for name, gradient in by_hand.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Mismatch(), [[2.0, 0.8, 1.0], [0.4, 1.2, 1.0]]),
        (Mismatch(mode="mask"), [[0.0, 0.8, 1.0], [0.0, 1.2, 1.0]]),
        (Mismatch(by="response"), [[2.0, 2.0, 2.0], [0.48, 0.48, 0.48]]),
        (Mismatch(by="response", mode="mask", cap=2.5), [[2.4, 2.4, 2.4], [0.48, 0.48, 0.48]]),
    ],
    ids=["token", "token masked", "response", "response masked"],
)
def test_a_ratio_to_old_log_probs_leaves_that_of_learner_to_sampler(
    how: Mismatch, expected: list[list[float]], tmp_path: Path
) -> None:
    """By hand: where a loss takes the ratio of now to then, the weight is then's to the sampler's."""
    bench = Bench(tmp_path, pipeline(prompts=1), COMPONENTS)
    batch = bench.batch().take(torch.tensor([0, 1]))
    rollout = replace(
        batch.rollout,
        mask_NT=torch.tensor([[True] * 3] * 2),
        actions_NT=torch.zeros(2, 3, dtype=torch.long),
        logprobs_NT=torch.tensor([[-1.0, -2.0, torch.nan], [-1.0, -2.0, -0.5]]),
    )
    ratio_NT = torch.tensor([[3.0, 0.8, torch.nan], [0.4, 1.2, 1.0]])
    old_NT = rollout.logprobs_NT + ratio_NT.log()
    weight_M = importance({"logprobs": torch.zeros(6)}, replace(batch, rollout=rollout, old=old_NT), how)
    torch.testing.assert_close(weight_M.view(2, 3), torch.tensor(expected))


@pytest.mark.parametrize("algorithm", ["gain", "ppo"])
def test_what_the_policy_sampled_itself_weighs_one(algorithm: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(mismatch={}) | {"algorithm": algorithm}, COMPONENTS)
    assert bench.engine.mismatch == Mismatch()
    assert bench.iterate()["sampler/ratio"] == pytest.approx(1.0, abs=1e-5)


# -- machines without instructions for it ----------------------------------------------------------------------


CHECK = """
import json, sys
from rlalign.running.preflight import preflight
from rlalign.running.workspace import Workspace
from rlalign.config.load import load_pipeline
from rlalign.testing.bench import Silence, registry
display = Silence()
known = registry()
preflight(Workspace(load_pipeline("pipeline.yaml", registry=known, text=sys.argv[1]), known, display))
print(display.notes)
"""


@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(), reason="a processor that can do without"
)
def test_a_processor_that_is_slow_in_half_precision_is_told_of() -> None:
    """oneDNN told to do without instructions that the processor may have."""
    told = {}
    for dtype in ("float32", "bfloat16"):
        say = pipeline(dtype=dtype) | {"algorithm": "policy-gradient", "device": "cpu"}
        env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
        done = subprocess.run(
            [sys.executable, "-c", CHECK, json.dumps(say)],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        told[dtype] = done.stdout
    assert "times as long as in float32" in told["bfloat16"] and told["float32"].strip() == "[]"
