"""One walk over all rows: which are sound, where each stands, and to which split it belongs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from rlalign import ConfigError, Example, LazyExamples
from rlalign.once import once
from rlalign_plugin_dataset.ids import Seen, twice
from rlalign_plugin_dataset.places import KEY, Column, Found, Growing, Places, not_kept, read, write_about
from rlalign_plugin_dataset.tables import Row, Scanned, Table

_log = logging.getLogger("rlalign")

NAMED = 5
"""Bad rows that a message names."""
_BY_COLUMNS = (
    "one column after the other? pandas writes rows by `df.to_json(FILE, orient='records', lines=True)`"
)
CURES = {
    "not UTF-8": "`iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW` makes one of Excel's plain CSV; of the task `dataset`, "
    "`encoding: windows-1252`, or `latin-1`, reads it as it is",
    "` is that of ": 'an id names one example: take another column, or join two, `id: "{id}-{question}"`',
    "a decimal comma": "numbers are written with a point: 0.5",
    "is a number, expected text or": 'a template writes a number out: `prompt: "{number}"`',
    "is an object, expected text or": _BY_COLUMNS,
    "is a list, expected text or": _BY_COLUMNS,
}
"""What to do, by what is said of a row."""
IDS = "ids", "ids-keys"
"""Files of every id and its example's key, while rows are walked over."""
GLUED = 0.1
"""The share of rows without a space between prompt and response from which on it is said."""


class BadRow(Exception):
    """What is wrong with a row, in words."""


def cures(*said: str) -> str:
    """What to do with rows of which this is said, a line each."""
    found = {cure: None for fault, cure in CURES.items() if any(fault in line for line in said)}
    return "".join(f"\n  {cure}" for cure in found)


class Reader(ABC):
    """How the rows of one table read."""

    has_ids = False
    """Whether rows have ids of their own, of which none may stand twice; a row then holds one example."""
    gathers = False
    """Whether rows that share a prompt make one example: they may share an id, and their key is the prompt."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        """The examples of a row, always the same; for one that is left out on purpose, why, in words.

        BadRow: what is wrong with the row. `place` is `file:line`.
        """


Readers = Sequence[tuple[Table, Reader]]
SplitOf = Callable[[Example, Reader], str | None]


class Examples(LazyExamples):
    """Examples of tables: all that is held is where each row stands."""

    response_counts: numpy.ndarray
    row_keys: numpy.ndarray

    def __init__(
        self, readers: Readers, places: Places, found: int, digests: Sequence[str] | None = None
    ) -> None:
        self._readers = readers
        self._places = places
        self.response_counts = places.answers
        self.row_keys = places.keys
        self.found = found
        """How many the tables hold, in all splits and with those that were left out."""
        self.digests = digests
        """Hashes of the tables, where they are known."""

    def take(self, order: numpy.ndarray) -> Examples:
        """Some of them, or all in another order."""
        return Examples(self._readers, self._places.take(order), self.found, self.digests)

    def __len__(self) -> int:
        return len(self._places.rows)

    def ahead(self, places: Sequence[int]) -> None:
        rows = self._places.rows[list(places)]
        for number, (table, _) in enumerate(self._readers):
            mine = rows[rows["table"] == number]
            table.ahead(list(zip(mine["start"].tolist(), mine["length"].tolist(), strict=True)))

    def example(self, index: int) -> Example:
        start, length, number, of, nth, part = self._places.rows[index].item()
        table, reader = self._readers[of]
        place = table.place(number, nth)
        found = table.read(start, length)
        try:
            example: Example | str = reader.examples(found, place)[part]
            if isinstance(example, str):
                raise BadRow(example)
        except BadRow as error:
            raise ConfigError(f"{place}: {error}; it was sound when the run began") from None
        return example


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


def key_of(example: Example, reader: Reader) -> str:
    """What decides a row's split: its id, or without ids its prompt, so that no prompt is in two splits."""
    if reader.has_ids and not reader.gathers:
        return example.id
    prompt = example.prompt
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def text_of(example: Example) -> str:
    """All that an example says, but its name."""
    return json.dumps([example.prompt, example.responses, example.scores], sort_keys=True, default=str)


def by_share(shares: Mapping[str, float]) -> SplitOf:
    """Splits that are shares of the data."""
    return lambda example, reader: split_by_share(key_of(example, reader), shares)


def index(
    tables: Sequence[Table],
    rows_read_by: Sequence[Reader],
    names: Sequence[str],
    split_of: SplitOf,
    *,
    skip: bool,
    limit: int | None = None,
    glued: Callable[[Example], bool] | None = None,
    kept: Path | None = None,
) -> dict[str, Examples]:
    """The examples of each named split, in the order of the rows; bad rows are refused, or with `skip` left out.

    `glued` says of an example that its response runs on from the prompt's last word; many such are told of.
    `kept` is a folder for what is found, made by the first process that wants it and mapped by all.
    """
    readers = list(zip(tables, rows_read_by, strict=True))
    walk = Walk(readers, names, split_of, skip=skip, limit=limit, glued=glued)
    found = walk.found(None) if kept is None else _kept(walk, kept)
    for text in found.said:
        warnings.warn(text, stacklevel=2)
    return {
        name: Examples(readers, places, found.count, found.digests) for name, places in found.splits.items()
    }


