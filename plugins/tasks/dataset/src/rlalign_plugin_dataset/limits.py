"""How large a row, a table and a file may be: what no real data meets, so that none hangs a run or fills the memory."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from itertools import count
from typing import Any

from rlalign import ConfigError

LONGEST_ROW = 2**24
"""Bytes of a line, of an object in a JSON list, and of a CSV field: beyond it a bracket or quote was left open."""
MOST_FILES = 100_000
"""Files and folders in a folder of data."""
MOST_COLUMNS = 10_000
"""Columns of a table."""
KEPT_BYTES, KEPT_ROWS = 2**27, 2**20
"""Of files, and of a hub's split: from here on what is known of their rows is kept for the next process."""
DEEPEST = 100
"""Lists and objects within each other."""
LARGEST_GROUP = 2**32
"""Bytes of a Parquet row group, of which one is held."""
LARGE = 2**30
"""Bytes from which on Parquet data may not be `MOST_PACKED` times larger than its file."""
MOST_PACKED = 1_000
"""How many times larger than its file Parquet data may be, where it is large."""
MOST_GZIPPED = 100
"""How many times larger than its file gzip data may be, where they are larger than `LARGE`."""
TOO_DEEP = f"JSON nested too deep: more than {DEEPEST} lists and objects within each other"


def too_deep(value: Any, most: int) -> bool:
    """Whether more than `DEEPEST` lists and objects lie within each other; `most` are there at all."""
    if most <= DEEPEST:
        return False
    level = [value]
    for _ in range(DEEPEST):
        holders = (part for part in level if isinstance(part, dict | list))
        level = [p for holder in holders for p in (holder.values() if isinstance(holder, dict) else holder)]
    return any(isinstance(part, dict | list) for part in level)


def lines_of(file: BufferedReader, name: str) -> Iterator[bytes]:
    """The lines of a file, as long as they are no longer than a row is."""
    for number in count(1):
        line = file.readline(LONGEST_ROW + 1)
        if len(line) > LONGEST_ROW:
            raise ConfigError(
                f"{name}:{number}: a line of more than {LONGEST_ROW:,} bytes, which no row has; "
                "is a line break missing, or a quote left open?"
            )
        if not line:
            return
        yield line


def require_few(columns: list[str], name: str) -> list[str]:
    """The columns, if there are not too many."""
    if len(columns) > MOST_COLUMNS:
        raise ConfigError(
            f"{name}: {len(columns):,} columns, and at most {MOST_COLUMNS:,} are read; keep those that are needed, "
            "or put values into lists"
        )
    return columns
