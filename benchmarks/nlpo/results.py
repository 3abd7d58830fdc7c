"""The results as files: a JSON line for each run, a file for each stage and world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import results
from benchmarks.nlpo import plan
from benchmarks.nlpo.measures import Record

FOLDER = Path(__file__).parent / "results"


def file(stage: str, world: str, folder: Path = FOLDER) -> Path:
    return results.file(stage, world, folder)


def read(planned: Sequence[plan.Planned], folder: Path = FOLDER) -> dict[str, Record]:
    """The records of these runs that are there; those of another plan are passed over."""
    return results.read(planned, folder, Record.of)


def add(record: Record, folder: Path = FOLDER) -> None:
    """Write a record down; one of the same run under another plan goes."""
    results.add(record, folder)
