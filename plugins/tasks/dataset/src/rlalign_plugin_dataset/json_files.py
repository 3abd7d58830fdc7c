"""JSON: a row a line, or a list of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from typing import Any

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import (
    LONGEST_ROW,
    TOO_DEEP,
    lines_of,
    require_few,
    too_deep,
)
from rlalign_plugin_dataset.tables import BOM, LOOKED_AT, File, Row, Scanned, kind_of

WINDOW_BYTES = 2**22
"""Of a JSON list, read at once."""


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
                    yield Scanned(number, start + skip, len(line) - skip, self._row(line[skip:]))
                start += len(line)

    def read(self, start: int, length: int) -> Row:
        row: Row = json.loads(self._bytes(start, length).decode(self.encoding))
        return row

    def _row(self, line: bytes) -> Row | str:
        try:
            return _json_row(line.decode(self.encoding), line)
        except UnicodeDecodeError as error:
            return self._not_text(error, f"at place {error.start + 1}")


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
                    yield Scanned(number, start, length, self._row(text.encode("latin-1")), nth)
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
    so places are right, and what is not ASCII is read again from its bytes."""

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


def _json_row(text: str, line: bytes) -> Row | str:
    try:
        row = json.loads(text)
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
