"""What plugin authors run a pipeline with."""

from __future__ import annotations

from pathlib import Path

from rlalign.testing import run

PIPELINE = {
    "task": {"numbers": {"size": 2}},
    "policy": {"logits": {"hidden": 3}},
    "rewards": ["token-sum"],
    "algorithm": "policy-gradient",
    "generation": {"samples": 2, "max_new_tokens": 2},
    "train": {"iterations": 1, "prompts": 2},
}


def test_a_folder_may_be_text(tmp_path: Path) -> None:
    finished, session = run(str(tmp_path), PIPELINE, name="one")
    assert finished.path == session.dir.path == tmp_path / "runs/one"
