"""How fast it learns beside the record: the mean reward of the last five iterations, and the curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAST = 5
REWARD = "reward/increasing-numbers"
# Student's t, the 97.5 % quantile by degrees of freedom.
T975 = (
    12.71,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)

Curves = list[Sequence[float]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval; infinite for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    t = T975[len(values) - 2] if len(values) - 2 < len(T975) else 1.96
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def final(curve: Sequence[float]) -> float:
    """The mean of the last iterations."""
    return statistics.fmean(curve[-LAST:])


def of(method: str, recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> tuple[Curves, Curves]:
    """(the record's, ours)."""
    theirs = [curve for name, curve in recorded.items() if name.startswith(f"{method}-")]
    ours = [found[REWARD] for name, found in measured.items() if name.startswith(f"{method}-")]
    return theirs, ours


def summary(recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """A table: a miss is a mean below the record's by more than the interval. Three seeds allow no other claim."""
    lines = [
        f"| method | seeds | first | last {LAST}, ± 95 % | record: seeds | first | last {LAST} (range) | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in ("ppo", "nlpo"):
        theirs, ours = of(method, recorded, measured)
        if not ours:
            continue
        mean, half = interval([final(curve) for curve in ours])
        was = [final(curve) for curve in theirs]
        verdict = "**miss**" if mean + half < statistics.fmean(was) else "no miss"
        lines.append(
            f"| {method} | {len(ours)} | {statistics.fmean(c[0] for c in ours):.3f} | {mean:.3f} ± {half:.3f} "
            f"| {len(theirs)} | {statistics.fmean(c[0] for c in theirs):.3f} "
            f"| {statistics.fmean(was):.3f} ({min(was):.3f} to {max(was):.3f}) | {verdict} |"
        )
    return lines if len(lines) > 2 else []


def draw(recorded: Mapping[str, Any], measured: Mapping[str, Any], path: Path) -> Path:
    """Curves with the 95 % band of our seeds, and a line for each of the record's."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rl4lms"  # the same curves give the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for panel, method in zip(panels, ("ppo", "nlpo"), strict=True):
        theirs, ours = of(method, recorded, measured)
        for i, curve in enumerate(theirs):
            label = f"RL4LMs, {len(theirs)} seeds" if i == 0 else None
            panel.plot(range(len(curve)), curve, color="#b4552d", linewidth=0.9, alpha=0.8, label=label)
        if ours:
            bands = [interval(values) for values in zip(*ours, strict=True)]
            x, middle = range(len(bands)), [mean for mean, _ in bands]
            panel.plot(x, middle, color="#1f4e79", linewidth=1.8, label=f"rlalign, {len(ours)} seeds")
            if len(ours) > 1:
                low, high = [m - h for m, h in bands], [m + h for m, h in bands]
                panel.fill_between(x, low, high, color="#1f4e79", alpha=0.18, linewidth=0)
        panel.set_title(method.upper())
        panel.set_xlabel("iteration (640 tokens each)")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper left")
    panels[0].set_ylabel("mean reward")
    panels[0].set_ylim(0, 1)
    figure.savefig(path, metadata={"Date": None})
    return path
