"""Parquet: columns in groups of rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import (
    LARGE,
    LARGEST_GROUP,
    MOST_PACKED,
    require_few,
)
from rlalign_plugin_dataset.remote import Remote
from rlalign_plugin_dataset.tables import File, Row, Scanned, extra

HELD_BYTES = 2**28
"""Uncompressed row groups held at once; one is always held."""


class Parquet(File):
    """Row groups are read as they are needed; the last few are held."""

    def __init__(self, path: Path | Remote, name: str) -> None:
        super().__init__(path, name)
        parquet = extra("pyarrow.parquet", "parquet", f"{name} is Parquet")
        self._arrow = import_module("pyarrow")
        try:
            elsewhere = isinstance(path, Remote)
            self._file = parquet.ParquetFile(path.open() if elsewhere else path, memory_map=not elsewhere)
        except Exception as error:
            raise ConfigError(f"{name}: not a Parquet file: {error}") from error
        about = self._file.metadata
        if about.num_rows == 0:
            raise ConfigError(f"{name}: the file has no rows")
        require_few(self._file.schema_arrow.names, name)
        self._groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
        self._require_small(max(self._groups), sum(self._groups))
        self._only: list[str] | None = None
        self._held_groups: OrderedDict[int, Any] = OrderedDict()

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

    def ahead(self, rows: Sequence[tuple[int, int]]) -> None:
        """Row groups are fetched when one of their rows is."""

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
        if group not in self._held_groups:
            with self.open():  # only to see that it is the same file
                self._held_groups[group] = self._arrow.Table.from_batches(list(self._batches(group)))
            while (
                len(self._held_groups) > 1 and sum(t.nbytes for t in self._held_groups.values()) > HELD_BYTES
            ):
                self._held_groups.popitem(last=False)
        self._held_groups.move_to_end(group)
        return self._held_groups[group]
