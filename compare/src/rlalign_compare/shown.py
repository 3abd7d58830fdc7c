"""A comparison as text and as data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlalign.data.limits import in_words
from rlalign.running.figures import duration, number
from rlalign_compare import table
from rlalign_compare.table import Line, Pair, Test
from rlalign_study.stats import Estimate

NOTHING = "—"
HEAD = ("", "runs", "seeds", "iterations", "reward", "KL", "tokens", "seconds", "memory")


def text(lines: Sequence[Line], pairs: Sequence[Pair]) -> str:
    """Tables, tests, and what is to be known of them."""
    parts = ["\n".join(_columns([HEAD, *(_row(i, line) for i, line in enumerate(lines, 1))]))]
    parts.append("\n".join(_evaluations(lines, pairs)))
    if notes := notes_of(lines, pairs):
        parts.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(parts)


def notes_of(lines: Sequence[Line], pairs: Sequence[Pair]) -> list[str]:
    return [
        *table.of_all(lines),
        *(n for line in lines for n in line.notes),
        *(n for p in pairs for n in p.notes),
    ]


def metrics(lines: Sequence[Line]) -> list[str]:
    """What any row measured last, in the order it was logged."""
    return list(dict.fromkeys(name for line in lines for name in line.first.metrics))


def _row(i: int, line: Line) -> tuple[str, ...]:
    figures, run = line.figures, line.first
    names = [one.name for one in line.runs]
    shown = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    iterations = figures["iterations"]
    return (
        str(i),
        shown,
        ", ".join(map(str, line.counted)),
        (f"{iterations.mean:.0f}" if iterations else "0")
        + ("" if run.finished else f" ({run.standing.state})"),
        estimate(figures["reward"]),
        estimate(figures["kl"]),
        _count(figures["tokens"]),
        _seconds(figures["seconds"]),
        _bytes(figures["memory"]),
    )


def _evaluations(lines: Sequence[Line], pairs: Sequence[Pair]) -> Iterator[str]:
    """Each metric row by row, then its tests; what never moves in a line."""
    if not metrics(lines):
        yield "no run was evaluated: its pipeline has no `evaluate` section, or it was stopped before"
        return
    still = {name: value for name in metrics(lines) if (value := _constant(name, lines)) is not None}
    moving = [name for name in metrics(lines) if name not in still]
    tables = {name: _values(name, lines) for name in moving}
    head = ("", "", "at the start", "last", "best", "at iteration")
    drawn = iter([*_columns([head, *(row for rows in tables.values() for row in rows)])])
    if moving:
        yield next(drawn)
    for name, rows in tables.items():
        yield name
        yield from [next(drawn) for _ in rows]
        yield from (_tested(test) for pair in pairs for test in pair.tests if test.metric == name)
    if still:
        yield f"everywhere the same: {', '.join(f'{name} {number(value)}' for name, value in still.items())}"


def _constant(metric: str, lines: Sequence[Line]) -> float | None:
    """The value of a metric that is the same at every evaluation of every run."""
    every = [[x for _, x in run.evaluated(metric)] for line in lines for run in line.counted.values()]
    found = {x for values in every for x in values}
    return found.pop() if len(found) == 1 and all(every) else None


def _values(metric: str, lines: Sequence[Line]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for i, line in enumerate(lines, 1):
        if metric not in line.first.metrics:
            continue
        last = list(line.last(metric).values())
        better, tops, where = line.best(metric)
        rows.append(
            (
                f"  {i}",
                line.name,
                estimate(table.mean(line.start(metric))),
                estimate(table.mean(last)) if len(last) == len(line.counted) else NOTHING,
                f"{estimate(table.mean(tops))}{' (lowest)' * (better == 'lower')}" if tops else NOTHING,
                ", ".join(map(str, dict.fromkeys(where))) or NOTHING,
            )
        )
    return rows


def _tested(test: Test) -> str:
    """`2 − 1: +0.012 [-0.01, 0.03] over 3 seeds, p = 0.21 (paired t)`"""
    found = test.difference
    count = f"{found.count} {test.over}"
    if test.over == "prompts" and test.of and test.of > found.count:
        count += f" of {test.of}, with these very runs"
    how = "paired t" if test.over == "seeds" else "sign flips"
    corrected = "" if test.p_holm == test.p else f", {_p(test.p_holm)} by Holm"
    sign = "" if found.mean < 0 else "+"
    above = f"{test.line + 1} − {test.against + 1}: {sign}{estimate(found)}"
    return f"  {above} over {count}, p {_p(test.p)}{corrected} ({how})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def estimate(found: Estimate | None) -> str:
    """`0.52 [0.4, 0.64]`; of one value no interval."""
    if found is None:
        return NOTHING
    if math.isnan(found.low):
        return number(found.mean)
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"


def _count(found: Estimate | None) -> str:
    return NOTHING if found is None else f"{found.mean:,.0f}"


def _seconds(found: Estimate | None) -> str:
    return NOTHING if found is None else duration(found.mean)


def _bytes(found: Estimate | None) -> str:
    return NOTHING if found is None else in_words(round(found.mean))


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip()


# -- as data ---------------------------------------------------------------------------------------------------


def data(lines: Sequence[Line], pairs: Sequence[Pair]) -> dict[str, Any]:
    return {
        "rows": [_line_data(line, metrics(lines)) for line in lines],
        "tests": [_test_data(test, lines) for pair in pairs for test in pair.tests],
        "notes": notes_of(lines, pairs),
    }


def _line_data(line: Line, names: Sequence[str]) -> dict[str, Any]:
    evaluations: dict[str, Any] = {}
    for name in names:
        better, tops, where = line.best(name)
        evaluations[name] = {
            "start": _estimate_data(table.mean(line.start(name))),
            "last": _estimate_data(table.mean(list(line.last(name).values()))),
            "by_seed": {str(seed): value for seed, value in line.last(name).items()},
            **({"better": better} if better else {}),
            **({"best": _estimate_data(table.mean(tops)), "at": where} if tops else {}),
        }
    return {
        "runs": [str(run.folder) for run in line.runs],
        "seeds": list(line.counted),
        "state": [run.standing.state for run in line.runs],
        **{name: _estimate_data(found) for name, found in line.figures.items()},
        "evaluations": evaluations,
    }


def _test_data(test: Test, lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "metric": test.metric,
        "row": lines[test.line].name,
        "against": lines[test.against].name,
        "over": test.over,
        "difference": _estimate_data(test.difference),
        "p": test.p,
        "p_holm": test.p_holm,
    }


def _estimate_data(found: Estimate | None) -> Mapping[str, Any] | None:
    if found is None:
        return None
    known = {"mean": found.mean, "count": found.count}
    return (
        known
        if math.isnan(found.low)
        else {**known, "low": found.low, "high": found.high, "spread": found.spread}
    )
