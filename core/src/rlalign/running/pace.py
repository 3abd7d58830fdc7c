"""How far a phase is, what it is doing, and how it comes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlalign.running import figures

TREND = 10
"""Iterations whose mean reward is compared."""


class Pace:
    """How far a phase is, what it is doing, and how long the rest takes at the pace of its last iterations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.start("", 0)

    def start(self, name: str, iterations: int) -> None:
        self.name, self.iterations, self.done = name, iterations, 0
        self.first: Mapping[str, float] = {}
        """The first evaluation seen of the phase, and when it was."""
        self.first_at = ""
        self._rewards: list[float] = []
        self._last = self._clock()
        self._mean: float | None = None
        self.stage("")

    def stage(self, name: str) -> None:
        self.doing, self._of = name, ""
        self._since = self._clock()

    def piece(self, what: str, done: int, of: int) -> None:
        self._of = f", {what} {done:,} of {of:,}" if of > 1 else ""

    @property
    def now(self) -> str:
        """What goes on: `rollout, token 12 of 64`."""
        return f"{self.doing}{self._of}" if self.doing else ""

    @property
    def staying(self) -> float:
        """Seconds since the present stage began."""
        return self._clock() - self._since

    def step(self, i: int, metrics: Mapping[str, float]) -> None:
        if "reward/total" in metrics:
            self._rewards.append(metrics["reward/total"])
        now = self._clock()
        took, self._last, self.done = now - self._last, now, i
        self._mean = took if self._mean is None else 0.8 * self._mean + 0.2 * took

    def evaluated(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """An evaluation in words, beside the first one."""
        said = figures.of_evaluation(metrics, self.first, self.first_at)
        if not self.first_at:
            self.first, self.first_at = dict(metrics), self.share
        return said

    @property
    def trend(self) -> dict[str, str]:
        """The mean reward of the first iterations seen of the phase, and of the last, once they are others."""
        seen = self._rewards
        if len(seen) < 2 * TREND:
            return {}
        first, last = (sum(part) / TREND for part in (seen[:TREND], seen[-TREND:]))
        return {"trend": f"{figures.number(first)} → {figures.number(last)}"}

    @property
    def left(self) -> str:
        """How long it takes to the end of the phase, evaluations and checkpoints included."""
        rest = 0.0 if self._mean is None else self._mean * max(self.iterations - self.done, 0)
        return f"{figures.duration(rest)} left" if rest > 0 else ""

    @property
    def share(self) -> str:
        return f"{self.done}/{self.iterations}"
