"""The statistics of ratings and choices. scipy does the mathematics; here is what it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats


@dataclass(frozen=True)
class Anova:
    """One-way analysis of variance: do all runs have the same mean?"""

    f: float
    p: float


@dataclass(frozen=True)
class Difference:
    """Two runs' means compared by Tukey's HSD: the first's less the second's, with its 95 % interval."""

    runs: tuple[str, str]
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    share: float
    low: float
    high: float


def anova(groups: Mapping[str, Sequence[float]]) -> Anova | None:
    """scipy's `f_oneway`; None where a group has fewer than two values, or nothing varies within any."""
    if not _vary(groups):
        return None
    found = stats.f_oneway(*groups.values())
    return Anova(float(found.statistic), float(found.pvalue))


def tukey(groups: Mapping[str, Sequence[float]]) -> list[Difference]:
    """scipy's `tukey_hsd` for all pairs; none where `anova` says nothing."""
    if not _vary(groups):
        return []
    found = stats.tukey_hsd(*groups.values())
    interval = found.confidence_interval(0.95)
    return [
        Difference(
            (a, b),
            *(float(x[i, j]) for x in (found.statistic, interval.low, interval.high, found.pvalue)),
        )
        for (i, a), (j, b) in combinations(enumerate(groups), 2)
    ]


def _vary(groups: Mapping[str, Sequence[float]]) -> bool:
    every = list(groups.values())
    return len(every) > 1 and all(len(one) > 1 for one in every) and any(min(one) < max(one) for one in every)


def wilson(won: float, of: int) -> Share | None:
    """Wilson's score interval (1927) of won / of, where what is won may be a half."""
    if of == 0:
        return None
    z, p = float(stats.norm.ppf(0.975)), won / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return Share(p, max(0.0, middle - half), min(1.0, middle + half))
