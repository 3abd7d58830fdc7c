"""The results as files: a JSON line for each run, a file for each stage and world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.nlpo import plan
from benchmarks.nlpo.measures import Record

FOLDER = Path(__file__).parent / "results"


def file(stage: str, world: str, folder: Path = FOLDER) -> Path:
    return folder / f"{stage}-{world}.jsonl"


def read(planned: Sequence[plan.Planned], folder: Path = FOLDER) -> dict[str, Record]:
    """The records of these runs that are there; those of another plan are passed over."""
    digests = {one.key: one.digest for one in planned}
    files = {file(one.stage, one.world.name, folder) for one in planned}
    records = [
        Record.of(line) for path in sorted(files) if path.exists() for line in path.read_text().splitlines()
    ]
    return {r.run: r for r in records if digests.get(r.run) == r.digest}


def add(record: Record, folder: Path = FOLDER) -> None:
    """Write a record down; one of the same run under another plan goes."""
    stage, world = record.run.split("/")[:2]
    path = file(stage, world, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if Record.of(line).run != record.run]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in sorted([*kept, record.line()])))
    temporary.rename(path)
