"""Statistics against numbers worked out by hand, against scipy, and against their own promises in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlalign_bench import statistics
from rlalign_study.stats import estimate as over_seeds

SCORES = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]])
"""Seeds' means 2 and 5, examples' means 2, 3 and 5.5, what is left ±(0.5, 0.5, −1)."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def crossed(
    S: int, E: int, seeds: float, examples: float, answers: float, at: np.random.Generator
) -> np.ndarray:
    """Scores around 0, as normal effects of seeds and examples, and chance in single answers."""
    effects = seeds * at.normal(size=(S, 1)) + examples * at.normal(size=(1, E))
    return effects + answers * at.normal(size=(S, E))


# -- means ------------------------------------------------------------------------------------------------


def test_the_variance_of_a_mean_by_hand():
    found = statistics.spread(SCORES)
    of_seeds, of_examples, of_answers = 4.5 / 2, 3.25 / 3, 3 / (1 * 2 * 6)
    own = of_examples - of_answers
    assert found.variance == pytest.approx(of_seeds + own)
    squares = of_seeds**2 + of_examples**2 / 2 + of_answers**2 / 2
    assert found.df == pytest.approx((of_seeds + own) ** 2 / squares)
    assert found.drawn == pytest.approx(of_seeds / 2 + own * 2 / 3)
    assert found.shrink == pytest.approx(math.sqrt(own / of_examples))


def test_two_seeds_that_agree_have_an_interval_that_can_be_read():
    """Satterthwaite's approximation gives them 0.23 degrees of freedom, and t's tails of that reach 200,000."""
    agree = statistics.spread(np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 3.0, 2.0, 1.0]]))
    assert agree.variance == pytest.approx(1 / 12)
    assert agree.df == 1


def test_draws_have_the_variance_that_they_are_said_to_have():
    scores = crossed(4, 30, 0.1, 0.2, 0.3, rng())
    picks = statistics.pick_seeds(4, rng(1))
    shifts = statistics.shift_examples(statistics.effects(scores)[:, None], rng(2))
    means = statistics.drawn_runs(scores, picks, shifts[:, 0]).mean(1)
    assert means.mean() == pytest.approx(scores.mean(), abs=0.01)
    assert means.var() == pytest.approx(statistics.spread(scores).drawn, rel=0.05)


def test_before_they_are_stretched_draws_of_seeds_are_scipys_bootstrap():
    values = rng(3).normal(size=12)
    means = statistics.drawn_runs(values[:, None], statistics.pick_seeds(12, rng()), np.zeros(10_000)).mean(1)
    ours = np.quantile(means, statistics.TAILS)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="percentile", rng=rng()).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.03)


