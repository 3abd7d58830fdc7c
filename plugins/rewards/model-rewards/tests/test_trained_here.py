"""What is trained here is read by the rewards of this package: the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlalign import Component
from rlalign.learning.forward import Forward
from rlalign.testing import session
from rlalign.testing.bench import stopped_and_resumed
from rlalign_plugin_model_rewards.classifier import Classifier
from rlalign_plugin_model_rewards.classifier_policy import ClassifierPolicy
from rlalign_plugin_model_rewards.reward_model import RewardModel
from rlalign_plugin_model_rewards.scorer_policy import ScorerPolicy

from .small_models import TEMPLATE, compared, folder, labelled


def trained(tmp_path: Path, said: dict[str, Any]) -> tuple[Any, Path]:
    """The policy of a short run, and the model folder that the run left."""
    run = session(tmp_path, said, {}, name="run")
    run.run()
    return run, run.dir.model


def ready(component: Component, policy: Any) -> Any:
    component.setup(SimpleNamespace(models=SimpleNamespace(policy=policy)))  # type: ignore[arg-type]
    return component


@pytest.mark.parametrize(
    ("kind", "template", "options"),
    [
        ("bert", None, {}),
        ("roberta", None, {"reads": "joined", "separator": " "}),
        ("gpt2", None, {"reads": "joined", "separator": " "}),
        ("bert", TEMPLATE, {}),
        ("bert", None, {"max_tokens": 8}),
    ],
)
def test_a_reward_model(kind: str, template: str | None, options: dict[str, Any], tmp_path: Path) -> None:
    run, model = trained(
        tmp_path,
        {
            "task": {"dataset": {"path": compared(), "join": ""}},
            "policy": {"sequence-scorer": {"path": folder(kind, template), **options}},
            "rewards": None,
            "algorithm": "fit-reward-model",
            "train": {"iterations": 4, "prompts": 8, "lr": 0.01},
        },
    )
    policy = run.models.policy
    assert isinstance(policy, ScorerPolicy)
    rollout = policy.encode(run.plans[0].task.examples("val"))
    reward = ready(RewardModel(RewardModel.Config(path=str(model), **options)), policy)
    values = (
        Forward({"policy": policy, "value": policy.value()})
        .score("value", rollout, ["values"])
        .values_NT[:, 0]
    )
    torch.testing.assert_close(reward.reward(rollout=rollout).value.float(), values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("train", ["all", "head"])
def test_a_classifier(train: str, tmp_path: Path) -> None:
    run, model = trained(
        tmp_path,
        {
            "task": {"dataset": {"path": labelled(), "join": ""}},
            "policy": {
                "sequence-classifier": {"path": folder("bert"), "labels": ["neg", "pos"], "train": train}
            },
            "algorithm": "sft",
            "train": {"iterations": 25, "prompts": 28, "lr": 0.02},
            "evaluate": {"use": ["label-accuracy"]},
        },
    )
    if train == "all":
        assert run.last["eval/label-accuracy/accuracy"] > 0.9
        assert run.last["eval/label-accuracy/brier"] < 0.2
    policy = run.models.policy
    assert isinstance(policy, ClassifierPolicy)
    examples = run.plans[0].task.examples("val")
    rollout = policy.encode([replace(e, responses=("pos",)) for e in examples])
    probs = (
        Forward({"policy": policy}).score("policy", rollout, ["full_logprobs"]).full_logprobs_NT[:, 0].exp()
    )
    reward = ready(Classifier(Classifier.Config(path=str(model), label="pos", context=None)), policy)
    texts = replace(rollout, texts=tuple(str(e.prompt) for e in rollout.answered))
    torch.testing.assert_close(reward.reward(rollout=texts).value.float(), probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_a_classifier_learns_from_rewards_of_labels_as_a_bandit(algorithm: str, tmp_path: Path) -> None:
    code = tmp_path / "rewards_of_labels.py"
    code.write_text(
        "def right(texts, examples):\n    return [float(t == e.responses[0]) for t, e in zip(texts, examples)]\n"
    )
    said: dict[str, Any] = {
        "task": {"dataset": {"path": labelled(), "join": ""}},
        "policy": {"sequence-classifier": {"path": folder("bert"), "labels": ["neg", "pos"]}},
        "rewards": [{"function": {"path": f"{code}:right"}}],
        "algorithm": algorithm,
        "generation": {"samples": 8},
        "train": {"iterations": 20, "prompts": 28, "lr": 0.02},
        "evaluate": {"use": ["label-accuracy"]},
    }
    run, _ = trained(tmp_path / "whole", said)
    assert run.last["eval/label-accuracy/accuracy"] > 0.85
    short = {**said, "train": {**said["train"], "iterations": 3}}
    whole = session(tmp_path / "short", short, {}, name="whole")
    whole.run()
    resumed = stopped_and_resumed(tmp_path / "short", short, {})
    for key, tensor in whole.models.policy.state_dict().items():
        assert torch.equal(tensor, resumed.models.policy.state_dict()[key]), key