def _kept(walk: Walk, folder: Path) -> Found:
    def waits() -> None:
        _log.info("another process walks over %s; waiting for what it finds", walk.what)

    def make(part: Path) -> None:
        _log.info("walking over all rows of %s, once: where each stands is kept in %s", walk.what, folder)
        part.mkdir(mode=0o755)
        found = walk.found(part)
        found.digests = [table.digest() for table, _ in walk.readers]
        write_about(part, found)

    for _ in range(2):
        try:
            once(folder, make, waits=waits)
            if os.lstat(folder).st_uid != os.geteuid():
                raise PermissionError(None, "another user has put there what would be read")
        except OSError as error:
            not_kept(folder, walk.what, error.strerror)
            break
        found = read(folder)
        if found is not None and list(found.splits) == list(walk.names):
            return found
        shutil.rmtree(folder, ignore_errors=True)  # somebody has cut or edited it
    return walk.found(None)


@dataclass
class Walk:
    """How the rows are walked over."""

    readers: Readers
    names: Sequence[str]
    split_of: SplitOf
    skip: bool
    limit: int | None
    glued: Callable[[Example], bool] | None

    @property
    def what(self) -> str:
        return " and ".join(table.name for table, _ in self.readers)

    def found(self, folder: Path | None) -> Found:
        """The sound rows, their places in the memory or in files of a folder."""
        seen = Seen()
        while True:
            found, *ids = self._once(folder, seen)
            # Ids too many to remember: sorted they show which stand twice, and the next walk looks for these.
            more = set() if seen.all else twice(*(column.whole() for column in ids)) - seen.twice
            if not more:
                break
            seen = Seen(seen.twice | more)
            for file in folder.iterdir() if folder else ():
                file.unlink()
        for file in (folder / name for name in IDS) if folder else ():
            file.unlink()
        return found

    def _once(self, folder: Path | None, seen: Seen) -> tuple[Found, Column, Column]:
        splits = {name: Growing(folder, str(i)) for i, name in enumerate(self.names)}
        ids, ids_keys = (Column(KEY, None if folder is None else folder / name) for name in IDS)
        bad: list[str] = []
        left: dict[str, tuple[int, str]] = {}
        rows = count = good = answered = unspaced = 0
        for number, found, table, reader in _all_rows(self.readers):
            if self.limit is not None and min(split.size for split in splits.values()) >= self.limit:
                break
            rows += 1
            place = table.place(found.number, found.nth)
            try:
                if isinstance(found.row, str):
                    raise BadRow(found.row)
                examples = reader.examples(found.row, place)
                keys = [0 if isinstance(example, str) else _key_of(example, reader) for example in examples]
                for example, key in zip(examples, keys, strict=True):
                    if not reader.has_ids or isinstance(example, str):
                        continue
                    id_hash = hash_of(example.id)
                    first = seen.first(id_hash, place, key)
                    if first is not None and not (reader.gathers and first[1] == key):
                        raise BadRow(f"the id `{example.id}` is that of {first[0]} too")
                    ids.add(id_hash)
                    ids_keys.add(key if reader.gathers else rows)
            except BadRow as error:
                count += 1
                bad.append(f"{place}: {error}" if len(bad) < NAMED else "")
                continue
            count += len(examples)
            for part, example in enumerate(examples):
                if isinstance(example, str):
                    times, first_place = left.get(example, (0, place))
                    left[example] = times + 1, first_place
                    continue
                good += 1
                name = self.split_of(example, reader)
                if name is None or (self.limit is not None and splits[name].size >= self.limit):
                    continue
                answered += bool(example.responses)
                unspaced += self.glued is not None and self.glued(example)
                row = (found.start, found.length, found.number, number, found.nth, part)
                splits[name].add(row, len(example.responses), keys[part])
        said = _said(self.what, bad, left, rows, count, self.skip, good)
        if unspaced > GLUED * answered:
            said.append(
                f"{self.what}: in {unspaced:,} of {answered:,} rows the response follows the prompt without a space, "
                "and a causal policy would learn to write it so; `join: ' '` puts one in, `join: ''` means it is right"
            )
        whole = {name: split.whole() for name, split in splits.items()}
        return Found(whole, count, said), ids, ids_keys


def _key_of(example: Example, reader: Reader) -> int:
    """What an example is: the hash of its id or prompt, or without ids of all that it says."""
    known = key_of(example, reader) if reader.has_ids or reader.gathers else text_of(example)
    return hash_of(known)


def _all_rows(readers: Readers) -> Iterator[tuple[int, Scanned, Table, Reader]]:
    for number, (table, reader) in enumerate(readers):
        for found in table.scan():
            yield number, found, table, reader


def _said(
    what: str,
    bad: Sequence[str],
    left: Mapping[str, tuple[int, str]],
    rows: int,
    count: int,
    skip: bool,
    good: int,
) -> list[str]:
    """Refuse bad rows, or say how many are left out, and what is left out on purpose."""
    told = []
    if rows == 0:
        raise ConfigError(f"{what}: no rows")
    if bad:
        shown = [line for line in bad if line]
        more = f"\n  and {len(bad) - len(shown):,} more" if len(bad) > len(shown) else ""
        listed = "\n  ".join(shown) + more + cures(*shown)
        if good == 0:
            raise ConfigError(f"{what}: none of {rows:,} rows can be used:\n  {listed}")
        if not skip:
            raise ConfigError(
                f"{what}: {len(bad):,} of {rows:,} rows cannot be used; fix them, or leave them out by "
                f"`bad_rows: skip`:\n  {listed}"
            )
        told.append(f"{what}: {len(bad):,} of {rows:,} rows left out:\n  {listed}")
    if left:
        reasons = [f"{times:,} {why} (first {place})" for why, (times, place) in left.items()]
        said = f"{what}: {good:,} of {count:,} examples kept; left out:\n  " + "\n  ".join(reasons)
        if good == 0:
            raise ConfigError(said)
        told.append(said)
    return told
