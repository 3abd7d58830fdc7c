"""benchmarks/bandit: where methods rest, its log, its naive methods, and that runs end where they should."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest

from rlalign import Example
from rlalign.testing import Bench, ComponentTests, run
from rlalign_study import plan, report
from rlalign_study.analysis import Found
from rlalign_study.file import Study, module_of
from rlalign_study.rows import Results

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks/bandit"
STUDY = Study.read(FOLDER / "study.yaml")
bandit, exact, answers = (module_of(FOLDER / f"{name}.py") for name in ("bandit", "fixed_points", "answers"))

PAPER: dict[str, Any] = {
    "reward": (2.5, 2.0, 1.0),
    "reference": (1 / 3, 1 / 3, 1 / 3),
    "beta": 0.5,
    "pairs": numpy.outer((0.1, 0.2, 0.7), (0.05, 0.05, 0.9)),
}
SKEWED: dict[str, Any] = {"reward": (1.0, 0.0, -0.5), "reference": (0.2, 0.3, 0.5), "beta": 0.7}
WRITERS = {
    "uniform": numpy.outer((1 / 3, 1 / 3, 1 / 3), (1 / 3, 1 / 3, 1 / 3)),
    "skewed": numpy.outer((0.7, 0.2, 0.1), (0.02, 0.08, 0.9)),
    "identical": numpy.outer((0.05, 0.15, 0.8), (0.05, 0.15, 0.8)),
}


# -- where methods rest ---------------------------------------------------------------------------------------


def naive(setting: dict[str, Any], baseline: str) -> Any:
    return exact.naive(setting["pairs"], setting["reward"], setting["reference"], setting["beta"], baseline)


@pytest.mark.parametrize(
    ("arm", "policy", "regret", "distance"),
    [
        ("copg", (0.7053845126982412, 0.25949646034241913, 0.03511902695933973), 0.0, 0.0),
        ("ipo", (0.4241690588509269, 0.352705833660636, 0.22312510748843697), 0.15253066034318508, 0.28122),
        ("pg", (0.1939902582774074, 0.25013859016895146, 0.5558711515536411), 0.6377927005700588, 0.52075),
        (
            "pg-value",
            (0.811548183606536, 0.16752475218586516, 0.020927064207598767),
            0.014817426243123766,
            0.10616,
        ),
        ("pg-regularised", (0.7053845126982412, 0.25949646034241913, 0.03511902695933973), 0.0, 0.0),
    ],
)
def test_what_is_stated_of_the_papers_bandit(arm, policy, regret, distance):
    bandit_of_paper = PAPER["reward"], PAPER["reference"], PAPER["beta"]
    end, best = answers.stated()[arm], exact.optimum(*bandit_of_paper)
    numpy.testing.assert_allclose(end, policy, atol=1e-12)
    found = exact.objective(best, *bandit_of_paper) - exact.objective(end, *bandit_of_paper)
    assert found == pytest.approx(regret, abs=1e-12)
    assert exact.distance(end, best) == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize(
    ("writers", "none", "value"),
    [
        ("uniform", (0.54479, 0.24721, 0.20799), (0.77942, 0.12324, 0.09734)),
        ("skewed", (0.57037, 0.20943, 0.22020), (0.67653, 0.21459, 0.10888)),
        ("identical", (0.48772, 0.27154, 0.24075), (0.81435, 0.10404, 0.08162)),
    ],
)
def test_what_is_stated_of_another_reference(writers, none, value):
    setting = SKEWED | {"pairs": WRITERS[writers]}
    best = exact.optimum(setting["reward"], setting["reference"], setting["beta"])
    numpy.testing.assert_allclose(best, (0.60504, 0.21750, 0.17746), atol=1e-5)
    numpy.testing.assert_allclose(naive(setting, "none"), none, atol=1e-5)
    numpy.testing.assert_allclose(naive(setting, "value"), value, atol=1e-5)
    numpy.testing.assert_allclose(naive(setting, "regularised"), best, atol=1e-9)
    wanted = exact.gaps(setting["reward"])
    copg = exact.least_squares(setting["pairs"], wanted, setting["reference"], setting["beta"])
    numpy.testing.assert_allclose(copg, best, atol=1e-12)


def test_without_support_only_the_ratio_of_covered_arms_is_right():
    pairs = numpy.outer((0.6, 0.4, 0.0), (0.6, 0.4, 0.0))
    found = exact.least_squares(pairs, exact.gaps(SKEWED["reward"]), SKEWED["reference"], SKEWED["beta"])
    assert found[0] / found[1] == pytest.approx(2.781822589065)


# -- the log and the components -----------------------------------------------------------------------------------


def log(**options: Any) -> list[Example]:
    return list(bandit.Pairs(bandit.Pairs.Config(**options)).examples("train"))


def test_a_log_pulls_as_its_writers_do_and_is_the_same_each_time():
    assert len(log()) == 10_000
    pairs = log(pairs=4000)
    for place, writer in enumerate(((0.1, 0.2, 0.7), (0.05, 0.05, 0.9))):
        count = Counter(example.responses[place] for example in pairs)
        assert [count[str(arm)] / 4000 for arm in range(3)] == pytest.approx(writer, abs=0.025)
    assert all(e.scores == tuple((2.5, 2.0, 1.0)[int(arm)] for arm in e.responses) for e in pairs)
    assert [e.responses for e in log(pairs=4000)] == [e.responses for e in pairs]
    assert [e.responses for e in log(pairs=4000, draw="1")] != [e.responses for e in pairs]


def test_preferences_are_drawn_by_the_difference_of_rewards():
    ranked = log(pairs=4000, preferences=True)
    assert [e.responses for e in ranked] == [e.responses for e in log(pairs=4000)]
    assert {e.scores for e in ranked} == {(1.0, 0.0), (0.0, 1.0)}
    best_first = [e.scores[0] for e in ranked if e.responses == ("0", "2")]
    assert numpy.mean(best_first) == pytest.approx(1 / (1 + math.exp(-1.5)), abs=0.06)


class TestOffPolicyPG(ComponentTests):
    component = bandit.OffPolicyPG
    exact_gradient = False  # what a response is worth, less its KL, is a constant
    options = {"beta": 0.3}


@pytest.mark.parametrize(("baseline", "b"), [("none", 0.0), ("value", 11 / 6), ("regularised", 11 / 6)])
def test_the_gradient_of_one_pair_by_hand(baseline, b, tmp_path):
    """At π_ref, where R_β = R and both values are the mean of R: −Σ (R − b)(1{y} − π), a mean over both."""
    task = {"pairs": {"pairs": 1}}
    say = {"algorithm": {"off-policy-pg": {"baseline": baseline}}, "train": {"iterations": 1, "prompts": 1}}
    bench = Bench(tmp_path, {"task": task, "policy": {"table": {"actions": 3}}, **say}, bandit.components)
    batch = bench.batch()
    found = bench.gradient(batch)[1]["policy/table"][0].numpy()
    expected = numpy.zeros(3)
    for arm, pay in zip(map(int, batch.rollout.texts), batch.reward.total_N.tolist(), strict=True):
        expected -= (pay - b) * (numpy.eye(3)[arm] - 1 / 3) / 2
    numpy.testing.assert_allclose(found, expected, atol=1e-6)


# -- runs -----------------------------------------------------------------------------------------------------


def of_its_log(arm: str, examples: list[Example]) -> Any:
    """Where a method rests on the very pairs it is given."""
    pairs, first = numpy.zeros((3, 3)), numpy.zeros((3, 3))
    for example in examples:
        y, other = map(int, example.responses)
        pairs[y, other] += 1
        first[y, other] += example.scores[0]
    about = PAPER["reward"], PAPER["reference"], PAPER["beta"]
    if arm == "ipo":
        wanted = numpy.divide(first, pairs, out=numpy.full((3, 3), 0.5), where=pairs > 0) - 0.5
        return exact.least_squares(pairs, wanted, PAPER["reference"], PAPER["beta"])
    if arm == "copg":
        return exact.optimum(*about)
    return exact.naive(pairs, *about, {"pg": "none", "pg-value": "value"}.get(arm, "regularised"))


@pytest.mark.parametrize("arm", STUDY.arms)
def test_a_short_run_ends_where_it_is_stated(arm, tmp_path):
    """The study's pipeline on fewer pairs: CoPG at the optimum, the naive ones not, each where its log says."""
    (one,) = [p for p in plan.main(STUDY, "rest", chosen()) if (p.arm, p.seed) == (arm, 0)]
    pipeline = one.pipeline
    pipeline["task"]["pairs"]["pairs"] = 1000
    pipeline["train"] |= {"prompts": 1000, "iterations": 1, "epochs": 40, "minibatch": 100, "lr": 0.05}
    finished, _ = run(tmp_path, pipeline, bandit.components)
    end = [finished.metrics[f"eval/regret/arm-{i}"] for i in range(3)]
    there = of_its_log(arm, log(pairs=1000, preferences=arm == "ipo"))
    assert exact.distance(end, there) < (1e-3 if arm in ("copg", "pg-regularised") else 5e-3)
    reached = finished.metrics["eval/regret/distance"] < answers.REACHED
    away = finished.metrics["eval/regret/distance"] > answers.AWAY
    assert (reached, away) == ((True, False) if arm in ("copg", "pg-regularised") else (False, True))


