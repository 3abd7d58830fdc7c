"""CSV: a header, and rows of cells."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import islice
from pathlib import Path

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import (
    LONGEST_ROW,
    lines_of,
    require_few,
)
from rlalign_plugin_dataset.remote import Remote
from rlalign_plugin_dataset.tables import BOM, Encoding, File, Row, Scanned


class Csv(File):
    """A header, and one record per row; a quoted field may hold line breaks. With `names` there is no header.

    Columns without a name, such as pandas' index, are not read.
    """

    cells = True
    unit = "line"

    def __init__(
        self,
        path: Path | Remote,
        name: str,
        delimiter: str,
        names: Sequence[str] | None = None,
        encoding: Encoding = "utf-8",
    ) -> None:
        super().__init__(path, name, encoding)
        self.delimiter = delimiter
        if csv.field_size_limit() < LONGEST_ROW:
            csv.field_size_limit(LONGEST_ROW)
        self._header = names is None
        self._columns = None if names is None else list(names)

    def columns(self) -> list[str]:
        if self._columns is None:
            header = next(self._records(), None)
            if header is None or isinstance(header.row, str):
                raise ConfigError(f"{self.name}: no header: {header.row if header else 'the file is blank'}")
            names = [name.strip() for name in header.row["cells"]]
            require_few(names, self.name)
            if len(names) <= 2 and names[0].startswith("sep="):
                raise ConfigError(f"{self.name}:1: `sep=` is a note to Excel and no header; delete this line")
            twice = next((name for name, times in Counter(names).items() if name and times > 1), None)
            if twice is not None:
                raise ConfigError(f"{self.name}:{header.number}: the header names `{twice}` twice")
            self._columns = names
        return [name for name in self._columns if name]

    def scan(self) -> Iterator[Scanned]:
        self.columns()
        for found in islice(self._records(), int(self._header), None):
            yield found._replace(row=self._named(found.row))

    def read(self, start: int, length: int) -> Row:
        record = self._bytes(start, length).decode(self.encoding)
        row = self._named({"cells": next(csv.reader([record], delimiter=self.delimiter, strict=True))})
        assert isinstance(row, dict)
        return row

    def _named(self, row: Row | str) -> Row | str:
        if isinstance(row, str):
            return row
        self.columns()
        cells, names = row["cells"], self._columns or []
        if len(cells) != len(names):
            return f"{len(cells)} fields where {'the header has' if self._header else 'there should be'} {len(names)}"
        return {name: cell for name, cell in zip(names, cells, strict=True) if name}

    def _records(self) -> Iterator[Scanned]:
        with self.open() as file:
            lines = _Lines(file, self)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            while True:
                number, start = lines.number + 1, lines.position
                wrong = None
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    if "end of data" in str(error) or "larger" in str(error):
                        # It has swallowed rows that may be sound: no bad row, but a broken file.
                        raise ConfigError(
                            f"{self.name}:{number}: a quote opens in this row and is never closed ({error})"
                        ) from None
                    wrong = f"not valid CSV: {error}"
                    reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
                if lines.undecodable is not None:
                    wrong, lines.undecodable = lines.undecodable, None
                if (
                    wrong is not None or any(cells) or len(cells) == 1
                ):  # spreadsheets write `;;;` for an empty row
                    yield Scanned(number, start, lines.position - start, wrong or {"cells": cells})


class _Lines:
    """The lines of a file as text, and how far they have been read."""

    def __init__(self, file: BufferedReader, table: Csv) -> None:
        self._lines = lines_of(file, table.name)
        self._table = table
        self.number = 0
        self.position = 0
        self.undecodable: str | None = None
        if file.read(len(BOM)) == BOM:
            self.position = len(BOM)
        else:
            file.seek(0)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.position += len(line)
        try:
            return line.decode(self._table.encoding)
        except UnicodeDecodeError as error:
            self.undecodable = self._table._not_text(error, f"on line {self.number}")
            return line.decode(self._table.encoding, "replace")
