"""Results as files: a JSON line for each run, a file for each stage and world."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar


class Planned(Protocol):
    """A run that is to be made. Its key is `stage/world/arm/…`; its digest changes with the plan."""

    @property
    def key(self) -> str: ...

    @property
    def digest(self) -> str: ...


class Recorded(Protocol):
    """A run that was made, under a key and a digest."""

    @property
    def run(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def line(self) -> str: ...


R = TypeVar("R", bound=Recorded)


def file(stage: str, world: str, folder: Path) -> Path:
    return folder / f"{stage}-{world}.jsonl"


def _file_of(key: str, folder: Path) -> Path:
    stage, world = key.split("/")[:2]
    return file(stage, world, folder)


def read(planned: Sequence[Planned], folder: Path, of: Callable[[str], R]) -> dict[str, R]:
    """The records of these runs that are there, by key; those of another plan are passed over."""
    digests = {one.key: one.digest for one in planned}
    files = sorted({_file_of(key, folder) for key in digests})
    found = [of(line) for path in files if path.exists() for line in path.read_text().splitlines()]
    return {r.run: r for r in found if digests.get(r.run) == r.digest}


def add(record: Recorded, folder: Path) -> None:
    """Write a record down; one of the same run under another plan goes."""
    path = _file_of(record.run, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["run"] != record.run]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in sorted([*kept, record.line()])))
    temporary.rename(path)


def short(values: Sequence[Any]) -> list[Any]:
    """Numbers with five digits."""
    return [float(f"{x:.5g}") if isinstance(x, float) else x for x in values]
