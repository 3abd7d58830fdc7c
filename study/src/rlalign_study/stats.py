"""The statistics of a report. scipy does the mathematics; here is what it is asked, and Holm's correction.

`scipy.stats` takes half a second to import; scipy imports its parts when they are used, and a mean's interval uses
little of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

EXACT = 16
"""Up to so many pairs all sign flips are tried (65,536); of more a sample of them, always the same."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; of a single value there is none."""

    mean: float
    low: float
    high: float
    spread: float
    count: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def estimate(values: Sequence[float], how: Literal["t", "bootstrap"] = "t") -> Estimate | None:
    """A mean with its t-interval, or with its bootstrap interval (BCa, 9,999 resamples, always the same)."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    spread = float(np.std(values, ddof=1))
    if how == "bootstrap" and spread > 0:
        found = scipy.stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        return Estimate(mean, float(found.low), float(found.high), spread, n)
    half = _t(0.975, n - 1) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, spread, n)


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t-test: are the differences zero in the mean?"""
    if np.ptp(differences) == 0:  # the test statistic would be 0/0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)


def sign_flips(differences: Sequence[float]) -> float:
    """Two-sided p of the permutation test that flips the signs of differences.

    Its least value is 2/2ⁿ: 0.0625 with five pairs, 0.002 with ten.
    """
    n = len(differences)
    found = scipy.stats.permutation_test(
        (np.asarray(differences),),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        n_resamples=2**n if n <= EXACT else 9999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return min(1.0, float(found.pvalue))


def detectable(differences: Sequence[float], power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a paired t-test of this spread finds with this power (approximately)."""
    n = len(differences)
    return (_t(1 - level / 2, n - 1) + _t(power, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)


def equal_spread(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Two-sided p of Pitman's and Morgan's test (1939): have paired values the same variance?

    Sums and differences of pairs correlate exactly if the variances differ.
    """
    sums, differences = np.add(xs, ys), np.subtract(xs, ys)
    if np.ptp(sums) == 0 or np.ptp(differences) == 0:
        return 1.0
    return float(scipy.stats.pearsonr(sums, differences).pvalue)


def fisher(hits: int, of: int, other_hits: int, other_of: int) -> float:
    """Two-sided p of Fisher's exact test: is the share of hits the same in both?"""
    return float(scipy.stats.fisher_exact([[hits, of - hits], [other_hits, other_of - other_hits]]).pvalue)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979) of a family of tests. scipy has only false discovery rates."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for i, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        least = adjusted[name] = max(least, min(1.0, (len(ps) - i) * ps[name]))
    return {name: adjusted[name] for name in ps}


def _t(p: float, df: int) -> float:
    return float(scipy.special.stdtrit(df, p))
