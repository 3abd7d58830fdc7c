"""A run's logs: JSON lines, and TensorBoard events. Append-only, so that a length and a checksum are a checkpoint.

A line reaches the file in one write, unbuffered. Floats are written as Python's shortest exact form, and
what JSON has no number for as the strings "nan", "inf" and "-inf": `float()` reads either back to the bit.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from rlalign.data.limits import LINE_BYTES, require_file
from rlalign.errors import CheckpointError, RLAlignError
from rlalign.records import events
from rlalign.records.files import StrPath, inside, read_json
from rlalign.records.rundir import sync, write_atomic
from rlalign.records.sums import Saved, Sum, sum_of, wrong_with
from rlalign.world.ranks import here

GUARDED_EVERY = 0.1
"""Seconds after which a write asks again whether the run is still this process's; checkpoints always ask."""


class Logs:
    """All logs of a run. `.logs` lists them, so that `cut` deletes logs only, never a user's own file."""

    def __init__(
        self,
        run: StrPath,
        guard: Callable[[], None] = lambda: None,
        header: Callable[[], bytes] = lambda: b"",
    ) -> None:
        self._run = Path(run)
        self._guard = guard
        """Raises where the run is not this process's any more."""
        self._header = header
        """What the run's first events file says before all else."""
        self._guarded_at = 0.0
        self._index = self._run / ".logs"
        names = read_json(self._index, list[str], "Delete it.") if os.path.lexists(self._index) else []
        self._names: set[str] = {name for name in names if inside(self._run, name)}
        self._open: dict[str, FileIO] = {}
        self._sums: dict[str, Sum] = {}
        # Each process starts a file of its own: TensorBoard would not notice that an old one was cut.
        self._events = f"events/events.out.tfevents.{time.time_ns()}"

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Write one line to the log of this name, a path relative to the run's folder."""
        line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate, which UTF-8 cannot hold, becomes `\udXXX`: JSON's own escape for it.
        self.write(name, line.encode("utf-8", "backslashreplace"))

    def metrics(self, row: Mapping[str, Any], step: int) -> None:
        """Write a line to metrics.jsonl, and its floats as TensorBoard scalars at `step`."""
        self.append("metrics.jsonl", row)
        scalars = {tag: value for tag, value in row.items() if isinstance(value, float)}
        self.event(events.scalars(scalars, step))

    def event(self, record: bytes) -> None:
        """Write a record for TensorBoard."""
        if not here().leads:
            return
        if self._events not in self._open:
            first = not any(name.startswith("events/") for name in self._names)
            self.write(self._events, events.version() + (self._header() if first else b""))
        self.write(self._events, record)

    def sums(self) -> dict[str, Saved]:
        """Size and checksum of every log. They hold once what `syncing` gives was called."""
        self._guard()
        found = {}
        for name in sorted(self._names):
            path = self._run / name
            if name not in self._sums and path.exists():
                self._sums[name] = sum_of(path)
            if name in self._sums:
                found[name] = self._sums[name].saved()
                size = path.stat().st_size if path.exists() else 0
                if size != found[name]["size"]:
                    raise RLAlignError(
                        f"{path}: holds {size} bytes, but this run has written {found[name]['size']}: something else "
                        "writes it. The last checkpoint is intact: see that nothing does, and go on with "
                        f"`rlalign run --resume {self._run}`."
                    )
        return found

    def syncing(self) -> Callable[[], None]:
        """What forces all that is written by now to the disk, in any thread, while the logs are open."""
        files = dict(self._open)

        def sync_all() -> None:
            for name, file in files.items():
                try:
                    os.fsync(file.fileno())
                except OSError as error:
                    raise RLAlignError(_unwritable(self._run / name, error.strerror)) from error

        return sync_all

    def damage(self, saved: Mapping[str, Saved]) -> dict[str, str]:
        """What is wrong with each log, as far as a checkpoint counts on it. Those that are whole are known from now."""
        wrong = {}
        for name, then in saved.items():
            path = inside(self._run, name)
            if not path.is_file():
                wrong[name] = "is missing"
                continue
            found = sum_of(path, then["size"])
            if told := wrong_with(path, then, found):
                wrong[name] = told
            else:
                self._sums[name] = found
        return wrong

    def cut(self, saved: Mapping[str, Saved]) -> None:
        """Take all logs back to a checkpoint; those begun after it vanish. `{}` takes back everything."""
        known = {name for name in self._sums if self._sums[name].saved() == saved.get(name)}
        for name, told in self.damage({n: then for n, then in saved.items() if n not in known}).items():
            raise CheckpointError(
                f"{self._run / name}: the log {told}. Put it back, or go on from an earlier checkpoint: "
                f"`rlalign run --resume {self._run} --previous`."
            )
        self.close()
        for name, then in saved.items():
            os.truncate(self._run / name, then["size"])
            sync(self._run / name)
        for name in self._names - set(saved):
            (self._run / name).unlink(missing_ok=True)
        self._names = set(saved)
        self._sums = {name: self._sums[name] for name in saved}
        self._remember()

    def mend(self, saved: Mapping[str, Saved], wrong: Collection[str]) -> dict[str, Saved]:
        """What is left of damaged logs, to go on with: the lines that can be read. What models said is asked again."""
        kept = {name: then for name, then in saved.items() if name not in wrong}
        for name in wrong:
            path = inside(self._run, name)
            if path.exists() and not path.is_file():
                raise CheckpointError(f"{path}: is no file, so no log either; move it away.")
            self._names.add(name)
            if path.is_file() and path.suffix == ".jsonl":
                write_atomic(path, _readable(path, saved[name]["size"]))
                kept[name] = sum_of(path).saved()
        return kept

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def write(self, name: str, data: bytes) -> None:
        """Append bytes to the log of this name, if this process writes the run's files."""
        if not here().leads:
            return
        path = self._run / name
        now = time.monotonic()
        if now - self._guarded_at > GUARDED_EVERY:
            self._guard()
            self._guarded_at = now
        try:
            file = self._open.get(name) or self._start(name)
            written = file.write(data)
        except OSError as error:
            raise RLAlignError(_unwritable(path, error.strerror)) from error
        if written != len(data):
            raise RLAlignError(_unwritable(path, "the disk is full"))
        self._sums[name].add(data)

    def _start(self, name: str) -> FileIO:
        self._guard()
        path = inside(self._run, name)
        if name not in self._names:
            if path.is_file() and path.stat().st_size:
                raise RLAlignError(
                    f"{path}: is there already, and {self._index} does not list it as a log of this run. Move it away, "
                    f"and go on with `rlalign run --resume {self._run}`."
                )
            self._names.add(name)
            self._remember()
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in self._sums:
            self._sums[name] = sum_of(path) if path.is_file() else Sum()
        self._open[name] = FileIO(path, "ab")
        sync(path.parent)
        return self._open[name]

    def _remember(self) -> None:
        write_atomic(self._index, json.dumps(sorted(self._names)) + "\n")


