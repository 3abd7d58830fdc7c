"""What all arms are to maximise, and the claims of README.md answered by the rules named there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rlalign_study import stats
from rlalign_study.analysis import Comparison, Found
from rlalign_study.report import SURE, p_value, signed, verdict
from rlalign_study.stats import estimate

PRIMARY = "toy-reviews"
OBJECTIVE, GAIN = "final.objective", "final.gain"
WORSE = 0.02
"""So much less of the objective is worse."""


def derive(row: Any, given: Mapping[str, Any]) -> dict[str, float]:
    """The reward less the price of the KL, and what of it is gained over the start, whose KL is 0."""
    known = row.metrics
    if "final.reward" not in known:
        return {}
    objective = known["final.reward"] - given["price"] * known["final.kl"]
    return {OBJECTIVE: objective, GAIN: objective - row.curve["reward"][0]}


def answers(worlds: Sequence[Found]) -> list[str]:
    said = []
    for found in worlds:
        where = f"`{found.name}`" + (", the primary world" if found.name == PRIMARY else "")
        for claim, text in (
            ("RLOO earns more than RAFT", _ahead(found, ("rloo-k4", "raft-k4"), ("rloo-k2", "raft-k2"))),
            ("RAFT earns more than PPO", _ahead(found, ("raft-k4", "ppo"), ("raft-k2", "ppo"))),
            ("CoPG learns from a log that RLOO cannot use", _from_logs(found)),
            ("CoPG is not worse than RLOO on its own samples", _not_worse(found, "copg")),
            (
                "CoPG from a log alone is not worse than RLOO on its own samples",
                _not_worse(found, "copg-logs"),
            ),
            ("What is earned falls as λ goes to 0", _lambda(found)),
        ):
            if text is not None:
                said.append(f"- **{claim}** ({where}): {text}")
    return said


def _ahead(found: Found, *pairs: tuple[str, str]) -> str | None:
    """Whether in each pair the first earns more."""
    family = found.family(OBJECTIVE)
    if any(pair not in family for pair in pairs):
        return None
    some = [family[pair] for pair in pairs]
    words = {verdict(one) for one in some}
    word = next(w for w in ("no, the opposite", "not shown", "yes") if w in words)
    return f"{word}. {'; '.join(map(_told, some))}."


def _from_logs(found: Found) -> str | None:
    """Whether CoPG ends above where it began, and above RLOO on the same log."""
    one = found.family(OBJECTIVE).get(("copg-logs", "rloo-on-logs"))
    gain = found.mean(found.main.get("copg-logs", {}), GAIN)
    if one is None or gain is None:
        return None
    word = verdict(one)
    if gain.high < 0:
        word = "no, the opposite"
    elif gain.low <= 0 and word == "yes":
        word = "not shown"
    return f"{word}. {_told(one)}; over the start {signed(gain)}."


def _not_worse(found: Found, arm: str) -> str | None:
    """Whether the interval of the difference to RLOO lies above what counts as worse."""
    one = found.family(OBJECTIVE).get((arm, "rloo-k4"))
    if one is None:
        return None
    low, high = one.difference.low, one.difference.high
    word = "yes" if low > -WORSE else "no" if high < -WORSE else "not shown"
    return f"{word}. {_told(one)}; worse is less by more than {WORSE}."


def _lambda(found: Found) -> str | None:
    """Whether the objective is less at λ = 0 than at 1, and never rises on the way there."""
    about = found.study.ablations
    assert about is not None
    ((arm, varied),) = about.groups["λ"].items()
    runs = {name: found.ablation("λ", arm, name, changed) for name, changed in varied.items()}
    means = {name: one.mean for name, some in runs.items() if (one := found.mean(some, OBJECTIVE))}
    first, *_, last = varied
    differences = found.difference(runs[first], runs[last], OBJECTIVE)
    difference = estimate(differences, found.study.interval)
    if means.keys() != varied.keys() or difference is None or len(differences) < 3:
        return None
    p, falls = stats.paired_t(differences), all(a >= b for a, b in pairwise(means.values()))
    word = "not shown"
    if p < SURE and (difference.mean < 0 or falls):
        word = "yes" if difference.mean > 0 else "no, the opposite"
    course = ", ".join(f"{mean:.3f} at {name}" for name, mean in means.items())
    return f"{word}. `{arm}` ends at {course}; first less last {signed(difference)}, p {p_value(p)}."


def _told(one: Comparison) -> str:
    """`a` less `b` +0.100 ± 0.010, corrected p < 0.001"""
    said = f"`{one.arm}` less `{one.other}` {signed(one.difference)}, corrected p {p_value(one.p_holm)}"
    if one.p_holm >= SURE:
        said += f" (before correction, {one.detectable:.3f} would have been found four times in five)"
    return said
