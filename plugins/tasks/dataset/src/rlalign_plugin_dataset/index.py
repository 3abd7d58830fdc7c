"""One walk over all rows: which are sound, where each stands, and to which split it belongs."""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy

from rlalign import ConfigError, Example, LazyExamples
from rlalign_plugin_dataset.tables import Row, Scanned, Table

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

    def __init__(self, readers: Readers, places: Places, rows: numpy.ndarray, found: int) -> None:
        self._readers = readers
        self._places = places
        self._rows = rows
        self.response_counts = numpy.frombuffer(places.answers, dtype=numpy.intc)[rows]
        self.row_keys = numpy.frombuffer(places.key, dtype=numpy.uint64)[rows]
        self.found = found
        """How many the tables hold, in all splits and with those that were left out."""

    def take(self, order: numpy.ndarray) -> Examples:
        """Some of them, or all in another order."""
        return Examples(self._readers, self._places, self._rows[order], self.found)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int) -> Example:
        return self._places.example(self._readers, int(self._rows[index]))


@dataclass
class Places:
    """Where the examples stand, in 48 bytes each."""

    table: array[int] = field(default_factory=lambda: array("i"))
    number: array[int] = field(default_factory=lambda: array("q"))
    start: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))
    nth: array[int] = field(default_factory=lambda: array("i"))
    part: array[int] = field(default_factory=lambda: array("i"))
    """Which of its row's examples."""
    answers: array[int] = field(default_factory=lambda: array("i"))
    """How many logged responses each has."""
    key: array[int] = field(default_factory=lambda: array("Q"))
    """What it is, wherever it stands: a hash of its id, of its prompt where rows are gathered, else of its texts."""

    def __len__(self) -> int:
        return len(self.table)

    def add(self, table: int, found: Scanned, part: int, answers: int, key: int) -> None:
        self.table.append(table)
        self.number.append(found.number)
        self.start.append(found.start)
        self.length.append(found.length)
        self.nth.append(found.nth)
        self.part.append(part)
        self.answers.append(answers)
        self.key.append(key)

    def place(self, readers: Readers, row: int) -> str:
        """Its row, in words."""
        return readers[self.table[row]][0].place(self.number[row], self.nth[row])

    def example(self, readers: Readers, row: int) -> Example:
        table, reader = readers[self.table[row]]
        place = self.place(readers, row)
        found = table.read(self.start[row], self.length[row])
        try:
            example = reader.examples(found, place)[self.part[row]]
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
) -> dict[str, Examples]:
    """The examples of each named split, in the order of the rows; bad rows are refused, or with `skip` left out.

    `glued` says of an example that its response runs on from the prompt's last word; many such are told of.
    """
    readers = list(zip(tables, rows_read_by, strict=True))
    places, member, sizes = Places(), array("i"), dict.fromkeys(names, 0)
    seen: dict[int, int] = {}
    bad: list[str] = []
    left: dict[str, tuple[int, str]] = {}
    rows = count = answered = unspaced = 0
    for number, found, table, reader in _all_rows(readers):
        if limit is not None and min(sizes.values()) >= limit:
            break
        rows += 1
        place = table.place(found.number, found.nth)
        try:
            if isinstance(found.row, str):
                raise BadRow(found.row)
            examples = reader.examples(found.row, place)
            for example in examples:
                if not reader.has_ids or isinstance(example, str):
                    continue
                first = seen.setdefault(hash_of(example.id), len(places))
                if first < len(places) and not (
                    reader.gathers and places.key[first] == _key_of(example, reader)
                ):
                    before = places.place(readers, first)
                    raise BadRow(f"the id `{example.id}` is that of {before} too")
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
            split = split_of(example, reader)
            kept = split is not None and (limit is None or sizes[split] < limit)
            if split is not None and kept:
                sizes[split] += 1
                answered += bool(example.responses)
                unspaced += glued is not None and glued(example)
            places.add(number, found, part, len(example.responses), _key_of(example, reader))
            member.append(names.index(split) if split is not None and kept else -1)
    what = " and ".join(table.name for table in tables)
    _speak(what, bad, left, rows, count, skip, len(places))
    if unspaced > GLUED * answered:
        warnings.warn(
            f"{what}: in {unspaced:,} of {answered:,} rows the response follows the prompt without a space, and "
            "a causal policy would learn to write it so; `join: ' '` puts one in, `join: ''` means it is right",
            stacklevel=2,
        )
    members = numpy.frombuffer(member, dtype=numpy.intc)
    return {
        name: Examples(readers, places, (members == i).nonzero()[0], count) for i, name in enumerate(names)
    }


def _key_of(example: Example, reader: Reader) -> int:
    """What an example is: the hash of its id or prompt, or without ids of all that it says."""
    known = key_of(example, reader) if reader.has_ids or reader.gathers else text_of(example)
    return hash_of(known)


def _all_rows(readers: Readers) -> Iterator[tuple[int, Scanned, Table, Reader]]:
    for number, (table, reader) in enumerate(readers):
        for found in table.scan():
            yield number, found, table, reader


def _speak(
    what: str,
    bad: Sequence[str],
    left: Mapping[str, tuple[int, str]],
    rows: int,
    count: int,
    skip: bool,
    good: int,
) -> None:
    """Refuse bad rows, or say how many were left out; say what was left out on purpose."""
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
        warnings.warn(f"{what}: {len(bad):,} of {rows:,} rows left out:\n  {listed}", stacklevel=3)
    if left:
        reasons = [f"{times:,} {why} (first {place})" for why, (times, place) in left.items()]
        said = f"{what}: {good:,} of {count:,} examples kept; left out:\n  " + "\n  ".join(reasons)
        if good == 0:
            raise ConfigError(said)
        warnings.warn(said, stacklevel=3)
