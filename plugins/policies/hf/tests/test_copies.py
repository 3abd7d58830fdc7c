"""Copies of language models in processes of their own sample what the model would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.running import loop
from rlalign.running.ahead import Question
from rlalign.running.elsewhere import asked_elsewhere
from rlalign.testing import Bench, run
from rlalign_plugin_hf.testing import tiny_model

from .test_generating import COMPONENTS

POLICIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "causal-lm": ("causal-lm", {}, {"dtype": "float64"}),
    "adapters": ("causal-lm", {"lora": {"r": 2}}, {"dtype": "float64"}),
    "seq2seq-lm": ("seq2seq-lm", {}, {"dtype": "float64"}),
    "half": ("causal-lm", {}, {"dtype": "bfloat16"}),
    "half-weights": ("causal-lm", {}, {"dtype": "bfloat16", "weights": "bfloat16"}),
}


def told(done: loop.Session) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    kept = ("loss", "length", "reward", "grad_norm", "kl/reference", "reward/kl", "eval/total")
    return [{name: row[name] for name in kept if name in row} for row in rows]


def pipeline(which: str, folder: Path) -> dict[str, Any]:
    kind, options, train = POLICIES[which]
    return {
        "task": {"numbers": {"size": 8}},
        "policy": {kind: {"path": str(tiny_model(folder, kind)), **options}},
        "rewards": ["length", {"kl": {"coef": 0.1}}],
        "algorithm": "gain",
        "generation": {"samples": 3, "max_new_tokens": 6, "temperature": 0.9, "top_p": 0.9},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.01, **train},
        "evaluate": {"every": 2, "split": "train", "examples": 4, "generation": {"greedy": True}},
    }


SAMPLER = {"models": {"sampler": {"copies": {"devices": ["cpu", "cpu"], "threads": 1}}}}


@pytest.mark.slow
@pytest.mark.parametrize("which", [name for name in POLICIES if not name.startswith("half")])
def test_a_run_is_what_it_is_without_them(which: str, tmp_path: Path) -> None:
    plain = pipeline(which, tmp_path / "model")
    _, one = run(tmp_path, plain, COMPONENTS, name="plain")
    _, other = run(tmp_path, plain | SAMPLER, COMPONENTS, name="copied")
    near = 1e-6 if which == "seq2seq-lm" else 1e-11
    for ours, theirs in zip(told(other), told(one), strict=True):
        assert ours == pytest.approx(theirs, rel=near, abs=near)
        assert ours.get("length") == theirs.get("length")
    texts = [(done.dir.path / "samples.jsonl").read_text() for done in (one, other)]
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("which", list(POLICIES))
def test_tokens_and_log_probs_are_the_policy_s_own(which: str, tmp_path: Path) -> None:
    alone = {"models": {"sampler": {"copies": {"threads": 1}}}}  # steps of as many rows round alike
    bench = Bench(tmp_path, pipeline(which, tmp_path / "model") | alone, COMPONENTS)
    phase, examples, how = bench.phase, bench.phase.draw.next(4), bench.phase.settings.generation
    seeds = phase.workspace.seeds.uniforms("x", positions=range(5, 9), samples=3, steps=6)
    assert phase.sampler is not None
    try:
        found = asked_elsewhere(phase, phase.sampler, Question(tuple(examples), how, ("x",), 5))
    finally:
        phase.sampler.close()
    with torch.no_grad(), phase.engine.autocast():
        own = phase.models.policy.sample(examples, how, seeds)
    assert torch.equal(found.actions_NT, own.actions_NT) and found.texts == own.texts
    torch.testing.assert_close(found.logprobs_NT, own.logprobs_NT, rtol=0, atol=1e-6)
