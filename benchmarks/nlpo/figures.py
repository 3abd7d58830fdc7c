"""The curves as SVG: the same data gives the same file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import stats
from benchmarks.common.comparisons import estimate
from benchmarks.common.drawing import STYLE, estimates, saved, with_legend
from benchmarks.nlpo import plan
from benchmarks.nlpo.analysis import FINAL, NUCLEUS, Studied, values
from benchmarks.nlpo.measures import Point
from matplotlib import pyplot

COLOURS = {
    plan.PPO: "#0072b2",
    plan.NLPO: "#d55e00",
    plan.RELEASED: "#e69f00",
    "a2c": "#888888",
    plan.CONTROL: "#009e73",
}
"""Okabe and Ito's, told apart by most eyes."""


def draw(studies: Sequence[Studied], folder: Path) -> list[str]:
    """All figures that there is data for; gives their names."""
    names = []
    with pyplot.rc_context(STYLE):
        for study in studies:
            if study.main:
                names += [saved(_curves(study), folder / f"curves-{study.world.name}.svg")]
            if study.ablation:
                names += [saved(_ablations(study), folder / "ablations.svg")]
        if any(study.main for study in studies):
            names += [saved(_frontier([study for study in studies if study.main]), folder / "frontier.svg")]
    return names


def _curves(study: Studied) -> Any:
    """Reward, KL and grammar against generated tokens, unconstrained; reward of an arm's own samples."""
    panels: list[tuple[str, str, Callable[[Point], float]]] = [
        ("reward (val, T = 1)", "curve", lambda at: at.reward),
        ("reward of its own samples", "own", lambda at: at.reward),
        ("KL a response (nats)", "curve", lambda at: max(at.kl, 1e-2)),
    ]
    if study.world.grammar:
        panels.append(("grammar (val, T = 1)", "curve", lambda at: at.grammar))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.1), layout="constrained")
    for axis, (title, which, of) in zip(axes, panels, strict=True):
        for arm, runs in study.main.items():
            tokens, mean, half = band([getattr(r, which) for r in runs.values()], of)
            axis.plot(tokens, mean, color=COLOURS[arm], label=arm)
            low, high = ([m + s * h for m, h in zip(mean, half, strict=True)] for s in (-1, 1))
            axis.fill_between(tokens, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)
        axis.set_title(title)
        axis.set_xlabel("thousand generated tokens")
        if title.startswith("KL") and study.world.grammar:
            axis.set_yscale("log")
            axis.set_ylim(bottom=0.1)
    return with_legend(figure, axes[0])


def band(
    curves: Sequence[Sequence[Point]], of: Callable[[Point], float]
) -> tuple[list[float], list[float], list[float]]:
    """At each evaluation: mean thousands of tokens, mean value, half its t-interval. Runs that broke off end early."""
    tokens, mean, half = [], [], []
    for points in zip(*(curve for curve in curves if len(curve) == max(map(len, curves))), strict=True):
        found = [of(at) for at in points]
        tokens.append(fmean(at.tokens for at in points) / 1000)
        mean.append(fmean(found))
        half.append(stats.half_interval(found) if len(found) > 1 else 0.0)
    return tokens, mean, half


def _frontier(studies: Sequence[Studied]) -> Any:
    """Reward against KL: the mean course of the main runs, and where every trial of tuning ended."""
    figure, axes = pyplot.subplots(
        1, len(studies), figsize=(4 * len(studies), 3.2), layout="constrained", squeeze=False
    )
    for axis, study in zip(axes[0], studies, strict=True):
        world, bound = study.world, 0.0
        for arm, runs in study.main.items():
            _, kl, _ = band([r.curve for r in runs.values()], lambda at: math.sqrt(max(0.0, at.kl)))
            _, reward, _ = band([r.curve for r in runs.values()], lambda at: at.reward)
            axis.plot(kl, reward, color=COLOURS[arm], label=arm, marker=".", markersize=4)
            tried = [r.final for key, r in study.tuning.items() if key.split("/")[2] == arm and r.final]
            axis.plot(
                [math.sqrt(max(0.0, at.kl)) for at in tried],
                [at.reward for at in tried],
                ".",
                color=COLOURS[arm],
                alpha=0.35,
                markersize=3,
            )
            bound = max(bound, *kl)
        axis.axvline(math.sqrt(world.kl_at), color="#999999", linewidth=0.8, linestyle=":")
        axis.set_xlim(-0.05, 1.4 * bound)
        axis.set_title(world.name)
        axis.set_xlabel("√KL a response")
    axes[0][0].set_ylabel("reward (val, T = 1)")
    return with_legend(figure, axes[0][0])


def _ablations(study: Studied) -> Any:
    """Final reward, at temperature 1 and within the nucleus, and KL of each setting."""
    figure, axes = pyplot.subplots(
        2, len(plan.ABLATIONS), figsize=(9.5, 4.6), layout="constrained", sharex="col"
    )
    for column, (name, group) in enumerate(plan.ABLATIONS.items()):
        above, below = axes[0][column], axes[1][column]
        labels = list(dict.fromkeys(_label(setting) for _, setting in group))
        for arm in dict.fromkeys(arm for arm, _ in group):
            runs = {
                labels.index(_label(setting)): study.ablation.get((arm, setting), {})
                for of, setting in group
                if of == arm
            }
            shift = 0.08 * (list(COLOURS).index(arm) - 0.5) if name == "kl" else 0.0
            for measure, mark in ((FINAL, "o"), (NUCLEUS, "^")):
                found = {at: list(values(study.world, seeds, measure).values()) for at, seeds in runs.items()}
                label = f"{arm}, {'T = 1' if measure is FINAL else 'p = 0.9'}"
                aside = shift + (0.04 if measure is NUCLEUS else 0.0)
                _points(above, found, mark, COLOURS[arm], aside, label)
            found = {at: [r.last.kl for r in seeds.values() if r.final] for at, seeds in runs.items()}
            _points(below, found, "o", COLOURS[arm], shift, arm)
        below.set_xticks(range(len(labels)), labels)
        below.set_xlabel(
            {"top_p": "p of the mask", "refresh": "iterations between refreshes"}.get(name, "KL penalty")
        )
        below.set_yscale("log")
    axes[0][0].set_ylabel("final reward")
    axes[1][0].set_ylabel("final KL a response")
    return with_legend(figure, axes[0][-1])


def _label(setting: str) -> str:
    value = setting.partition("=")[2]
    return "never" if value == str(plan.NEVER) else value


def _points(
    axis: Any, found: Mapping[int, Sequence[float]], mark: str, colour: str, shift: float, label: str
) -> None:
    some = {at: one for at, sample in found.items() if (one := estimate(sample)) is not None}
    estimates(axis, {at + shift: one for at, one in some.items()}, mark, colour, label)
