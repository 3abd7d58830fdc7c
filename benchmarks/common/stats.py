"""The statistics of the study, small enough to be read and tested against tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, stdev

EXACT = 16
"""Up to so many pairs all sign flips are tried (65,536)."""


def t_cdf(t: float, df: int) -> float:
    """P(T ≤ t) of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3 and 4)."""
    angle = math.atan(t / math.sqrt(df))
    cos2, term, total = math.cos(angle) ** 2, 1.0, 0.0
    if df % 2:  # A(t|ν) = 2/π (θ + sin θ (cos θ + 2/3 cos³ θ + …))
        term = math.cos(angle)
        for k in range(3, df + 1, 2):
            total += term
            term *= cos2 * (k - 1) / k
        share = 2 / math.pi * (angle + math.sin(angle) * total)
    else:  # A(t|ν) = sin θ (1 + 1/2 cos² θ + 1·3/(2·4) cos⁴ θ + …)
        for k in range(2, df + 1, 2):
            total += term
            term *= cos2 * (k - 1) / k
        share = math.sin(angle) * total
    return (1 + share) / 2


def t_quantile(p: float, df: int) -> float:
    """The t with P(T ≤ t) = p, by halving."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def half_interval(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of the t-interval of a mean; infinite for fewer than two values."""
    n = len(values)
    return t_quantile((1 + level) / 2, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else math.inf


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t-test: are the differences zero in the mean?"""
    n, mean, spread = len(differences), fmean(differences), stdev(differences)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * (1 - t_cdf(abs(mean) / (spread / math.sqrt(n)), n - 1))


def sign_flips(differences: Sequence[float]) -> float:
    """Two-sided p of the permutation test that flips the signs of differences: all 2ⁿ ways.

    Its least value is 2/2ⁿ: 0.0625 with five pairs, 0.002 with ten.
    """
    n = len(differences)
    if n > EXACT:
        raise ValueError(f"{n} pairs are more than {EXACT}, the most whose sign flips are all tried")
    seen = abs(sum(differences)) * (1 - 1e-9)  # a tie must not be lost to rounding
    extreme = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen
        for signs in product((1, -1), repeat=n)
    )
    return extreme / (1 << n)


def detectable(differences: Sequence[float], power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a paired t-test of this spread finds with this power (approximately)."""
    n = len(differences)
    return (t_quantile(1 - level / 2, n - 1) + t_quantile(power, n - 1)) * stdev(differences) / math.sqrt(n)


def equal_spread(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Two-sided p of Pitman's and Morgan's test (1939): have paired values the same variance?

    Sums and differences of pairs correlate exactly if the variances differ.
    """
    sums = [x + y for x, y in zip(xs, ys, strict=True)]
    differences = [x - y for x, y in zip(xs, ys, strict=True)]
    r, n = correlation(sums, differences), len(sums)
    if abs(r) >= 1:
        return 0.0
    return 2 * (1 - t_cdf(abs(r) * math.sqrt((n - 2) / (1 - r**2)), n - 2))


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    mx, my = fmean(xs), fmean(ys)
    sxy = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    sxx, syy = sum((x - mx) ** 2 for x in xs), sum((y - my) ** 2 for y in ys)
    return sxy / math.sqrt(sxx * syy) if sxx > 0 and syy > 0 else 0.0


def fisher(hits: int, of: int, other_hits: int, other_of: int) -> float:
    """Two-sided p of Fisher's exact test: is the share of hits the same in both?"""
    total = hits + other_hits

    def ways(k: int) -> int:
        return math.comb(of, k) * math.comb(other_of, total - k) if 0 <= total - k <= other_of else 0

    every = [ways(k) for k in range(min(of, total) + 1)]
    return sum(w for w in every if w <= every[hits]) / sum(every)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979) of a family of tests."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for i, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        least = max(least, min(1.0, (len(ps) - i) * ps[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in ps}
