"""A server of vLLM itself, where somebody has one: its Python, and a small model's folder, by variables."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlalign.testing import PolicyGradient, run
from rlalign.testing.bench import logged

PYTHON, MODEL = os.environ.get("RLALIGN_VLLM_PYTHON"), os.environ.get("RLALIGN_VLLM_MODEL")
ARGUMENTS = ["--dtype", "float32", *shlex.split(os.environ.get("RLALIGN_VLLM_ARGUMENTS", ""))]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PYTHON and MODEL), reason="RLALIGN_VLLM_PYTHON and RLALIGN_VLLM_MODEL name no vLLM"
    ),
]


class Gain(PolicyGradient):
    """Plain policy gradient of sampled responses."""

    responses = "sampled"


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.5, "min_new_tokens": 4}, {"stop": [".", "\n"]}]
)
def test_weights_arrive_and_log_probs_are_the_policy_s(how: dict[str, Any], tmp_path: Path) -> None:
    """In float32, with steps so large that older weights would show."""
    said = {
        "task": {"numbers": {"size": 8}},
        "policy": {"causal-lm": {"path": MODEL}},
        "rewards": ["length"],
        "algorithm": "gain",
        "models": {"sampler": {"vllm": {"python": PYTHON, "arguments": ARGUMENTS, "listed": 200}}},
        "generation": {"samples": 4, "max_new_tokens": 16, **how},
        "train": {"iterations": 3, "prompts": 4, "lr": 1e-3},
    }
    _, done = run(tmp_path, said, {"gain": Gain})
    rows = logged(done.dir.path)["metrics.jsonl"]
    assert [row["sampler/version"] for row in rows] == [0, 1, 2]
    assert all(row["sampler/gap"] < 1e-3 for row in rows)
