"""The formula on literal numbers, the tests that every algorithm inherits, and that it learns."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import torch
from rlalign.testing import ComponentTests, run

from rlalign_plugin_example_name import ExampleName, above_the_others

ROOT = Path(__file__).parents[1]


def test_above_the_others() -> None:
    reward = torch.tensor([1.0, 2.0, 6.0, 0.0, 4.0])
    found = above_the_others(reward, torch.tensor([0, 0, 0, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.5, 4.5, -4.0, 4.0]))


# Padding is never read; the loss is the sum of its pieces, to 1e-12; its gradient is that of finite differences;
# a run that was stopped goes on to the bit. docs/plugins.md says what may be declared here.
class TestExampleName(ComponentTests):
    component = ExampleName
    options = {"entropy": 0.1}


def test_it_learns(tmp_path: Path) -> None:
    """A policy of free numbers writes three digits, and is paid their sum over ten."""
    finished, _ = run(
        tmp_path,
        {
            "task": {"numbers": {"prompts": 1}},
            "policy": {"logits": {"prompts": 1, "responses": 1, "steps": 3}},
            "rewards": ["token-sum"],
            "algorithm": "example-name",
            "generation": {"samples": 8},
            "train": {"iterations": 80, "prompts": 8, "lr": 0.1},
            "evaluate": {"split": "train", "examples": 6, "generation": {"samples": 8}},
        },
        {"example-name": ExampleName},
    )
    assert finished.metrics["eval/token-sum"] > 2.0  # three nines earn 2.7


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["example-name"]
    assert pkgutil.resolve_name(value) is ExampleName
