"""Lengths as a picture of few lines: how many there are of each size, and which are beyond a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINES, WIDTH = 8, 30
"""Lines of a picture, and columns of its longest bar."""
TAIL = 0.98
"""Share of all that has lines of its own; what is longer shares the last one."""
_BLOCKS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bin:
    """How many lie between two lengths, both of them included."""

    low: int
    high: int
    count: int
    beyond: bool = False
    """Beyond the limit."""


def bins(lengths: Sequence[int], limit: int | None = None) -> list[Bin]:
    """Of equal round width, but for the last; none lies on both sides of the limit."""
    ordered = sorted(lengths)
    least, most = ordered[0], ordered[-1]
    usual = ordered[min(len(ordered) - 1, int(TAIL * len(ordered)))]
    step = _round(max(1, usual - least + 1) / (LINES - 1))
    start = least // step * step
    edges = [*range(start, usual + 1, step)]
    if most >= edges[-1] + step:
        edges.append(edges[-1] + step)
    if limit is not None and least <= limit < most:
        edges = sorted({*edges, limit + 1})
    found = []
    for low, after in zip(edges, [*edges[1:], None], strict=True):
        high = max(most, low) if after is None else after - 1
        if after is None and most < low + step:
            high = low + step - 1
        count = sum(low <= length <= high for length in ordered)
        found.append(Bin(low, high, count, limit is not None and low > limit))
    return [one for one in found if one.count or not one.beyond]


def _round(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    size = 1
    while True:
        for times in (1, 2, 5):
            if size * times >= width:
                return size * times
        size *= 10


def drawn(found: Sequence[Bin], beyond: str = "") -> Iterator[str]:
    """A line for each; `beyond` says what becomes of those beyond the limit."""
    most = max(one.count for one in found)
    names = [f"{one.low:,}" if one.low == one.high else f"{one.low:,}–{one.high:,}" for one in found]
    wide, total = max(map(len, names)), sum(one.count for one in found)
    for name, one in zip(names, found, strict=True):
        told = f"  {beyond}" if one.beyond and beyond and one.count else ""
        yield f"{name:>{wide}} {_bar(one.count / most)} {one.count:,} ({one.count / total:.0%}){told}"


def _bar(share: float) -> str:
    eighths = round(share * WIDTH * 8)
    whole, rest = divmod(max(eighths, 1 if share else 0), 8)
    return "█" * whole + (_BLOCKS[rest] if rest else "")
