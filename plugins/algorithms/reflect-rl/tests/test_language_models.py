"""Two language models: one reflects, the other reads all of it and says one token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ComponentError
from rlalign.testing import Bench
from rlalign.testing.bench import plain_gradient

pytest.importorskip("rlalign_plugin_hf")
DIGITS = "pkg:rlalign_plugin_toy_tasks/models/toy-digits"


def pipeline(**changes: Any) -> dict[str, Any]:
    model = {"causal-lm": {"path": DIGITS, "init": "random"}}
    return {
        "task": {
            "reflecting": {
                "env": {"hidden-goal": {"steps": 3}},
                "prompt": "{state}:{reflection}",
                "max_new_tokens": 5,
                "temperature": 1.0,
            }
        },
        "policy": model,
        "models": {"reflection": model},
        "algorithm": {"reflect-rl": {"baseline": "others"}},
        "generation": {"samples": 3, "max_new_tokens": 4},
        "train": {"iterations": 2, "prompts": 2, "lr": 1e-3},
        **changes,
    }


def test_reflections_stand_in_prompts_and_one_token_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline())
    before = {name: x.clone() for name, x in bench.run.models["reflection"].state_dict().items()}
    batch = bench.batch()
    rollout = batch.rollout
    assert rollout.steps == 1 and set(rollout.texts) == {"0", "1"}
    said = {str(e.prompt).partition(":")[2] for e in rollout.examples}
    assert len(said) > 3 and max(map(len, said)) <= 5 * len("<unk>")
    scored_NT = bench.run.score("policy", rollout, ["logprobs"]).logprobs_NT
    torch.testing.assert_close(scored_NT, rollout.logprobs_NT, atol=2e-5, rtol=0)
    assert bool((rollout.logprobs_NT > rollout.full_logprobs_NT + 0.5).all())  # two tokens of sixteen
    (_, mine), (_, plain) = bench.gradient(batch), plain_gradient(bench, batch)
    for name in plain:
        torch.testing.assert_close(mine[name], plain[name], atol=1e-6, rtol=1e-4)
    for _ in range(2):
        bench.iterate()
    after = bench.run.models["reflection"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_labels_that_are_no_token_of_the_policy_are_refused(tmp_path: Path) -> None:
    """The tokenizer knows digits only: the eleventh action is an `a`."""
    bench = Bench(tmp_path, pipeline())
    task = bench.run.task
    task.check_labels(10)  # type: ignore[attr-defined]
    with pytest.raises(ComponentError, match="calls an action 'a', and the policy writes"):
        task.check_labels(11)  # type: ignore[attr-defined]
    with pytest.raises(ComponentError, match="numbers up to 62 actions, and there are 63"):
        task.check_labels(63)  # type: ignore[attr-defined]
