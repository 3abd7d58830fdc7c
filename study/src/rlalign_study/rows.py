"""Results as rows of named metrics: a line of JSON for each run, in any number of files in one folder.

A row is known by what it is: its key and its hash. So the files of two machines need only lie in one folder:
rows that are there twice count once, and where two of them differ, both are named.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rlalign_study.core import ConfigError
from rlalign_study.plan import Planned

DONE, BROKE, FAILED = "done", "broke", "failed"
OWN = ("seconds", "memory_gb")
"""Metrics that differ from one machine to the next."""


@dataclass(frozen=True)
class Row:
    """One run that was made."""

    stage: str
    world: str
    seed: int
    hash: str
    status: str
    """`done`; `broke`: its numbers were no longer finite, which is a result; `failed`: it could not be made."""
    arm: str = ""
    setting: str = ""
    why: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[str, list[float]] = field(default_factory=dict)
    """Its evaluations: `iteration`, `step`, `tokens` and the study's metrics, each a list."""
    own: Mapping[str, list[float]] = field(default_factory=dict)
    """The responses learned from: means between two evaluations."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """By measurement, where the study keeps its values by example: `metrics` and `per_example`, numbers to the bit."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    """What can change a number: torch, the device, a hash of each plugin's code."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """Versions, commit, machine and date."""

    @property
    def key(self) -> str:
        parts = (self.stage, self.world, self.arm, self.setting.replace("/", "-"), str(self.seed))
        return "/".join(part for part in parts if part)

    @property
    def line(self) -> str:
        """Compact JSON; numbers keep five digits, those of `measured` all."""
        said = {key: value for key, value in vars(self).items() if value not in ("", {})}
        return json.dumps(_short(said), separators=(",", ":"))

    @property
    def numbers(self) -> dict[str, Any]:
        """What a second run on the same machine would find again."""
        measured = {name: value for name, value in self.metrics.items() if name not in OWN}
        return {"status": self.status, **measured, **_flat("curve", self.curve), **_flat("own", self.own)}


def _flat(name: str, curve: Mapping[str, list[float]]) -> dict[str, Any]:
    return {f"{name}.{key}": values for key, values in curve.items()}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {
            key: part if key in ("overrides", "measured") else _short(part) for key, part in value.items()
        }
    return [_short(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass
class Results:
    """All rows of a folder."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    """By key and hash, in the order of the files."""
    notes: list[str] = field(default_factory=list)
    """Conflicts, and lines that are no rows."""

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Every row of every `*.jsonl`; one that is done stands above one that failed."""
        found, places = cls(), dict[tuple[str, str], str]()
        for path in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
                if not line.strip():
                    continue
                place = f"{path.name}:{number}"
                try:
                    row = Row(**json.loads(line))
                except (ValueError, TypeError):
                    found.notes.append(f"{place}: is no row of results (cut off?), and is passed over")
                    continue
                at = (row.key, row.hash)
                there = found.rows.get(at)
                if there is None or there.status == FAILED:
                    found.rows[at], places[at] = row, place
                elif row.status != FAILED and (differ := _difference(there, row)):
                    found.notes.append(
                        f"{row.key}: {places[at]} and {place} are the same run with different numbers ({differ}); "
                        "the first counts: delete the line that should not"
                    )
        return found

    def of(self, planned: Iterable[Planned]) -> dict[str, Row]:
        """The rows of these runs that are there, by key; those of another plan are passed over."""
        found = {one.key: self.rows.get((one.key, one.hash)) for one in planned}
        return {key: row for key, row in found.items() if row is not None}

    def add(self, row: Row, path: Path) -> None:
        """Write a row down: whole, or not at all."""
        size = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                size = file.seek(0, os.SEEK_END)
                cut = size > 0 and not _ends_a_line(file)
                file.write((("\n" if cut else "") + row.line + "\n").encode())
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(path, size)  # no half of a row
            raise ConfigError(
                f"{path}: {row.key} cannot be written down: {error.strerror}; what is done is kept, and counts when "
                "the same command goes on"
            ) from None
        self.rows[row.key, row.hash] = row


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _difference(one: Row, other: Row) -> str:
    ours, theirs = one.numbers, other.numbers
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    shown = [f"{n} {ours.get(n)}, {theirs.get(n)}" if "." in n or n == "status" else n for n in names]
    return "; ".join(text if len(text) < 60 else text.split(" ")[0] for text in shown[:3])
