"""A checksum of a file that only grows, kept while it grows, and able to say about where a byte has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, PositiveInt

MARKS = 64
FIRST_MARK = 4096
_READ = 2**20


Saved = Mapping[str, Any]
"""A sum as a checkpoint keeps it."""


class SavedShape(BaseModel):
    """What `Saved` holds."""

    size: NonNegativeInt
    sha256: str
    every: PositiveInt
    marks: list[str]


class Sum:
    """The SHA-256 of what was added so far, and marks on the way: what it was after every so many bytes.

    When there are 64 marks every other one goes, so they follow from the bytes alone, however they were added.
    """

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._every = FIRST_MARK
        self._marks: list[str] = []

    def add(self, data: bytes) -> None:
        """Take in what was appended to the file."""
        rest = memoryview(data)
        while rest:
            piece = rest[: self._every - self.size % self._every]
            self._digest.update(piece)
            self.size += len(piece)
            rest = rest[len(piece) :]
            if self.size % self._every == 0:
                self._marks.append(self._digest.hexdigest()[:8])
                if len(self._marks) == MARKS:
                    self._marks, self._every = self._marks[1::2], 2 * self._every

    def saved(self) -> Saved:
        """What `differs` compares with."""
        return {
            "size": self.size,
            "sha256": self._digest.hexdigest(),
            "every": self._every,
            "marks": list(self._marks),
        }

    def differs(self, saved: Saved) -> tuple[int, int] | None:
        """Between which bytes the first difference lies; None where there is none."""
        now = self.saved()
        if now["sha256"] == saved["sha256"]:
            return None
        pairs = zip(now["marks"], saved["marks"], strict=False)
        same = next((i for i, (one, other) in enumerate(pairs) if one != other), len(now["marks"]))
        return same * self._every, min((same + 1) * self._every, self.size)


def sum_of(path: Path, size: int | None = None) -> Sum:
    """The sum of a file, or of its first `size` bytes."""
    found = Sum()
    with path.open("rb") as file:
        while data := file.read(_READ if size is None else min(_READ, size - found.size)):
            found.add(data)
    return found


def wrong_with(path: Path, saved: Saved, found: Sum) -> str | None:
    """What is wrong with a file of which `found` was read, in words; None if it is as it was."""
    if found.size < saved["size"]:
        return f"holds {found.size} bytes, but {saved['size']} were written: it was cut"
    between = found.differs(saved)
    if between is None:
        return None
    with path.open("rb") as file:
        before = file.read(between[0]).count(b"\n")
        lines = file.read(between[1] - between[0]).count(b"\n")
    where = f"bytes {between[0]} to {between[1]}"
    if path.suffix == ".jsonl":
        where += f", lines {before + 1} to {before + max(1, lines)}"
    return f"is not what was written (its SHA-256 differs, first in {where}): it is damaged or edited"
