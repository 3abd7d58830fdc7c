"""A run as its folder shows it, looked at once or again and again while it goes on. Needs no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlalign.cli.inspection import run_folder
from rlalign.errors import RLAlignError
from rlalign.records.environment import read_lock
from rlalign.records.files import read_bytes
from rlalign.records.result import Result
from rlalign.records.rundir import RunDir, is_run
from rlalign.records.writer import is_written
from rlalign_report.follow import Log, Row
from rlalign_report.samples import Samples

State = Literal["waiting", "running", "stopped", "finished"]
WHERE = {"phase", "repeat", "iteration", "step"}
PIPELINE_BYTES = 200_000
"""Of pipeline.yaml, what a page shows."""


@dataclass
class Curve:
    """Rows of figures in their order; each with the iterations, steps, tokens and seconds of the run before it."""

    rows: list[Row] = field(default_factory=list)
    places: list[tuple[float, float, float, float]] = field(default_factory=list)

    def names(self) -> list[str]:
        """All figures of any row, in the order in which they came up."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name not in WHERE))

    def series(self, name: str) -> list[tuple[float, float]]:
        """By iteration of the whole run, the finite values of a figure."""
        found = [(place[0], number(row.get(name))) for row, place in zip(self.rows, self.places, strict=True)]
        return [(x, y) for x, y in found if math.isfinite(y)]


@dataclass
class Run:
    """What is known of a run. `look` says what is new."""

    folder: Path
    state: State = "waiting"
    lock: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    """The text of pipeline.yaml."""
    training: Curve = field(default_factory=Curve)
    evaluations: Curve = field(default_factory=Curve)
    phases: list[tuple[str, int]] = field(default_factory=list)
    """Each phase, and how many iterations of the run came before it."""
    costs: Mapping[str, Any] = field(default_factory=dict)
    """By phase, what an iteration took and what was estimated, as costs.json has it."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, and what makes the run inexact."""

    def __post_init__(self) -> None:
        self._metrics = Log(self.folder / "metrics.jsonl")
        self.samples = Samples(self.folder / "samples.jsonl")
        self.learned = Samples(self.folder / "learned.jsonl")
        self._looked: object = None
        self._start()

    @property
    def name(self) -> str:
        return Path(os.path.abspath(self.folder)).name

    def look(self) -> bool:
        """Read what has come since; whether anything has."""
        try:
            if is_run(self.folder):
                RunDir.open(self.folder, exclusive=False)  # a folder that leads elsewhere is refused
                return self._read()
            seen: tuple[Any, ...] = ("waiting", [])
        except RLAlignError as error:
            seen = (self.state, [str(error)])
        changed = self._looked != seen
        self._looked, (self.state, self.notes) = seen, seen
        return changed

    def _read(self) -> bool:
        grew = False
        if self._metrics.begins_anew():
            self._start()
            grew = True
        for line in self._metrics.more():
            self._add(line.row)
            grew = True
        for log in (self.samples, self.learned):
            grew = log.look() or grew
        written = is_written(self.folder)
        done = (self.folder / "model").is_dir()
        state: State = "running" if written else "finished" if done else "stopped"
        lock = read_bytes(self.folder / "lock.json")
        bad = {log.path.name: log.damaged for log in (self._metrics, self.samples, self.learned)}
        costs, unread = self._costs()
        about = (state, lock, self._inexact(), bad, costs)
        if about != self._looked:
            self.lock = read_lock(self.folder / "lock.json")
            text = read_bytes(self.folder / "pipeline.yaml")[:PIPELINE_BYTES]
            self.pipeline = text.decode("utf-8", "replace")
            self.costs = costs
            grew = True
        self._looked, self.state = about, state
        self.notes = [
            *self._inexact(),
            *unread,
            *(
                f"{name}: {count} lines cannot be read and are left out"
                for name, count in bad.items()
                if count
            ),
        ]
        return grew

    def _costs(self) -> tuple[Mapping[str, Any], list[str]]:
        try:
            return Result(self.folder).costs, []
        except RLAlignError as error:
            return {}, [str(error)]

    def _start(self) -> None:
        self.training, self.evaluations, self.phases = Curve(), Curve(), []
        self._tokens = self._seconds = 0.0

    def _add(self, row: Row) -> None:
        """Figures of an iteration or of an evaluation."""
        evaluation = any(name.startswith("eval/") for name in row)
        phase, pass_ = str(row.get("phase", "")), row.get("repeat", 0)
        named = f"{phase}, pass {pass_ + 1}" if isinstance(pass_, int) and pass_ else phase
        if not self.phases or self.phases[-1][0] != named:
            self.phases.append((named, len(self.training.rows)))
        curve = self.evaluations if evaluation else self.training
        for name in ("tokens", "time/iteration", "time/evaluate"):
            value = number(row.get(name, 0.0))
            if math.isfinite(value) and name == "tokens":
                self._tokens += value
            elif math.isfinite(value):
                self._seconds += value
        curve.rows.append(row)
        curve.places.append(
            (
                float(len(self.training.rows)),
                number(row.get("step", 0)),
                self._tokens,
                self._seconds,
            )
        )

    def _inexact(self) -> list[str]:
        """What the run says of why it is not what its pipeline alone would make of it."""
        found = []
        for line in Log(self.folder / "inexact.jsonl").more():
            for what in ("changed", "lost", "said"):
                said = line.row.get(what)
                for one in said if isinstance(said, list) else [said] if said else []:
                    found.append(f"inexact ({what}): {one if isinstance(one, str) else json.dumps(one)}")
        return found


def number(value: Any) -> float:
    """A figure of a log; NaN if it is none."""
    if isinstance(value, int | float):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else math.nan


def find(said: str) -> Path:
    """The folder of a run by its path or name; of one that has not begun, where `rlalign run` would put it."""
    path = run_folder(said)
    return path if path.exists() or "/" in said or not Path("runs").is_dir() else Path("runs") / said
