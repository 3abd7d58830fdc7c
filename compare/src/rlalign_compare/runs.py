"""What a run has written down, read to be compared. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rlalign.cli.inspection import run_folder
from rlalign.records.environment import read_lock
from rlalign.records.listing import Listed, runs
from rlalign.records.result import Result, Row, is_evaluation
from rlalign.running.figures import kl_name
from rlalign_compare.settings import Settings, settings

LAST = 10
"""Iterations at the end over which a reward and a KL are a mean."""
COUNTS = ("eval/responses", "eval/tokens")


class Run:
    """A run in its folder, finished or not."""

    def __init__(self, named: str) -> None:
        self._result = Result(run_folder(named))
        self.folder: Path = self._result.folder
        self.name = self.folder.name
        self.lock = read_lock(self.folder / "lock.json")
        self.pipeline: Mapping[str, Any] = self.lock["pipeline"]
        self.seed: int = self.lock["seed"]

    @cached_property
    def settings(self) -> Settings:
        return settings(self.pipeline)

    @cached_property
    def standing(self) -> Listed:
        return runs(self.folder)[0][0]

    @property
    def finished(self) -> bool:
        return self.standing.state == "finished"

    @cached_property
    def rows(self) -> list[Row]:
        """The lines of metrics.jsonl; `block` counts the phases that came one after the other."""
        found: list[Row] = []
        before, block = None, -1
        for row in self._result.rows:
            place = (row.get("phase"), row.get("repeat"))
            block += place != before
            before = place
            found.append({**row, "block": block})
        return found

    @cached_property
    def training(self) -> list[Row]:
        return [row for row in self.rows if not is_evaluation(row)]

    @cached_property
    def evaluations(self) -> list[tuple[int, Row]]:
        """Each with the iterations of the whole run before it."""
        found, done = [], 0
        for row in self.rows:
            if is_evaluation(row):
                found.append((done, row))
            else:
                done += 1
        return found

    @cached_property
    def shown(self) -> list[Row]:
        """The samples of the last evaluation."""
        rows = self._result.samples
        last = [(row["phase"], row["repeat"], row["iteration"]) for row in rows[-1:]]
        return [row for row in rows if (row["phase"], row["repeat"], row["iteration"]) in last]

    @cached_property
    def signatures(self) -> dict[str, str]:
        return self._result.signatures

    @property
    def inexact(self) -> bool:
        """Whether it is not what its pipeline alone would make of it."""
        return (self.folder / "inexact.jsonl").exists()

    def total(self, *names: str) -> float | None:
        """The sum of what iterations and evaluations log by these names."""
        values = [row[name] for row in self.rows for name in names if name in row]
        return math.fsum(values) if values else None

    @property
    def memory(self) -> float | None:
        """The most bytes that any phase was measured to take."""
        known = [phase.get("measured", {}).get("memory") for phase in self._result.costs.values()]
        return max((float(size) for size in known if isinstance(size, int | float)), default=None)

    def recent(self, name: str | None) -> float | None:
        """A mean over the last iterations of the last phase."""
        rows = [row for row in self.training if row["block"] == self.training[-1]["block"]]
        values = [row[name] for row in rows[-LAST:] if name in row]
        return fmean(values) if name and values else None

    @property
    def reward(self) -> float | None:
        return self.recent("reward/total")

    @property
    def kl(self) -> float | None:
        return self.recent(kl_name(self.training[-1]) if self.training else None)

    def evaluated(self, metric: str) -> list[tuple[int, float]]:
        """Every value of a metric, with the iterations before it."""
        return [(at, row[metric]) for at, row in self.evaluations if metric in row]

    @cached_property
    def metrics(self) -> list[str]:
        """What its last evaluation measured."""
        if not self.evaluations:
            return []
        return [name for name in self.evaluations[-1][1] if name.startswith("eval/") and name not in COUNTS]


def by_prompt(rows: Sequence[Row]) -> list[tuple[Any, dict[str, float]]]:
    """Samples of an evaluation, a prompt each with its mean scores. The same prompt in a row is one example."""
    found: list[tuple[Any, list[Row]]] = []
    for row in rows:
        if found and found[-1][0] == row["prompt"]:
            found[-1][1].append(row)
        else:
            found.append((row["prompt"], [row]))
    return [
        (
            prompt,
            {name: fmean(float(one["scores"][name]) for one in some) for name in some[0].get("scores") or {}},
        )
        for prompt, some in found
    ]


def distinct(names: Sequence[str]) -> list[Run]:
    """The runs of these names, each once."""
    found: dict[Path, Run] = {}
    for name in names:
        run = Run(name)
        found.setdefault(run.folder.resolve(), run)
    return list(found.values())
