"""Text: a value a line, in one file or in several side by side, as translations have them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import lines_of
from rlalign_plugin_dataset.remote import Remote
from rlalign_plugin_dataset.tables import BOM, Encoding, File, Row, Scanned, Table

COLUMN = "text"
"""Of a text file that stands alone."""


class Lines(File):
    """A file of one text a line. A blank line is no row, but where others stand beside it."""

    unit = "line"

    def __init__(
        self, path: Path | Remote, name: str, encoding: Encoding = "utf-8", column: str = COLUMN
    ) -> None:
        super().__init__(path, name, encoding)
        self.column = column

    def columns(self) -> list[str]:
        return [self.column]

    def scan(self) -> Iterator[Scanned]:
        return (found for found in self.every() if isinstance(found.row, str) or found.row[self.column])

    def every(self) -> Iterator[Scanned]:
        """Every line, blank ones too. A line ends in a line feed alone: other marks are part of texts."""
        start = 0
        with self.open() as file:
            for number, line in enumerate(lines_of(file, self.name), 1):
                skip = len(BOM) if number == 1 and line.startswith(BOM) else 0
                text = line[skip:].rstrip(b"\r\n")
                try:
                    row: Row | str = {self.column: text.decode(self.encoding)}
                except UnicodeDecodeError as error:
                    row = self._not_text(error, f"at place {error.start + 1}")
                yield Scanned(number, start + skip, len(text), row)
                start += len(line)

    def read(self, start: int, length: int) -> Row:
        return {self.column: self._bytes(start, length).decode(self.encoding)}


class SideBySide(Table):
    """Files of one text a line, each a column: what stands on the same line belongs together."""

    unit = "line"

    def __init__(self, parts: Sequence[Lines]) -> None:
        super().__init__(parts[0].name)
        self._parts = parts
        self._places = {part.column: (array("q"), array("q")) for part in parts}
        """Where each line of each file stands, and how long it is."""

    def columns(self) -> list[str]:
        return [part.column for part in self._parts]

    def scan(self) -> Iterator[Scanned]:
        for index, lines in enumerate(zip_longest(*(part.every() for part in self._parts))):
            if None in lines:
                raise ConfigError(self._unequal(index, lines))
            for part, line in zip(self._parts, lines, strict=True):
                starts, lengths = self._places[part.column]
                if index == len(starts):
                    starts.append(line.start)
                    lengths.append(line.length)
            row = self._row(lines)
            if isinstance(row, str) or any(row.values()):
                yield Scanned(lines[0].number, index, 0, row)

    def _row(self, lines: Sequence[Scanned]) -> Row | str:
        row: Row = {}
        for part, line in zip(self._parts, lines, strict=True):
            if isinstance(line.row, str):
                return line.row if part is self._parts[0] else f"{part.name}: {line.row}"
            row |= line.row
        return row

    def _unequal(self, index: int, lines: Sequence[Scanned | None]) -> str:
        short = next(part.name for part, line in zip(self._parts, lines, strict=True) if line is None)
        long = next(part.name for part, line in zip(self._parts, lines, strict=True) if line is not None)
        return (
            f"{short} has {index:,} lines and {long} has more: the lines of files that stand side by side belong "
            "together"
        )

    def read(self, start: int, length: int) -> Row:
        row: Row = {}
        for part in self._parts:
            starts, lengths = self._places[part.column]
            row |= part.read(starts[start], lengths[start])
        return row

    def digest(self) -> str:
        digests = [f"{part.column} {part.digest()}" for part in self._parts]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def side_by_side(folder: Path, files: Mapping[str, str], encoding: Encoding) -> SideBySide:
    """The table of a folder's files, by column."""
    return SideBySide([Lines(folder / name, name, encoding, column) for column, name in files.items()])
