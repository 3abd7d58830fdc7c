"""Text files of one row a line: one file, or several that go together line by line, as translations are published."""

from __future__ import annotations

import gzip
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from io import BufferedReader, BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import cast

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import lines_of
from rlalign_plugin_dataset.tables import BOM, File, Row, Scanned, Table

MOST_UNPACKED = 2**30
"""Bytes that a packed file may become: they are held in memory."""

Clean = Callable[[str], str | None]
"""What is read of a line; None: the line is no row."""


def as_it_stands(line: str) -> str | None:
    """All of a line."""
    return line


class Lines(File):
    """A text file, plain or packed by gzip: a row a line, its text in the column `text`."""

    unit = "line"

    def __init__(self, path: Path, name: str, clean: Clean = as_it_stands) -> None:
        super().__init__(path, name)
        self.clean = clean

    def columns(self) -> list[str]:
        return ["text"]

    def scan(self) -> Iterator[Scanned]:
        start = 0
        with self.open() as file:
            for number, line in enumerate(lines_of(file, self.name), 1):
                if (row := self._row(line, start)) is not None:
                    yield Scanned(number, start, len(line), row)
                start += len(line)

    def read(self, start: int, length: int = 0) -> Row:
        with self.open() as file:
            file.seek(start)
            row = self._row(file.readline(), start)
        assert isinstance(row, dict)
        return row

    def open(self) -> BufferedReader:
        file = super().open()
        if self.path.suffix != ".gz":
            return file
        file.close()  # it was only looked at: it still is the file that was unpacked
        return cast(BufferedReader, BytesIO(self._unpacked))

    @cached_property
    def _unpacked(self) -> bytes:
        try:
            with gzip.open(self.path) as file:
                found = file.read(MOST_UNPACKED + 1)
        except (OSError, EOFError) as error:
            raise ConfigError(f"{self.name}: cannot be unpacked ({error})") from error
        if len(found) > MOST_UNPACKED:
            raise ConfigError(
                f"{self.name}: unpacks to more than {MOST_UNPACKED:,} bytes; `gunzip -k` it first"
            )
        return found

    def _row(self, line: bytes, start: int) -> Row | str | None:
        try:
            text = line.removeprefix(b"" if start else BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            return f"not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1}"
        found = self.clean(text.removesuffix("\n").removesuffix("\r"))
        return None if found is None else {"text": found}


class Parallel(Table):
    """Files whose first rows belong together, and their second ones, and so on: a column for each file."""

    unit = "line"

    def __init__(self, sides: Mapping[str, Lines], name: str) -> None:
        super().__init__(name)
        self.sides = dict(sides)
        self._starts = {column: array("q") for column in sides}

    def columns(self) -> list[str]:
        return list(self.sides)

    def scan(self) -> Iterator[Scanned]:
        sides = self.sides
        for place, together in enumerate(zip_longest(*(side.scan() for side in sides.values()))):
            if None in together:
                raise ConfigError(f"{self.name}: {self._counted()}; row by row they should belong together")
            for column, found in zip(sides, together, strict=True):
                if place == len(self._starts[column]):
                    self._starts[column].append(found.start)
            yield Scanned(together[0].number, place, 0, self._row(together))

    def read(self, start: int, length: int) -> Row:
        return {column: side.read(self._starts[column][start])["text"] for column, side in self.sides.items()}

    def digest(self) -> str:
        return " ".join(side.digest() for side in self.sides.values())

    def _row(self, together: Sequence[Scanned]) -> Row | str:
        row = {}
        for (column, side), found in zip(self.sides.items(), together, strict=True):
            if isinstance(found.row, str):
                return f"{side.place(found.number, 1)}: {found.row}"
            row[column] = found.row["text"]
        return row

    def _counted(self) -> str:
        counts = ((side.name, sum(1 for _ in side.scan())) for side in self.sides.values())
        return " and ".join(f"{name} has {count:,} rows" for name, count in counts)
