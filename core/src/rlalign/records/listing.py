"""The runs in a folder: how each stands, and what it takes on the disk. Follows no link, and needs no torch."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlalign.errors import CheckpointError, ConfigError
from rlalign.records import logs
from rlalign.records.files import StrPath, read_json
from rlalign.records.rundir import REQUIRED_FILES
from rlalign.records.writer import is_written

TAIL = 2**20
"""Bytes at the end of metrics.jsonl in which the last figures are looked for."""
LARGEST_STATE = 2**22
"""Bytes of the largest checkpoint state that is read to learn how many iterations there will be."""
FIGURES = ("eval/total", "reward/total")
"""The first that there is stands for a run."""

State = Literal["running", "stopped", "finished", "damaged", "foreign", "link"]


class Sizes:
    """Bytes on the disk; a file with several names is counted once."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def add(self, files: Iterable[os.stat_result]) -> int:
        """The bytes of those that were not counted yet."""
        total = 0
        for about in files:
            if about.st_nlink > 1 and (about.st_dev, about.st_ino) in self._seen:
                continue
            self._seen.add((about.st_dev, about.st_ino))
            total += about.st_blocks * 512
        return total


@dataclass(frozen=True)
class Listed:
    """What stands in a folder of runs, and how it is."""

    name: str
    state: State
    why: str | None = None
    """What is damaged."""
    phase: str | None = None
    """Where there are several."""
    iteration: int | None = None
    iterations: int | None = None
    age: float | None = None
    """Seconds since it last wrote something."""
    figure: str | None = None
    value: float | None = None
    bytes: int | None = None
    checkpoints: int | None = None
    """Bytes of these, of which some may be shared with other runs."""


def runs(folder: StrPath) -> tuple[list[Listed], int]:
    """All runs in a folder, the one written last first, and the bytes of all together. Of a run, itself."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; name the one your runs are in")
    if _is_there(folder):
        entries = [(folder.resolve().name, folder.resolve())]
    else:
        try:
            entries = [(entry.name, Path(entry)) for entry in os.scandir(folder)]
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from None
    found, together, total = [], Sizes(), 0
    for name, path in entries:
        if name.startswith(".") or not (path.is_symlink() or path.is_dir()):
            continue
        one, files = _listed(name, path)
        found.append(one)
        total += together.add(files)
    return sorted(found, key=lambda one: (one.age is None, one.age or 0.0, one.name)), total


def files_in(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below a folder, without following a link; what cannot be read, or has just gone, is left out."""
    below = [folder]
    while below:
        try:
            entries = list(os.scandir(below.pop()))
        except OSError:
            continue
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry))
                elif entry.is_file(follow_symlinks=False):
                    yield Path(entry), entry.stat(follow_symlinks=False)


def _is_there(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in REQUIRED_FILES)


def _listed(name: str, path: Path) -> tuple[Listed, list[os.stat_result]]:
    """A folder, and its files if it is a run."""
    if path.is_symlink():
        return Listed(name, "link"), []
    if not _is_there(path):
        return Listed(name, "foreign"), []
    files = list(files_in(path))
    points = path / "checkpoints"
    sizes: dict[str, Any] = {
        "bytes": Sizes().add(about for _, about in files),
        "checkpoints": Sizes().add(about for file, about in files if points in file.parents),
    }
    written = max((about.st_mtime for file, about in files if file.name != ".running"), default=None)
    age = None if written is None else max(0.0, time.time() - written)
    try:
        said = _standing(path)
    except CheckpointError as error:
        said = {"state": "damaged", "why": str(error).removeprefix(f"{path}/")}
    return Listed(name, age=age, **sizes, **said), [about for _, about in files]


def _standing(path: Path) -> dict[str, Any]:
    """How a run stands, by what it has written; a CheckpointError where that cannot be read."""
    if not _is_real(path / "pipeline.yaml", stat.S_ISREG):
        raise CheckpointError(f"{path / 'pipeline.yaml'}: is missing, or is no file.")
    pipeline = read_json(path / "lock.json", dict[str, Any]).get("pipeline")
    last, figure, value = _last(path / "metrics.jsonl")
    said: dict[str, Any] = {"figure": figure, "value": value}
    if isinstance(pipeline, dict) and "phases" in pipeline:
        said["phase"] = last.get("phase")
    written = is_written(path)
    if _is_real(path / "model", stat.S_ISDIR) and not written:
        return said | {"state": "finished"}
    saved = _saved(path / "checkpoints")
    iteration = last.get("iteration", 0)
    if saved is None:
        return said | {"state": "running" if written else "stopped", "iteration": iteration}
    if not written:  # where it would go on
        return said | {"state": "stopped", "iteration": saved[0], "iterations": saved[1]}
    same_phase = not saved[2] and iteration >= saved[0]
    return said | {
        "state": "running",
        "iteration": iteration,
        "iterations": saved[1] if same_phase else None,
    }


def _is_real(path: Path, kind: Any) -> bool:
    """Whether it is one of these itself, not by a link."""
    try:
        return bool(kind(path.lstat().st_mode))
    except OSError:
        return False


def _last(path: Path) -> tuple[dict[str, Any], str | None, float | None]:
    """The last row of metrics.jsonl, and the figure that stands for a run: its name and value."""
    if not os.path.lexists(path):
        return {}, None, None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{path}: is no file.")
            file.seek(max(0, size - TAIL))
            lines = file.read(TAIL).split(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None
    whole = lines[1 if size > TAIL else 0 : -1]
    last: dict[str, Any] = {}
    for name in FIGURES:
        for line in reversed(whole):
            row = logs.row(line, str(path))
            last = last or row
            if name in row:
                try:
                    return last, name, float(row[name])
                except (TypeError, ValueError):
                    raise CheckpointError(f"{path}: is not what was written: it was edited.") from None
    return last, None, None


def _saved(folder: Path) -> tuple[int, int, bool] | None:
    """The iteration and iterations of the last checkpoint's phase, and whether that was done."""
    if not _is_real(folder, stat.S_ISDIR):
        return None
    named = [e for e in os.scandir(folder) if re.fullmatch("[0-9]{8,18}", e.name)]
    points = sorted((e for e in named if e.is_dir(follow_symlinks=False)), key=lambda e: int(e.name))
    if not points:
        return None
    file = Path(points[-1]) / "state.json"
    if _is_real(file, stat.S_ISREG) and file.stat().st_size > LARGEST_STATE:
        return None
    try:
        loop = read_json(file, dict)["loop"]["dict"]
        phase = loop["phase"]["dict"]
        return int(phase["iteration"]), int(phase["iterations"]), bool(loop["done"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: is not what was written: it was edited.") from None
