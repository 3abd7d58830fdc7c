"""What is read off one finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from benchmarks.common.results import short

LOST = 0.5
"""A run that keeps less than this share of a gain, or of the start's grammar, has collapsed."""
GAIN = 0.1
"""The least gain of reward that counts as one, and the loss against the start that a run may not exceed."""
KL_BOUND = 20.0
"""A run beyond this KL a response has collapsed."""
COMPARED = 384
"""Of so many grammatical texts, the first ones, their diversity is taken."""


@dataclass(frozen=True)
class Point:
    """One evaluation on the way."""

    step: int
    reward: float
    sentiment: float
    grammar: float
    kl: float
    """To the reference, summed over a response, in nats."""
    length: float


@dataclass(frozen=True)
class End:
    """A final measurement: of so many texts, sampled at temperature 1."""

    step: int
    """After how many optimiser steps."""
    texts: int
    reward: float
    sentiment: float
    grammar: float
    kl: float
    length: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    distinct: float
    """The share of different texts."""
    distinct_grammatical: float | None
    """distinct-3 of the first grammatical texts; None where there are too few."""


@dataclass(frozen=True)
class Record:
    """One run, as a line of a results file."""

    run: str
    digest: str
    seconds: float
    """Of processor time, without making log and reference."""
    steps: int
    responses: int
    """Learned from; one that is learned from twice counts twice."""
    sampled: int
    """Responses sampled for training."""
    tokens: int
    """Their tokens."""
    discarded: float
    """The share of the responses it was given, logged or sampled, that it does not learn from at all."""
    code: Mapping[str, str]
    """What computed it: packages and hashes of the plugins."""
    curve: tuple[Point, ...]
    """On prompts of `val`."""
    last: End | None
    """On `test`, in tuning on `val`. None where the run broke off."""
    best: End | None
    """The same at the commit point of highest reward on `val`; not measured in tuning."""
    broke: str | None = None
    """Why it broke off."""

    @property
    def end(self) -> End:
        """The final measurement of a run that came to its end."""
        assert self.last is not None, f"{self.run} broke off: {self.broke}"
        return self.last

    def line(self) -> str:
        """Compact JSON; numbers keep five digits."""
        made = asdict(self)
        for name in ("last", "best"):
            at = getattr(self, name)
            made[name] = None if at is None else short(astuple(at))
        made["curve"] = [short(astuple(at)) for at in self.curve]
        return json.dumps(made, separators=(",", ":"))

    @staticmethod
    def of(line: str) -> Record:
        made: dict[str, Any] = json.loads(line)
        for name in ("last", "best"):
            made[name] = End(*made[name]) if made[name] else None
        made["curve"] = tuple(Point(*at) for at in made["curve"])
        return Record(**made)


@dataclass(frozen=True)
class Prepared:
    """A log and the reference cloned from it, as a line of a results file."""

    run: str
    digest: str
    seconds: float
    kinds: Mapping[str, tuple[int, float, float]]
    """Of each kind of response, and of all: how many, their mean score, and the share that is grammatical."""
    reference: End
    """On `test`."""

    def line(self) -> str:
        made = {**asdict(self), "reference": short(astuple(self.reference))}
        return json.dumps(made, separators=(",", ":"))

    @staticmethod
    def of(line: str) -> Prepared:
        made = json.loads(line)
        return Prepared(**{**made, "reference": End(*made["reference"])})


def point(row: Mapping[str, Any], step: int) -> Point:
    """An evaluation's line of metrics.jsonl."""
    grammar = float(row["eval/toy-grammar"])
    return Point(
        step=step,
        reward=(grammar + float(row["eval/gated"])) / 2,
        sentiment=float(row["eval/toy-sentiment"]),
        grammar=grammar,
        kl=float(row["eval/kl/per_response"]),
        length=float(row["eval/length"]),
    )


def curve(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The evaluations among the lines of metrics.jsonl, steps counted from the first: not those of a value before it.

    Where phases meet, one step was measured twice: the first stands.
    """
    found: dict[int, Point] = {}
    measured = [row for row in rows if "eval/responses" in row]
    for row in measured:
        step = int(row["step"]) - int(measured[0]["step"])
        found.setdefault(step, point(row, step))
    return list(found.values())


def end(rows: Sequence[Mapping[str, Any]], step: int) -> End:
    """From exported samples, a line an example."""
    texts = [text for row in rows for text in row["responses"]]
    scores: dict[str, list[float]] = {}
    for row in rows:
        for name, values in row["meta"]["rlalign"]["rewards"].items():
            scores.setdefault(name, []).extend(values)
    grammar = scores["toy-grammar"]
    right = (text for text, fits in zip(texts, grammar, strict=True) if fits)
    compared = list(islice(right, COMPARED))
    return End(
        step=step,
        texts=len(texts),
        reward=(fmean(grammar) + fmean(scores["gated"])) / 2,
        sentiment=fmean(scores["toy-sentiment"]),
        grammar=fmean(grammar),
        kl=-fmean(scores["kl"]),
        length=fmean(len(text.split()) for text in texts),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        distinct=len(set(texts)) / len(texts),
        distinct_grammatical=distinct(compared, 3) if len(compared) == COMPARED else None,
    )


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words within a response, as a share of all; 0 where there are none."""
    grams = [tuple(w[i : i + n]) for w in map(str.split, texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def collapsed(record: Record) -> bool:
    """Whether a run broke off, or at any point after its start had lost its language, its gain, or all contact.

    Its language: grammar below half of the start's. Its gain: less than half of the largest earlier gain of
    reward, where that was at least 0.1; or a reward more than 0.1 below the start's. Contact: a KL above 20.
    """
    if record.broke is not None:
        return True
    start, best = record.curve[0], 0.0
    for at in record.curve[1:]:
        gain = at.reward - start.reward
        if at.grammar < LOST * start.grammar or at.kl > KL_BOUND or not math.isfinite(at.reward):
            return True
        if gain < -GAIN or (best >= GAIN and gain < LOST * best):
            return True
        best = max(best, gain)
    return False
