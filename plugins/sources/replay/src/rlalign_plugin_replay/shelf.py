"""A queue of byte strings: the newest in memory, and older ones in files when they become too many."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from pathlib import Path
from typing import IO, NamedTuple

FULL = 2**26
"""Bytes after which a file takes no more."""


class _Stored(NamedTuple):
    """Where a byte string lies. Its file has no name: it is gone with the last that lies in it, or with the process."""

    file: IO[bytes]
    offset: int
    size: int


class Shelf:
    """First in, first out; `shelf[i]` is the i-th oldest. At most `in_memory` bytes stay out of files."""

    def __init__(self, in_memory: int, folder: Path | None = None) -> None:
        self.in_memory = in_memory
        self.folder = folder
        self.held = 0
        """Bytes that are not in a file."""
        self._stored: deque[_Stored] = deque()
        self._recent: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._stored) + len(self._recent)

    def __getitem__(self, index: int) -> bytes:
        if index >= len(self._stored):
            return self._recent[index - len(self._stored)]
        file, offset, size = self._stored[index]
        return os.pread(file.fileno(), size, offset)

    def append(self, data: bytes) -> None:
        """Add the newest."""
        self._recent.append(data)
        self.held += len(data)
        if self.held > self.in_memory:
            self._store()

    def popleft(self) -> None:
        """Forget the oldest."""
        if self._stored:
            self._stored.popleft()
        else:
            self.held -= len(self._recent.popleft())

    def _store(self) -> None:
        """Put the oldest into a file, until half of what memory may hold is free again."""
        file, offset = self._file()
        while self._recent and self.held > self.in_memory // 2:
            data = self._recent.popleft()
            file.write(data)
            self._stored.append(_Stored(file, offset, len(data)))
            offset += len(data)
            self.held -= len(data)
        file.flush()

    def _file(self) -> tuple[IO[bytes], int]:
        """A file that is not full, and where it ends: so few of them that the system lets them be open at once."""
        if self._stored:
            file, offset, size = self._stored[-1]
            if offset + size < FULL:
                return file, offset + size
        return tempfile.TemporaryFile(dir=self.folder, prefix="replay-"), 0
