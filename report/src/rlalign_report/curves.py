"""A run's figures as lines of a chart: as many points as can be drawn, and means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rlalign_report.run import Curve, number

POINTS = 800
"""Of a line. Of longer runs a point is the mean of several iterations, in a band from the least to the greatest."""
GROUP_POINTS = 150
"""Of a line over several runs."""
AXES = ("iteration", "step", "tokens", "seconds")

Line = dict[str, Any]


class Buckets:
    """The rows of a curve in so many parts of equal length, each of which is a point."""

    def __init__(self, curve: Curve, points: int, rows: int | None = None) -> None:
        self._curve = curve
        self._count = len(curve.rows) if rows is None else rows
        self.size = max(1, math.ceil(self._count / points))
        """Rows of a point."""
        self._ends = [min(start + self.size, self._count) - 1 for start in range(0, self._count, self.size)]

    def axes(self) -> dict[str, list[float | None]]:
        """Where the points lie, by what may be counted."""
        places = [self._curve.places[end] for end in self._ends]
        return {name: [plain(place[i]) for place in places] for i, name in enumerate(AXES)}

    def means(self, name: str) -> list[float]:
        """Of each point, the mean of the finite values; NaN where there are none."""
        return [fmean(values) if values else math.nan for values in self._values(name)]

    def line(self, name: str) -> Line:
        """The points of a figure, with the least and the greatest where a point stands for several rows."""
        found: Line = {"y": list(map(plain, self.means(name)))}
        if self.size > 1:
            each = self._values(name)
            found["low"] = [plain(min(values, default=math.nan)) for values in each]
            found["high"] = [plain(max(values, default=math.nan)) for values in each]
        return found

    def _values(self, name: str) -> list[list[float]]:
        rows, start, found = self._curve.rows, 0, []
        for end in self._ends:
            values = [number(row.get(name)) for row in rows[start : end + 1]]
            found.append([value for value in values if math.isfinite(value)])
            start = end + 1
        return found


def training_over_seeds(curves: Sequence[Curve]) -> tuple[list[Buckets], int]:
    """The parts of several runs that are compared: the iterations that all of them have."""
    rows = min(len(curve.rows) for curve in curves)
    return [Buckets(curve, GROUP_POINTS, rows) for curve in curves], rows


def evaluations_over_seeds(curves: Sequence[Curve]) -> list[Buckets]:
    """The evaluations that all runs have had, a point each."""
    shared = set.intersection(*({place[0] for place in curve.places} for curve in curves))
    found = []
    for curve in curves:
        by_place = {place[0]: i for i, place in enumerate(curve.places) if place[0] in shared}
        some = Curve([curve.rows[i] for i in by_place.values()], [curve.places[i] for i in by_place.values()])
        found.append(Buckets(some, len(some.rows) or 1))
    return found


def over_seeds(several: Sequence[Buckets], name: str) -> Line:
    """The mean over runs at each point, with its 95 % t-interval; nothing where a run has no value."""
    from rlalign_study.stats import estimate

    found: Line = {"y": [], "low": [], "high": []}
    for values in zip(*(buckets.means(name) for buckets in several), strict=True):
        known = estimate(values) if all(map(math.isfinite, values)) else None
        found["y"].append(plain(known.mean) if known else None)
        found["low"].append(plain(known.low) if known else None)
        found["high"].append(plain(known.high) if known else None)
    return found


def mean_axes(several: Sequence[Buckets]) -> dict[str, list[float | None]]:
    """Where points over several runs lie: at the means of where they lie in each."""
    each = [buckets.axes() for buckets in several]
    return {
        name: [
            plain(fmean(math.nan if x is None else x for x in xs))
            for xs in zip(*(axes[name] for axes in each), strict=True)
        ]
        for name in AXES
    }


def plain(value: float) -> float | None:
    """A number as JSON has it, with the digits that can be seen; None for what JSON has none for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
