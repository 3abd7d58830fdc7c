"""A leaderboard's numbers for programs: JSON with all of them, CSV with a row for each algorithm and task."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from rlalign_bench.standings import Cell, Standings
from rlalign_study.stats import Estimate

DIGITS = 9
"""Significant digits: fewer than what summing in another order could change."""


def as_json(standings: Standings) -> str:
    said = {
        "suite": standings.suite,
        "tasks": {
            task: {
                "metric": standings.scores[task].metric,
                "worst": standings.scores[task].worst,
                "best": standings.scores[task].best,
                "less_is_better": standings.less(task),
                "examples": standings.of(task)[0].entries[0].provenance.examples,
                "algorithms": {cell.algorithm: _cell(standings, cell) for cell in standings.of(task)},
            }
            for task in standings.tasks
        },
        "overall": {
            name: {"interquartile_mean": _estimate(one.score), "mean_rank": _estimate(one.rank)}
            for name, one in sorted(standings.overall.items())
        },
        "pairs": [asdict(one) for one in standings.pairs],
        "not_there": standings.not_there,
        "missing": {
            name: standings.missing(name) for name in sorted(standings.algorithms) if standings.missing(name)
        },
    }
    return json.dumps(_rounded(said), indent=1, ensure_ascii=False) + "\n"


def as_csv(standings: Standings) -> str:
    rows = []
    for task in standings.tasks:
        for cell in standings.of(task):
            one = _cell(standings, cell)
            score, kl, behind = one["score"], one["kl"] or {}, one["behind_best"] or {}
            row: dict[str, Any] = {"suite": standings.suite, "task": task, "algorithm": cell.algorithm}
            row |= {"metric": standings.scores[task].metric, **score, "scaled": one["scaled"]}
            row |= {"kl": kl.get("mean"), "kl_low": kl.get("low"), "kl_high": kl.get("high")}
            row |= {"frontier": one["frontier"], "tokens": one["tokens"], "seconds": one["seconds"]}
            row |= {name: behind.get(name) for name in ("p", "p_holm", "p_flips")}
            rows.append(_rounded(row))
    into = io.StringIO()
    written = csv.DictWriter(into, list(rows[0]), lineterminator="\n")
    written.writeheader()
    written.writerows(rows)
    return into.getvalue()


def _cell(standings: Standings, cell: Cell) -> dict[str, Any]:
    behind = standings.behind.get((cell.task, cell.algorithm))
    return {
        "score": _estimate(cell.estimate),
        "scaled": standings.scores[cell.task].scaled(cell.estimate.mean),
        "seeds": list(cell.seeds),
        "kl": _estimate(cell.kl) if cell.kl else None,
        "frontier": cell.algorithm in standings.frontier(cell.task),
        "tokens": cell.tokens,
        "seconds": cell.seconds,
        "behind_best": None
        if behind is None
        else {
            **_estimate(behind[0].estimate),
            "p": behind[0].p,
            "p_holm": behind[1],
            "p_flips": behind[0].p_flips,
        },
        "metrics": {name: _estimate(one) for name, one in cell.metrics.items()},
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    return {"mean": one.mean, "low": one.low, "high": one.high, "sd": one.spread, "runs": one.count}


def _rounded(said: Any) -> Any:
    if isinstance(said, dict):
        return {key: _rounded(value) for key, value in said.items()}
    if isinstance(said, list):
        return [_rounded(value) for value in said]
    if isinstance(said, float):
        return float(f"{said:.{DIGITS}g}") if math.isfinite(said) else None
    return said
