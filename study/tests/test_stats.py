"""Statistics against tables, numbers worked out by hand, and scipy called the other way round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlalign_study import stats

FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP = [a - b for a, b in zip(FIRST, SECOND, strict=True)]
"""Ten patients, hours of sleep gained by two drugs (Student 1908): t = −4.0621, p = 0.002833."""


def test_the_interval_and_the_paired_test_of_students_sleep_data():
    assert stats.paired_t(SLEEP) == pytest.approx(0.002833, abs=1e-6)
    assert stats.paired_t(SLEEP) == pytest.approx(scipy_stats.ttest_rel(FIRST, SECOND).pvalue)
    found = stats.estimate(SLEEP)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert found.half == pytest.approx((2.4598858 - 0.7001142) / 2, abs=1e-6)
    assert stats.sign_flips(SLEEP) == 4 / 1024  # one difference is zero, nine have one sign


def test_means_of_few_values():
    assert stats.estimate([]) is None
    one = stats.estimate([0.5])
    assert (one.mean, one.count) == (0.5, 1)
    assert math.isnan(one.half)
    alike = stats.estimate([0.5, 0.5, 0.5], "bootstrap")
    assert (alike.low, alike.high) == (0.5, 0.5)


def test_the_bootstrap_interval_is_scipys_and_the_same_each_time():
    found = stats.estimate(SLEEP, "bootstrap")
    assert found == stats.estimate(SLEEP, "bootstrap")
    rng = np.random.default_rng(0)
    expected = scipy_stats.bootstrap((SLEEP,), np.mean, rng=rng).confidence_interval
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.low == pytest.approx(-2.4, abs=0.3)
    assert found.high == pytest.approx(-0.95, abs=0.2)


def test_differences_that_do_not_vary():
    assert stats.paired_t([0.0, 0.0, 0.0]) == 1
    assert stats.paired_t([0.1, 0.1, 0.1]) == 0


def test_sign_flips_by_hand():
    assert stats.sign_flips([1, 2, 3, 4, 5]) == 2 / 32
    assert stats.sign_flips([1, -1]) == 1
    assert stats.sign_flips([3, 1, -1]) == 6 / 8  # ±(3 − 1 − 1) falls short of 3, all others do not
    assert stats.sign_flips([1.0] * 17) < 0.001  # a sample of all flips


def test_fisher_by_hand():
    assert stats.fisher(3, 4, 1, 4) == pytest.approx(34 / 70)  # the lady who tasted tea
    assert stats.fisher(1, 10, 11, 14) == pytest.approx(0.0027594561852)
    assert stats.fisher(0, 10, 0, 12) == 1


def test_holm_by_hand():
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert stats.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert stats.holm({}) == {}


def test_equal_spread_sees_a_spread_and_only_that():
    xs = [0.1, -0.2, 0.15, -0.05, 0.0, 0.12, -0.1, 0.07]
    ys = [0.3, 0.1, -0.2, 0.25, -0.15, -0.3, 0.05, 0.2]
    wide = [20 * y for y in ys]
    assert stats.equal_spread(xs, wide) < 0.001
    assert stats.equal_spread(xs, wide) == pytest.approx(stats.equal_spread(wide, [x + 5 for x in xs]))
    assert stats.equal_spread(xs, [-x for x in xs]) == 1.0
    assert stats.equal_spread(xs, xs) == 1.0


def test_what_would_be_found():
    """Ten differences with a standard deviation of 1: (2.2622 + 0.8834) / √10."""
    unit = [math.sqrt(0.9) * s for s in (1, -1) * 5]
    assert stats.detectable(unit) == pytest.approx((2.2622 + 0.8834) / math.sqrt(10), abs=1e-4)
