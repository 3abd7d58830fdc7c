"""Figures as SVG: the same data gives the same file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from benchmarks.common.comparisons import Estimate
from matplotlib import pyplot

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


def saved(figure: Any, path: Path) -> str:
    """Write the figure; its name."""
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path.name


def with_legend(figure: Any, axis: Any, columns: int | None = None) -> Any:
    """One legend above all panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncol=columns or len(labels))
    return figure


def estimates(axis: Any, some: Mapping[float, Estimate], mark: str, colour: str, label: str) -> None:
    """Means with their intervals, at these places of the axis."""
    axis.errorbar(
        list(some),
        [one.mean for one in some.values()],
        [one.half if math.isfinite(one.half) else 0.0 for one in some.values()],
        fmt=mark,
        markersize=4,
        color=colour,
        capsize=2,
        label=label,
    )
