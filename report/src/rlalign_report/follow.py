"""A log of JSON lines that somebody may still be writing: read on from where it was left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlalign.data.limits import LINE_BYTES
from rlalign.errors import CheckpointError
from rlalign.records import logs

Row = dict[str, Any]
REMEMBERED = 4096
"""Bytes before the place that was reached: if they changed, the log was cut back and written anew."""


class Line(NamedTuple):
    """A row, and where in the file it stands."""

    at: int
    bytes: int
    row: Row


class Log:
    """One log. A resumed run cuts its logs back to a checkpoint, which `begins_anew` notices."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        """Lines that could not be read."""
        self._at = 0
        self._before = b""

    def begins_anew(self) -> bool:
        """Whether what was read is not what stands there now; reading then begins at the start again."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at - len(self._before))
                same = file.read(len(self._before)) == self._before
        except OSError:
            same = not self._at
        if not same:
            self._at, self._before, self.damaged = 0, b"", 0
        return not same

    def more(self) -> Iterator[Line]:
        """The rows that were added. A last line that is still being written is left for the next time."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            while line := file.readline(LINE_BYTES + 1):
                if not line.endswith(b"\n") and len(line) <= LINE_BYTES:
                    break
                at = self._at
                self._at += len(line)
                self._before = (self._before + line[-REMEMBERED:])[-REMEMBERED:]
                try:
                    yield Line(at, len(line), logs.row(line, ""))
                except CheckpointError:
                    self.damaged += 1

    def again(self, line: tuple[int, int]) -> Row:
        """A row that was read before, by its place."""
        at, length = line
        with self.path.open("rb") as file:
            file.seek(at)
            try:
                return logs.row(file.read(length), "")
            except CheckpointError:  # the log was cut back a moment ago: the next look finds that out
                return {}
