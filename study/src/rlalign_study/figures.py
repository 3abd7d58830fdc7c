"""Figures as SVG: the same data gives the same file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from rlalign_study.analysis import Found, Runs
from rlalign_study.file import Plot, Study
from rlalign_study.rows import Row
from rlalign_study.stats import Estimate, estimate

STYLE: Any = {
    "svg.hashsalt": "rlalign",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888")
"""Okabe and Ito's, told apart by most eyes."""


def draw(study: Study, worlds: Sequence[Found], folder: Path) -> list[Path]:
    """All figures that there is data for: `curves` and `tuning` for each world, the others once."""
    made = []
    with pyplot.rc_context(STYLE):
        for name, plot in study.plots.items():
            if plot.kind == "ends":
                figures = {name: _ends(plot, [found for found in worlds if found.main])}
            elif plot.kind == "ablations":
                some = [found for found in worlds if found.ablated]
                stems = [name if len(some) == 1 else f"{name}-{found.name}" for found in some]
                figures = {stem: _ablations(plot, found) for stem, found in zip(stems, some, strict=True)}
            else:
                kind = _curves if plot.kind == "curves" else _tuning
                figures = {f"{name}-{found.name}": kind(plot, found) for found in worlds if found.main}
            for stem, figure in figures.items():
                figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
                pyplot.close(figure)
                made.append(folder / f"{stem}.svg")
    return made


def _panels(rows: int, columns: int, width: float = 9.5, **how: Any) -> tuple[Any, Any]:
    size = (width, 2.6 * rows)
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **how)


def _groups(plot: Plot, found: Found) -> dict[str, list[str]]:
    groups = plot.groups or {"": found.study.arms_of(found.name)}
    return {group: [arm for arm in arms if arm in found.main] for group, arms in groups.items()}


def _curves(plot: Plot, found: Found) -> Any:
    """Means over seeds with their intervals, a row for each group of arms, a panel for each metric."""
    shown = [
        name for name in plot.y if any(_column(r, name) for a in found.main.values() for r in a.values())
    ]
    groups = _groups(plot, found)
    figure, axes = _panels(len(groups), len(shown))
    for row, (group, arms) in zip(axes, groups.items(), strict=True):
        for axis, name in zip(row, shown, strict=True):
            for arm, colour in zip(arms, COLOURS, strict=False):
                _band(axis, found.main[arm], plot.x, name, colour, arm)
            axis.set_title(f"{name}: {group}" if group else name)
            if name in plot.log:
                axis.set_yscale("symlog", linthresh=0.1)
            axis.set_xlabel(plot.x)
        if row[0].get_legend_handles_labels()[0]:
            row[0].legend(fontsize=7)
    return figure


def _column(row: Row, name: str) -> list[float]:
    """`reward`, or of the responses learned from `own.reward`; `√kl` is the root of what is not below 0."""
    curve, _, key = name.removeprefix("√").rpartition(".")
    values = (row.own if curve == "own" else row.curve).get(key, [])
    return [math.sqrt(max(0.0, value)) for value in values] if name.startswith("√") else values


def _band(axis: Any, runs: Runs, x: str, y: str, colour: str, label: str) -> None:
    """Runs that broke off end early and are left out."""
    under = f"own.{x}" if y.startswith("own.") else x
    every = [(_column(row, under), _column(row, y)) for row in runs.values()]
    longest = max((len(ys) for _, ys in every), default=0)
    every = [(xs, ys) for xs, ys in every if len(ys) == longest > 0]
    if not every:
        return
    at = [fmean(values) for values in zip(*(xs for xs, _ in every), strict=True)]
    found = [estimate(values) for values in zip(*(ys for _, ys in every), strict=True)]
    some = [one for one in found if one is not None]
    axis.plot(at, [one.mean for one in some], color=colour, label=label)
    low, high = [one.low for one in some], [one.high for one in some]
    axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _ends(plot: Plot, worlds: Sequence[Found]) -> Any:
    """Where arms ended: a row for each world, the metrics `y` against each other: the last on the vertical axis."""
    *across, up = plot.y
    figure, axes = _panels(len(worlds), len(across))
    colours = pyplot.get_cmap("tab20")
    for row, found in zip(axes, worlds, strict=True):
        for axis, name in zip(row, across, strict=True):
            for arm, runs in found.main.items():
                x, y = found.mean(runs, name), found.mean(runs, up)
                if x is None or y is None:
                    continue
                colour = colours(list(found.study.arms).index(arm) % 20)
                axis.errorbar(
                    x.mean, y.mean, xerr=_bar(x), yerr=_bar(y), fmt="o", markersize=4, color=colour, label=arm
                )
            axis.set_title(found.name)
            axis.set_xlabel(name)
            if name in plot.log:
                axis.set_xscale("symlog", linthresh=1)
        row[0].set_ylabel(up)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncol=min(8, max(1, len(labels))))
    return figure


def _bar(one: Estimate) -> Any:
    return [[one.mean - one.low], [one.high - one.mean]] if math.isfinite(one.half) else None


def _tuning(plot: Plot, found: Found) -> Any:
    """What was best in tuning against the axis x of the grid: how wide a setting may miss."""
    from rlalign_study import plan

    about, groups = found.study.tuning, _groups(plot, found)
    assert about is not None
    figure, axes = _panels(1, len(groups), sharex=True, sharey=True)
    for axis, (group, arms) in zip(axes[0], groups.items(), strict=True):
        for arm, colour in zip(arms, COLOURS, strict=False):
            best: dict[float, float] = {}
            for setting in plan.settings(found.study, found.name, arm):
                rows = found.tried.get(arm, {}).get(setting.label, [])
                values = [row.metrics[about.best] for row in rows if about.best in row.metrics]
                at = float(setting.cells[plot.x])
                if values:
                    best[at] = max(best.get(at, -math.inf), fmean(values))
            axis.plot(list(best), list(best.values()), "o-", color=colour, label=arm, markersize=3)
        axis.set_xscale("log")
        axis.set_title(group)
        axis.set_xlabel(plot.x)
        if arms:
            axis.legend(fontsize=7)
    axes[0][0].set_ylabel(about.best)
    return figure


def _ablations(plot: Plot, found: Found) -> Any:
    """The metrics `y` of each setting: a row for each metric, a column for each thing that is varied."""
    about = found.study.ablations
    assert about is not None
    figure, axes = _panels(len(plot.y), len(about.groups), sharex="col")
    for column, (group, arms) in enumerate(about.groups.items()):
        labels = list(dict.fromkeys(name for varied in arms.values() for name in varied))
        for row, name in enumerate(plot.y):
            for place, (arm, varied) in enumerate(arms.items()):
                runs: Mapping[int, Runs] = {
                    labels.index(label): found.ablation(group, arm, label, changed)
                    for label, changed in varied.items()
                }
                some = {at: one for at, these in runs.items() if (one := found.mean(these, name)) is not None}
                colour = COLOURS[list(found.study.arms).index(arm) % len(COLOURS)]
                axes[row][column].errorbar(
                    [at + 0.08 * place for at in some],
                    [one.mean for one in some.values()],
                    [one.half if math.isfinite(one.half) else 0.0 for one in some.values()],
                    fmt="o",
                    markersize=4,
                    capsize=2,
                    color=colour,
                    label=arm,
                )
            if name in plot.log:
                axes[row][column].set_yscale("log")
            axes[row][0].set_ylabel(name)
        axes[-1][column].set_xticks(range(len(labels)), labels)
        axes[-1][column].set_xlabel(group)
    axes[0][-1].legend(fontsize=7)
    return figure
