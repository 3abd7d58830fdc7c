"""Copies of language models in processes of their own sample what the model would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlalign.running import loop
from rlalign.testing import run
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


@pytest.mark.slow
@pytest.mark.parametrize("which", list(POLICIES))
def test_a_run_is_what_it_is_without_them(which: str, tmp_path: Path) -> None:
    kind, options, train = POLICIES[which]
    plain = {
        "task": {"numbers": {"size": 8}},
        "policy": {kind: {"path": str(tiny_model(tmp_path / "model", kind)), **options}},
        "rewards": ["length", {"kl": {"coef": 0.1}}],
        "algorithm": "gain",
        "generation": {"samples": 3, "max_new_tokens": 6, "temperature": 0.9, "top_p": 0.9},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.01, **train},
        "evaluate": {"every": 2, "split": "train", "examples": 4, "generation": {"greedy": True}},
    }
    copied = {**plain, "models": {"sampler": {"copies": {"devices": ["cpu", "cpu"], "threads": 1}}}}
    _, one = run(tmp_path, plain, COMPONENTS, name="plain")
    _, other = run(tmp_path, copied, COMPONENTS, name="copied")
    near = 1e-2 if which.startswith("half") else 1e-6 if kind == "seq2seq-lm" else 1e-11
    for ours, theirs in zip(told(other), told(one), strict=True):
        assert ours == pytest.approx(theirs, rel=near, abs=near)
        assert ours.get("length") == theirs.get("length")
    texts = [(done.dir.path / "samples.jsonl").read_text() for done in (one, other)]
    assert texts[0] == texts[1]