@pytest.mark.parametrize("shape", [(40, 1), (1, 40)])
def test_of_one_example_or_one_seed_it_is_the_interval_over_the_other(shape):
    scores = rng(4).normal(size=shape)
    found, expected = statistics.estimate(scores, rng()), over_seeds(scores.ravel())
    assert found.mean == pytest.approx(expected.mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    p = scipy_stats.ttest_1samp(scores.ravel(), 0).pvalue
    assert statistics.p_value(scores.mean(), [statistics.spread(scores)]) == pytest.approx(p)


def test_more_seeds_do_not_average_out_the_examples_that_they_share():
    scores = rng(5).normal(size=(1, 50))
    one, ten = statistics.estimate(scores, rng()), statistics.estimate(np.repeat(scores, 10, 0), rng())
    assert ten.half == pytest.approx(one.half, rel=0.03)
    assert ten.spread == 0


def test_all_algorithms_get_the_same_examples_however_many_are_held_at_a_time(monkeypatch):
    effects = np.array([[-1.0, -2.0], [1.0, 2.0]])
    shifts = statistics.shift_examples(effects, rng())
    values, counts = np.unique(shifts[:, 0], return_counts=True)
    assert values.tolist() == [-1, 0, 1]  # both drawn examples are the first, one of each, both the second
    assert counts / len(shifts) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert (shifts[:, 1] == 2 * shifts[:, 0]).all()
    monkeypatch.setattr(statistics, "CHUNK", 7)
    assert (statistics.shift_examples(effects, rng()) == shifts).all()


@pytest.mark.parametrize(
    ("S", "seeds", "examples", "answers"), [(3, 0.1, 0.05, 0.1), (3, 0.02, 0.3, 0.2), (5, 0.05, 0.1, 0.4)]
)
def test_intervals_hold_the_true_mean_nineteen_times_in_twenty(S, seeds, examples, answers):
    held = 0
    for world in range(300):
        found = statistics.estimate(crossed(S, 20, seeds, examples, answers, rng(world)), rng(), draws=500)
        held += found.low <= 0 <= found.high
    assert 0.9 < held / 300 < 0.99


def test_draws_that_are_not_stretched_hold_it_far_less_often():
    """Why they are: of three seeds the highest is below the true mean, or the lowest above it, once in four."""
    picks, held = statistics.pick_seeds(3, rng(), 500), 0
    for world in range(300):
        means = statistics.drawn_runs(crossed(3, 20, 0.1, 0.01, 0.05, rng(world)), picks, np.zeros(500)).mean(
            1
        )
        low, high = np.quantile(means, statistics.TAILS)
        held += low <= 0 <= high
    assert held / 300 < 0.8


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_scores_that_are_all_the_same(shape):
    found = statistics.estimate(np.full(shape, 0.1), rng())
    assert found.mean == pytest.approx(0.1)
    if shape == (1, 1):
        assert math.isnan(found.low) and math.isnan(found.high)
    else:
        assert (found.low, found.high) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.array([[0.1, math.nan]]), "not a finite number: a run that diverged has no mean"),
        (np.zeros((0, 3)), r"found the shape \(0, 3\)"),
        (np.zeros(3), r"found the shape \(3,\)"),
    ],
)
def test_what_has_no_mean_is_refused(scores, said):
    with pytest.raises(ValueError, match=said):
        statistics.estimate(scores, rng())


# -- pairs ------------------------------------------------------------------------------------------------


def test_what_pairs_share_cancels():
    hard = rng(6).normal(size=(1, 30))
    ours, theirs = (hard + 0.01 * rng(at).normal(size=(4, 30)) + shift for at, shift in ((7, 0.05), (8, 0.0)))
    found = statistics.paired(ours, theirs, rng())
    assert found.estimate.mean == pytest.approx(0.05, abs=0.01)
    assert found.p < 0.01
    assert found.estimate.half < 0.02 < statistics.estimate(ours, rng()).half


def test_a_difference_that_does_not_vary():
    assert statistics.paired(SCORES, SCORES, rng()).p == 1
    above = statistics.paired(SCORES + 0.5, SCORES, rng())
    assert (above.p, above.p_flips) == (0, 2 / 2**3)
    assert math.isnan(statistics.paired(SCORES[:1, :1], SCORES[1:, :1], rng()).p)
    assert math.isnan(statistics.paired(SCORES[:, :1], SCORES[:, 1:2], rng()).p_flips)


def test_flips_of_many_examples_are_those_of_few(monkeypatch):
    """Sampled as scipy samples them, and near what all of them give."""
    differences = rng(9).normal(0.4, 1, size=16)
    exact = statistics.flipped(differences, rng())
    assert 0.01 < exact < 0.5
    monkeypatch.setattr(statistics, "EXACT", 0)
    assert statistics.flipped(differences, rng()) == pytest.approx(exact, abs=0.015)
    monkeypatch.setattr(statistics, "CHUNK", 10_000)
    assert statistics.flipped(differences, rng()) == pytest.approx(exact, abs=0.015)
    assert statistics.flipped(np.ones(30), rng()) == 1 / 10_001
    assert statistics.flipped(np.zeros(30), rng()) == 1


def test_p_is_below_a_twentieth_once_in_twenty_where_nothing_differs():
    ps = [
        statistics.p_value(scores.mean(), [statistics.spread(scores)])
        for world in range(2000)
        for scores in [crossed(3, 20, 0.05, 0.1, 0.3, rng(world))]
    ]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.065


def test_pairs_that_share_nothing_are_refused():
    with pytest.raises(ValueError, match=r"share seeds and examples, found \(2, 3\) and \(1, 3\)"):
        statistics.paired(SCORES, SCORES[:1], rng())


