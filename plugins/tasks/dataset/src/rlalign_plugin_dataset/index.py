"""One walk over all rows: which are sound, where each stands, and to which split it belongs."""

from __future__ import annotations

import hashlib
import json
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy

from rlalign import ConfigError, Example
from rlalign_plugin_dataset.mapping import BadRow, Columns, glued
from rlalign_plugin_dataset.tables import Scanned, Table

Readers = Sequence[tuple[Table, Columns]]

NAMED = 5
"""Bad rows that a message names."""
GLUED = 0.1
"""The share of rows without a space between prompt and response from which on it is said."""


class Examples(Sequence[Example]):
    """Examples that are read when they are asked for: all that is held is where each row stands."""

    def __init__(self, readers: Readers, places: Places, rows: numpy.ndarray) -> None:
        self._readers = readers
        self._places = places
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._places.example(self._readers, int(self._rows[index]))


@dataclass
class Places:
    """Where the sound rows stand, in 28 bytes a row."""

    table: array[int] = field(default_factory=lambda: array("i"))
    number: array[int] = field(default_factory=lambda: array("q"))
    start: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.table)

    def add(self, table: int, found: Scanned) -> None:
        self.table.append(table)
        self.number.append(found.number)
        self.start.append(found.start)
        self.length.append(found.length)

    def example(self, readers: Readers, row: int) -> Example:
        table, columns = readers[self.table[row]]
        place = f"{table.name}:{self.number[row]}"
        found = table.read(self.start[row], self.length[row])
        try:
            return columns.example(found, place)
        except BadRow as error:
            raise ConfigError(f"{place}: {error}; it was sound when the run began") from None


def hash_of(text: str) -> int:
    """64 bits, the same on every machine."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def split_by_share(key: str, shares: Mapping[str, float]) -> str | None:
    """The split a row falls into. It depends on the row's key alone: other rows and their order do not matter."""
    place, edge, split = hash_of(key) / 2**64, 0.0, None
    for split, share in shares.items():
        edge += share
        if place < edge:
            return split
    # Shares that add up to one take everything, however the sum was rounded.
    return split if edge > 1 - 1e-9 else None


def key_of(example: Example, has_id: bool) -> str:
    """What decides a row's split: its id, or without ids its prompt, so that no prompt is in two splits."""
    if has_id:
        return example.id
    prompt = example.prompt
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def index(
    tables: Sequence[Table],
    columns: Sequence[Columns],
    splits: Mapping[str, float] | str,
    *,
    skip: bool,
    limit: int | None,
) -> dict[str, Examples]:
    """The examples of each split, in the order of the rows. `splits`: shares by name, or the one there is."""
    readers = list(zip(tables, columns, strict=True))
    names = [splits] if isinstance(splits, str) else list(splits)
    places, member, sizes = Places(), array("i"), dict.fromkeys(names, 0)
    seen: dict[int, int] = {}
    bad: list[str] = []
    rows = answered = unspaced = 0
    for number, found, reader in _all_rows(readers):
        if limit is not None and min(sizes.values()) >= limit:
            break
        rows += 1
        place = f"{reader.name}:{found.number}"
        try:
            if isinstance(found.row, str):
                raise BadRow(found.row)
            example = reader.example(found.row, place)
            first = len(places)
            if reader.id is not None:
                first = seen.setdefault(hash_of(example.id), first)
            if first < len(places):
                before = f"{readers[places.table[first]][0].name}:{places.number[first]}"
                raise BadRow(f"the id `{example.id}` is that of {before} too")
        except BadRow as error:
            bad.append(f"{place}: {error}" if len(bad) < NAMED else "")
            continue
        split = (
            splits
            if isinstance(splits, str)
            else split_by_share(key_of(example, reader.id is not None), splits)
        )
        kept = split is not None and (limit is None or sizes[split] < limit)
        if split is not None and kept:
            sizes[split] += 1
            answered += bool(example.responses)
            unspaced += glued(example)
        places.add(number, found)
        member.append(names.index(split) if split is not None and kept else -1)
    what = " and ".join(table.name for table in tables)
    _speak(what, bad, rows, skip, len(places))
    if columns[0].config.join is None and unspaced > GLUED * answered:
        warnings.warn(
            f"{what}: in {unspaced:,} of {answered:,} rows the response follows the prompt without a space, and "
            "a causal policy would learn to write it so; `join: ' '` puts one in, `join: ''` means it is right",
            stacklevel=2,
        )
    members = numpy.frombuffer(member, dtype=numpy.intc)
    return {name: Examples(readers, places, (members == i).nonzero()[0]) for i, name in enumerate(names)}


def _all_rows(readers: Readers) -> Iterator[tuple[int, Scanned, Columns]]:
    for number, (table, columns) in enumerate(readers):
        for found in table.scan():
            yield number, found, columns


def _speak(what: str, bad: Sequence[str], rows: int, skip: bool, good: int) -> None:
    """Refuse bad rows, or say how many were left out."""
    if rows == 0:
        raise ConfigError(f"{what}: no rows")
    if not bad:
        return
    shown = [line for line in bad if line]
    more = f"\n  and {len(bad) - len(shown):,} more" if len(bad) > len(shown) else ""
    listed = "\n  ".join(shown) + more
    if good == 0:
        raise ConfigError(f"{what}: none of {rows:,} rows can be used:\n  {listed}")
    if not skip:
        raise ConfigError(
            f"{what}: {len(bad):,} of {rows:,} rows cannot be used; mend them, or leave them out by "
            f"`bad_rows: skip`:\n  {listed}"
        )
    warnings.warn(f"{what}: {len(bad):,} of {rows:,} rows left out:\n  {listed}", stacklevel=2)
