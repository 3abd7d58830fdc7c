"""The area under each run's curve, and the claims of README.md, each answered by the rule named there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign_study.analysis import Found
from rlalign_study.report import verdict
from rlalign_study.rows import Row

CLAIMS = (
    ("1. The published mixture learns faster than from scratch", "paper", "scratch"),
    ("2. than with alignment alone", "paper", "alignment"),
    ("3. than with novelty alone", "paper", "novelty"),
    ("4. Alignment with captions at random loses to alignment", "alignment", "random-alignment"),
)


def derive(row: Row, given: Mapping[str, Any]) -> dict[str, float]:
    """Success in the second phase: a mean over its evaluations, and its ends."""
    success = row.curve["success"]
    return {"area": sum(success) / len(success), "first": success[0], "last": success[-1]}


def answers(worlds: Sequence[Found]) -> list[str]:
    lines = []
    for found in worlds:
        family = found.family("area")
        for claim, arm, other in CLAIMS:
            if (arm, other) in family:
                lines.append(f"- **{claim}** (`{found.name}`): {verdict(family[arm, other])}")
    return lines
