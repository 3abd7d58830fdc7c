"""Our side: the ordinary loop of a run, an iteration at a time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.timing import Span, Spent, now, since
from benchmarks.speed.work import COMPONENTS, Row, pipeline

from rlalign.running.iterating import iterate
from rlalign.testing.bench import Bench


class Ours:
    """A phase of a run held open: draw, rollout, reward, advantage, update, log."""

    def __init__(self, row: Row, folder: Path, place: Path, steps: int) -> None:
        self.bench = Bench(place / "ours", pipeline(row, folder, steps), COMPONENTS)
        policy = self.bench.phase.models.policy
        self._sampling = Span(policy.sample)
        policy.sample = self._sampling  # type: ignore[method-assign]
        self._iterations = iterate(self.bench.phase)
        self.steps: list[Spent] = []
        self.rollouts: list[Spent] = []

    def step(self) -> None:
        then = now()
        next(self._iterations)
        self.steps.append(since(then))
        self.rollouts.append(self._sampling.taken())
