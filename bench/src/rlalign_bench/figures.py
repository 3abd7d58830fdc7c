"""The leaderboard's figures as SVG: scores, overall, profile and frontier. The same entries give the same files.

For the command: `plot(ledger.entries, suite.bench.scores, folder)` writes them and returns their paths; `format="png"`
writes PNG instead. matplotlib is the optional extra `plots`: import this module where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.lines import Line2D

from rlalign_bench.entry import Entry
from rlalign_bench.standings import Standings
from rlalign_bench.suite import Score
from rlalign_study.figures import COLOURS, STYLE
from rlalign_study.stats import Estimate

MARKERS = "osD^vPX"
WIDTH = 9.5
"""Inches."""


def plot(
    entries: Iterable[Entry], scores: Mapping[str, Score], folder: Path, format: str = "svg"
) -> list[Path]:
    """All figures that there is data for."""
    standings = Standings(entries, scores)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with pyplot.rc_context(STYLE):
        for name, draw in {
            "scores": by_task,
            "overall": overall,
            "profile": profile,
            "frontier": frontier,
        }.items():
            figure = draw(standings)
            if figure is None:
                continue
            path = folder / f"{name}.{format}"
            figure.savefig(path, metadata={"Date": None} if format == "svg" else None, dpi=150)
            pyplot.close(figure)
            made.append(path)
    return made


def by_task(standings: Standings) -> Any:
    """Each task's means with their intervals, algorithms in the order of the whole leaderboard."""
    names = standings.algorithms
    figure, axes = _panels(len(standings.tasks), 0.7 + 0.24 * len(names), sharey=True)
    for axis, task in zip(axes, standings.tasks, strict=True):
        for at, name in enumerate(names):
            cell = standings.cells.get((task, name))
            if cell is not None:
                _point(axis, cell.estimate, at, **_look(standings, name))
        axis.set_title(task, loc="left")
        axis.set_xlabel(standings.scores[task].metric + (" (less is better)" if standings.less(task) else ""))
        _names(axis, names)
    return figure


def overall(standings: Standings) -> Any:
    """Interquartile means and mean ranks of algorithms that have all tasks."""
    names = [name for name in standings.algorithms if name in standings.overall]
    if len(names) < 2:
        return None
    figure, axes = _panels(2, 0.9 + 0.26 * len(names), columns=2, sharey=True)
    for at, name in enumerate(names):
        one = standings.overall[name]
        _point(axes[0], one.score, at, **_look(standings, name))
        _point(axes[1], one.rank, at, **_look(standings, name))
    axes[0].set_title("interquartile mean of scaled scores", loc="left")
    axes[0].set_xlabel("0: the suite's worst, 1: its best")
    axes[1].set_title("mean rank", loc="left")
    axes[1].set_xlabel("1: best of every task")
    axes[1].set_xlim(len(names) + 0.2, 0.8)
    for axis in axes:
        _names(axis, names)
    return figure


def profile(standings: Standings) -> Any:
    """For each scaled score the share of runs above it: a panel for each algorithm, the others in grey."""
    names = [name for name in standings.algorithms if name in standings.overall]
    if len(names) < 2:
        return None
    figure, axes = _panels(len(names), 2.1, sharex=True, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for other in names:
            axis.plot(
                standings.thresholds, standings.overall[other].profile_K, color="#bbbbbb", linewidth=0.8
            )
        one, colour = standings.overall[name], _look(standings, name)["color"]
        axis.fill_between(standings.thresholds, one.low_K, one.high_K, color=colour, alpha=0.2, linewidth=0)
        axis.plot(standings.thresholds, one.profile_K, color=colour, linewidth=1.8)
        axis.set_title(name, loc="left")
    axes[0].set_ylim(-0.02, 1.02)
    figure.supxlabel("scaled score τ (0: the suite's worst, 1: its best)", fontsize=9)
    figure.supylabel("share of runs above τ", fontsize=9)
    return figure


def frontier(standings: Standings) -> Any:
    """Score against KL, a panel for each task; a line joins what no other algorithm beats in both."""
    tasks = [task for task in standings.tasks if any(cell.kl for cell in standings.of(task))]
    if not tasks:
        return None
    figure, axes = _panels(len(tasks), 2.6)
    for axis, task in zip(axes, tasks, strict=True):
        points = {cell.algorithm: (cell.kl, cell.estimate) for cell in standings.of(task) if cell.kl}
        on = sorted(
            (kl.mean, score.mean) for name, (kl, score) in points.items() if name in standings.frontier(task)
        )
        axis.plot(*zip(*on, strict=True), color="black", linewidth=0.8, drawstyle="steps-post", zorder=1)
        for name, (kl, score) in points.items():
            look = _look(standings, name)
            bars = {"xerr": _bar(kl), "yerr": _bar(score), "elinewidth": 1, "alpha": 0.4}
            axis.errorbar(kl.mean, score.mean, **bars, color=look["color"], linestyle="none", zorder=2)
            axis.plot(kl.mean, score.mean, look["marker"], color=look["color"], markersize=6, zorder=3)
        values = [0.0, *(kl.mean for kl, _ in points.values())]
        margin = 0.05 * (max(values) - min(values)) or 0.1
        axis.set_xlim(
            min(values) - margin, max(values) + 4 * margin
        )  # an interval of few seeds may leave the panel
        axis.set_title(task, loc="left")
        axis.set_xlabel("KL to the start")
        axis.set_ylabel(standings.scores[task].metric)
        if standings.less(task):
            axis.invert_yaxis()
    looks = {name: _look(standings, name) for name in standings.algorithms}
    handles = [
        Line2D([], [], color=look["color"], marker=look["marker"], linestyle="none")
        for look in looks.values()
    ]
    figure.legend(handles, list(looks), loc="outside upper center", ncol=min(7, len(looks)))
    return figure


# -- parts ------------------------------------------------------------------------------------------------


def _panels(count: int, height: float, columns: int = 3, **how: Any) -> tuple[Any, list[Any]]:
    """So many panels in rows; what is left of the last row stays empty."""
    across = min(columns, count)
    down = math.ceil(count / across)
    size = (WIDTH * across / columns if across < columns else WIDTH, height * down + 0.3)
    figure, axes = pyplot.subplots(down, across, figsize=size, layout="constrained", squeeze=False, **how)
    for axis in axes.flat:
        axis.set_axisbelow(True)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _look(standings: Standings, algorithm: str) -> dict[str, Any]:
    """By name and not by rank: an algorithm looks the same in all figures, and colour is never alone."""
    at = sorted(standings.algorithms).index(algorithm)
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[(at + at // len(COLOURS)) % len(MARKERS)]}


def _point(axis: Any, one: Estimate, at: int, color: str, marker: str) -> None:
    axis.errorbar(one.mean, at, xerr=_bar(one), color=color, marker=marker, markersize=6, elinewidth=1.6)


def _bar(one: Estimate) -> Any:
    return [[one.mean - one.low], [one.high - one.mean]] if math.isfinite(one.half) else None


def _names(axis: Any, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