def test_over_two_tasks_by_hand():
    """Three seeds each, the means' variances 1/3 and 1/3: four degrees of freedom."""
    tasks = [np.array([[0.0], [1.0], [2.0]]), np.array([[2.0], [3.0], [4.0]])]
    spreads = [statistics.spread(scores) for scores in tasks]
    found = statistics.mean_of([1.0, 3.0], spreads)
    assert statistics.freedom(spreads) == pytest.approx(4)
    assert found.mean == 2
    assert found.half == pytest.approx(2.7764451 * math.sqrt(2 / 3) / 2)
    assert statistics.p_value(4.0, spreads) == pytest.approx(2 * scipy_stats.t.sf(4 / math.sqrt(2 / 3), 4))


# -- over tasks -------------------------------------------------------------------------------------------


def test_the_interquartile_mean_by_hand():
    runs = [np.array([0.0, 9.0, 3.0, 4.0]), np.array([5.0, 6.0, -7.0, 100.0])]
    assert statistics.interquartile_mean(runs) == (3 + 4 + 5 + 6) / 4
    assert statistics.interquartile_mean([np.array([1.0, 2.0, 6.0])]) == 3  # a quarter of three is no run
    drawn = [np.stack([task, task + 1]) for task in runs]
    assert statistics.interquartile_mean(drawn).tolist() == [4.5, 5.5]


def test_the_profile_by_hand():
    runs = [np.array([0.0, 1.0]), np.array([0.5, 0.5, 2.0, 2.0])]
    at = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    assert statistics.profile(runs, at).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert statistics.profile([np.stack([task] * 3) for task in runs], at).shape == (3, 5)


def test_improvement_is_mann_whitneys_u():
    ours, theirs = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    u = scipy_stats.mannwhitneyu(ours, theirs).statistic
    assert statistics.improvement([ours], [theirs]) == pytest.approx(u / 6)
    assert statistics.improvement([ours, ours], [theirs, ours]) == pytest.approx((u / 6 + 0.5) / 2)
    assert statistics.improvement([np.stack([ours] * 4)], [np.stack([theirs] * 4)]).shape == (4,)


def test_mean_ranks_by_hand():
    means = np.array([[0.9, 0.5], [0.1, 0.5], [0.2, 0.4]])
    assert statistics.mean_ranks(means).tolist() == [(1 + 1.5) / 2, (3 + 1.5) / 2, (2 + 3) / 2]
    assert statistics.mean_ranks(np.stack([means, means[::-1]]))[1].tolist() == [2.5, 2.25, 1.25]


def test_scores_are_scaled_between_the_worst_and_the_best():
    assert statistics.scaled(np.array([2.0, 4.0, 5.0]), 2, 4).tolist() == [0, 1, 1.5]
    assert statistics.scaled(np.array([2.0, 4.0, 5.0]), 4, 2).tolist() == [1, 0, -0.5]  # less is better


def test_the_interval_of_an_aggregate_holds_it_nineteen_times_in_twenty():
    """The interquartile mean of four tasks, three seeds each; its true value is 0 as all is symmetric."""
    held = 0
    for world in range(150):
        at = rng(world)
        tasks = [crossed(3, 15, 0.05, 0.1, 0.2, at) for _ in range(4)]
        drawn = []
        for scores in tasks:
            picks, effects = statistics.pick_seeds(3, at, 500), statistics.effects(scores)[:, None]
            shifts = statistics.shift_examples(effects, at, 500)[:, 0]
            drawn.append(statistics.drawn_runs(scores, picks, shifts))
        value = statistics.interquartile_mean([scores.mean(1) for scores in tasks])
        widen = statistics.stretch([statistics.spread(scores) for scores in tasks])
        low, high = statistics.band(value, statistics.interquartile_mean(drawn), widen)
        held += low <= 0 <= high
    assert 0.9 < held / 150 < 0.995


# -- reward against KL ------------------------------------------------------------------------------------


def test_the_frontier_by_hand():
    kl = np.array([0.0, 1.0, 1.0, 2.0, 3.0, math.nan, 0.5])
    score = np.array([0.1, 0.5, 0.4, 0.5, 0.6, 9.0, math.nan])
    assert statistics.undominated(kl, score).tolist() == [True, True, False, False, True, False, False]
    assert statistics.undominated(np.ones(2), np.ones(2)).tolist() == [
        True,
        True,
    ]  # equals do not beat each other
