"""The charts of a page: lines over iterations, and the sections that they stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign_report import curves, names
from rlalign_report.compare import Group
from rlalign_report.curves import Buckets, Line
from rlalign_report.run import Curve, Run

Tree = dict[str, Any]


def charts_of(runs: Sequence[Run], found: Sequence[Group]) -> tuple[Tree, list[Tree], list[str]]:
    """Where points lie, the sections with their charts, and what was made coarser to be drawn."""
    axes: Tree = {}
    lines: dict[str, list[Line]] = {}
    limits: list[str] = []

    def add(at: str, where: Tree, made: Mapping[str, Line], about: Tree) -> None:
        axes[at] = where
        for name, line in made.items():
            if any(y is not None for y in line["y"]):
                lines.setdefault(name, []).append({"axes": at, **about, **line})

    for g, group in enumerate(found):
        several = len(group.runs) > 1
        for i in group.runs:
            run, about = runs[i], {"group": g, "label": runs[i].name} | ({"seed": True} if several else {})
            if run.training.rows:
                points = curves.GROUP_POINTS if several else curves.POINTS
                train = Buckets(run.training, points)
                add(f"t{i}", train.axes(), {n: train.line(n) for n in _numbers(run.training)}, about)
                if train.size > 1:
                    limits.append(
                        f"{run.name}: a point of its curves is the mean of {train.size} iterations, in a band from the "
                        "least to the greatest"
                    )
            if run.evaluations.rows:
                evals = Buckets(run.evaluations, curves.POINTS)
                drawn = {n: evals.line(n) for n in _numbers(run.evaluations)}
                add(f"e{i}", evals.axes(), drawn, {**about, "evaluation": True})
        if several:
            limits += _add_group(add, [runs[i] for i in group.runs], g, group.name)
    rewards = {name.removeprefix("reward/") for name in lines if name.startswith("reward/")}
    return axes, _sections(lines, rewards), limits


def _add_group(add: Any, members: Sequence[Run], g: int, name: str) -> list[str]:
    """The means over runs of one pipeline; what there is to say about them."""
    about: Tree = {"group": g, "label": f"{name}, mean of {len(members)}", "mean": True}
    if all(run.training.rows for run in members):
        several, rows = curves.training_over_seeds([run.training for run in members])
        known = _numbers(members[0].training)
        made = {one: curves.over_seeds(several, one) for one in known}
        add(f"tg{g}", curves.mean_axes(several), made, about)
    if all(run.evaluations.rows for run in members):
        several = curves.evaluations_over_seeds([run.evaluations for run in members])
        known = _numbers(members[0].evaluations)
        made = {one: curves.over_seeds(several, one) for one in known}
        add(f"eg{g}", curves.mean_axes(several), made, {**about, "evaluation": True})
    longest = max(len(run.training.rows) for run in members)
    if all(run.training.rows for run in members) and rows < longest:
        return [
            f"{name}: its mean ends at iteration {rows}, as its shortest run does; the longest has {longest}"
        ]
    return []


def _numbers(curve: Curve) -> list[str]:
    return [name for name in curve.names() if name != "groups" or curve.series(name)]


def _sections(lines: Mapping[str, list[Line]], rewards: set[str]) -> list[Tree]:
    """All figures in their sections. A chart of training shows the evaluation of the same thing too."""
    charts: dict[str, list[Tree]] = {}
    for name in sorted(lines, key=names.order):
        twin = f"eval/{name}" if f"eval/{name}" in lines else f"eval/{name.removeprefix('reward/')}"
        alike = not (name.startswith("eval/") or name in names.COUNTS)
        shown = [*lines[name], *(lines.get(twin, []) if alike else [])]
        chart = {"name": name, "about": names.about(name), "lines": shown}
        if name.startswith("eval/"):
            chart["about"] = chart["about"] or names.about(name.removeprefix("eval/"))
        charts.setdefault(names.section(name, rewards), []).append(chart)
    return [
        {**section._asdict(), "charts": charts[section.key]}
        for section in names.SECTIONS
        if section.key in charts
    ]
