"""The charts of a page as pictures, a file for each section. The same data gives the same SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from rlalign_study.figures import COLOURS, STYLE

COLUMNS = 3


def draw(data: Mapping[str, Any], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write all sections that have charts; where they were written."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with pyplot.rc_context(STYLE):
        for section in data["sections"]:
            figure = _section(section, data)
            for kind in dict.fromkeys(formats):
                path = folder / f"{section['key']}.{kind}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else None)
                made.append(path)
            pyplot.close(figure)
    return made


def _section(section: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    charts = section["charts"]
    columns = min(COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    size = (3.3 * columns, 2.3 * rows + 0.3)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    places = list(axes.flat)
    for place, chart in zip(places, charts, strict=False):
        for line in chart["lines"]:
            _line(place, line, data, evaluated=chart["name"].startswith("eval/"))
        place.set_title(chart["name"].replace("$", r"\$"), loc="left")
    for place in places[len(charts) :]:
        place.set_visible(False)
    for place in axes[-1]:
        place.set_xlabel("iteration")
    handles = {
        label: handle
        for place in places
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 1:
        shown = [label.replace("$", r"\$") for label in handles]
        figure.legend(
            list(handles.values()), shown, loc="outside upper center", ncol=max(1, columns - 1), fontsize=7
        )
    return figure


def _line(place: Any, line: Mapping[str, Any], data: Mapping[str, Any], *, evaluated: bool) -> None:
    several = len(data["groups"]) > 1
    number = line["group"] if several else 1 if line.get("evaluation") else 0
    look: dict[str, Any] = {
        "color": COLOURS[number % len(COLOURS)],
        "linewidth": 0.6 if line.get("seed") else 1.3,
    }
    if line.get("evaluation"):
        look |= {"marker": "o", "markersize": 2.5} | ({} if evaluated else {"linestyle": ":"})
    if line.get("seed"):
        look |= {"alpha": 0.35, "marker": None}
    else:
        what = "evaluation" if line.get("evaluation") else "training"
        look["label"] = f"{line['label']}, {what}" if several or line.get("mean") else what
    x = data["axes"][line["axes"]]["iteration"]
    place.plot(x, _known(line["y"]), **look)
    if "low" in line and not line.get("seed"):
        low, high = _known(line["low"]), _known(line["high"])
        place.fill_between(x, low, high, color=look["color"], alpha=0.14, linewidth=0)


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