def read(path: StrPath) -> Iterator[dict[str, Any]]:
    """The rows of a log of JSON lines. A last line that is still being written is left out."""
    path = Path(path)
    require_file(path)
    with open(path, "rb") as file:  # bytes: text mode would also split lines at U+2028
        for number, line in enumerate(iter(partial(file.readline, LINE_BYTES + 1), b""), 1):
            if len(line) > LINE_BYTES:
                raise CheckpointError(
                    f"{path}:{number}: a line of more than {LINE_BYTES:,} bytes: it is damaged."
                )
            if line.endswith(b"\n"):
                yield row(line, f"{path}:{number}")


def row(line: bytes, place: str) -> dict[str, Any]:
    """One line of a log."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{place}: this line is not what was written: it is damaged or edited. "
            "Put the file back, or delete the line."
        )
    return found


def _readable(path: Path, size: int) -> Iterator[str]:
    with path.open("rb") as file:
        while file.tell() < size and (line := file.readline()):
            try:
                row(line, "")
                text = line.decode()
            except (CheckpointError, UnicodeDecodeError):
                continue
            if line.endswith(b"\n"):
                yield text


def plain(value: Any) -> Any:
    """The value with words where JSON has no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _unwritable(path: Path, cause: str | None) -> str:
    return (
        f"{path}: the log could not be written: {cause}. The last checkpoint is intact: fix this "
        f"and go on with `rlalign run --resume`."
    )
