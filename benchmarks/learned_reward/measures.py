"""A measure of this study's own: the learned reward on the way, which says how fast an arm is."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any


def derive(row: Any, given: Mapping[str, Any]) -> dict[str, float]:
    """The mean of a run's curve of learned reward after its start."""
    points = row.curve.get("learned", [])[1:]
    return {"way": fmean(points)} if points else {}
