"""The component: options, references, and runs in which it is reward and metric."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rlalign_plugin_bleurt_reward
from rlalign import ComponentError, ConfigError, Example
from rlalign.testing import Bench, RewardTests, run, session
from rlalign_plugin_bleurt_reward import Bleurt, Scorer, aggregated, open_checkpoint
from rlalign_plugin_bleurt_reward.testing import tiny_checkpoint

DATA = Path(__file__).with_name("data")
FOLDER = DATA / "wordpiece"


def built(**options: Any) -> Bleurt:
    component = Bleurt(Bleurt.Config.model_validate({"path": FOLDER, **options}))
    component.name = "bleurt"
    policy = torch.nn.Linear(1, 1)
    component.setup(SimpleNamespace(models=SimpleNamespace(policy=policy)))  # type: ignore[arg-type]
    return component


def rollout(*answered: tuple[Any, str]) -> Any:
    """References, and the response."""
    examples = [
        Example(f"{i}", "x", meta={"references": references}) for i, (references, _) in enumerate(answered)
    ]
    return SimpleNamespace(answered=examples, texts=[text for _, text in answered])


def scored(component: Bleurt, *answered: tuple[Any, str]) -> list[float]:
    found: list[float] = component.reward(rollout(*answered)).value.tolist()
    return found


def pair(reference: str, candidate: str) -> float:
    return Scorer(open_checkpoint(FOLDER)).score([reference], [candidate])[0]


def test_several_references():
    assert aggregated([1.0, 3.0, 2.0], "max") == 3
    assert aggregated([1.0, 3.0, 2.0], "mean") == 2
    assert aggregated([1.0, 3.0, 2.0], "first") == 1
    one, other = pair("a bird sings", "the bird"), pair("rain fell", "the bird")
    asked = (["a bird sings", "rain fell"], "the bird")
    near = {"abs": 1e-5}
    assert scored(built(), asked) == pytest.approx([max(one, other)], **near)
    assert scored(built(aggregate="mean"), asked) == pytest.approx([(one + other) / 2], **near)
    assert scored(built(aggregate="first"), asked) == pytest.approx([one], **near)
    assert scored(built(), ("rain fell", "the bird")) == pytest.approx([other], **near)  # one text, no list


def test_responses_with_different_numbers_of_references():
    asked = [(["a", "b", "c"], "x"), ("rain fell", "rain"), (["", "night"], "")]
    together = scored(built(batch_size=2), *asked)
    assert together == pytest.approx([scored(built(), each)[0] for each in asked], abs=1e-5)


@pytest.mark.parametrize("references", [(), [], None])
def test_an_example_without_references(references):
    with pytest.raises(ComponentError, match="`bleurt` compares with references, and example `1` has none"):
        scored(built(), ("a", "b"), (references, "b"))


def test_the_signature_says_what_scores_depend_on():
    weights = open_checkpoint(FOLDER).digest[:12]
    start = f"checkpoint:own_wordpiece_tiny|weights:{weights}|gelu:"
    assert Bleurt(Bleurt.Config(path=FOLDER)).signature() == f"{start}tanh|length:48|refs:max|dtype:float32"
    other = Bleurt.Config(path=FOLDER, gelu="erf", max_length=20, aggregate="mean", dtype="bfloat16")
    assert Bleurt(other).signature() == f"{start}erf|length:20|refs:mean|dtype:bfloat16"


def test_options_change_scores():
    asked = ("rain fell on the old bridge", "rain fell on the new bridge all night")
    plain = scored(built(), asked)
    assert scored(built(gelu="tanh"), asked) == plain != scored(built(gelu="erf"), asked)
    assert scored(built(max_length=8), asked) != pytest.approx(plain, abs=1e-4)
    assert scored(built(dtype="bfloat16"), asked) == pytest.approx(plain, abs=0.05)
    assert scored(built(device="cpu", batch_size=1), asked) == pytest.approx(plain, abs=1e-6)


def pipeline(path: Path, **said: Any) -> dict[str, Any]:
    return {
        "task": {"toy-keywords": {"size": 64}},
        "policy": "bytes",
        "rewards": [{"bleurt": {"path": str(path)}}],
        "algorithm": "rloo",
        "generation": {"samples": 4, "max_new_tokens": 12},
        "train": {"iterations": 2, "prompts": 3},
        "evaluate": {"every": 1, "examples": 4},
        **said,
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "./nothing"}, r"rewards\[0\]\.bleurt: .*nothing: there is no such folder"),
        ({"path": "./empty"}, r"rewards\[0\]\.bleurt: .*empty: is no checkpoint of BLEURT"),
        ({"path": "somebody/bleurt"}, r"hf download somebody/bleurt"),
        ({"max_length": 65}, r"`max_length` is 65; own_wordpiece_tiny has 64 positions"),
        ({"max_length": 3}, "max_length"),
        ({"device": "cuda:99"}, r"rewards\[0\]\.bleurt\.device: .*no such device here"),
        ({"device": "nonsense"}, "no such device here"),
        ({"device": "meta"}, "no such device here"),
        ({"aggregate": "min"}, "aggregate"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(tmp_path, options, words):
    (tmp_path / "empty").mkdir()
    told = pipeline(FOLDER, rewards=[{"bleurt": {"path": str(FOLDER), **options}}])
    with pytest.raises(ConfigError, match=words):
        session(tmp_path, told, {})


def test_reward_and_metric_are_one_value(tmp_path):
    """In a run of two iterations; the other item loads the checkpoint a second time."""
    path = tiny_checkpoint(tmp_path / "tiny")
    again = {"bleurt": {"path": str(path)}, "as": "again"}
    finished, _ = run(
        tmp_path, pipeline(path, evaluate={"every": 1, "examples": 4, "use": ["bleurt", again]})
    )
    assert finished.metrics["eval/bleurt"] == finished.metrics["eval/again"]
    assert finished.metrics["eval/bleurt"] == pytest.approx(finished.metrics["eval/total"])
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    assert len({line["reward/bleurt"] for line in lines if "reward/bleurt" in line}) == 2
    lock = json.loads((finished.path / "lock.json").read_text())
    assert lock["data"]["bleurt.digest"] == open_checkpoint(path).identity


def test_a_run_pays_what_the_scorer_says_of_its_texts(tmp_path):
    path = tiny_checkpoint(tmp_path / "tiny")
    told = pipeline(path, task={"toy-keywords": {"size": 64, "references": 1}})
    rollout, reward = Bench(tmp_path, told, {}).rollout()
    expected = Scorer(open_checkpoint(path)).score([e.references[0] for e in rollout.answered], rollout.texts)
    assert reward.parts["bleurt"].tolist() == pytest.approx(expected, abs=1e-5)
    assert reward.parts["bleurt"].std() > 1e-3


def test_another_checkpoint_is_another_reward(tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(FOLDER, path)
    component = Bleurt(Bleurt.Config(path=path))
    first = component.config.model_dump_json()
    assert json.loads(first)["digest"] == open_checkpoint(path).identity
    (path / "vocab.txt").write_text(re.sub("the", "thx", (path / "vocab.txt").read_text()))
    assert Bleurt.Config(path=path).model_dump_json() != first
    with pytest.raises(ConfigError, match="has changed since the run was prepared"):
        component.setup(SimpleNamespace())  # type: ignore[arg-type]


OTHERWISE = {"aggregate": "mean", "gelu": "erf", "max_length": 32, "batch_size": 3}


def test_the_checkpoint_of_the_package(tmp_path):
    told = pipeline(Path(), rewards=[{"bleurt": {"path": "pkg:rlalign_plugin_bleurt_reward/models/random"}}])
    _, reward = Bench(tmp_path, told, {}).rollout()
    assert reward.parts["bleurt"].std() > 1e-3
    folder = Path(rlalign_plugin_bleurt_reward.__file__).with_name("models") / "random"
    found = Scorer(open_checkpoint(folder)).score(["a cat", "the dog barks"], ["a cat", "dog"])
    assert found == pytest.approx([-0.7065483, -0.4796126], abs=1e-5)


class TestBleurt(RewardTests):
    component = "bleurt"
    options = {"path": str(FOLDER)}
    tolerance = 1e-4
    test_a_reference_itself_is_not_worse_than_another_text = None  # the weights are random


class TestBleurtOtherwise(TestBleurt):
    options = {"path": str(FOLDER), **OTHERWISE}
