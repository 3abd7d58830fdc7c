"""The corridor: an environment like any other, learned by methods as they are, and resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.records.result import Result
from rlalign.running import loop
from rlalign.testing import Bench, EnvironmentTests, registry, run
from rlalign.testing.bench import Silence, logged, run_until, session
from rlalign_plugin_toy_tasks import ToyCorridor

CELLS = [f"{cell}{key}" for key in ("", " key") for cell in range(5)]


class TestCorridor(EnvironmentTests):
    component = "toy-corridor"
    sayings = ("left", "right", "nowhere", "")
    any_split = True


class TestChoices(EnvironmentTests):
    component = "toy-corridor"
    options = {"choices": True, "cells": 3}
    any_split = True


class TestRewritten(EnvironmentTests):
    component = "toy-corridor"
    options = {"rewrites": True, "choices": True}
    any_split = True


def pipeline(**changes: Any) -> dict[str, Any]:
    return {
        "task": "toy-corridor",
        "policy": {"table": {"actions": ["left", "right"], "state": "observation", "prompts": CELLS}},
        "algorithm": "rloo",
        "generation": {"samples": 8},
        "train": {"iterations": 25, "prompts": 8, "lr": 0.3},
        "evaluate": {"every": 100, "examples": 32, "generation": {"samples": 4}},
        **changes,
    }


PPO = {
    "algorithm": {"ppo": {"gamma": 0.99, "value": 0.5, "whiten": "batch", "discount": "turn"}},
    "generation": {"samples": 1},
    "train": {"iterations": 25, "prompts": 64, "lr": 0.3, "lrs": {"value": 0.3}},
}


@pytest.mark.parametrize(
    "changes",
    ({}, {"algorithm": {"rloo": {"credit": "turn"}}}, PPO),
    ids=("rloo", "rloo by turns", "ppo"),
)
def test_it_is_learned(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Uniform steps earn .52, the best ones 1.40."""
    _, ended = run(tmp_path, pipeline(**changes))
    evaluations = [row for row in Result(ended.dir.path).evaluations if "eval/played" in row]
    assert evaluations[0]["eval/played"] < 0.7 and evaluations[-1]["eval/played"] > 1.36
    assert evaluations[-1]["eval/played/turns"] < 9 < evaluations[0]["eval/played/turns"]


REWRITTEN = {
    "task": {"toy-corridor": {"rewrites": True}},
    "policy": {"table": {"actions": ["left", "right"], "prompts": CELLS}},
    "algorithm": {"rloo": {"credit": "turn"}},
}


@pytest.mark.parametrize(
    "changes", ({}, {"algorithm": "reinforce", "rewards": ["togo"]}), ids=("rloo by turns", "reinforce")
)
def test_it_is_learned_where_each_step_is_a_row_of_its_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    asked = {"every": 100, "examples": 32, "use": ["played"], "generation": {"samples": 4}}
    _, ended = run(tmp_path, pipeline(**{**REWRITTEN, **changes}, evaluate=asked))
    evaluations = [row for row in Result(ended.dir.path).evaluations if "eval/played" in row]
    assert evaluations[0]["eval/played/return"] < 0.7 and evaluations[-1]["eval/played/return"] > 1.33
    assert evaluations[-1]["eval/played/turns"] < 9 < evaluations[0]["eval/played/turns"]
    rows = evaluations[-1]["eval/responses"]
    assert evaluations[-1]["eval/played"] == pytest.approx(evaluations[-1]["eval/played/return"] * 128 / rows)


@pytest.mark.parametrize("changes", ({}, REWRITTEN), ids=("one row", "rewritten"))
def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    short = pipeline(**changes, train={"iterations": 4, "prompts": 3, "lr": 0.3})
    short["evaluate"] = {"every": 2, "examples": 4}
    whole, other = session(tmp_path / "a", short, {}), session(tmp_path / "b", short, {}, name="broken")
    whole.run()
    run_until(other, 2)
    again = loop.resume(tmp_path / "b/runs/broken", registry(), display=Silence())
    again.run()
    assert logged(whole.dir.path) == logged(again.dir.path)
    ours, theirs = whole.models.policy.state_dict(), again.models.policy.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_episodes_of_a_prompt_begin_alike_and_each_slips_where_it_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline())
    rollout, _ = bench.rollout(8)
    for g in range(8):
        rows = (rollout.group_N == g).nonzero()[:, 0].tolist()
        assert rollout.examples[g].prompt in CELLS
        assert len({tuple(turn.say for _, turn in rollout.columns["transcript"][i]) for i in rows}) > 1
    assert len({example.prompt for example in rollout.examples}) > 2


def test_what_was_said_is_learned_from_as_it_was_said(tmp_path: Path) -> None:
    """Collected, read back from the run's rows and from an exported file, masked as it was sampled."""
    collect = pipeline(algorithm="collect", train={"iterations": 1, "prompts": 3})
    phases = {key: collect.pop(key) for key in ("algorithm", "generation", "train", "evaluate")}
    two = {
        **collect,
        "phases": [
            phases,
            {
                "name": "sft",
                "task": {"from": "collect"},
                "algorithm": "sft",
                "train": {"iterations": 2, "prompts": 3},
            },
        ],
    }
    _, collected = run(tmp_path / "a", two)
    (file,) = (collected.dir.path / "rows").glob("collect-*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(all(row["meta"]["rlalign"]["same_tokens"]) for row in rows)
    plain = tmp_path / "rows.jsonl"
    plain.write_text(file.read_text())
    sft = pipeline(task={"dataset": {"path": str(plain), "splits": {"train": 1.0}}}, algorithm="sft")
    del sft["evaluate"]
    bench = Bench(tmp_path / "b", sft)
    rollout, _ = bench.rollout(3)
    given = ~rollout.mask_NT & (torch.arange(rollout.steps) < rollout.length_N[:, None])
    assert bool((rollout.actions_NT[given] >= 2).all()) and bool(
        (rollout.actions_NT[rollout.mask_NT] < 2).all()
    )
    assert int(given.sum()) > 50


def test_what_it_says_is_refused_by_a_table_that_knows_no_such_cell(tmp_path: Path) -> None:
    from rlalign import RLAlignError

    wide = pipeline(task={"toy-corridor": {"cells": 6}})
    with pytest.raises(RLAlignError, match="the table has no prompt '5"):
        run(tmp_path, wide)


def test_the_corridor_ends_at_its_limit() -> None:
    corridor = ToyCorridor(ToyCorridor.Config(steps=3))
    assert (corridor.turns, corridor.tokens) == (3, 24)
