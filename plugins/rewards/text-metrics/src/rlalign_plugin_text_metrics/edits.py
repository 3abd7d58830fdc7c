"""The edits of TER: words inserted, deleted, replaced, and runs of words moved (Snover et al., 2006).

Finding the fewest is hard; sacreBLEU follows Tercom: as long as it helps, move the run of words that saves most, within
a beam around the diagonal and up to 1000 moves tried. These are its choices, and so its numbers; all moves of a round
are tried at once, in arrays. Legend: C moves, H words of the text, R words of the reference.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

LONGEST = 10
"""Words of a run that is moved."""
FARTHEST = 50
"""Places between a run and where the reference has it."""
BEAM = 25
TRIED = 1000
"""Moves tried, after which the search ends."""
FAR = 10**8
"""More edits than any text needs: what lies outside the beam."""
Ints = NDArray[numpy.int32]


@dataclass(frozen=True)
class Move:
    """A run of words of the text, and before which of its words it goes."""

    start: int
    length: int
    to: int

    def __call__(self, words: Sequence[int]) -> list[int]:
        """The words with the run at its new place."""
        run = list(words[self.start : self.start + self.length])
        end = self.start + self.length
        if self.to < self.start:
            return [*words[: self.to], *run, *words[self.to : self.start], *words[end:]]
        to = self.to if self.to > end else self.to + self.length
        return [*words[: self.start], *words[end:to], *run, *words[to:]]


def edits(text: Sequence[str], reference: Sequence[str]) -> int:
    """How many edits make a text the reference."""
    if not reference:
        return len(text)
    codes: dict[str, int] = {}
    words = [codes.setdefault(word, len(codes)) for word in text]
    target = [codes.setdefault(word, len(codes)) for word in reference]
    moved = tried = 0
    while True:
        table = list(_rows(numpy.array([words], numpy.int32), target))
        here = int(table[-1][0, -1])
        if here == 0:
            return moved
        moves = list(_moves(words, target, [row[0] for row in table], tried))
        tried += len(moves)
        if not moves or tried >= TRIED:
            return moved + here
        candidates = [move(words) for move in moves]
        last_CR = deque(_rows(numpy.array(candidates, numpy.int32), target), maxlen=1)[0]
        cost_C = last_CR[:, -1].tolist()
        best = max(
            range(len(moves)),
            key=lambda c: (-cost_C[c], moves[c].length, -moves[c].start, -moves[c].to, candidates[c]),
        )
        if cost_C[best] >= here:
            return moved + here
        moved += 1
        words = candidates[best]


def _moves(words: Sequence[int], target: Sequence[int], table: Sequence[Ints], tried: int) -> Iterator[Move]:
    """Runs that the reference has elsewhere, where both are wrong as they stand, and the places they may go to."""
    aligned, wrong_text, wrong_target = _alignment(words, target, table)
    for start, there, length in _runs(words, target, wrong_text):
        if not any(wrong_text[start : start + length]) or not any(wrong_target[there : there + length]):
            continue
        if start <= aligned[there] < start + length:
            continue
        last = -1
        for place in range(there - 1, there + length):
            to = 0 if place == -1 else aligned[place] + 1
            if to != last:
                last = to
                tried += 1
                yield Move(start, length, to)
        if tried >= TRIED:
            return


def _runs(
    words: Sequence[int], target: Sequence[int], wrong: Sequence[bool]
) -> Iterator[tuple[int, int, int]]:
    """(where in the text, where in the reference, length) of runs of words that both have, near a wrong one."""
    places = defaultdict(list)
    for j, word in enumerate(target):
        places[word].append(j)
    for i, word in enumerate(words):
        if word not in places or not any(wrong[i : i + LONGEST]):
            continue
        there = places[word]
        for j in there[bisect_left(there, i - FARTHEST) : bisect_right(there, i + FARTHEST)]:
            for length in range(1, min(LONGEST, len(words) - i, len(target) - j) + 1):
                if words[i + length - 1] != target[j + length - 1]:
                    break
                yield i, j, length


def _alignment(
    words: Sequence[int], target: Sequence[int], table: Sequence[Ints]
) -> tuple[list[int], list[bool], list[bool]]:
    """Of each word of the reference the word of the text that it is aligned with or follows; which words are wrong."""
    aligned = [-1] * len(target)
    wrong_text, wrong_target = [True] * len(words), [True] * len(target)
    i, j = len(words), len(target)
    while i or j:
        same = i and j and words[i - 1] == target[j - 1]
        if i and j and table[i][j] == table[i - 1][j - 1] + (not same):
            i, j = i - 1, j - 1
            aligned[j] = i
            if same:
                wrong_text[i] = wrong_target[j] = False
        elif i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
            aligned[j] = i - 1
    return aligned, wrong_text, wrong_target


def _rows(words_CH: Ints, target: Sequence[int]) -> Iterator[Ints]:
    """For each beginning of the texts the edits that make it each beginning of the reference, [C, R+1] each.

    Without moves; outside of the beam everything is far.
    """
    count, size = words_CH.shape
    target_R = numpy.array(target, numpy.int32)
    places_R = numpy.arange(len(target) + 1, dtype=numpy.int32)
    before = numpy.broadcast_to(places_R, (count, len(target) + 1))
    yield before
    slope = len(target) / size if size else 1.0
    beam = math.ceil(slope / 2 + BEAM) if slope / 2 > BEAM else BEAM
    for i in range(1, size + 1):
        middle = math.floor(i * slope)
        low = max(0, middle - beam)
        high = len(target) + 1 if i == size else min(len(target) + 1, middle + beam)
        row = numpy.full((count, len(target) + 1), FAR, numpy.int32)
        first = max(low, 1)
        if low == 0:
            row[:, 0] = before[:, 0] + 1
        if high > first:
            replaced = before[:, first - 1 : high - 1] + (
                words_CH[:, i - 1, None] != target_R[first - 1 : high - 1]
            )
            row[:, first:high] = numpy.minimum(replaced, before[:, first:high] + 1)
        # A word inserted costs 1: the least of all cells before, and of the way from there.
        span = row[:, low:high] - places_R[low:high]
        row[:, low:high] = numpy.minimum.accumulate(span, axis=1) + places_R[low:high]
        yield row
        before = row
