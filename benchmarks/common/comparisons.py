"""Means over seeds, and arms compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.common import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t-interval."""

    mean: float
    half: float
    spread: float
    count: int


def estimate(values: Sequence[float]) -> Estimate | None:
    if not values:
        return None
    spread = stdev(values) if len(values) > 1 else math.nan
    return Estimate(fmean(values), stats.half_interval(values), spread, len(values))


@dataclass(frozen=True)
class Comparison:
    """One arm against another over the seeds that both have."""

    arm: str
    other: str
    difference: Estimate
    p_t: float
    p_flips: float
    p_holm: float
    """Of the paired t-test, in its family."""
    detectable: float


def family(pairs: Sequence[tuple[str, str]], values: Mapping[str, Mapping[int, float]]) -> list[Comparison]:
    """These pairs of arms, whose values go by seed, with Holm's correction over all of them.

    A pair that shares fewer than three seeds is left out.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for arm, other in pairs:
        ours, theirs = values.get(arm, {}), values.get(other, {})
        differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        if len(differences) > 2:
            found[arm, other] = differences
    raw = {" ".join(pair): stats.paired_t(differences) for pair, differences in found.items()}
    corrected = stats.holm(raw)
    made = []
    for (arm, other), differences in found.items():
        difference = estimate(differences)
        assert difference is not None
        key = f"{arm} {other}"
        flips, least = stats.sign_flips(differences), stats.detectable(differences)
        made.append(Comparison(arm, other, difference, raw[key], flips, corrected[key], least))
    return made
