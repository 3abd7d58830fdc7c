"""Rows of a file, one by one or in any order, without holding the file in memory.

`scan` walks over all rows once and says where each stands: two numbers, which `read` takes back.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import (
    LARGE,
    LARGEST_GROUP,
    LONGEST_ROW,
    MOST_PACKED,
    TOO_DEEP,
    lines_of,
    require_few,
    too_deep,
)

Row = dict[str, Any]

LOOKED_AT = 100
"""Rows whose keys are a JSON file's columns: a key may be missing in some."""
WINDOW_BYTES = 2**22
"""Of a JSON list, read at once."""
HELD_BYTES = 2**28
"""Uncompressed Parquet row groups held at once; one is always held."""
BOM = b"\xef\xbb\xbf"


class Scanned(NamedTuple):
    """A row and where it stands; `row` is what is wrong with it, in words, if it cannot be read."""

    number: int
    """As an editor shows it: the line a row begins on, from 1; without lines, the row, from 1."""
    start: int
    length: int
    row: Row | str
    nth: int = 1
    """The how manieth row that begins on its line; more than one do where a JSON list is written on one line."""


class Table(ABC):
    """One file, or one split of a hub dataset."""

    cells = False
    """Whether every value is text, as in CSV."""
    unit = "row"
    """What `number` counts."""

    def __init__(self, name: str) -> None:
        self.name = name

    def place(self, number: int, nth: int) -> str:
        """How messages and ids name a row: `file:line`, and `file:line.2` for the second on a line."""
        return f"{self.name}:{number}" if nth == 1 else f"{self.name}:{number}.{nth}"

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns there are."""

    def only(self, columns: Sequence[str] | None) -> None:  # noqa: B027
        """Only these columns (None: all) will be read; a hint."""

    @abstractmethod
    def scan(self) -> Iterator[Scanned]:
        """Every row, in order."""

    @abstractmethod
    def read(self, start: int, length: int) -> Row:
        """The row that `scan` found there."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the contents."""


class File(Table):
    """A table in a local file, which may not change while it is in use."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(name)
        self.path = path
        self._stamp = _stamp(os.stat(path))
        if self._stamp[0] == 0:
            raise ConfigError(f"{name}: the file is empty")

    def open(self) -> BufferedReader:
        """The file, if it still is the one that was looked at first."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}; it was there when the run began") from error
        if _stamp(os.fstat(file.fileno())) != self._stamp:
            file.close()
            raise ConfigError(f"{self.path}: the file has changed since it was first read; start again")
        return file

    def digest(self) -> str:
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _bytes(self, start: int, length: int) -> bytes:
        with self.open() as file:
            return os.pread(file.fileno(), length, start)


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ino


class JsonLines(File):
    """One JSON object a line."""

    unit = "line"

    def columns(self) -> list[str]:
        rows = (found.row for found in self.scan() if isinstance(found.row, dict))
        return require_few(
            list(dict.fromkeys(key for row in islice(rows, LOOKED_AT) for key in row)), self.name
        )

    def scan(self) -> Iterator[Scanned]:
        with self.open() as file:
            start = 0
            for number, line in enumerate(lines_of(file, self.name), 1):
                skip = len(BOM) if number == 1 and line.startswith(BOM) else 0
                if line[skip:].strip():
                    yield Scanned(number, start + skip, len(line) - skip, _json_row(line[skip:]))
                start += len(line)

    def read(self, start: int, length: int) -> Row:
        row: Row = json.loads(self._bytes(start, length).decode("utf-8"))
        return row


