"""How far raters agree: Krippendorff's α (Krippendorff, Content Analysis, 2004, ch. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["nominal", "ordinal", "interval"]
Units = Sequence[Sequence[int]]
"""Of each thing that was rated, the ratings it got, from whomever; those with fewer than two say nothing."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How far raters agree; None where it cannot be said."""

    alphas: dict[str, float | None]
    """1: always; 0: as often as by chance. None where fewer than two ratings meet, or all ratings are alike."""
    same: float | None
    """The share of pairs of ratings of one thing that are the same."""
    units: int
    """Things with two ratings or more."""


def agreement(units: Units, metrics: Sequence[Metric]) -> Agreement:
    """α by several metrics, and the plain share of equal ratings, each unit's weighed by its ratings."""
    met = [unit for unit in units if len(unit) > 1]
    if not met:
        return Agreement(dict.fromkeys(metrics), None, 0)
    found = coincidences(met)
    same = float(np.trace(found) / found.sum())
    return Agreement({metric: _alpha(found, _values(met), metric) for metric in metrics}, same, len(met))


def alpha(units: Units, metric: Metric) -> float | None:
    """Krippendorff's α = 1 − observed / expected disagreement; missing ratings are simply not there."""
    return agreement(units, [metric]).alphas[metric]


def coincidences(units: Units) -> Floats:
    """The coincidence matrix: pairs of ratings of one unit, over (its ratings − 1), by their two values."""
    values = _values(units)
    place = {value: i for i, value in enumerate(values)}
    o_VV = np.zeros((len(values), len(values)))
    for unit in units:
        n_V = np.bincount([place[value] for value in unit], minlength=len(values))
        o_VV += (np.outer(n_V, n_V) - np.diag(n_V)) / (len(unit) - 1)
    return o_VV


def _values(units: Units) -> list[int]:
    return sorted({value for unit in units for value in unit})


def _alpha(o_VV: Floats, values: Sequence[int], metric: Metric) -> float | None:
    n_V = o_VV.sum(0)
    n = n_V.sum()
    distance_VV = _DISTANCES[metric](np.asarray(values, dtype=float), n_V)
    expected = (np.outer(n_V, n_V) * distance_VV).sum() / (n - 1)
    return None if expected == 0 else float(1 - (o_VV * distance_VV).sum() / expected)


def _nominal(values_V: Floats, n_V: Floats) -> Floats:
    return 1.0 - np.eye(len(values_V))


def _ordinal(values_V: Floats, n_V: Floats) -> Floats:
    """The ratings between two values, theirs counted half, squared."""
    middle_V = np.cumsum(n_V) - n_V / 2
    return np.square(np.subtract.outer(middle_V, middle_V))


def _interval(values_V: Floats, n_V: Floats) -> Floats:
    return np.square(np.subtract.outer(values_V, values_V))


_DISTANCES: dict[Metric, Callable[[Floats, Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}
