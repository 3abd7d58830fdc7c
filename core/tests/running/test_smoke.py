"""`rlalign check --smoke`: what only a run shows, shown in seconds and nowhere left behind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Component, ConfigError, Run, Score, hookimpl
from rlalign.config.load import load_pipeline
from rlalign.data.rollout import Rollout
from rlalign.running.smoke import smoke
from rlalign.testing import PolicyGradient, registry
from rlalign.testing.logits import Logits


class Raises(Component):
    """A reward with a bug that only responses show."""

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        known: dict[str, Score] = {}
        return known["toxicity"]


class Misshapen(Component):
    """A reward that scores groups where it should score responses."""

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout.examples)))


class Shrinks(Logits):
    """A policy that would take all memory if it were not made small."""

    small = False

    def shrink(self) -> None:
        self.small = True

    def setup(self) -> None:
        assert self.small, "as large as it is"
        super().setup()


class Watches(Component):
    """An observer that must not hear of a trial."""

    @hookimpl
    def phase_started(self, run: Run) -> None:
        raise AssertionError("it was told")


GIVEN: Mapping[str, Any] = {
    "learns": PolicyGradient,
    "raises": Raises,
    "misshapen": Misshapen,
    "shrinks": Shrinks,
    "watches": Watches,
}


def tried(**parts: Any) -> str:
    pipeline = {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum", {"kl": {"coef": 0.05}}],
        "algorithm": "learns",
        "train": {"iterations": 4000, "prompts": 300, "minibatches": 5},
        "generation": {"samples": 64, "max_new_tokens": 7},
        "evaluate": {"every": 1, "split": "val", "examples": 1000},
        **parts,
    }
    known = registry(GIVEN)
    return smoke(load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline)), known)


def rows(text: str) -> dict[str, str]:
    lines = [line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("  ")]
    return {name: said.strip() for name, said in lines}


def test_every_stage_of_every_phase_is_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    for folder in (home, temporary):
        folder.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    drawn = torch.get_rng_state()
    found = rows(tried(phases=[{"name": "warm"}, {"name": "align", "train": {"epochs": 9}}], repeat=3))
    stages = "evaluation, rollout, score, reward, advantage, update, checkpoint"
    assert (found["warm"], found["align"]) == (stages, stages)
    assert found["policy"].endswith("weights, as it is")
    assert found["export"] == "the model was written as a folder"
    assert not list(home.iterdir()) and not list(temporary.glob("rlalign*"))
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_reward_that_raises_is_told_with_its_stage() -> None:
    with pytest.raises(
        ConfigError, match=r"went wrong \(learns, .*reward\): .*`raises`.*KeyError: 'toxicity'"
    ) as told:
        tried(rewards=["token-sum", "raises"])
    assert "rlalign-smoke-" not in str(told.value), "where nothing is any more"


def test_a_wrong_shape_is_told() -> None:
    with pytest.raises(ConfigError, match=r"went wrong \(learns, .*reward\): .*`misshapen`"):
        tried(rewards=["misshapen"])


def test_models_are_made_small_as_they_can() -> None:
    assert rows(tried(policy="shrinks"))["policy"].endswith("weights, made small, at random")


def test_what_only_watches_is_not_told() -> None:
    assert rows(tried(observers=["watches"]))["not tried"] == "observers"