class JsonList(JsonLines):
    """One JSON list of objects, read through a window."""

    def scan(self) -> Iterator[Scanned]:
        with self.open() as file:
            window = _Window(file)
            window.at = window.text.index("[") + 1
            first = True
            line = nth = 0
            while not window.next_is("]"):
                if not first:
                    if not window.next_is(","):
                        raise self._broken(window, "expected `,` or `]` after an object")
                    window.at += 1
                    window.next_is("")
                first = False
                try:
                    found, length = window.value()
                except json.JSONDecodeError as error:
                    raise self._broken(window, error.msg, error.pos) from None
                except (ValueError, RecursionError) as error:
                    raise self._broken(
                        window, "nested too deep, or a number of thousands of digits"
                    ) from error
                number, start = window.line(), window.base + window.at
                line, nth = number, nth + 1 if number == line else 1
                text = window.text[window.at : window.at + length]
                window.at += length
                if (
                    text.isascii()
                    and isinstance(found, dict)
                    and not too_deep(found, text.count("{") + text.count("["))
                ):
                    yield Scanned(number, start, length, found, nth)
                else:
                    yield Scanned(number, start, length, _json_row(text.encode("latin-1")), nth)
            window.at += 1
            window.next_is("")
            if window.at < len(window.text):
                raise self._broken(
                    window,
                    'more after the end of the list; a list a line? Make each an object: {"messages": […]}',
                )

    def _broken(self, window: _Window, why: str, at: int | None = None) -> ConfigError:
        window.at = window.at if at is None else at
        return ConfigError(f"{self.name}:{window.line()}: not valid JSON: {why}")


class _Window:
    """A piece of a file as latin-1 text, in which a character is a byte: all that structures JSON is ASCII,
    so places are right, and what is not ASCII is read again, as UTF-8, from its bytes."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.text = ""
        self.base = 0
        """Where in the file the text begins."""
        self.at = 0
        self._lines = 1
        self._counted = 0
        self._more()

    def _more(self) -> bool:
        """Drop what lies before `at`, and read on: twice as much if nothing could be dropped."""
        self.line()
        kept = self.text[self.at :]
        read = self._file.read(max(WINDOW_BYTES, len(kept))).decode("latin-1")
        self.text = kept + read
        self.base, self.at, self._counted = self.base + self.at, 0, 0
        return bool(read)

    def line(self) -> int:
        """The line that `at` is on, from 1."""
        self._lines += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._lines

    def next_is(self, character: str) -> bool:
        """Step over white space, then look."""
        while True:
            while self.text[self.at : self.at + 1] in (" ", "\t", "\n", "\r"):
                self.at += 1
            if self.at < len(self.text) or not self._more():
                return self.text.startswith(character, self.at)

    def value(self) -> tuple[Any, int]:
        """The value at `at`, and its length."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if len(self.text) - self.at > LONGEST_ROW or not self._more():
                    raise
                continue
            if end < len(self.text) or not self._more():
                return value, end - self.at


_DECODER = json.JSONDecoder()


