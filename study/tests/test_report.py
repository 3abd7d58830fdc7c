"""What is chosen, what counts as collapsed, and what the report says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlalign_study import plan, report
from rlalign_study.analysis import Found, best, collapsed
from rlalign_study.core import ConfigError
from rlalign_study.file import Collapse, Require, Study
from rlalign_study.rows import Results


def filled(study, row, better: float = 0.2) -> Results:
    """A whole study in which `rloo` earns more, and more with the higher learning rate."""
    results = Results()

    def add(planned):
        for one in planned:
            reward = 1.0 + 0.01 * (one.seed % 2) + better * (one.arm == "rloo")
            reward += 0.001 * (one.seed == 1) * (one.arm == "rloo") + 0.1 * ("lr=0.1" in one.setting)
            results.rows[one.key, one.hash] = row(one, reward=reward)

    add(plan.tuning(study, "three"))
    add(Found(study, "three", results).planned)
    return results


def test_the_best_setting_is_chosen_and_the_first_of_two_alike(study, row):
    found = Found(study, "three", filled(study, row))
    assert {one.label for one in found.chosen.values()} == {"lr=0.1, price=0.1"}


def test_an_arm_whose_tuning_is_not_done_waits(study, row):
    results = filled(study, row)
    one = next(one for one in plan.tuning(study, "three") if one.arm == "rloo")
    del results.rows[one.key, one.hash]
    found = Found(study, "three", results)
    assert found.waiting == {"rloo": 1}
    assert set(found.chosen) == {"reinforce"}


@pytest.fixture
def tried(study, row):
    runs = [one for one in plan.tuning(study, "three") if one.arm == "rloo"]
    labels = dict.fromkeys(one.setting for one in runs)
    return {
        label: [row(one, reward=float(i), kl=float(i)) for one in runs if one.setting == label]
        for i, label in enumerate(labels)
    }


def test_settings_must_qualify(study, tried):
    labels = list(tried)
    assert best(study, "three", tried) == labels[3]
    tried[labels[3]][0] = replace(tried[labels[3]][0], status="failed", metrics={}, curve={})
    assert best(study, "three", tried) == labels[2]
    tight = study.model_copy(
        update={"tuning": study.tuning.model_copy(update={"require": Require(max={"final.kl": 1.5})})}
    )
    assert best(tight, "three", tried) == labels[1]
    none = Require(max={"final.kl": -1})
    for otherwise, expected in (("highest", labels[2]), ("least", labels[0])):
        update = {"require": none, "otherwise": otherwise, "least": "final.kl"}
        strict = study.model_copy(update={"tuning": study.tuning.model_copy(update=update)})
        assert best(strict, "three", tried) == expected


def test_a_setting_may_not_lose_what_the_start_had(study, tried):
    update = {"require": Require(keep={"final.kl": 0.9})}  # the curve's kl begins at 0
    keep = study.model_copy(update={"tuning": study.tuning.model_copy(update=update)})
    assert best(keep, "three", tried) == list(tried)[3]


def test_a_metric_that_does_not_exist_is_named(study, tried):
    wrong = study.model_copy(update={"tuning": study.tuning.model_copy(update={"best": "final.rewrd"})})
    with pytest.raises(ConfigError, match=r"there is no metric `final\.rewrd` in tuning/three/rloo"):
        best(wrong, "three", tried)


RULE = Collapse(metric="reward", gain=0.1, kept=0.5, fall=0.1, keep={"grammar": 0.5}, max={"kl": 20.0})


@pytest.mark.parametrize(
    ("reward", "kl", "grammar", "expected"),
    [
        ([0.3, 0.5, 0.6], [0, 1, 2], [0.9, 0.9, 0.9], False),
        ([0.3, 0.5, 0.39], [0, 1, 2], [0.9, 0.9, 0.9], True),  # lost its gain
        ([0.3, 0.5, 0.39, 0.6], [0, 1, 2, 2], [0.9] * 4, True),  # though it came back
        ([0.3, 0.38, 0.22], [0, 1, 2], [0.9, 0.9, 0.9], False),  # never had a gain to lose
        ([0.3, 0.19], [0, 1], [0.9, 0.9], True),  # worse than it began
        ([0.3, 0.5], [0, 1], [0.9, 0.44], True),  # lost its language
        ([0.3, 0.5], [0, 20.5], [0.9, 0.9], True),  # lost contact
        ([0.3, float("nan")], [0, 1], [0.9, 0.9], True),
    ],
)
def test_what_counts_as_collapsed(study, row, reward, kl, grammar, expected):
    one = row(plan.tuning(study, "three")[0], curve={"reward": reward, "kl": kl, "grammar": grammar})
    assert collapsed(one, RULE) is expected
    assert collapsed(one, None) is False
    assert collapsed(replace(one, status="broke"), None) is True


@pytest.mark.parametrize(("reward", "expected"), [([0.4, 0.6], False), ([0.4, 0.1], True)])
def test_what_training_logs_is_judged_by_what_it_holds(study, row, reward, expected):
    start = {"reward": [0.3], "kl": [0], "grammar": [0.9]}
    one = row(plan.tuning(study, "three")[0], curve=start, own={"reward": reward})
    assert collapsed(one, RULE, "own") is expected
    one = replace(one, own={"reward": [0.4, 0.6], "grammar": [0.9, 0.4]})
    assert collapsed(one, RULE, "own") is True


def test_a_difference_is_found_and_none_is_not(written, tuned, row):
    file = written(tuned, "compare: {pairs: [[rloo, reinforce]], by: {r: final.reward}}")
    file.write_text(file.read_text().replace("seeds: 2\n", "seeds: 10\n"))
    study = Study.read(file)
    better = Found(study, "three", filled(study, row)).family("final.reward")["rloo", "reinforce"]
    assert better.difference.mean == pytest.approx(0.2, abs=1e-3)
    assert better.difference.count == 10
    assert better.p_holm < 0.001
    assert better.p_flips == 2 / 1024
    same = Found(study, "three", filled(study, row, better=0.0)).family("final.reward")["rloo", "reinforce"]
    assert same.p_t > 0.3


def test_the_report_is_written_from_what_is_there(study, row, tmp_path):
    said = report.write(study, filled(study, row), tmp_path / "out")
    table = (tmp_path / "out/table.md").read_text()
    assert "| `rloo` | 0.1 | 0.1 | 4/4 |" in table
    assert "| `rloo` | 1.205 ± " in table
    assert "nan" not in table
    assert "± inf" not in table
    assert (tmp_path / "out/readme.md").read_text().splitlines()[-1] == "The end."
    assert str(tmp_path / "out/table.md") in said


def test_half_a_study_is_reported_too(study, row, tmp_path):
    results = filled(study, row)
    some = {at: one for at, one in results.rows.items() if one.stage == "tuning" and one.arm == "rloo"}
    some |= {at: one for at, one in results.rows.items() if one.stage == "main" and one.arm == "rloo"}
    said = report.write(study, Results(some), tmp_path)
    assert "three: left out, as their tuning is not complete: `reinforce` (8 runs)" in said
    assert "| `rloo` |" in (tmp_path / "table.md").read_text()
    said = report.write(study, Results(), tmp_path / "empty")
    assert said[-1] == "there is no reported run yet, so that there is nothing to write"


def test_runs_that_failed_are_named(study, row, tmp_path):
    results = filled(study, row)
    at = next(at for at, one in results.rows.items() if one.stage == "main")
    results.rows[at] = replace(
        results.rows[at], status="failed", why="killed: too much", metrics={}, curve={}
    )
    report.write(study, results, tmp_path)
    assert "- `main/three/rloo/0`: killed: too much" in (tmp_path / "table.md").read_text()


def test_figures(written, tuned, row, tmp_path):
    pytest.importorskip("matplotlib")
    study = Study.read(
        written(
            tuned,
            """
            ablations: {worlds: [three], seeds: 2, groups: {price: {rloo: {none: {rewards.kl.coef: 0.0}, usual: {}}}}}
            plots:
              curves: {kind: curves, y: [reward, kl], log: [kl], groups: {both: [rloo, reinforce]}}
              path: {kind: curves, x: √kl, y: [reward]}
              tuning: {kind: tuning, x: lr}
              ends: {kind: ends, y: [final.kl, final.reward]}
              ablations: {kind: ablations, y: [final.reward]}
            """,
        )
    )
    results = filled(study, row)
    for one in Found(study, "three", results).ablations:
        results.rows[one.key, one.hash] = row(one)
    said = report.write(study, results, tmp_path / "out")
    names = ("curves-three", "path-three", "tuning-three", "ends", "ablations")
    assert [tmp_path / "out" / f"{name}.svg" for name in names] == [*map(type(tmp_path), said[-5:])]
    for name in names:
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<?xml")


def test_a_column_without_a_format_is_refused(study, row):
    found = Found(study, "three", filled(study, row))
    with pytest.raises(ConfigError, match=r"the column `final\.reward` says no format"):
        report.cell(found, "rloo", found.main["rloo"], "final.reward")
