"""benchmarks/learned_reward: its preferences, that it plans what its README says, its answers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlalign_study import plan, runner
from rlalign_study.analysis import Found
from rlalign_study.file import Study, module_of
from rlalign_study.rows import Results, Row

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "learned_reward"
STUDY = Study.read(FOLDER / "study.yaml")
preferences, measures, answers = (
    module_of(FOLDER / f"{name}.py") for name in ("preferences", "measures", "answers")
)
METHODS = ("copg", "ipo", "dpo")


# -- preferences ----------------------------------------------------------------------------------------------


def test_what_a_text_is_worth():
    assert preferences.truth("the plot was", "great .") == pytest.approx((1 + 1 / 1.5) / 2)
    assert preferences.truth("the plot was", "great great .") == 0


def test_the_judge_prefers_as_bradley_and_terry_say():
    rng = random.Random(0)
    for lead in (0.0, 0.1, -0.3):
        drawn = [preferences.prefers_first(0.5 + lead, 0.5, 8.0, rng) for _ in range(4000)]
        assert sum(drawn) / 4000 == pytest.approx(1 / (1 + math.exp(-8 * lead)), abs=0.03)


@pytest.fixture(scope="module")
def some():
    return preferences.pairs(STUDY.given_of("reviews"), 3, 0, "train", 48)


def test_pairs_are_two_texts_of_which_one_is_preferred(some):
    assert len(some) == 48
    for row in some:
        first, second = row["responses"]
        assert first != second
        assert sorted(row["scores"]) == [0.0, 1.0]
        assert row["meta"]["truth"] == [preferences.truth(row["prompt"], text) for text in row["responses"]]
    found = preferences.kinds(some)
    assert 0.6 < found["right"] < 1  # noisy, and no coin
    assert some == preferences.pairs(STUDY.given_of("reviews"), 3, 0, "train", 48)


def test_equally_good_texts_count_half():
    def row(worth: list[float], scores: list[float]) -> dict[str, object]:
        return {"scores": scores, "meta": {"truth": worth}}

    rows = [
        row([0.5, 0.5], [1, 0]),
        row([0.9, 0.1], [1, 0]),
        row([0.9, 0.0], [0, 1]),
        row([0.1, 0.2], [0, 1]),
    ]
    found = preferences.kinds(rows)
    assert found["right"] == (0.5 + 1 + 0 + 1) / 4
    assert found["grammar"] == 7 / 8


# -- the plan -------------------------------------------------------------------------------------------------


def test_the_plan_is_what_the_readme_says():
    readme = (FOLDER / "README.md").read_text().split("## Results")[0]
    given, train = STUDY.given_of("reviews"), STUDY.pipeline["train"]
    for arm in STUDY.arms:
        (values,) = STUDY.arms[arm].grid["beta"].values()
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{arm}` |")]
        assert row.endswith(f"| {', '.join(f'{value:g}' for value in values)} |")
    assert f"{given['pairs']:,} prompts" in readme
    assert f"σ({given['sharpness']:g} · its lead" in readme
    assert f"{train['iterations']} steps of {train['prompts']} pairs" in readme
    assert train["iterations"] * train["prompts"] == given["pairs"]  # one pass
    fit = given["fit"]["train"]
    assert fit["iterations"] * fit["prompts"] == 4 * given["pairs"]
    assert f"{fit['iterations']} steps of {fit['prompts']}" in readme.replace("\n", " ")
    assert f"{STUDY.final['last'].evaluate['examples']:,} prompts" in readme


def test_all_methods_differ_in_the_algorithm_alone():
    tried = plan.tuning(STUDY, "reviews")
    assert len(tried) == 18
    assert {one.seed for one in tried} == {1000}
    pipelines = {json.dumps({**one.pipeline, "algorithm": None}, sort_keys=True) for one in tried}
    assert len(pipelines) == 1
    first = {arm: plan.settings(STUDY, "reviews", arm)[0] for arm in STUDY.arms}
    assert len(plan.main(STUDY, "reviews", first)) == 15


def test_the_ends_of_each_grid_are_run():
    first = {arm: plan.settings(STUDY, "reviews", arm)[2] for arm in STUDY.arms}
    found = plan.ablation(STUDY, "reviews", first)
    assert len(found) == 30
    for arm in STUDY.arms:
        ((key, values),) = STUDY.arms[arm].grid["beta"].items()
        _, name, option = key.split(".")
        there = {one.pipeline["algorithm"][name][option] for one in found if one.arm == arm}
        assert there == {values[0], values[-1]}


# -- answers --------------------------------------------------------------------------------------------------


LOG = {"learned": 0.0, "learned_sd": 1.0, "train.truth": 0.5, "train.truth_sd": 0.25}


def record(one: plan.Planned, learned: float, *, truth: float = 0.5, kl: float = 1.0) -> Row:
    metrics = {"last.learned": learned, "last.truth": truth, "last.kl": kl}
    curve = {"step": [0, 32, 64], "learned": [0.0, learned / 2, learned], "kl": [0.0, kl, kl]}
    curve |= {"truth": [0.5, truth, truth], "grammar": [0.9] * 3}
    keys = ("stage", "world", "arm", "setting", "seed", "hash")
    return Row(**{key: getattr(one, key) for key in keys}, status="done", metrics=metrics, curve=curve)


def words(reward: Callable[[plan.Planned], float], kl: Callable[[plan.Planned], float], best: int) -> str:
    """The answers to a whole study's results; `best`: which setting of a grid is chosen."""
    results = Results()
    for one in plan.tuning(STUDY, "reviews"):
        label = plan.settings(STUDY, "reviews", one.arm)[best].label
        results.rows[one.key, one.hash] = record(one, 1.0 if one.setting == label else 0.3)
    found = Found(STUDY, "reviews", results)
    for one in (*found.planned, *found.ablations):
        wobble = 0.002 * ((one.seed * 7 + len(one.setting) + 3 * METHODS.index(one.arm)) % 5)
        row = record(one, reward(one) + wobble, kl=kl(one) + wobble)
        results.rows[one.key, one.hash] = row
    for one in plan.prepared(STUDY, found.planned):
        keys = ("stage", "world", "arm", "setting", "seed", "hash")
        said = {key: getattr(one, key) for key in keys}
        results.rows[one.key, one.hash] = Row(**said, status="done", metrics=LOG)
    return "\n".join(STUDY.hooks.answers([Found(STUDY, "reviews", results)]))


