"""The claims of README.md, each answered from the differences of shared seeds by the rule named there."""

from __future__ import annotations

from collections.abc import Sequence

from rlalign_study import stats
from rlalign_study.analysis import Found
from rlalign_study.stats import estimate

RETURN, SURE = "end.return", 0.05
CLAIMS = {
    "reflection": (
        ("Reflection helps", "astray", "nobody"),
        ("It helps if it was taught on the way to the goal only", "straight", "nobody"),
        ("Negative examples help more", "astray", "straight"),
        ("One who does not know the goal loses", "astray", "blind"),
        ("One who always says the other way loses", "astray", "contrary"),
    ),
    "stages": (
        ("A curriculum helps", "staged", "plain"),
        ("Replay of successes helps", "replayed", "plain"),
        ("Both together help", "both", "plain"),
    ),
}
"""By world: (claim, the arm that is to be better, than which)."""


def answers(worlds: Sequence[Found]) -> list[str]:
    """A line for each claim, corrected by Holm over those of its world."""
    said = []
    for found in worlds:
        asked = CLAIMS[found.name]
        differences = {claim: less(found, better, worse) for claim, better, worse in asked}
        some = {claim: values for claim, values in differences.items() if len(values) > 2}
        p = stats.holm({claim: stats.paired_t(values) for claim, values in some.items()})
        for claim, better, worse in asked:
            one = estimate(some[claim]) if claim in some else None
            if one is None:
                said.append(f"- **{claim}.** Not run yet.")
                continue
            answer = "Not shown" if p[claim] >= SURE else "Yes" if one.mean > 0 else "No, the contrary"
            said.append(
                f"- **{claim}.** {answer}: {better} − {worse} = {one.mean:+.3f} ± {one.half:.3f}, p {p[claim]:.2g}, "
                f"{len(some[claim])} seeds."
            )
    return said


def less(found: Found, better: str, worse: str) -> list[float]:
    """The differences of final returns over the seeds that both arms have."""
    mine, theirs = found.main.get(better, {}), found.main.get(worse, {})
    seeds = [seed for seed in sorted(mine) if seed in theirs]
    rows = [(mine[seed].metrics.get(RETURN), theirs[seed].metrics.get(RETURN)) for seed in seeds]
    return [a - b for a, b in rows if a is not None and b is not None]
