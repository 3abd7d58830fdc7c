"""Clocks, and what is said of a few measured values."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Spent = tuple[float, float]
"""Processor seconds of this process, on all cores together, and seconds on the clock."""


def now() -> Spent:
    return time.process_time(), time.perf_counter()


def since(then: Spent) -> Spent:
    cpu, wall = now()
    return cpu - then[0], wall - then[1]


def alternating(
    ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> dict[str, list[Spent]]:
    """What each way took in each round, in turn; rounds before those do not count."""
    found: dict[str, list[Spent]] = {name: [] for name in ways}
    for count in range(warm_up + rounds):
        for name, way in ways.items():
            then = now()
            way()
            spent = since(then)
            found[name] += [spent] if count >= warm_up else []
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def compared(ours: Sequence[Spent], other: Sequence[Spent]) -> dict[str, dict[str, Any]]:
    """Seconds of both by either clock, and how many times ours the other took: a ratio is of one round."""
    return {
        clock: {
            "ours": summary([x[at] for x in ours]),
            "other": summary([y[at] for y in other]),
            "ratio": summary([y[at] / x[at] for x, y in zip(ours, other, strict=True)]),
        }
        for at, clock in enumerate(("cpu", "wall"))
    }


class Span:
    """A function that also sums up what its calls took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.spent: Spent = (0.0, 0.0)

    def __call__(self, *args: Any, **options: Any) -> Any:
        then = now()
        try:
            return self.function(*args, **options)
        finally:
            cpu, wall = since(then)
            self.spent = self.spent[0] + cpu, self.spent[1] + wall

    def taken(self) -> Spent:
        """What they took since it was last asked."""
        spent, self.spent = self.spent, (0.0, 0.0)
        return spent