def as_in_the_paper(one: plan.Planned) -> float:
    least = 0.1 * METHODS.index(one.arm)
    return 0.9 - least if one.stage == "main" else 0.2


def steady(one: plan.Planned) -> float:
    return 0.1 if "largest" in one.setting else 1.0


def test_claims_that_hold_are_answered_by_yes():
    said = words(as_in_the_paper, steady, best=2)
    assert said.count(": yes") == 3 + 2 + 3 + 3 + 3
    assert "`copg` above `ipo`: yes (+0.1" in said


def test_claims_that_fail_are_answered_by_no():
    said = words(lambda one: 1 - as_in_the_paper(one), lambda one: 2 - steady(one), best=2)
    assert said.count("no, the opposite") == 3 + 2 + 3 + 3
    assert said.count(": yes") == 3  # it earns more than the true reward all the same


def test_at_an_end_of_the_grid_there_is_nothing_to_compare():
    said = words(as_in_the_paper, steady, best=0)
    for arm in METHODS:
        assert f"`{arm}`: not shown: its best β is the smallest." in said


def test_nothing_is_answered_before_runs_are_there():
    said = STUDY.hooks.answers([Found(STUDY, "reviews", Results())])
    assert sum("not run yet" in line for line in said) == 5


# -- running --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_study_runs(tmp_path):
    """The study with short runs on few pairs: a minute."""
    torch.manual_seed(0)
    text = (FOLDER / "study.yaml").read_text()
    for old, new in (
        ("pairs: 2048", "pairs: 64"),
        ("held_out: 512", "held_out: 32"),
        ("tested: 1024", "tested: 32"),
        ("examples: 1024", "examples: 32"),
        ("examples: 128", "examples: 32"),
        ("normalise: 256", "normalise: 16"),
        ("iterations: 128", "iterations: 4"),
        ("iterations: 64, prompts: 32", "iterations: 4, prompts: 16"),
        ("every: 16", "every: 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    for file in FOLDER.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "study.yaml").write_text(text)
    study, work = Study.read(tmp_path / "study.yaml"), tmp_path / "runs"
    work.mkdir()
    some = {arm: plan.settings(study, "reviews", arm)[2] for arm in study.arms}
    todo = [one for one in plan.main(study, "reviews", some) if one.seed == 0]
    made: list[Row] = []
    runner.run_all(study, plan.prepared(study, todo), work, 1, made.append)
    assert made[0].status == "done", made[0].why
    log = made[0].metrics
    assert log["train.pairs"] == 64
    assert 0 < log["val.accuracy"] < 1
    assert log["learned_sd"] == pytest.approx(1, abs=0.5)
    made.clear()
    runner.run_all(study, todo, work, 1, made.append)
    assert [row.status for row in made] == ["done"] * 3, [row.why for row in made]
    starts = set()
    for row in made:
        assert row.curve["step"] == [0, 2, 4]
        assert row.metrics["last.step"] == row.metrics["steps"] == 4
        assert row.curve["kl"][0] == pytest.approx(0, abs=1e-4)
        assert row.metrics["last.kl"] != 0
        starts.add(row.curve["learned"][0])
    assert len(starts) == 1  # the same model under the same reward
