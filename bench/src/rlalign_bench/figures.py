"""The leaderboard's figures as SVG: scores, overall, profile and frontier. The same entries give the same files.

For the command: `plot(entries, folder)` writes them (matplotlib is the optional extra `plots`) and returns their paths;
`plot(entries, folder, scores)` takes the same `scores` as `table`. `format="png"` writes PNG instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.lines import Line2D

from rlalign_bench.board import THRESHOLDS, Board
from rlalign_bench.entry import Entry
from rlalign_study.figures import COLOURS, STYLE
from rlalign_study.stats import Estimate

MARKERS = "osD^vPX"
WIDTH = 9.5
"""Inches."""


def plot(
    entries: Iterable[Entry], folder: Path, scores: Mapping[str, str] | None = None, format: str = "svg"
) -> list[Path]:
    """All figures that there is data for."""
    board = Board(entries, scores)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with pyplot.rc_context(STYLE):
        for name, draw in {
            "scores": by_task,
            "overall": overall,
            "profile": profile,
            "frontier": frontier,
        }.items():
            figure = draw(board)
            if figure is None:
                continue
            path = folder / f"{name}.{format}"
            figure.savefig(path, metadata={"Date": None} if format == "svg" else None, dpi=150)
            pyplot.close(figure)
            made.append(path)
    return made


def by_task(board: Board) -> Any:
    """Each task's means with their intervals, algorithms in the order of the whole leaderboard."""
    names = board.algorithms
    figure, axes = _panels(len(board.tasks), 0.7 + 0.24 * len(names), sharey=True)
    for axis, task in zip(axes, board.tasks, strict=True):
        for at, name in enumerate(names):
            cell = board.cells.get((task, name))
            if cell is not None:
                _point(axis, cell.estimate, at, **_look(board, name))
        axis.set_title(task, loc="left")
        axis.set_xlabel(board.metric[task] + (" (less is better)" if task in board.less else ""))
        _names(axis, names)
    return figure


def overall(board: Board) -> Any:
    """Interquartile means and mean ranks of algorithms that have all tasks."""
    names = [name for name in board.algorithms if name in board.overall]
    if len(names) < 2:
        return None
    figure, axes = _panels(2, 0.9 + 0.26 * len(names), columns=2, sharey=True)
    for at, name in enumerate(names):
        one = board.overall[name]
        _point(axes[0], one.score, at, **_look(board, name))
        _point(axes[1], one.rank, at, **_look(board, name))
    axes[0].set_title("interquartile mean of scaled scores", loc="left")
    axes[0].set_xlabel("0: lowest algorithm of a task, 1: highest")
    axes[1].set_title("mean rank", loc="left")
    axes[1].set_xlabel("1: best of every task")
    axes[1].set_xlim(len(names) + 0.2, 0.8)
    for axis in axes:
        _names(axis, names)
    return figure


def profile(board: Board) -> Any:
    """For each scaled score the share of runs above it: a panel for each algorithm, the others in grey."""
    names = [name for name in board.algorithms if name in board.overall]
    if len(names) < 2:
        return None
    figure, axes = _panels(len(names), 2.1, sharex=True, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for other in names:
            axis.plot(THRESHOLDS, board.overall[other].profile_K, color="#bbbbbb", linewidth=0.8)
        one, colour = board.overall[name], _look(board, name)["color"]
        axis.fill_between(THRESHOLDS, one.low_K, one.high_K, color=colour, alpha=0.2, linewidth=0)
        axis.plot(THRESHOLDS, one.profile_K, color=colour, linewidth=1.8)
        axis.set_title(name, loc="left")
    moving = [at for name in names for at in _moving(board.overall[name].profile_K)]
    if moving:
        axes[0].set_xlim(min(moving) - 0.05, max(moving) + 0.05)
    axes[0].set_ylim(-0.02, 1.02)
    figure.supxlabel("scaled score τ (0: lowest algorithm of a task, 1: highest)", fontsize=9)
    figure.supylabel("share of runs above τ", fontsize=9)
    return figure


def _moving(profile_K: Any) -> list[float]:
    """The thresholds where a profile is neither 0 nor 1."""
    return [float(at) for at, share in zip(THRESHOLDS, profile_K, strict=True) if 0 < share < 1]


def frontier(board: Board) -> Any:
    """Score against KL, a panel for each task; a line joins what no other algorithm beats in both."""
    tasks = [task for task in board.tasks if any(cell.kl for cell in board.of(task))]
    if not tasks:
        return None
    figure, axes = _panels(len(tasks), 2.6)
    for axis, task in zip(axes, tasks, strict=True):
        points = {cell.algorithm: (cell.kl, cell.estimate) for cell in board.of(task) if cell.kl}
        on = sorted(
            (kl.mean, score.mean) for name, (kl, score) in points.items() if name in board.frontier(task)
        )
        axis.plot(*zip(*on, strict=True), color="black", linewidth=0.8, drawstyle="steps-post", zorder=1)
        for name, (kl, score) in points.items():
            look = _look(board, name)
            bars = {"xerr": _bar(kl), "yerr": _bar(score), "elinewidth": 1, "alpha": 0.4}
            axis.errorbar(kl.mean, score.mean, **bars, color=look["color"], linestyle="none", zorder=2)
            axis.plot(kl.mean, score.mean, look["marker"], color=look["color"], markersize=6, zorder=3)
        values = [kl.mean for kl, _ in points.values()]
        margin = 0.06 * (max(values) - min(values)) or 0.1
        axis.set_xlim(
            min(values) - margin, max(values) + 4 * margin
        )  # an interval of few seeds may leave the panel
        axis.set_title(task, loc="left")
        axis.set_xlabel("KL to the start")
        axis.set_ylabel(board.metric[task])
        if task in board.less:
            axis.invert_yaxis()
    looks = {name: _look(board, name) for name in board.algorithms}
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


def _look(board: Board, algorithm: str) -> dict[str, Any]:
    """By name and not by rank: an algorithm looks the same in all figures, and colour is never alone."""
    at = sorted(board.algorithms).index(algorithm)
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[(at + at // len(COLOURS)) % len(MARKERS)]}


def _point(axis: Any, one: Estimate, at: int, color: str, marker: str) -> None:
    axis.errorbar(one.mean, at, xerr=_bar(one), color=color, marker=marker, markersize=6, elinewidth=1.6)


def _bar(one: Estimate) -> Any:
    return [[one.mean - one.low], [one.high - one.mean]] if math.isfinite(one.half) else None


def _names(axis: Any, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
