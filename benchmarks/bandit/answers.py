"""Where runs ended beside where they should, and the claims of README.md, each answered by the rules named there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy

from rlalign_study.analysis import Found
from rlalign_study.file import module_of
from rlalign_study.rows import Row

bandit, exact = (module_of(Path(__file__).with_name(f"{name}.py")) for name in ("bandit", "fixed_points"))
BETA = 0.5
REACHED, AWAY, NEAR, EARLY = 1e-3, 0.03, 0.03, 0.02
"""Total variations: at the optimum; not at it; where it was stated. And a regret after 100 epochs."""


@cache
def stated() -> Mapping[str, Any]:
    """By arm: the policy that a method ends with, from exact expectations."""
    said = bandit.Pairs.Config()
    reward, pairs = said.payouts, numpy.outer(said.first, said.second)
    reference = [1 / len(reward)] * len(reward)
    return {
        "copg": exact.least_squares(pairs, exact.gaps(reward), reference, BETA),
        "ipo": exact.least_squares(pairs, exact.preferred(reward) - 0.5, reference, BETA),
        "pg": exact.naive(pairs, reward, reference, BETA),
        "pg-value": exact.naive(pairs, reward, reference, BETA, "value"),
        "pg-regularised": exact.naive(pairs, reward, reference, BETA, "regularised"),
    }


def derive(row: Row, given: Mapping[str, Any]) -> dict[str, float]:
    """The end of a curve, and what was stated of it."""
    reward = bandit.Pairs.Config().payouts
    reference = [1 / len(reward)] * len(reward)
    best, end = exact.optimum(reward, reference, BETA), stated()[row.arm]
    last = {name: row.curve[name][-1] for name in ("first", "second", "third", "regret", "distance")}
    highest, there = (exact.objective(policy, reward, reference, BETA) for policy in (best, end))
    return last | {
        "stated_regret": max(0.0, highest - there),
        "stated_distance": exact.distance(end, best),
        "off": exact.distance(end, [last["first"], last["second"], last["third"]]),
        "falls": float(
            all(a > b for a, b in zip(row.curve["regret"], row.curve["regret"][1:], strict=False))
        ),
        "start": row.curve["regret"][0],
    }


def answers(worlds: Sequence[Found]) -> list[str]:
    """A line for each claim."""
    paper, rest = (next(found for found in worlds if found.name == name) for name in ("paper", "rest"))
    claims = [
        ("CoPG reaches the optimum", rest, "copg", "distance", lambda x: x < REACHED),
        ("On the way its regret only falls", paper, "copg", "falls", lambda x: x == 1),
        (f"and is below {EARLY} after 100 epochs", paper, "copg", "regret", lambda x: x < EARLY),
        ("IPO ends elsewhere", rest, "ipo", "distance", lambda x: x > AWAY),
        ("The naive gradient ends worse than it began", paper, "pg", "gain", lambda x: x < 0),
        (
            "With the value of R as baseline it ends elsewhere",
            rest,
            "pg-value",
            "distance",
            lambda x: x > AWAY,
        ),
        ("but better than it began", rest, "pg-value", "gain", lambda x: x > 0),
        (
            "With the value of R_β it reaches the optimum",
            rest,
            "pg-regularised",
            "distance",
            lambda x: x < REACHED,
        ),
        *(
            (f"`{arm}` ends where it was stated", rest, arm, "off", lambda x: x < NEAR)
            for arm in rest.study.arms_of(rest.name)
        ),
    ]
    return [_answer(*claim) for claim in claims]


def _answer(claim: str, found: Found, arm: str, name: str, holds: Any) -> str:
    values = [_value(row, name) for row in found.main.get(arm, {}).values()]
    if not values:
        return f"- **{claim}**: no run yet."
    word = "yes" if all(map(holds, values)) else "no"
    numbers = "" if name == "falls" else f", {name} {min(values):.3g} to {max(values):.3g}"
    return f"- **{claim}**: {word}. `{arm}`{numbers}, {len(values)} seeds."


def _value(row: Row, name: str) -> float:
    return row.metrics["start"] - row.metrics["regret"] if name == "gain" else row.metrics[name]
