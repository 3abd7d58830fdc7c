"""benchmarks/grue_toy: what its README promises of tasks, algorithms and budgets; every run goes through."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rlalign_bench.ledger import Ledger
from rlalign_bench.suite import Suite
from rlalign_bench.table import table
from rlalign_study import core, plan, runner
from rlalign_study.plan import Planned
from rlalign_study.rows import Row

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks/grue_toy"
SUITE = Suite.read(FOLDER / "suite.yaml")
README = (FOLDER / "README.md").read_text()
ONLINE = {"ppo", "nlpo", "rloo"}


def planned(world: str) -> list[Planned]:
    first = {arm: plan.settings(SUITE, world, arm)[0] for arm in SUITE.arms_of(world)}
    return plan.main(SUITE, world, first)


def responses_a_step(one: Planned) -> int:
    *_, phase = one.pipeline.get("phases", [one.pipeline])
    samples = one.pipeline["generation"].get("samples", 1)
    each = {"rloo": samples, "copg": 4, "supervised": 4}
    return int(phase["train"]["prompts"] * each.get(one.arm, 1))


def test_there_are_as_many_runs_as_the_readme_says():
    runs = Counter(one.world for world in SUITE.worlds for one in planned(world))
    assert set(runs.values()) == {18} and runs.total() == 108
    assert "108 runs" in README
    for name in (*SUITE.worlds, *SUITE.arms):
        assert f"`{name}`" in README


def test_the_stored_leaderboard_comes_again_from_stored_runs_and_stands_in_the_readme():
    ledger = Ledger.read(SUITE, FOLDER / SUITE.results)
    assert len(ledger.entries) == 108 and not ledger.missing
    texts = table(ledger.entries, SUITE.bench.scores, ledger.missing)
    for name, text in texts.items():
        assert (FOLDER / SUITE.results / name).read_text() == text
    assert texts["readme.md"] in README
    overall, _, _ = texts["readme.md"].partition("\nBy task")
    ranks, meaning = overall.removeprefix("Over all tasks:\n\n").split("\n\n", 1)
    for page in ("README.md", "docs/leaderboards.md"):
        shown = (FOLDER.parents[1] / page).read_text()
        assert ranks in shown and meaning in shown


@pytest.mark.parametrize("world", SUITE.worlds)
def test_arms_of_a_world_differ_in_nothing_but_the_algorithm(world):
    """The same start, examples, rewards but for the price, measurement, tokens, and responses a step."""
    made = planned(world)
    assert {responses_a_step(one) for one in made} == {64}
    for what in ("task", "policy", "evaluate"):
        assert len({str(one.pipeline[what]) for one in made}) == 1
    assert len({str(one.budget) for one in made}) == len({str(one.final) for one in made}) == 1
    for one in made:
        *rewards, price = one.pipeline["rewards"]
        assert rewards == made[0].pipeline["rewards"][:-1]
        assert price["kl"]["coef"] == (0.05 if one.arm in ONLINE else 0.0)


@pytest.mark.parametrize("world", SUITE.worlds)
def test_every_pipeline_is_valid(world):
    for one in planned(world):
        if one.seed == 0:
            core.check(one.pipeline, SUITE.folder, SUITE.hooks.components)


@pytest.mark.slow
@pytest.mark.parametrize("world", SUITE.worlds)
def test_every_algorithm_runs_from_plan_to_row(world, tmp_path):
    """With few tokens and few examples."""
    made: list[Row] = []
    first = {
        "a-lol": 512 * SUITE.worlds[world].set["generation.max_new_tokens"]
    }  # its value reads so many at most
    todo = [
        replace(one, budget={"tokens": 1500.0 + first.get(one.arm, 0)})
        for one in planned(world)
        if one.seed == 0
    ]
    for one in todo:
        one.pipeline["evaluate"] |= {"examples": 16}
        one.final["final"]["examples"] = 16
    runner.run_all(SUITE, todo, tmp_path, 2, made.append)
    assert {row.arm for row in made} == set(SUITE.arms)
    for row in made:
        assert row.status == "done", row.why
        assert row.metrics["steps"] > 0
        assert row.metrics["tokens"] >= 1500
        assert row.curve["kl"][0] == pytest.approx(0, abs=1e-4)
        assert {"final.reward", "final.grammar", "final.kl"} <= row.metrics.keys()
