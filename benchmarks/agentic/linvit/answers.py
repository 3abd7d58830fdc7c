"""The claims of README.md, each answered from the numbers by the rule named there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

Claim = tuple[str, tuple[str, ...], Callable[[Mapping[str, float]], bool]]
"""What is claimed, of which arms, and when it holds of their figures."""

EPISODES: dict[str, Sequence[Claim]] = {
    "digits": (
        (
            "A good prior saves episodes: the median of p=.9 is at most half of plain optimism's",
            ("p=.9", "optimism"),
            lambda of: of["p=.9"] <= of["optimism"] / 2,
        ),
        (
            "A fair prior saves some: the median of p=.5 is below plain optimism's",
            ("p=.5", "optimism"),
            lambda of: of["p=.5"] < of["optimism"],
        ),
        (
            "A prior that says nothing or less does not: the medians of p=.125 and p=.02 are not below",
            ("p=.125", "p=.02", "optimism"),
            lambda of: min(of["p=.125"], of["p=.02"]) >= of["optimism"],
        ),
    ),
    "opening": (
        (
            "Where bounds are loose not even a good prior saves half: the median of p=.9 is above half of optimism's",
            ("p=.9", "optimism"),
            lambda of: of["p=.9"] > of["optimism"] / 2,
        ),
    ),
}
MISLED: Claim = (
    "A wrong prior that is trusted hurts: misled finds no plan in at least nine seeds of ten",
    ("misled",),
    lambda of: of["misled"] <= 0.1,
)
SOLVED: Sequence[Claim] = (
    (
        "A search beats its policy alone: a=0 above policy",
        ("a=0", "policy"),
        lambda of: of["a=0"] > of["policy"],
    ),
    (
        "A misleading policy hurts who listens: misled below a=0",
        ("misled", "a=0"),
        lambda of: of["misled"] < of["a=0"],
    ),
)
NOISY: Claim = (
    "Where values are noisy, a good policy's say helps: a=1 above a=0",
    ("a=1", "a=0"),
    lambda of: of["a=1"] > of["a=0"],
)


def answers(worlds: Sequence[Any]) -> list[str]:
    said: list[str] = []
    for found in worlds:
        if found.name in EPISODES:
            said += [_answer(found, claim, "episodes", median) for claim in EPISODES[found.name]]
            said += [_answer(found, MISLED, "found", fmean)] if found.name == "digits" else []
        else:
            claims = SOLVED if found.name == "exact" else (*SOLVED, NOISY)
            said += [_answer(found, claim, "solved", fmean) for claim in claims]
    return said


def _answer(found: Any, claim: Claim, metric: str, of: Callable[[Sequence[float]], float]) -> str:
    """Of arms all of whose seeds are there."""
    text, arms, holds = claim
    rows = {arm: list(found.main.get(arm, {}).values()) for arm in arms}
    if any(len(rows[arm]) < len(found.study.seeds_of(found.name, arm)) for arm in arms):
        return f"- {found.name}: **{text}.** Not run yet."
    figures = {arm: of([row.metrics[metric] for row in rows[arm]]) for arm in arms}
    shown = ", ".join(f"{arm} {figure:.3g}" for arm, figure in figures.items())
    return f"- {found.name}: **{text}.** {'Holds' if holds(figures) else 'Does not hold'}: {shown}."
