"""Toy tasks: what each text and each arm earns, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlalign import ComponentError
from rlalign.config.registry import Registry
from rlalign.testing import Bench, ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import Bandit, BanditPayout, IncreasingNumbers, ToyNumbers, increasing_run


@pytest.mark.parametrize(
    "text, min_tokens, expected",
    [
        ("", 20, 0.0),
        ("no number at all", 20, 0.0),
        ("1 2 3", 20, 3 / 10),  # fewer than ten words count as ten
        ("1 2 3 4 5 6 7 8 9 10", 20, 1.0),
        ("1 2 3 4 5 6 7 8 9 10 11 12", 20, 1.0),
        ("1 2 3 4 5 6 7 8 9 10 1 2", 20, 10 / 12),
        ("3 2 1", 20, 1 / 10),  # the first number is a run of one
        ("1 1 2", 20, 1 / 10),  # strictly
        ("one 1 and 2 then 3", 20, 3 / 10),  # other words are skipped, and counted in the length
        ("a b c d e f g h i j 1 2", 20, 2 / 12),
        ("5 6 1 2 3 4", 20, 2 / 10),  # from the first number on, not the longest run
        ("-3 -2.5 1e1 .5", 20, 3 / 10),
        ("1, 2, 3", 20, 1 / 10),  # `1,` and `2,` are no numbers
        ("1 2 3", 4, 3 / 3),
        ("1", 4, 1 / 2),
        ("1 2\n3\t4", 2, 1.0),  # any white space separates
    ],
)
def test_increasing_run(text: str, min_tokens: int, expected: float) -> None:
    assert increasing_run(text, min_tokens) == expected


def test_the_length_divides_by_every_token() -> None:
    text = " ".join(["word"] * 15 + [str(i) for i in range(25)])
    assert increasing_run(text) == 25 / 40


def test_numbers_task() -> None:
    task = ToyNumbers(ToyNumbers.Config(prompt="Count!", size=3))
    assert [(e.id, e.prompt, e.responses) for e in task.examples("val")] == [
        (f"val-{i}", "Count!", ()) for i in range(3)
    ]


def test_bandit_task() -> None:
    examples = Bandit(Bandit.Config(payouts=(1.0, 0.0), pulls=2)).examples("train")
    assert [e.id for e in examples] == ["train-0", "train-1"]
    assert examples[0].meta == {"payouts": [1.0, 0.0]}


BANDIT: dict[str, Any] = {
    "task": "bandit",
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout"],
    "algorithm": "rloo",
    "generation": {"samples": 4},
    "train": {"iterations": 10, "prompts": 16, "lr": 0.3, "dtype": "float64"},
}


class TestPayout(ComponentTests):
    component = "bandit-payout"
    pipeline = {k: BANDIT[k] for k in ("task", "policy", "rewards", "train", "algorithm", "generation")}


class TestIncreasingNumbers(ComponentTests):
    component = "increasing-numbers"
    options = {"min_tokens": 4}
    pipeline = {"task": "toy-numbers", "policy": {"table": {"actions": 5, "steps": 7, "state": "step"}}}


def test_pulls_earn_what_the_arm_pays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BANDIT)
    rollout, reward = bench.rollout()
    assert {text: float(x) for text, x in zip(rollout.texts, reward.total_N, strict=True)} == {
        "0": 2.5,
        "1": 2.0,
        "2": 1.0,
    }


def test_the_best_arm_is_learned(tmp_path: Path) -> None:
    _, session = run(tmp_path, {**BANDIT, "train": {**BANDIT["train"], "iterations": 40}})
    assert float(session.models["policy"].table[0].detach().softmax(0)[0]) > 0.9


def test_increasing_numbers_are_learned(tmp_path: Path) -> None:
    pipeline = {
        "task": "toy-numbers",
        "policy": {"table": {"actions": 8, "steps": 4, "state": "step"}},
        "rewards": [{"increasing-numbers": {"min_tokens": 4}}],
        "algorithm": "rloo",
        "generation": {"samples": 8, "max_new_tokens": 4},
        "train": {"iterations": 60, "prompts": 16, "lr": 0.3, "clip": None},
        "evaluate": {"examples": 1},
    }
    finished, _ = run(tmp_path, pipeline)
    assert finished.metrics["eval/increasing-numbers"] >= 0.75  # at random 0.4


@pytest.mark.parametrize("task, said", [("toy-numbers", "goes with `task: bandit`")])
def test_payout_says_which_task_it_needs(tmp_path: Path, task: str, said: str) -> None:
    with pytest.raises(ComponentError, match=said):
        run(tmp_path, {**BANDIT, "task": task})


def test_an_arm_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ComponentError, match=r"arm '[34]' was pulled, and there are 3; set the policy's `actions`"
    ):
        run(tmp_path, {**BANDIT, "policy": {"table": {"actions": 5}}})


@pytest.mark.parametrize("name", ["bandit", "bandit-payout", "toy-numbers", "increasing-numbers"])
def test_it_is_offered_by_name(name: str) -> None:
    loaded = Registry().load(name)
    assert loaded.installed.distribution == "rlalign-plugin-toy-tasks"
    assert loaded.cls in (Bandit, BanditPayout, ToyNumbers, IncreasingNumbers)


class TestBanditTask(TaskTests):
    component = "bandit"
    options = {"payouts": [1.0, 0.0], "pulls": 8}
    shared = ("prompts",)  # all of them the same
    any_split = True


class TestToyNumbers(TaskTests):
    component = "toy-numbers"
    shared = ("prompts",)
    any_split = True