def _json_row(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at place {error.pos + 1}{_why(line.strip(), error)}"
    except ValueError:
        return "a number of thousands of digits"
    except RecursionError:
        return TOO_DEEP
    if too_deep(row, line.count(b"{") + line.count(b"[")):
        return TOO_DEEP
    return row if isinstance(row, dict) else f"expected an object {{…}}, found {kind_of(row)}"


def _why(line: bytes, error: json.JSONDecodeError) -> str:
    """What people write instead of JSON lines, if it is one of these."""
    rest = error.doc[error.pos :].strip()
    if line == b"{" or (error.pos >= len(error.doc.rstrip()) and line.startswith(b"{")):
        return "; an object has one line to itself, or objects of many lines stand in a list: [{…}, {…}]"
    if line.startswith(b"{'"):
        return "; JSON has double quotes: write rows by `json.dumps(row)`"
    if error.msg == "Extra data" and rest[:1] in (",", "{"):
        return "; each object has a line to itself, without a comma between them"
    return ""


class Csv(File):
    """A header, and one record per row; a quoted field may hold line breaks. With `names` there is no header.

    Columns without a name, such as pandas' index, are not read.
    """

    cells = True
    unit = "line"

    def __init__(self, path: Path, name: str, delimiter: str, names: Sequence[str] | None = None) -> None:
        super().__init__(path, name)
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
        record = self._bytes(start, length).decode("utf-8")
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
            lines = _Lines(file, self.name)
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

    def __init__(self, file: BufferedReader, name: str) -> None:
        self._lines = lines_of(file, name)
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
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.undecodable = f"not UTF-8: byte 0x{line[error.start]:02x} on line {self.number}"
            return line.decode("utf-8", "replace")


class Parquet(File):
    """Row groups are read as they are needed; the last few are held."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        parquet = extra("pyarrow.parquet", "parquet", f"{name} is Parquet")
        self._arrow = import_module("pyarrow")
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except Exception as error:
            raise ConfigError(f"{name}: not a Parquet file: {error}") from error
        about = self._file.metadata
        if about.num_rows == 0:
            raise ConfigError(f"{name}: the file has no rows")
        require_few(self._file.schema_arrow.names, name)
        self._groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
        self._require_small(max(self._groups), sum(self._groups))
        self._only: list[str] | None = None
        self._held: OrderedDict[int, Any] = OrderedDict()

    def columns(self) -> list[str]:
        names: list[str] = self._file.schema_arrow.names
        return names

    def only(self, columns: Sequence[str] | None) -> None:
        self._only = None if columns is None else list(columns)

    def scan(self) -> Iterator[Scanned]:
        number = whole = 0
        for group in range(self._file.num_row_groups):
            place = 0
            for batch in self._batches(group):
                whole += batch.nbytes
                self._require_small(0, whole)
                with self._naming(group):
                    rows = batch.to_pylist()
                for row in rows:
                    number += 1
                    yield Scanned(number, group, place, row)
                    place += 1

    def read(self, start: int, length: int) -> Row:
        row: Row = self._group(start).slice(length, 1).to_pylist()[0]
        return row

    def _batches(self, group: int) -> Iterator[Any]:
        """A row group piece by piece. What the file says of its size is not relied on."""
        # Where values repeat, each of a piece may be as long as all of them are in the file.
        rows = min(256, max(1, LARGEST_GROUP // max(1, self._groups[group])))
        held = 0
        batches = self._file.iter_batches(rows, row_groups=[group], columns=self._only)
        while True:
            with self._naming(group):
                batch = next(batches, None)
            if batch is None:
                return
            held += batch.nbytes
            self._require_small(held, 0)
            yield batch

    @contextmanager
    def _naming(self, group: int) -> Iterator[None]:
        """Say which row group it is that cannot be read."""
        try:
            yield
        except Exception as error:
            said = str(error).partition("\n")[0]
            raise ConfigError(
                f"{self.name}: its row group {group} is damaged: {said}; write it again"
            ) from error

    def _require_small(self, group: int, whole: int) -> None:
        if group > LARGEST_GROUP or whole > max(LARGE, MOST_PACKED * self._stamp[0]):
            raise ConfigError(
                f"{self.name}: {self._stamp[0]:,} bytes that unpack to {max(group, whole):,} or more; write it again "
                f"with row groups of at most {LARGEST_GROUP:,} bytes, and not packed more than {MOST_PACKED:,} times"
            )

    def _group(self, group: int) -> Any:
        if group not in self._held:
            with self.open():  # only to see that it is the same file
                self._held[group] = self._arrow.Table.from_batches(list(self._batches(group)))
            while len(self._held) > 1 and sum(t.nbytes for t in self._held.values()) > HELD_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]


class Hub(Table):
    """A split that the `datasets` library has loaded; it keeps the rows on disk itself."""

    def __init__(self, dataset: Any, name: str) -> None:
        super().__init__(name)
        self.dataset = dataset

    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def only(self, columns: Sequence[str] | None) -> None:
        if columns is not None:
            self.dataset = self.dataset.select_columns(list(columns))

    def scan(self) -> Iterator[Scanned]:
        for index, row in enumerate(self.dataset):
            yield Scanned(index + 1, index, 0, row)

    def read(self, start: int, length: int) -> Row:
        row: Row = self.dataset[start]
        return row

    def digest(self) -> str:
        # The library's own fingerprint depends on when its cache was written.
        digest = hashlib.sha256()
        for row in self.dataset:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def extra(module: str, name: str, why: str) -> Any:
    """A module that only some data needs."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(
            f"{why}, and `{library}` is not installed ({error}): `pip install {library}` (the extra `{name}` of "
            "rlalign-plugin-dataset)"
        ) from error


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "nothing (null)"
    words = {
        bool: "true or false",
        str: "text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), type(value).__name__)
