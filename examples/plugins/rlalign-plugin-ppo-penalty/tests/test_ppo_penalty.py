"""The formulas on literal numbers, the tests that every algorithm inherits, and that it learns."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import pytest
import torch
from rlalign.testing import ComponentTests, run

from rlalign_plugin_ppo_penalty import PpoPenalty, above_the_others, penalised, steered

ROOT = Path(__file__).parents[1]


def test_above_the_others() -> None:
    reward = torch.tensor([1.0, 2.0, 6.0, 0.0, 4.0])
    found = above_the_others(reward, torch.tensor([0, 0, 0, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.5, 4.5, -4.0, 4.0]))


def test_penalised() -> None:
    """At ratios 1, 2 and ½, where the KL is 0, 1 − log 2 and log 2 − ½."""
    ratio = torch.tensor([1.0, 2.0, 0.5])
    gain, kl = penalised(ratio.log(), torch.zeros(3), torch.tensor([3.0, 1.0, -2.0]), 10.0)
    torch.testing.assert_close(kl, torch.tensor([0.0, 0.306853, 0.193147]))
    torch.testing.assert_close(gain, torch.tensor([3.0, 2.0 - 3.06853, -1.0 - 1.93147]))


def test_its_mean_is_the_kl() -> None:
    """Over what the old policy samples: of three words that it says with probabilities .5, .3, .2."""
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    _, kl = penalised(new.log(), old.log(), torch.zeros(3), 0.0)
    torch.testing.assert_close((old * kl).sum(), (old * (old / new).log()).sum())


@pytest.mark.parametrize("kl, beta", [(0.006, 0.5), (0.007, 1.0), (0.014, 1.0), (0.016, 2.0)])
def test_beta_is_steered(kl: float, beta: float) -> None:
    assert steered(1.0, kl, target=0.01) == beta


# Padding is never read; the loss is the sum of its pieces, to 1e-12; its gradient is that of finite differences;
# a run that was stopped goes on to the bit. docs/plugins.md says what may be declared here.
class TestPpoPenalty(ComponentTests):
    component = PpoPenalty
    options = {"beta": 0.5}


def test_it_learns_at_the_pace_that_is_asked(tmp_path: Path) -> None:
    """Three digits are paid their sum over ten; a policy that may move less is behind."""
    ends = {}
    for target in (0.0005, 0.1):
        finished, _ = run(
            tmp_path / str(target),
            {
                "task": {"numbers": {"prompts": 1}},
                "policy": {"logits": {"prompts": 1, "responses": 1, "steps": 3}},
                "rewards": ["token-sum"],
                "algorithm": {"ppo-penalty": {"target": target}},
                "generation": {"samples": 8},
                "train": {"iterations": 20, "prompts": 8, "epochs": 4, "lr": 0.1},
                "evaluate": {"split": "train", "examples": 6, "generation": {"samples": 8}},
            },
            {"ppo-penalty": PpoPenalty},
        )
        ends[target] = finished.metrics["eval/token-sum"]
    assert ends[0.1] > 2.5 > ends[0.0005]  # three nines earn 2.7


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["ppo-penalty"]
    assert pkgutil.resolve_name(value) is PpoPenalty
