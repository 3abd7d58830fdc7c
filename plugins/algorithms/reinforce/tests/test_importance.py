"""Samples of another policy: what they weigh, and that nothing changes where the sampler is the policy itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, ComponentError
from rlalign.testing import Bench, session
from rlalign_plugin_reinforce.importance import importance_weights

from .conftest import MEMBERS, by_logprob, numbers


def f64(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_weights_by_hand() -> None:
    """Padding, where log-probs may be anything, weighs 1 and counts for nothing."""
    now, sampled = f64([[-1.0, -2.0], [-0.5, 9.0]]), f64([[-2.0, -1.5], [-0.75, torch.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    tokens = importance_weights(now, sampled, mask, 2.0, "token")
    assert tokens.flatten().tolist() == pytest.approx([2.0, 0.60653066, 1.28402542, 1.0])
    assert importance_weights(now, sampled, mask, 2.0, "sequence").tolist() == pytest.approx(
        [1.64872127, 1.28402542]
    )
    dropped = importance_weights(now, sampled, mask, 2.0, "token", drop=True)
    assert dropped.flatten().tolist() == pytest.approx([0.0, 0.60653066, 1.28402542, 1.0])
    at_the_cap = importance_weights(now, now, mask, 1.0, "token", drop=True)
    assert at_the_cap.flatten().tolist() == [1.0] * 4  # only what is above it is dropped
    free = importance_weights(now, sampled, mask, None, "token")
    assert float(free[0, 0]) == pytest.approx(2.71828183)


def level_of(member: str) -> str:
    return "sequence" if member == "gspo" else "token"


@pytest.mark.parametrize("member", MEMBERS)
def test_nothing_changes_where_the_sampler_is_the_policy(member: str, tmp_path: Path) -> None:
    ends = {}
    for name, options in (("without", {}), ("with", {"importance": {"level": level_of(member)}})):
        made = numbers({member: options})
        made["train"] |= {"iterations": 3, "epochs": 2, "minibatches": 2}
        started = session(tmp_path, made, {}, name=name)
        started.run()
        ends[name] = started.models["policy"].state_dict()["free"]
        rows = [json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()]
    torch.testing.assert_close(ends["with"], ends["without"], rtol=0, atol=1e-9)
    for row in rows:
        for metric, value in (("weight", 1), ("weight_max", 1), ("weight_cut", 0), ("weight_effective", 1)):
            assert row[f"{member}/{metric}"] == pytest.approx(value, abs=1e-12)


def of_another(bench: Bench, cap: float) -> tuple[Batch, Tensor]:
    """(the batch of responses that the policy sampled before it moved, log π − log μ)."""
    rollout, reward = bench.rollout()
    start = bench.learner.parameters()
    noise = torch.randn(len(start), generator=torch.Generator().manual_seed(1), dtype=start.dtype)
    bench.learner.assign(start + 0.3 * noise)
    batch = bench.stages.advantage(bench.run, rollout, reward).as_step()
    now_NT = bench.run.score("policy", rollout, ["logprobs"]).logprobs_NT
    return batch, now_NT - rollout.logprobs_NT


def metrics_of(w_M: Tensor, raw_M: Tensor, cap: float) -> Mapping[str, float]:
    return {
        "weight": float(w_M.mean()),
        "weight_max": float(w_M.max()),
        "weight_cut": float((raw_M > cap).double().mean()),
        "weight_effective": float(w_M.sum() ** 2 / (w_M**2).sum() / len(w_M)),
    }


@pytest.mark.parametrize("beyond", ["cap", "drop"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_gradient_is_weighed_and_the_metrics_say_how(level: str, beyond: str, tmp_path: Path) -> None:
    """Of responses that differ in length: padding is no token."""
    cap, options = 1.1, {"importance": {"cap": 1.1, "level": level, "beyond": beyond}}
    long = {"samples": 4, "max_new_tokens": 6}
    bench = Bench(tmp_path, numbers({"rloo": options}, generation=long))
    batch, gap_NT = of_another(bench, cap)
    mask_NT = batch.rollout.mask_NT
    assert not mask_NT.all()
    gap_NT = torch.where(mask_NT, gap_NT, 0.0)
    raw = (gap_NT if level == "token" else gap_NT.sum(1)).exp()
    weight = raw.clamp(max=cap) if beyond == "cap" else torch.where(raw > cap, 0.0, raw)
    weight_NT = weight if level == "token" else weight[:, None].expand_as(gap_NT)
    expected = torch.where(mask_NT, -weight_NT * batch.advantage_NT / len(batch), 0.0)
    torch.testing.assert_close(by_logprob(bench, batch), expected, rtol=0, atol=1e-12)
    real_M, raw_M = (x[mask_NT] if level == "token" else x for x in (weight, raw))
    for cuts in ({}, {"route": "T", "budget": 16, "head_chunk": 3}):
        metrics, _ = bench.gradient(batch, **cuts)
        for name, value in metrics_of(real_M, raw_M, cap).items():
            assert metrics[f"rloo/{name}"] == pytest.approx(value, abs=1e-12), name
    assert 0 < metrics["rloo/weight_cut"] < 1
    assert metrics["rloo/weight_effective"] < 1


@pytest.mark.parametrize(
    "ratio, level", [("token", "token"), ("token", "sequence"), ("sequence", "sequence")]
)
def test_the_ratio_is_to_the_policy_of_the_iteration_and_not_to_the_sampler(
    ratio: str, level: str, tmp_path: Path
) -> None:
    """So at the first step nothing is clipped, however far off the sampler was."""
    how = {"ratio": ratio, "clip": [0.1, 0.1]}
    weighed = Bench(tmp_path / "with", numbers({"rloo": {**how, "importance": {"level": level}}}))
    batch, _ = of_another(weighed, 2.0)
    metrics, _ = weighed.gradient(batch)
    assert metrics["rloo/clip_fraction"] == 0
    assert metrics["rloo/kl"] == pytest.approx(0, abs=1e-12)
    plain = Bench(tmp_path / "without", numbers({"rloo": how}))
    batch, _ = of_another(plain, 2.0)
    metrics, _ = plain.gradient(replace(batch, old=batch.rollout.logprobs_NT))
    assert metrics["rloo/clip_fraction"] > 0
    assert metrics["rloo/kl"] > 0.001


def test_a_kl_in_the_loss_is_not_weighed(tmp_path: Path) -> None:
    """It is a mean over the responses there are, whoever sampled them."""
    found = {}
    for name, importance in (("with", {"cap": 1.1}), ("without", None)):
        made = numbers({"grpo": {"importance": importance, "kl": 0.5}})
        bench = Bench(tmp_path / name, made)
        batch, _ = of_another(bench, 1.1)
        metrics, _ = bench.gradient(replace(batch, old=batch.rollout.logprobs_NT))
        found[name] = metrics["grpo/reference_kl"]
    assert found["with"] == pytest.approx(found["without"], abs=1e-12)
    assert found["with"] > 0.001


@pytest.mark.parametrize("member", ["rloo", "grpo", "reinforce"])
def test_what_is_weighed_is_not_weighed_again(member: str, tmp_path: Path) -> None:
    made = numbers({member: {"importance": {"level": level_of(member)}}})
    made["train"] = {**made["train"], "mismatch": {}}
    assert Bench(tmp_path, made).engine.mismatch is None


def test_responses_of_nobody_cannot_be_weighed(tmp_path: Path) -> None:
    made = numbers({"reinforce": {"importance": {}}}, responses="logged", rewards=["logged"])
    with pytest.raises(ComponentError, match="weighs responses by the log-probs they were sampled with"):
        Bench(tmp_path, made).batch()
