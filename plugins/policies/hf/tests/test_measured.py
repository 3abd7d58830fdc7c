"""How good the estimate of a run's costs is, held against what the run measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rlalign

from .conftest import tokenizer

LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def costs_of(folder: Path, **train: Any) -> dict[str, Any]:
    tokenizer("llama").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    pipeline = {
        "policy": {"causal-lm": {"path": str(folder), "init": "random"}},
        "task": {"toy-numbers": {"prompt": "w1 w2 w3 w4"}},
        "algorithm": "rloo",
        "rewards": ["increasing-numbers", {"kl": {"coef": 0.05}}],
        "generation": {"samples": 8, "max_new_tokens": 32, "min_new_tokens": 32},
        "train": {"iterations": 4, "prompts": 8, **train},
    }
    done = rlalign.run(pipeline, root=folder / "runs", name="run", display=False)
    (found,) = done.costs.values()
    return dict(found)


@pytest.mark.slow
def test_seconds_and_memory_are_about_as_estimated(tmp_path: Path) -> None:
    """Of a Llama's shape of 3 million weights: to within a fifth."""
    found = costs_of(tmp_path)
    estimated, measured = found["estimated"], found["measured"]
    assert measured["iteration"] == pytest.approx(estimated["iteration"], rel=0.2)
    if "memory" in measured:
        assert measured["memory"] == pytest.approx(estimated["memory"], rel=0.2)
