"""The figures as tables in Markdown, and as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rlalign_humaneval.scores import AxisScores, Compared, Scores
from rlalign_study.report import p_value, rows
from rlalign_study.stats import Estimate

Lines = list[str]


def markdown(found: Scores) -> str:
    """Tables to read as they are, or to put into a text."""
    lines = [
        f"Page {found.page}: {found.items} items, {found.asked[0]} ratings and {found.asked[1]} comparisons "
        f"for each of {len(found.raters)} {'rater' if len(found.raters) == 1 else 'raters'}.",
        "",
    ]
    for axis in found.axes:
        lines += _axis(axis)
    if found.pairwise:
        lines += _pairwise(found.pairwise)
    return "\n".join([*lines, *_raters(found)]).rstrip()


def as_json(found: Scores) -> str:
    """The same with all digits; null where something cannot be said."""
    return json.dumps(_plain(asdict(found)), allow_nan=False)


def _axis(axis: AxisScores) -> Lines:
    levels = range(1, len(axis.runs[0].counts) + 1)
    lines = [
        [_cell(r.run), _mean(r.mean), str(r.mean.count if r.mean else 0), str(r.ratings), *map(str, r.counts)]
        for r in axis.runs
    ]
    said = [
        f"## {_cell(axis.name)}",
        "",
        _cell(axis.question),
        "",
        *rows(["run", "mean", "items", "ratings", *map(str, levels)], lines),
        "± is half of the 95 % t-interval over items; an item's rating is the mean over its raters.",
        "",
        _agreement_of_ratings(axis),
        "",
    ]
    if axis.anova is None:
        return [*said, "No analysis of variance: it takes two items a run, and ratings that differ.", ""]
    said += [f"One-way ANOVA over items: F = {axis.anova.f:.2f}, p {_p(axis.anova.p)}. Tukey's HSD:", ""]
    compared = [
        [_pair(d.runs), f"{d.difference:+.2f}", f"{d.low:+.2f} … {d.high:+.2f}", p_value(d.p)]
        for d in axis.tukey
    ]
    return [*said, *rows(["pair", "difference", "95 % interval", "p"], compared)]


def _agreement_of_ratings(axis: AxisScores) -> str:
    found = axis.agreement
    if not found.units:
        return "No agreement of raters can be said: nothing was rated twice."
    return (
        f"Raters: Krippendorff's α {_number(found.alphas['ordinal'])} (ordinal), {_number(found.alphas['interval'])} "
        f"(interval); the same rating in {_percent(found.same)} of pairs, over {found.units} responses that "
        "were rated twice or more."
    )


def _pairwise(compared: Sequence[Compared]) -> Lines:
    lines = []
    for c in compared:
        interval = "–" if c.rate is None else f"{_percent(c.rate.low)} … {_percent(c.rate.high)}"
        counts = (c.wins, c.ties, c.losses, c.identical, c.items)
        rate = _percent(c.rate.share if c.rate else None)
        agree = (_number(c.agreement.alphas["nominal"]), _percent(c.agreement.same))
        lines.append([_pair(c.runs), rate, interval, *map(str, counts), *agree])
    head = ["pair", "win rate", "95 % interval", "wins", "ties", "losses", "identical", "items", "α", "agree"]
    return [
        "## Comparisons",
        "",
        *rows(head, lines),
        "The win rate is that of the first: a mean over items, each the mean over its raters, where a tie counts half, "
        "and so do identical responses, which nobody was asked about. Intervals are Wilson's over items. α is "
        "Krippendorff's, nominal; agree: the share of pairs of raters who said the same.",
        "",
    ]


def _raters(found: Scores) -> Lines:
    lines = [
        [
            _cell(r.name),
            f"{r.rated}/{found.asked[0]}",
            _number(r.mean),
            f"{r.compared}/{found.asked[1]}",
            _percent(r.first),
        ]
        for r in found.raters
    ]
    return [
        "## Raters",
        "",
        *rows(["rater", "rated", "mean rating", "compared", "chose what stood first"], lines),
    ]


# -- cells ------------------------------------------------------------------------------------------------


def _mean(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.2f} ± {found.half:.2f}" if math.isfinite(found.half) else f"{found.mean:.2f}"


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}"


def _percent(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.0f} %"


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _pair(runs: Sequence[str]) -> str:
    return " − ".join(map(_cell, runs))


def _cell(text: str) -> str:
    """Somebody else's words in a table: on one line, and nothing that Markdown or HTML would read."""
    return re.sub(r"([\\`*_|<>\[\]&#])", r"\\\1", " ".join(text.split()))


def _plain(found: Any) -> Any:
    """The same without what JSON has no number for."""
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    if isinstance(found, Iterable) and not isinstance(found, str):
        return [_plain(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
