"""What compares runs of one process and of several finds every difference."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent / "world"))
from comparing import apart

NAN, INF = math.nan, math.inf
LOGS: dict[str, dict[str, Any]] = {
    "metrics": {"iteration": 1, "loss": 0.5, "kl": "nan", "dpo/accuracy": 0.5, "time/iteration": 2.0},
    "learned": {"response": "so", "reward": 1.0, "advantage": 0.25},
    "samples": {
        "response": "so",
        "scores": {"good": 0.5},
        "tokens": ["s", "o"],
        "steps": {"kl": [0.1234, None]},
    },
    "tokens": {"tick": 1, "responses": [{"tokens": [3, 4]}]},
}
WEIGHTS = [1.0, NAN, INF, -INF]


def written(folder: Path, weights: list[float], **changed: dict[str, Any]) -> Path:
    last = folder / "checkpoints/00000001"
    last.mkdir(parents=True)
    save_file({"w": torch.tensor(weights)}, last / "policy.safetensors")
    for name, row in LOGS.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({**row, **changed.get(name, {})}) + "\n")
    return folder


def found(folder: Path, weights: list[float] = WEIGHTS, **changed: dict[str, Any]) -> tuple[float, float]:
    """How far a run is from one that differs in what is said: in its logs, in its weights."""
    figure, _, number, _ = apart(written(folder / "1", WEIGHTS), written(folder / "2", weights, **changed))
    return figure, number


def test_what_is_none_equals_only_itself_at_its_place(tmp_path: Path) -> None:
    assert found(tmp_path) == (0, 0)
    others = ([NAN, NAN, INF, -INF], [1.0, 2.0, INF, -INF], [1.0, NAN, 2.0, -INF], [NAN, 1.0, INF, -INF])
    for i, weights in enumerate((*others, [1.0, NAN, -INF, INF])):
        assert found(tmp_path / f"{i}", weights) == (0, INF), weights
    assert found(tmp_path / "near", [1.5, NAN, INF, -INF]) == (0, 0.5)


@pytest.mark.parametrize(
    ("name", "row", "by"),
    [
        ("metrics", {"loss": "nan"}, INF),
        ("metrics", {"kl": 0.1}, INF),
        ("metrics", {"kl": "inf"}, INF),
        ("metrics", {"loss": 0.75}, 0.25),
        ("metrics", {"dpo/accuracy": 1.0, "time/iteration": 3.0}, 0),
        ("learned", {"advantage": "nan"}, INF),
        ("learned", {"reward": 3.0}, 2),
        ("samples", {"scores": {"good": 0.75}}, 0.25),
        ("samples", {"steps": {"kl": [0.1235, None]}}, 0),  # of four digits, the last
        ("samples", {"steps": {"kl": ["nan", None]}}, INF),
    ],
)
def test_numbers_in_logs(name: str, row: dict[str, Any], by: float, tmp_path: Path) -> None:
    assert found(tmp_path, **{name: row}) == (by, 0)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("tokens", {"responses": [{"tokens": [3, 5]}]}),
        ("learned", {"response": "no"}),
        ("samples", {"response": "no"}),
        ("samples", {"steps": {"kl": [0.1234, 0.0]}}),
        ("metrics", {"iteration": 2}),
        ("metrics", {"more": 1.0}),
    ],
)
def test_everything_else_is_equal(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=name):
        found(tmp_path, **{name: row})
