"""Ids that stand twice, however many ids there are."""

from __future__ import annotations

from collections.abc import Set

import numpy

from rlalign.data.ordering import ordered

FEW = 2**17
"""Ids that are remembered while rows are walked over; beyond, they are sorted afterwards."""


class Seen:
    """Ids by their hashes, and where each was met first: all while they are few, then those in `twice` alone."""

    def __init__(self, twice: Set[int] = frozenset()) -> None:
        self.all = not twice
        """Whether every id that was met is known."""
        self.twice = set(twice)
        self._first: dict[int, tuple[str, int]] = {}

    def first(self, id_hash: int, place: str, key: int) -> tuple[str, int] | None:
        """Where it was met before, and the key of the example there."""
        if self.all and len(self._first) >= FEW:
            self._first = {h: first for h, first in self._first.items() if h in self.twice}
            self.all = False
        if not self.all and id_hash not in self.twice:
            return None
        if (found := self._first.get(id_hash)) is None:
            self._first[id_hash] = place, key
        else:
            self.twice.add(id_hash)
        return found


def twice(ids: numpy.ndarray, keys: numpy.ndarray) -> set[int]:
    """Ids that stand more than once, under keys that differ."""
    found: set[int] = set()
    for places in ordered(ids):
        some, key = ids[places], keys[places]
        found.update(some[1:][(some[1:] == some[:-1]) & (key[1:] != key[:-1])].tolist())
    return found
