"""What is read off one finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from benchmarks.common.results import short

LOST = 0.5
"""A run that keeps less than this share of a gain, or of the start's grammar, has collapsed."""
GAIN = 0.1
"""The least gain that counts as one."""


@dataclass(frozen=True)
class Point:
    """One evaluation. Without a grammar to judge by, `grammar` is 1."""

    iteration: int
    tokens: int
    """Generated for training so far."""
    reward: float
    kl: float
    """To the start, summed over a response, in nats."""
    grammar: float
    length: float


@dataclass(frozen=True)
class Record:
    """One run, as a line of a results file."""

    run: str
    digest: str
    seconds: float
    """Of processor time."""
    responses: int
    steps: int
    code: Mapping[str, str]
    """What computed it: packages and hashes of the plugins."""
    curve: tuple[Point, ...]
    """On prompts of `val`, at temperature 1 and unconstrained."""
    own: tuple[Point, ...]
    """The responses learned from, sampled as the arm samples them: means between two evaluations."""
    final: Point | None
    """At temperature 1; on `test`, in tuning on `val`. None where the run broke off."""
    nucleus: Point | None
    """The same within the nucleus."""
    broke: str | None = None
    """Why it broke off."""

    @property
    def last(self) -> Point:
        """The final measurement of a run that came to its end."""
        assert self.final is not None, f"{self.run} broke off: {self.broke}"
        return self.final

    def line(self) -> str:
        """Compact JSON; numbers keep five digits."""
        made = asdict(self)
        for name in ("final", "nucleus"):
            made[name] = _short(getattr(self, name))
        for name in ("curve", "own"):
            made[name] = [_short(at) for at in getattr(self, name)]
        return json.dumps(made, separators=(",", ":"))

    @staticmethod
    def of(line: str) -> Record:
        made: dict[str, Any] = json.loads(line)
        for name in ("final", "nucleus"):
            made[name] = Point(*made[name]) if made[name] else None
        for name in ("curve", "own"):
            made[name] = tuple(Point(*at) for at in made[name])
        return Record(**made)


def _short(point: Point | None) -> list[float] | None:
    if point is None:
        return None
    return short(list(asdict(point).values()))


def point(row: Mapping[str, Any], reward: str, tokens: int = 0) -> Point:
    """An evaluation's line of metrics.jsonl."""
    return Point(
        iteration=int(row.get("iteration", 0)),
        tokens=tokens,
        reward=float(row[f"eval/{reward}"]),
        kl=float(row["eval/kl/per_response"]),
        grammar=float(row.get("eval/toy-grammar", 1.0)),
        length=float(row["eval/length"]),
    )


def curves(rows: Sequence[Mapping[str, Any]], reward: str) -> tuple[list[Point], list[Point]]:
    """From the lines of metrics.jsonl the evaluations, and the means of what was trained on between them."""
    curve: list[Point] = []
    own: list[Point] = []
    between: list[Mapping[str, Any]] = []
    tokens = 0
    for row in rows:
        if "responses" in row:
            between.append(row)
            tokens += int(row["tokens"])
            continue
        curve.append(point(row, reward, tokens))
        if between:
            own.append(_mean(between, reward, tokens))
            between = []
    return curve, own


def _mean(rows: Sequence[Mapping[str, Any]], reward: str, tokens: int) -> Point:
    names = (f"reward/{reward}", "kl/per_response", "reward/toy-grammar", "length")
    got, kl, grammar, length = (fmean(float(row.get(name, 1.0)) for row in rows) for name in names)
    return Point(int(rows[-1]["iteration"]), tokens, got, kl, grammar, length)


def collapsed(curve: Sequence[Point], kl_bound: float) -> bool:
    """Whether a run at any point after its start had lost its language, its gain, or all contact to the start.

    Its language: grammar below half of the start's. Its gain: less than half of the largest earlier gain of
    reward, where that was at least 0.1. Contact: a KL beyond `kl_bound`.
    """
    start, best = curve[0], 0.0
    for at in curve[1:]:
        gain = at.reward - start.reward
        if at.grammar < LOST * start.grammar or at.kl > kl_bound:
            return True
        if best >= GAIN and gain < LOST * best:
            return True
        best = max(best, gain)
    return False


def reward_at(curve: Sequence[Point], kl: float) -> float | None:
    """The reward where the run's KL first reached this value, or None if it never did.

    Between two evaluations reward is taken as linear in √KL, in which such curves are nearly straight
    (Gao et al. 2023).
    """
    for before, after in pairwise(curve):
        if before.kl < kl <= after.kl:
            low, high = math.sqrt(max(0.0, before.kl)), math.sqrt(after.kl)
            share = (math.sqrt(kl) - low) / (high - low)
            return before.reward + share * (after.reward - before.reward)
    return None
