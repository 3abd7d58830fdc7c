"""Reports as a terminal shows them: lines that are too wide go on below, under where their text began."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

LEAST, MOST = 40, 120
_BEGINS = re.compile(r"^ *(?:[a-z_]+(?: [a-z]+)?(?:  +|: +)|[!│] )?")
"""The indent of a line, with its name or mark if it has one."""
TABLE = re.compile(r"\S {3,}\S.* {3,}\S")
"""Columns: they stay as they are."""


def folded(text: str, width: int | None = None) -> str:
    """Folded to the width of the terminal; what is written to a file or a pipe keeps its lines."""
    if width is None:
        if not sys.stdout.isatty():
            return text
        width = min(MOST, max(LEAST, shutil.get_terminal_size().columns))
    return "".join(f"{_line(line, width)}\n" for line in text.splitlines())


def _line(line: str, width: int) -> str:
    if len(line) <= width or TABLE.search(line):
        return line
    begins, indent = _BEGINS.match(line), len(line) - len(line.lstrip())
    hang = begins.end() if begins else indent
    if hang == indent or hang > width // 2:
        hang = indent + 2
    return textwrap.fill(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )
