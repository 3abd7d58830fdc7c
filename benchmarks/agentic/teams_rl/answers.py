"""The end of each run, and the claims of README.md, each answered by the rule named there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign_study.analysis import Found
from rlalign_study.report import verdict
from rlalign_study.rows import Row

UNIFORM, GOOD, LITTLE = 3.141666666666667, 4.4, 0.3


def derive(row: Row, given: Mapping[str, Any]) -> dict[str, float]:
    """The reward where the curve ends."""
    return {"reward": row.curve["reward"][-1]}


def answers(worlds: Sequence[Found]) -> list[str]:
    (found,) = worlds
    ends: dict[str, list[float]] = {}
    for row in found.rows:
        ends.setdefault(row.arm, []).append(row.curve["reward"][-1])
    mean = {arm: sum(some) / len(some) for arm, some in ends.items()}
    family = found.family("reward")

    def told(arm: str) -> str:
        return f"`{arm}` {mean[arm]:.3f} (least {min(ends[arm]):.3f}, {len(ends[arm])} seeds)"

    def less(arm: str, other: str) -> str:
        return verdict(family[arm, other]) if (arm, other) in family else "too few seeds"

    lines = []
    if {"trpo", "random"} <= mean.keys():
        sure = mean["trpo"] >= GOOD and min(ends["trpo"]) > UNIFORM
        lines.append(
            f"1. TRPO reaches {GOOD} and beats random rewriting in each seed: {_word(sure)}; {told('trpo')}."
        )
    if {"trpo", "trpo-one"} <= mean.keys():
        sure = mean["trpo-one"] - UNIFORM < (mean["trpo"] - UNIFORM) / 2
        lines.append(
            f"2. On one episode an update it gains less than half of that: {_word(sure)}; {told('trpo-one')}."
        )
    if {"trpo", "gaussian"} <= mean.keys():
        lines.append(
            f"3. The Gaussian learns less than TRPO: {less('trpo', 'gaussian')}; {told('gaussian')}."
        )
    if "gaussian-one" in mean:
        sure = mean["gaussian-one"] - UNIFORM < LITTLE
        lines.append(f"4. As released, less than {LITTLE} is gained: {_word(sure)}; {told('gaussian-one')}.")
    return lines


def _word(sure: bool) -> str:
    return "yes" if sure else "no"
