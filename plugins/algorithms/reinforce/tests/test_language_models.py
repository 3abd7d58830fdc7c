"""The whole family on language models: a random GPT-2 and a random T5, every member, every route."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Example, Rollout, Task
from rlalign.running.iteration import with_old_logprobs
from rlalign.testing import Bench
from rlalign.testing.bench import plain_gradient

from .conftest import MEMBERS


class Worded(Task):
    """Three prompts of 1 to 3 words with three responses of 1 to 5; some have their end, others are cut."""

    def examples(self, split: str) -> Sequence[Example]:
        found = []
        for g in range(3):
            prompt = " ".join(f"w{(3 * i + g) % 20}" for i in range(g + 1))
            words = [" ".join(f"w{(7 * i + 5 * g + j) % 20}" for i in range(1 + 2 * j)) for j in range(3)]
            scores = (0.9 - g, 0.1, 0.5 * g)
            found.append(Example(str(g), prompt, tuple(words), scores, finished=(True, False, True)))
        return found


@pytest.fixture(scope="module", params=["causal-lm", "seq2seq-lm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    testing = pytest.importorskip("rlalign_plugin_hf.testing")
    return {request.param: {"path": str(testing.tiny_model(tmp_path_factory.mktemp("tiny"), request.param))}}


WHOLE = {"level": "sequence", "cap": 1.2, "beyond": "drop"}
RICH: dict[str, tuple[str, dict[str, Any]]] = {
    "tokens": (
        "grpo",
        {"kl": 0.3, "weigh_kl": True, "largest": 1.05, "scale": "rewards", "importance": WHOLE},
    ),
    "responses": (
        "rloo",
        {"ratio": "sequence", "clip": [0.02, 0.02], "scale": "responses", "importance": WHOLE},
    ),
    "to go": (
        "cispo",
        {"credit": "to-go", "scale": "batch", "clip": [0.02, 0.02], "kl": 0.3, "estimator": "k2"},
    ),
}
"""Options that no member has by default."""


def phase(
    folder: Path,
    model: dict[str, Any],
    member: str,
    weighed: bool = False,
    options: dict[str, Any] | None = None,
    **train: Any,
) -> Bench:
    level = "sequence" if member == "gspo" else "token"
    weights = {"importance": {"cap": 1.2, "level": level}} if weighed else {}
    made = {
        "task": "worded",
        "policy": model,
        "responses": "logged",
        "rewards": ["logged"],
        "algorithm": {member: {**weights, **(options or {})}},
        "train": {"iterations": 1, "prompts": 3, "dtype": "float64", **train},
    }
    return Bench(folder, made, {"worded": Worded})


def sampled(bench: Bench) -> tuple[Rollout, Any]:
    """The logged responses, as if a policy a little off had sampled them."""
    rollout, reward = bench.rollout()
    now_NT = bench.run.score("policy", rollout, ["logprobs"]).logprobs_NT
    noise_NT = torch.randn(now_NT.shape, generator=torch.Generator().manual_seed(2), dtype=now_NT.dtype)
    return replace(rollout, logprobs_NT=now_NT + 0.2 * noise_NT), reward


@pytest.mark.thin(1)
@pytest.mark.parametrize("member", [*MEMBERS, *RICH])
def test_loss_and_gradient_are_the_same_however_the_step_is_cut(
    member: str, model: dict[str, Any], tmp_path: Path
) -> None:
    """Some members with weights, some without, of a policy that has since moved."""
    name, options = RICH.get(member, (member, {}))
    bench = phase(tmp_path, model, name, weighed=member in ("rloo", "grpo", "gspo", "cispo"), options=options)
    rollout, reward = sampled(bench)
    batch = with_old_logprobs(bench.phase, bench.stages.advantage(bench.run, rollout, reward).as_step())
    start = bench.learner.parameters()
    noise = torch.randn(len(start), generator=torch.Generator().manual_seed(1), dtype=start.dtype)
    bench.learner.assign(start + 0.05 * noise)
    metrics, gradients = plain_gradient(bench, batch)
    size = max(float(g.abs().max()) for g in gradients.values())
    assert size > 1e-6
    near = max(1.0, size) * (1e-10 if "causal-lm" in model else 1e-7)  # a T5 normalises in float32
    for route, budget, chunk in (("A", 10**9, 10**9), ("B", 10**9, 3), ("T", 16, 3), (None, 1, 4)):
        found, grads = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert found == pytest.approx(metrics, rel=1e-8, abs=1e-8)
        for name, expected in gradients.items():
            torch.testing.assert_close(grads[name], expected, rtol=0, atol=near)


@pytest.mark.parametrize("member", ["grpo", "gspo", "reinforce-pp"])
def test_an_iteration_of_several_steps(member: str, model: dict[str, Any], tmp_path: Path) -> None:
    bench = phase(tmp_path, model, member, epochs=2, minibatches=3, lr=0.01)
    start = bench.learner.parameters()
    assert bench.iterate()["optimiser_steps"] == 6
    assert not torch.equal(bench.learner.parameters(), start)


def test_at_a_ratio_of_one_gspo_and_grpo_learn_the_same(model: dict[str, Any], tmp_path: Path) -> None:
    """And apart from it they do not."""
    found = {}
    for moved in (False, True):
        for member in ("gspo", "grpo"):
            bench = phase(tmp_path / f"{member}{moved}", model, member)
            batch = bench.batch()
            if moved:
                start = bench.learner.parameters()
                bench.learner.assign(start + 0.05 * torch.sin(torch.arange(len(start), dtype=start.dtype)))
            _, gradients = bench.gradient(batch)
            found[member, moved] = torch.cat([g.flatten() for g in gradients.values()])
    # On samples of the reference the KL of `grpo` has no gradient: it is at its least.
    torch.testing.assert_close(found["gspo", False], found["grpo", False], rtol=0, atol=1e-12)
    assert float((found["gspo", True] - found["grpo", True]).abs().max()) > 1e-3
