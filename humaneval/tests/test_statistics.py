"""Statistics against scipy called another way, and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from rlalign_humaneval.statistics import anova, tukey, wilson

# Three runs, four items each; means 3, 4 and 2.
GROUPS = {"a": [2.0, 3.0, 3.0, 4.0], "b": [4.0, 4.0, 3.0, 5.0], "c": [2.0, 1.0, 3.0, 2.0]}


def test_anova_by_hand():
    """Between: 4·(0 + 1 + 1) = 8 with 2 degrees of freedom; within: 2 + 2 + 2 = 6 with 9. F = 4 / (2/3) = 6."""
    found = anova(GROUPS)
    assert found.f == pytest.approx(6)
    assert found.p == pytest.approx(stats.f.sf(6, 2, 9))


def test_tukey_by_hand():
    """q = difference / √(MSE / n) = 1 / √(1/6), against the studentised range of 3 means with 9 degrees of freedom."""
    found = {d.runs: d for d in tukey(GROUPS)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    for runs, difference in {("a", "b"): -1, ("a", "c"): 1, ("b", "c"): 2}.items():
        one = found[runs]
        assert one.difference == pytest.approx(difference)
        assert one.p == pytest.approx(
            stats.studentized_range.sf(abs(difference) * math.sqrt(6), 3, 9), abs=1e-6
        )
        half = stats.studentized_range.ppf(0.95, 3, 9) / math.sqrt(6)
        assert (one.low, one.high) == pytest.approx((difference - half, difference + half), abs=1e-4)


def test_of_two_runs_tukey_is_the_t_test():
    two = {name: GROUPS[name] for name in "ab"}
    (found,) = tukey(two)
    assert found.p == pytest.approx(stats.ttest_ind(two["a"], two["b"]).pvalue, abs=1e-6)
    assert anova(two).p == pytest.approx(stats.ttest_ind(two["a"], two["b"]).pvalue)


@pytest.mark.parametrize(
    "groups",
    [
        {"a": [1.0], "b": [2.0, 3.0]},
        {"a": [1.0, 1.0], "b": [2.0, 2.0]},
        {"a": [], "b": []},
        {"a": [1.0, 2.0]},
    ],
)
def test_what_no_analysis_of_variance_can_say(groups):
    assert anova(groups) is None
    assert tukey(groups) == []


@pytest.mark.parametrize("won, of", [(7, 10), (0, 5), (5, 5), (1, 1), (50, 173)])
def test_wilson_is_scipys(won, of):
    found, expected = wilson(won, of), stats.binomtest(won, of).proportion_ci(method="wilson")
    assert found.share == won / of
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_wilson_by_hand():
    """10 of 10 leaves n / (n + z²); half of anything is an interval around a half."""
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    tied = wilson(2.5, 5)
    assert tied.low + tied.high == pytest.approx(1)
    assert wilson(0, 0) is None
