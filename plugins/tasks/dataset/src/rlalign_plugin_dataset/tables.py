"""Rows of a file or of a hub's dataset, one by one or in any order, without holding them in memory.

`scan` walks over all rows once and says where each stands: two numbers, which `read` takes back.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib import import_module
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from rlalign import ConfigError
from rlalign_plugin_dataset import limits
from rlalign_plugin_dataset.gunzip import Marks, unpacked
from rlalign_plugin_dataset.remote import Remote

Row = dict[str, Any]

LOOKED_AT = 100
"""Rows whose keys are a JSON file's columns: a key may be missing in some."""
BOM = b"\xef\xbb\xbf"
GZIP = ".gz"
HELD = 2**16
"""Bytes of a packed file that are unpacked for a row."""
Encoding = Literal["utf-8", "latin-1", "windows-1252"]
"""How bytes are text. In all of these a byte below 128 is itself, so that lines and brackets are found unread."""


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

    def ahead(self, rows: Sequence[tuple[int, int]]) -> None:  # noqa: B027
        """These will be read next."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the contents."""

    def identity(self) -> list[Any] | None:
        """What changes with the contents and costs no look at them; None: unknown, or `read` needs a `scan` first."""
        return None

    @property
    def large(self) -> bool:
        """Whether to walk over it is worth to be remembered."""
        return False


class File(Table):
    """A table in a file, packed or not, which may not change while it is in use."""

    def __init__(self, path: Path | Remote, name: str, encoding: Encoding = "utf-8") -> None:
        super().__init__(name)
        self.path = path
        self.encoding = encoding
        self._marks = Marks()
        self._unpacked = 0, b""
        """Of a packed file, what was unpacked last, and where it stands."""
        self._stamp = path.stamp() if isinstance(path, Remote) else _stamp(os.stat(path))
        if self._stamp[0] == 0:
            raise ConfigError(f"{name}: the file is empty")

    def open(self) -> BufferedReader:
        """What the file holds, if it still is the one that was looked at first."""
        if isinstance(self.path, Remote) and self.path.stamp() != self._stamp:
            raise self._changed()
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}; it was there when the run began") from error
        if isinstance(self.path, Path) and _stamp(os.fstat(file.fileno())) != self._stamp:
            file.close()
            raise self._changed()
        return unpacked(file, self.name, self._marks) if is_packed(self.path) else file

    def digest(self) -> str:
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def identity(self) -> list[Any] | None:
        if isinstance(self.path, Remote):
            return [self.name, self.path.path, *self._stamp] if self.path.has_version else None
        # Any change moves the last one, a change of the name or the rights too; nobody can set it back.
        return [self.name, str(self.path.resolve()), *self._stamp, os.stat(self.path).st_ctime_ns]

    @property
    def large(self) -> bool:
        return isinstance(self.path, Remote) or bool(self._stamp[0] >= limits.KEPT_BYTES)

    def _changed(self) -> ConfigError:
        return ConfigError(f"{self.path}: the file has changed since it was first read; start again")

    def ahead(self, rows: Sequence[tuple[int, int]]) -> None:
        if isinstance(self.path, Remote) and not is_packed(self.path):
            self.path.ahead(rows)

    def _bytes(self, start: int, length: int) -> bytes:
        if isinstance(self.path, Remote) and not is_packed(self.path):
            if self.path.is_due() and self.path.stamp() != self._stamp:
                raise self._changed()
            return self.path.read(start, length)
        with self.open() as file:
            if not is_packed(self.path):
                file.seek(start)
                return file.read(length)
            at, held = self._unpacked
            if not at <= start <= start + length <= at + len(held):  # rows are often read in their order
                file.seek(start)
                at, held = self._unpacked = start, file.read(max(length, HELD))
            return held[start - at :][:length]

    def _not_text(self, error: UnicodeDecodeError, place: str) -> str:
        return f"not {self.encoding.upper()}: byte 0x{error.object[error.start]:02x} {place}"


def opened(path: Path | Remote, name: str) -> BufferedReader:
    """What a file holds, packed or not."""
    file = path.open("rb")
    return unpacked(file, name) if is_packed(path) else file


def is_packed(path: PurePath | Remote) -> bool:
    """Whether a file is packed by gzip, as its name says."""
    return path.suffix.lower() == GZIP


def ending(path: PurePath | Remote) -> str:
    """What a file's name ends in, but for `.gz`."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def stem(path: PurePath) -> str:
    """A file's name without what it ends in."""
    return (path.with_suffix("") if is_packed(path) else path).stem


def _stamp(found: os.stat_result) -> tuple[Any, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ino


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

    def identity(self) -> list[Any] | None:
        known = getattr(self.dataset, "_fingerprint", None)
        return None if known is None else [self.name, known]

    @property
    def large(self) -> bool:
        return len(self.dataset) >= limits.KEPT_ROWS


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
