"""A leaderboard's numbers for programs: JSON with all of them, CSV with a row for each algorithm and task."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from rlalign_bench.board import Board, Cell
from rlalign_study.stats import Estimate

DIGITS = 9
"""Significant digits: fewer than what summing in another order could change."""


def as_json(board: Board) -> str:
    said = {
        "suite": board.suite,
        "tasks": {
            task: {
                "metric": board.metric[task],
                "less_is_better": task in board.less,
                "examples": board.of(task)[0].entries[0].provenance.examples,
                "algorithms": {cell.algorithm: _cell(board, cell) for cell in board.of(task)},
            }
            for task in board.tasks
        },
        "overall": {
            name: {"interquartile_mean": _estimate(one.score), "mean_rank": _estimate(one.rank)}
            for name, one in sorted(board.overall.items())
        },
        "pairs": [asdict(one) for one in board.pairs],
        "missing": {name: board.missing(name) for name in sorted(board.algorithms) if board.missing(name)},
    }
    return json.dumps(_rounded(said), indent=1, ensure_ascii=False) + "\n"


def as_csv(board: Board) -> str:
    rows = []
    for task in board.tasks:
        for cell in board.of(task):
            one = _cell(board, cell)
            score, kl, behind = one["score"], one["kl"] or {}, one["behind_best"] or {}
            row: dict[str, Any] = {"suite": board.suite, "task": task, "algorithm": cell.algorithm}
            row |= {"metric": board.metric[task], **score, "normalised": one["normalised"]}
            row |= {"kl": kl.get("mean"), "kl_low": kl.get("low"), "kl_high": kl.get("high")}
            row |= {"frontier": one["frontier"], "tokens": one["tokens"], "seconds": one["seconds"]}
            row |= {name: behind.get(name) for name in ("p", "p_holm", "p_flips")}
            rows.append(_rounded(row))
    into = io.StringIO()
    written = csv.DictWriter(into, list(rows[0]), lineterminator="\n")
    written.writeheader()
    written.writerows(rows)
    return into.getvalue()


def _cell(board: Board, cell: Cell) -> dict[str, Any]:
    behind = board.behind.get((cell.task, cell.algorithm))
    worst, best = board.limits[cell.task]
    return {
        "score": _estimate(cell.estimate),
        "normalised": (cell.estimate.mean - worst) / (best - worst) if best != worst else 0.0,
        "seeds": list(cell.seeds),
        "kl": _estimate(cell.kl) if cell.kl else None,
        "frontier": cell.algorithm in board.frontier(cell.task),
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
        "metrics": {name: _estimate(cell.metric(name)) for name in cell.metrics},
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
