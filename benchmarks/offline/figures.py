"""The curves as SVG: the same data gives the same file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import stats
from benchmarks.common.comparisons import estimate
from benchmarks.common.drawing import STYLE, saved, with_legend
from benchmarks.offline import plan
from benchmarks.offline.analysis import DIVERSITY, FINAL, Measure, Seeds, Studied, values
from benchmarks.offline.measures import Point
from matplotlib import pyplot

GROUPS = {
    "weights": ("a-lol", "sft", "wbc", "gold", "r-lol"),
    "forms of A-LoL": ("a-lol", "a-lol-ref-free", "a-lol-seq", "a-lol-kl"),
    "preferences": ("a-lol", "dpo", "ipo", "kto", "pro"),
    "online": ("a-lol", "raft", "rest", "iterative-dpo"),
}
"""Arms that are drawn together."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Okabe and Ito's, told apart by most eyes."""
KL = Measure("KL a text", lambda r: r.last.kl if r.last else None)


def draw(studies: Sequence[Studied], folder: Path) -> list[str]:
    """All figures that there is data for; gives their names."""
    names = []
    with pyplot.rc_context(STYLE):
        for study in studies:
            names += [saved(_curves(study), folder / f"curves-{study.log.name}.svg")]
            names += [saved(_tuning(study), folder / f"tuning-{study.log.name}.svg")]
        names += [saved(_price(studies), folder / "price.svg")]
    return names


def _curves(study: Studied) -> Any:
    """Reward, grammar and KL on `val` against steps: a row for each group of arms."""
    panels: list[tuple[str, Callable[[Point], float]]] = [
        ("reward", lambda at: at.reward),
        ("grammar", lambda at: at.grammar),
        ("KL a text (nats)", lambda at: max(at.kl, 1e-2)),
    ]
    figure, axes = pyplot.subplots(
        len(GROUPS), len(panels), figsize=(9.5, 2.4 * len(GROUPS)), layout="constrained", sharex=True
    )
    for row, (group, arms) in zip(axes, GROUPS.items(), strict=True):
        for axis, (title, of) in zip(row, panels, strict=True):
            for arm, colour in zip(arms, COLOURS, strict=False):
                if arm in study.main:
                    _band(axis, study.main[arm], of, colour, arm)
            axis.set_title(f"{title}: {group}")
            if title.startswith("KL"):
                axis.set_yscale("log")
        if row[0].get_legend_handles_labels()[0]:
            row[0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser steps")
    return figure


def _band(axis: Any, runs: Seeds, of: Callable[[Point], float], colour: str, label: str) -> None:
    """Mean over seeds and its interval. Runs that broke off end early and are left out."""
    longest = max(len(r.curve) for r in runs.values())
    points = list(zip(*(r.curve for r in runs.values() if len(r.curve) == longest), strict=True))
    steps = [at[0].step for at in points]
    means = [fmean(map(of, at)) for at in points]
    halves = [stats.half_interval(list(map(of, at))) if len(at) > 1 else 0.0 for at in points]
    axis.plot(steps, means, color=colour, label=label)
    low, high = ([m + s * h for m, h in zip(means, halves, strict=True)] for s in (-1, 1))
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _tuning(study: Studied) -> Any:
    """Final reward on `val` against the learning rate, the better value of the other parameter: how wide a
    setting may miss."""
    figure, axes = pyplot.subplots(
        1, len(GROUPS), figsize=(9.5, 2.6), layout="constrained", sharex=True, sharey=True
    )
    for axis, (group, arms) in zip(axes, GROUPS.items(), strict=True):
        for arm, colour in zip(arms, COLOURS, strict=False):
            best: dict[float, float] = {}
            for trial, records in study.tried(arm).items():
                found = [r.last.reward for r in records if r.last]
                best[trial.lr] = max(best.get(trial.lr, 0.0), fmean(found) if found else 0.0)
            if best:
                axis.plot(list(best), list(best.values()), "o-", color=colour, label=arm, markersize=3)
        axis.set_xscale("log")
        axis.set_title(group)
        axis.set_xlabel("learning rate")
        if best:
            axis.legend(fontsize=7)
    axes[0].set_ylabel("reward (val)")
    return figure


def _price(studies: Sequence[Studied]) -> Any:
    """Final reward against what it costs: KL and diversity, means over seeds with their intervals."""
    arms = list(plan.ARMS)
    figure, axes = pyplot.subplots(
        len(studies), 2, figsize=(9.5, 3.2 * len(studies)), layout="constrained", squeeze=False
    )
    colours = pyplot.get_cmap("tab20")
    for row, study in zip(axes, studies, strict=True):
        for axis, measure in zip(row, (KL, DIVERSITY), strict=True):
            for arm, runs in study.main.items():
                x, y = (estimate(list(values(runs, of).values())) for of in (measure, FINAL))
                if x is None or y is None:
                    continue
                bars = {"xerr": x.half, "yerr": y.half} if x.count > 1 and y.count > 1 else {}
                axis.errorbar(
                    x.mean, y.mean, **bars, fmt="o", markersize=4, color=colours(arms.index(arm)), label=arm
                )
            axis.set_title(study.log.name)
            axis.set_xlabel(measure.name)
            if measure is KL:
                axis.set_xscale("symlog", linthresh=1)
        row[0].set_ylabel("final reward")
    return with_legend(figure, axes[0][0], columns=8)
