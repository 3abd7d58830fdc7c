"""What often goes wrong, found in a run's figures. Each alarm says its rule and the numbers that it fired on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Series = Sequence[tuple[float, float]]
"""Iterations of the run, and the finite values there."""

TENTHS = 10
"""Below so many iterations there is no tenth to take a mean of, and rules about training say nothing."""
RISE, FALL = 0.05, 0.1
KL_GROWS, KL_LEAST = 1.5, 0.1
ENTROPY_LEFT = 0.1
LENGTH_FACTOR, LENGTH_LEAST = 2.0, 2.0
SAME, SAME_MORE = 0.5, 0.25
FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class Alarm:
    """Something to look at."""

    title: str
    found: str
    rule: str
    metrics: tuple[str, ...] = ()
    """The figures whose charts show it."""


def reward_against(reward: Series, evaluated: Series, name: str) -> Alarm | None:
    """The trained reward rises while a score that is only evaluated falls."""
    if len(evaluated) < 2 or len(reward) < TENTHS:
        return None
    (best_at, best), (last_at, last) = max(evaluated, key=lambda at: at[1]), evaluated[-1]
    then = _near(reward, best_at)
    now = _near(reward, last_at)
    fell = best - last >= FALL * abs(best) and last < best
    if not (last_at > best_at and fell and now - then >= RISE * max(abs(then), abs(now)) and now > then):
        return None
    return Alarm(
        "Reward up, evaluation down",
        f"{name} fell from {_n(best)} at iteration {best_at:.0f} to {_n(last)} at {last_at:.0f}, while reward/total "
        f"rose from {_n(then)} to {_n(now)}.",
        f"An evaluated score is lower at the last evaluation than at its best one by {FALL:.0%} of that or more, and "
        f"the training reward (mean of the nearest tenth of iterations) is higher by {RISE:.0%} or more.",
        ("reward/total", name),
    )


def kl_runaway(kl: Series, name: str) -> Alarm | None:
    """The KL to the reference is large and still grows fast."""
    if len(kl) < 2 * TENTHS:
        return None
    middle, last = _tenth(kl, 0.5), _tenth(kl, 1.0)
    if last < KL_LEAST or last < KL_GROWS * middle:
        return None
    return Alarm(
        "KL runs away",
        f"{name} is {_n(last)} nats a step at the end and was {_n(middle)} half-way"
        + (f": {last / middle:.1f} times as much." if middle > 0 else "."),
        f"The KL to the reference in the last tenth of iterations is at least {KL_GROWS:g} times that of the tenth "
        f"around the middle, and at least {KL_LEAST:g} nats a step.",
        (name,),
    )


def entropy_collapse(entropy: Series, name: str) -> Alarm | None:
    """Hardly anything of the policy's entropy is left."""
    if len(entropy) < TENTHS:
        return None
    first, last = _tenth(entropy, 0.0), _tenth(entropy, 1.0)
    if not (first > 0 and last < ENTROPY_LEFT * first):
        return None
    return Alarm(
        "Entropy collapses",
        f"{name} fell from {_n(first)} to {_n(last)}: {last / first:.1%} are left.",
        f"The mean entropy of the last tenth of iterations is below {ENTROPY_LEFT:.0%} of that of the first tenth.",
        (name,),
    )


def length_drift(length: Series, name: str = "length") -> Alarm | None:
    """Responses have become much longer or much shorter."""
    if len(length) < TENTHS:
        return None
    first, last = _tenth(length, 0.0), _tenth(length, 1.0)
    low, high = sorted((first, last))
    if not (high - low >= LENGTH_LEAST and high >= LENGTH_FACTOR * low):
        return None
    return Alarm(
        "Lengths drift",
        f"A response had {_n(first)} steps at first and has {_n(last)} at the end.",
        f"The mean length of the last tenth of iterations is at least {LENGTH_FACTOR:g} times that of the first tenth, "
        f"or at most 1/{LENGTH_FACTOR:g} of it, and they differ by {LENGTH_LEAST:g} steps or more.",
        (name,),
    )


def duplicates(first: tuple[int, int], last: tuple[int, int]) -> Alarm | None:
    """Different prompts get the same response; each argument counts samples, and those among them that repeat."""
    (first_count, first_same), (count, same) = first, last
    if min(first_count, count) < FEWEST_SAMPLES:
        return None
    if same / count < SAME or same / count - first_same / first_count < SAME_MORE:
        return None
    return Alarm(
        "Samples repeat",
        f"Of the last evaluation's {count} samples {same} are a response that another prompt got as well; of the first "
        f"one's {first_count}, {first_same}.",
        f"At least {SAME:.0%} of the samples at the last evaluation are the very response to another prompt, and that "
        f"share is larger by {SAME_MORE:.0%} of the samples than at the first. Responses of one word are not counted.",
    )


def not_finite(counts: Mapping[str, int]) -> Alarm | None:
    """Figures that are NaN or infinite."""
    bad = {name: count for name, count in counts.items() if count}
    if not bad:
        return None
    some = ", ".join(f"{name} ({count} times)" for name, count in list(bad.items())[:6])
    more = f", and {len(bad) - 6} more" if len(bad) > 6 else ""
    return Alarm(
        "Figures are not finite",
        f"NaN or infinite: {some}{more}. Charts leave them out.",
        "Any figure of an iteration or an evaluation is NaN or infinite.",
        tuple(bad)[:6],
    )


def _tenth(series: Series, place: float) -> float:
    """The mean of a tenth of the values: the first at place 0, the last at 1."""
    count = max(1, len(series) // TENTHS)
    start = round(place * (len(series) - count))
    return fmean(y for _, y in series[start : start + count])


def _near(series: Series, x: float) -> float:
    """The mean of the tenth of values that is nearest to an iteration."""
    count = max(1, len(series) // TENTHS)
    return fmean(y for _, y in sorted(series, key=lambda at: abs(at[0] - x))[:count])


def _n(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)
