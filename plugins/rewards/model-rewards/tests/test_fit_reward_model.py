"""Reward models in training: the losses by hand, the kit, runs that learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ComponentError
from rlalign.records.result import Result
from rlalign.testing import ComponentTests, session
from rlalign_plugin_model_rewards.fit_reward_model import bradley_terry, off_centre

from .small_models import compared, folder, labelled


def pipeline(**more: Any) -> dict[str, Any]:
    return {
        "task": {"dataset": {"path": compared(), "join": ""}},
        "policy": {"sequence-scorer": {"path": folder("bert")}},
        "rewards": None,
        "algorithm": "fit-reward-model",
        "train": {"iterations": 3, "prompts": 6, "lr": 0.01, "minibatches": 2},
        "evaluate": {"every": 2, "use": ["pair-accuracy"]},
        **more,
    }


def test_the_losses() -> None:
    better, worse = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0])
    expected = torch.tensor([math.log(1 + math.exp(-1 + 0.3)), math.log(1 + math.exp(1.5 + 0.3))])
    torch.testing.assert_close(bradley_terry(better, worse, 0.3), expected)
    torch.testing.assert_close(off_centre(better, worse), torch.tensor([1.0, 6.25]))


class OnRealData(ComponentTests):
    """The kit with a tiny encoder."""

    def whole_pipeline(self) -> dict[str, Any]:
        item = {self.named: dict(self.options)}
        return pipeline(algorithm=item, train={**pipeline()["train"], "dtype": "float64"})


class TestBradleyTerry(OnRealData):
    component = "fit-reward-model"
    options = {"margin": 0.5, "centre": 0.01}


class TestBestAndWorst(OnRealData):
    component = "fit-reward-model"
    options = {"pairs": "best-worst"}


class TestRegression(OnRealData):
    component = "fit-reward-model"
    options = {"loss": "regression"}


class TestPairAccuracy(OnRealData):
    component = "pair-accuracy"
    near = 0.1  # what is added to all rewards alike earns nothing: Adam makes steps of its rounding

    def whole_pipeline(self) -> dict[str, Any]:
        return pipeline()


class TestLabelAccuracy(OnRealData):
    component = "label-accuracy"

    def whole_pipeline(self) -> dict[str, Any]:
        return {
            "task": {"dataset": {"path": labelled(), "join": ""}},
            "policy": {
                "sequence-classifier": {"path": folder("bert"), "labels": ["neg", "pos"], "train": "head"}
            },
            "algorithm": "sft",
            "train": {"iterations": 3, "prompts": 8, "lr": 0.05},
            "evaluate": {"every": 2, "use": ["label-accuracy"]},
        }


def ran(tmp_path: Path, said: dict[str, Any]) -> Result:
    run = session(tmp_path, said, {}, name="run")
    run.run()
    return Result(run.dir.path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {}),
        ("roberta", {"margin": 0.5, "centre": 0.01}),
        ("gpt2", {"pairs": "best-worst"}),
        ("bert", {"loss": "regression"}),
    ],
)
def test_it_learns(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    result = ran(
        tmp_path,
        pipeline(
            policy={"sequence-scorer": {"path": folder(kind)}},
            algorithm={"fit-reward-model": options},
            train={"iterations": 25, "prompts": 16, "lr": 0.02},
            evaluate={"use": ["pair-accuracy"]},
        ),
    )
    before = result.evaluations[0]["eval/pair-accuracy/accuracy"]
    assert result.last["eval/pair-accuracy/accuracy"] > max(0.85, before)


def test_only_a_scorer_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="trains a `sequence-scorer`"):
        ran(tmp_path, pipeline(policy={"logits": {"hidden": 5}}, task="numbers", evaluate=None))


def test_scores_may_come_from_a_reward_and_equal_ones_make_no_pair(tmp_path: Path) -> None:
    last = ran(tmp_path, pipeline(rewards=[{"length": {}}], evaluate=None)).last
    assert 0 < last["fit-reward-model/pairs"] < 6 and math.isfinite(last["loss"])


def test_pairs_are_measured_of_any_policy(tmp_path: Path) -> None:
    said = pipeline(policy="bytes", algorithm="sft", evaluate={"split": "train", "use": ["pair-accuracy"]})
    found = ran(tmp_path, said)
    assert found.last["eval/pair-accuracy/pairs"] == 8 * 1 + 8 * 3
    assert 0 <= found.last["eval/pair-accuracy/ece"] <= 1


def test_what_is_measured_says_what_it_lacks(tmp_path: Path) -> None:
    unscored = {"dataset": {"path": labelled(), "join": ""}}
    with pytest.raises(ComponentError, match="two logged responses or more"):
        ran(tmp_path, pipeline(policy="bytes", task=unscored, algorithm="sft"))
    with pytest.raises(ComponentError, match="measures a `sequence-classifier`"):
        ran(tmp_path / "b", pipeline(policy="bytes", algorithm="sft", evaluate={"use": ["label-accuracy"]}))
