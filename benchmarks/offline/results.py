"""The results as files: a JSON line for each run and each log, a file for each stage and log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import results
from benchmarks.offline import plan
from benchmarks.offline.measures import Prepared, Record

FOLDER = Path(__file__).parent / "results"
add = results.add


def read(planned: Sequence[plan.Planned], folder: Path) -> dict[str, Record]:
    """The records of these runs that are there; those of another plan are passed over."""
    return results.read(planned, folder, Record.of)


def grounds(wanted: Sequence[plan.Ground], folder: Path) -> dict[str, Prepared]:
    """What is known of these logs and their references."""
    return results.read(wanted, folder, Prepared.of)
