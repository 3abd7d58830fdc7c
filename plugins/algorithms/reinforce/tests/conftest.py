"""What several files of tests share: golden cases through a real phase, and a world whose every outcome is listed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, Outputs
from rlalign.testing import Bench
from rlalign.testing.golden import GIVEN, GivenLogits, golden, golden_gradient
from rlalign_plugin_reinforce import PolicyGradient

CASES = {c["id"]: c for c in json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]}
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES = [("A", 10**9, 10**9), ("A", 4, 2), ("B", 10**9, 2), ("T", 2, 3), (None, 1, 1)]
MEMBERS = (
    *("reinforce", "rloo", "grpo", "dr-grpo", "dapo", "gspo", "cispo"),
    *("reinforce-pp", "reinforce-pp-baseline"),
)

Numbers = Sequence[Any]


def cut(table: Numbers, mask: Numbers) -> list[list[list[float]]]:
    """[response][token] without padding, as responses to one prompt."""
    return [[[x for x, m in zip(row, ms, strict=True) if m] for row, ms in zip(table, mask, strict=True)]]


def move(bench: Bench, now: Numbers) -> None:
    """Give the policy these log-probs, [prompt][response][step]."""
    policy = bench.run.models.policy
    options = policy.config.model_copy(  # type: ignore[attr-defined]
        update={"logprobs": tuple(tuple(tuple(steps) for steps in row) for row in now)}
    )
    changed = GivenLogits(options)
    changed.setup()
    with torch.no_grad():
        policy.free.copy_(changed.free)  # type: ignore[attr-defined, operator]
    policy.version += 1


def prepare(folder: Path, case: Mapping[str, Any], algorithm: Any, rewards: Sequence[Any] = ()) -> Any:
    """(bench, batch) of a case of section d as the old policy makes it; then the new one stands in its place."""
    inputs = case["inputs"]
    old, new, ref = (
        cut(inputs[name], inputs["mask"]) for name in ("old_token_logp", "new_token_logp", "ref_token_logp")
    )
    holds_kl = bool(rewards) or "grpo" in algorithm
    made = golden(old, ref if holds_kl else None, [inputs["reward"]])
    say = {**made, "algorithm": algorithm, "rewards": ["logged", *rewards]}
    bench = Bench(folder, say, GIVEN)
    batch = bench.batch()
    move(bench, new)
    return bench, batch


def by_logprob(bench: Bench, batch: Batch) -> Tensor:
    """d loss / d log π at the log-probs of when the iteration began, [N,T]: the loss alone, without a model."""
    (component,) = [c for c in bench.phase.plan.components if isinstance(c, PolicyGradient)]
    leaf_NT = bench.run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT.requires_grad_()
    component.loss(run=bench.run, batch=batch, now=Outputs(logprobs_NT=leaf_NT)).value.backward()
    assert leaf_NT.grad is not None
    return leaf_NT.grad


def by_place(batch: Batch, x: Tensor) -> list[list[Any]]:
    """[N] or [N,T] as [prompt][response]: the draw shuffles prompts."""
    rollout = batch.rollout
    found: dict[int, dict[int, Any]] = {}
    for i, value in enumerate(x.tolist()):
        prompt = int(rollout.examples[int(rollout.group_N[i])].id)
        found.setdefault(prompt, {})[int(rollout.columns["slot"][i])] = value
    return [[row[j] for j in sorted(row)] for _, row in sorted(found.items())]


def close(found: Numbers, expected: Numbers) -> None:
    assert torch.tensor(found).shape == torch.tensor(expected).shape
    flat = torch.tensor(found, dtype=torch.float64).flatten().tolist()
    assert flat == pytest.approx(torch.tensor(expected, dtype=torch.float64).flatten().tolist(), **NEAR)


def in_every_route(bench: Bench, batch: Batch, loss: float, by_logprob: Numbers) -> Mapping[str, float]:
    """Check loss and gradient by log-prob, [prompt][response] or with steps, however the step is cut; the metrics."""
    by_logit = golden_gradient(bench.run.models.policy, by_logprob)  # type: ignore[arg-type]
    for route, budget, chunk in ROUTES:
        metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert metrics["loss"] == pytest.approx(loss, **NEAR)
        torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)
    return metrics


def numbers(algorithm: Any, **more: Any) -> dict[str, Any]:
    """A small pipeline that learns in a second."""
    return {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum"],
        "algorithm": algorithm,
        "generation": {"samples": 4, "max_new_tokens": 3, "min_new_tokens": 3},
        "train": {"iterations": 60, "prompts": 6, "dtype": "float64", "lr": 0.1},
        **more,
    }