def chosen() -> Any:
    return {arm: plan.settings(STUDY, "rest", arm)[0] for arm in STUDY.arms}


# -- what is stored -----------------------------------------------------------------------------------------------


def test_stored_runs_are_of_todays_plan_and_bear_out_every_claim():
    results = Results.read(FOLDER / STUDY.results)
    worlds = [Found(STUDY, world, results) for world in STUDY.worlds]
    for found in worlds:
        assert {arm: set(runs) for arm, runs in found.main.items()} == {
            arm: set(STUDY.seeds_of(found.name, arm)) for arm in STUDY.arms_of(found.name)
        }
    assert report.table(STUDY, worlds) == (FOLDER / "results/table.md").read_text().splitlines()
    block = report.block(STUDY, worlds, "readme.md")
    assert "\n".join(block).rstrip() in (FOLDER / "README.md").read_text()
    said = answers.answers(worlds)
    assert len(said) == 13
    for line in said:
        assert ": yes. " in line


def test_a_claim_that_does_not_hold_is_answered_by_no():
    results = Results.read(FOLDER / STUDY.results)
    worlds = [Found(STUDY, world, results) for world in STUDY.worlds]
    first = next(iter(worlds[1].main["copg"].values()))
    first.metrics["distance"] = 0.002
    assert answers.answers(worlds)[0].startswith("- **CoPG reaches the optimum**: no. `copg`, distance ")
