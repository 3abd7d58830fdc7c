"""Folders as runs write them, of any length and with any texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HOSTILE = "</script><img src=x onerror=\"document.title = 'owned'\"><script>document.title = 'owned'</script>"
LOCK: dict[str, Any] = {
    "pipeline": {
        "task": "poems",
        "policy": {"table": {"actions": 3}},
        "algorithm": {"rloo": {}},
        "train": {"iterations": 40, "lr": 0.1},
        "seed": 0,
        "folder": "somewhere",
    },
    "python": "3.11.7",
    "packages": {"numpy": "2.0"},
    "plugins": {"rlalign": {"version": "0.1.0", "code": "0123456789abcdef" * 4}},
    "given": {},
    "data": {"poems/train": "fedcba9876543210" * 4},
    "models": {"policy": "0011223344556677" * 4},
    "seed": 0,
    "budgets": {},
    "environment": {},
    "device": {"name": "cpu", "model": "a processor"},
}


def where(iteration: int, phase: str = "align") -> dict[str, Any]:
    return {"phase": phase, "repeat": 0, "iteration": iteration, "step": iteration}


def iteration(number: int, **more: Any) -> dict[str, Any]:
    """A line of an iteration."""
    found = {
        "tokens": 100.0,
        "length": 9.0 + math.sin(number),
        "reward/total": number / 10,
        "time/iteration": 2.0,
        "time/rollout": 1.5,
    }
    return {**where(number), **found, **more}


def evaluation(number: int, **more: Any) -> dict[str, Any]:
    """A line of an evaluation."""
    return {**where(number), "eval/total": number / 10, "eval/rhymes": 0.5, "time/evaluate": 1.0, **more}


def sample(number: int, prompt: Any, response: str, **more: Any) -> dict[str, Any]:
    return {**where(number), "prompt": prompt, "response": response, "scores": {"rhymes": 0.5}, **more}


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def written(
    folder: Path,
    metrics: Iterable[Mapping[str, Any]] = (),
    samples: Iterable[Mapping[str, Any]] = (),
    *,
    finished: bool = True,
    seed: int = 0,
    **pipeline: Any,
) -> Path:
    """A run that has written these rows."""
    folder.mkdir(parents=True)
    lock = {**LOCK, "seed": seed, "pipeline": {**LOCK["pipeline"], "seed": seed, **pipeline}}
    (folder / "lock.json").write_text(json.dumps(lock))
    (folder / "pipeline.yaml").write_text(f"task: poems  # {HOSTILE}\n")
    append(folder / "metrics.jsonl", metrics)
    append(folder / "samples.jsonl", samples)
    if finished:
        (folder / "model").mkdir()
    return folder


def whole(count: int = 40, every: int = 10) -> list[dict[str, Any]]:
    """The figures of a run of so many iterations."""
    rows = [evaluation(0)]
    for number in range(1, count + 1):
        rows.append(iteration(number))
        if number % every == 0:
            rows.append(evaluation(number))
    return rows
