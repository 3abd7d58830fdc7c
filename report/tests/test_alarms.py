"""Each rule fires where it should, and is silent where nothing is wrong."""

from __future__ import annotations

import math

import pytest

from rlalign_report import alarms
from rlalign_report.data import alarms_of
from rlalign_report.run import Run

from .written import evaluation, iteration, sample, whole, written


def series(values, start=1):
    return [(float(i), float(y)) for i, y in enumerate(values, start)]


RISING = series([i / 40 for i in range(40)])
LEVEL = series([1.0] * 40)


def at(*pairs):
    return [(float(x), float(y)) for x, y in pairs]


def test_reward_up_while_an_evaluation_falls():
    found = alarms.reward_against(RISING, at((0, 0.8), (20, 0.9), (40, 0.6)), "eval/grammar")
    assert found is not None and found.metrics == ("reward/total", "eval/grammar")
    assert "from 0.9 at iteration 20 to 0.6 at 40" in found.found and "from 0.463 to 0.938" in found.found


@pytest.mark.parametrize(
    "reward, evaluated",
    [
        (RISING, at((0, 0.8), (20, 0.9), (40, 0.85))),  # fell by less than a tenth
        (RISING, at((0, 0.5), (20, 0.7), (40, 0.9))),
        (LEVEL, at((0, 0.8), (20, 0.9), (40, 0.6))),  # both are bad: no hacking
        (RISING, at((40, 0.6))),
        (series([0.1] * 5), at((0, 0.9), (5, 0.1))),  # too short to say
        ([], []),
    ],
)
def test_no_alarm_where_reward_and_evaluation_agree(reward, evaluated):
    assert alarms.reward_against(reward, evaluated, "eval/grammar") is None


def test_kl_that_runs_away():
    found = alarms.kl_runaway(series([0.01 * i for i in range(40)]), "kl/k1")
    assert found is not None and found.found.startswith("kl/k1 is 0.375 nats a step at the end and was 0.195")


@pytest.mark.parametrize(
    "values",
    [
        [min(0.3, 0.02 * i) for i in range(40)],  # has settled
        [0.001 * i for i in range(40)],  # is small
        list(range(10)),  # too short
    ],
)
def test_no_alarm_of_a_kl_that_is_held(values):
    assert alarms.kl_runaway(series(values), "kl/k1") is None


def test_entropy_that_collapses():
    found = alarms.entropy_collapse(series([2 * 0.85**i for i in range(40)]), "ppo/entropy")
    assert found is not None and "are left" in found.found
    assert alarms.entropy_collapse(series([2 * 0.99**i for i in range(40)]), "ppo/entropy") is None
    assert alarms.entropy_collapse(series([0.0] * 40), "ppo/entropy") is None
    assert alarms.entropy_collapse([], "ppo/entropy") is None


@pytest.mark.parametrize(
    "values, fires",
    [
        ([10 + i for i in range(40)], True),
        ([40 - i * 0.9 for i in range(40)], True),
        ([10 + math.sin(i) for i in range(40)], False),
        ([0.5 + i / 40 for i in range(40)], False),  # by less than two steps
        ([10, 50], False),
    ],
)
def test_lengths_that_drift(values, fires):
    assert (alarms.length_drift(series(values)) is not None) == fires


@pytest.mark.parametrize(
    "first, last, fires",
    [
        ((8, 0), (8, 4), True),
        ((8, 0), (8, 3), False),
        ((8, 6), (8, 7), False),  # was so from the start
        ((8, 0), (2, 2), False),  # too few
        ((0, 0), (8, 8), False),
    ],
)
def test_samples_that_repeat(first, last, fires):
    found = alarms.duplicates(first, last)
    assert (found is not None) == fires
    assert found is None or "Of the last evaluation's 8 samples 4 are" in found.found


def test_figures_that_are_not_finite():
    found = alarms.not_finite({"loss": 3, "lr": 0})
    assert found is not None and "loss (3 times)" in found.found and found.metrics == ("loss",)
    assert alarms.not_finite({"loss": 0}) is None


def titles(folder):
    run = Run(folder)
    run.look()
    return {alarm.title for alarm in alarms_of(run)}


def test_a_sound_run_has_no_alarm_and_a_hacked_one_all(tmp_path):
    words = [sample(n, f"prompt {i}", f"answer {i} of {n}") for n in (0, 40) for i in range(8)]
    assert titles(written(tmp_path / "sound", whole(), words)) == set()
    rows = [evaluation(0, **{"eval/rhymes": 0.9})]
    for n in range(1, 41):
        bad = {
            "kl/k1": n / 20,
            "ppo/entropy": 3 * 0.8**n,
            "length": 5.0 + n,
            "loss": "nan" if n == 7 else 1.0,
        }
        rows.append(iteration(n, **bad))
    rows.append(evaluation(40, **{"eval/rhymes": 0.1}))
    same = [sample(40, f"prompt {i}", "great great great") for i in range(8)]
    assert titles(written(tmp_path / "hacked", rows, [*words[:8], *same])) == {
        "Reward up, evaluation down",
        "KL runs away",
        "Entropy collapses",
        "Lengths drift",
        "Samples repeat",
        "Figures are not finite",
    }


def test_rules_look_at_the_last_phase(tmp_path):
    first = [{**iteration(n, length=3.0), "phase": "warm"} for n in range(1, 31)]
    second = [{**iteration(n, length=30.0), "phase": "align"} for n in range(1, 31)]
    assert titles(written(tmp_path / "phases", [*first, *second])) == set()


def test_a_price_on_the_kl_is_no_score(tmp_path):
    rows = [evaluation(0, **{"eval/kl": 0.0, "eval/kl/k1": 0.0})]
    rows += [iteration(n) for n in range(1, 41)]
    rows.append(evaluation(40, **{"eval/kl": -3.0, "eval/kl/k1": 3.0}))
    assert titles(written(tmp_path / "priced", rows)) == set()
