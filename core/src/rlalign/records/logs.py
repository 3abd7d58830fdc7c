"""A run's logs: JSON lines, and TensorBoard events. Append-only, so that a byte length is a checkpoint.

A line reaches the file in one write, unbuffered. Floats are written as Python's shortest exact form, and
what JSON has no number for as the strings "nan", "inf" and "-inf": `float()` reads either back to the bit.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from rlalign.errors import CheckpointError, RLAlignError
from rlalign.records.rundir import StrPath, sync, write_atomic


class Logs:
    """All logs of a run. `.logs` lists them, so that `cut` deletes logs only, never a user's own file."""

    def __init__(self, run: StrPath) -> None:
        self._run = Path(run)
        self._index = self._run / ".logs"
        self._names: set[str] = set(json.loads(self._index.read_text())) if self._index.exists() else set()
        self._open: dict[str, FileIO] = {}
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
        if self._events not in self._open:
            self.write(self._events, _record(file_version="brain.Event:2"))
        self.write(self._events, _record(scalars, step=step))

    def sizes(self) -> dict[str, int]:
        """The length of every log in bytes, once all of it is on the disk."""
        for file in self._open.values():
            os.fsync(file.fileno())
        paths = {name: self._run / name for name in sorted(self._names)}
        return {name: path.stat().st_size for name, path in paths.items() if path.exists()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Take all logs back to a checkpoint; those begun after it vanish. `{}` takes back everything."""
        for name, size in sizes.items():
            path = self._run / name
            found = path.stat().st_size if path.exists() else None
            if found is None or found < size:
                state = "is missing" if found is None else f"holds {found} bytes"
                raise CheckpointError(
                    f"{path}: the log {state}, but the checkpoint counts on {size}: it was deleted or "
                    "edited. Put it back, or go on from an earlier checkpoint: "
                    f"`rlalign run --resume {self._run} --previous`."
                )
        self.close()
        for name, size in sizes.items():
            os.truncate(self._run / name, size)
            sync(self._run / name)
        for name in self._names - set(sizes):
            (self._run / name).unlink(missing_ok=True)
        self._names = set(sizes)
        self._remember()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def write(self, name: str, data: bytes) -> None:
        """Append bytes to the log of this name."""
        path = self._run / name
        try:
            file = self._open.get(name) or self._start(name)
            written = file.write(data)
        except OSError as error:
            raise RLAlignError(_unwritable(path, error.strerror)) from error
        if written != len(data):
            raise RLAlignError(_unwritable(path, "the disk is full"))

    def _start(self, name: str) -> FileIO:
        if name not in self._names:
            self._names.add(name)
            self._remember()
        path = self._run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open[name] = FileIO(path, "ab")
        sync(path.parent)
        return self._open[name]

    def _remember(self) -> None:
        write_atomic(self._index, json.dumps(sorted(self._names)) + "\n")


def read(path: StrPath) -> Iterator[dict[str, Any]]:
    """The rows of a log of JSON lines. A last line that is still being written is left out."""
    with open(path, "rb") as file:  # bytes: text mode would also split lines at U+2028
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def plain(value: Any) -> Any:
    """The value with words where JSON has no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _record(scalars: Mapping[str, float] | None = None, **event: Any) -> bytes:
    """A TensorBoard event in TFRecord framing: length, its checksum, data, its checksum."""
    # tensorboardX's messages and checksum, not its writer: that one writes from a thread, so a file's
    # length would say nothing. Imported here because it takes a second.
    from tensorboardX.proto import event_pb2, summary_pb2
    from tensorboardX.record_writer import masked_crc32c

    if scalars:
        values = [summary_pb2.Summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
        event["summary"] = summary_pb2.Summary(value=values)
    data: bytes = event_pb2.Event(wall_time=time.time(), **event).SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, data))


def _unwritable(path: Path, cause: str | None) -> str:
    return (
        f"{path}: the log could not be written: {cause}. The last checkpoint is intact: fix this "
        f"and go on with `rlalign run --resume`."
    )
