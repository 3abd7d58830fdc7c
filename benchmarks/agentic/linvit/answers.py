"""The claims of README.md, each answered from the numbers by the rule named there."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any


def answers(worlds: Sequence[Any]) -> list[str]:
    kinds = {"digits": _digits, "opening": _opening}
    return [line for found in worlds for line in kinds.get(found.name, _blocks)(found)]


def _of(found: Any, arm: str, metric: str) -> list[float]:
    return [row.metrics[metric] for _, row in sorted(found.main.get(arm, {}).items())]


def _opening(found: Any) -> list[str]:
    arms = ("p=.9", "optimism")
    if not all(_of(found, arm, "episodes") for arm in arms):
        return ["- opening: not run yet."]
    good, plain = (median(_of(found, arm, "episodes")) for arm in arms)
    claim = "Where bounds are loose not even a good prior saves half: the median of p=.9 is above half of optimism's"
    return [f"- opening, medians {good:g} and {plain:g}: **{claim}.** {_word(good > plain / 2)}"]


def _digits(found: Any) -> list[str]:
    arms = ("p=.9", "p=.5", "optimism", "p=.125", "p=.02", "misled")
    if not all(_of(found, arm, "episodes") for arm in arms):
        return ["- digits: not run yet."]
    middle = {arm: median(_of(found, arm, "episodes")) for arm in arms}
    said = {
        "A good prior saves episodes: the median of p=.9 is at most half of plain optimism's": (
            middle["p=.9"] <= middle["optimism"] / 2
        ),
        "A fair prior saves some: the median of p=.5 is below plain optimism's": (
            middle["p=.5"] < middle["optimism"]
        ),
        "A prior that says nothing or less does not: the medians of p=.125 and p=.02 are not below": (
            min(middle["p=.125"], middle["p=.02"]) >= middle["optimism"]
        ),
        "A wrong prior that is trusted hurts: misled finds no plan in at least nine seeds of ten": (
            fmean(_of(found, "misled", "found")) <= 0.1
        ),
    }
    medians = ", ".join(f"{arm} {value:g}" for arm, value in middle.items())
    return [f"Medians: {medians}.", "", *(f"- **{claim}.** {_word(holds)}" for claim, holds in said.items())]


def _blocks(found: Any) -> list[str]:
    arms = ("policy", "a=0", "a=.1", "a=1", "misled")
    if not all(_of(found, arm, "solved") for arm in arms):
        return [f"- {found.name}: not run yet."]
    mean = {arm: fmean(_of(found, arm, "solved")) for arm in arms}
    said = {
        "A search beats its policy alone: a=0 above policy": mean["a=0"] > mean["policy"],
        "A misleading policy hurts who listens: misled below a=0": mean["misled"] < mean["a=0"],
    }
    if found.name != "exact":
        said["Where values are noisy, a good policy's say helps: a=1 above a=0"] = mean["a=1"] > mean["a=0"]
    return [f"- {found.name}: **{claim}.** {_word(holds)}" for claim, holds in said.items()]


def _word(holds: bool) -> str:
    return "Holds." if holds else "Does not hold."
