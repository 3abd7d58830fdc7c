"""From raters' answers to figures: by axis and run, by pair of runs, by rater."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from rlalign_humaneval.agreement import Agreement, agreement
from rlalign_humaneval.files import TIE, Answers, Key
from rlalign_humaneval.questions import LEVELS
from rlalign_humaneval.statistics import Anova, Difference, Share, anova, tukey, wilson
from rlalign_study.stats import Estimate, estimate


@dataclass(frozen=True)
class Rated:
    """A run's ratings on one axis. The mean is one over items, of which each is the mean over its raters."""

    run: str
    mean: Estimate | None
    ratings: int
    counts: tuple[int, ...]
    """How many ratings were 1, 2, … 5."""


@dataclass(frozen=True)
class AxisScores:
    """All runs on one axis."""

    name: str
    question: str
    runs: tuple[Rated, ...]
    anova: Anova | None
    tukey: tuple[Difference, ...]
    agreement: Agreement


@dataclass(frozen=True)
class Compared:
    """Two runs compared: how often the first was chosen; ties count half, and so do identical responses."""

    runs: tuple[str, str]
    wins: int
    ties: int
    losses: int
    identical: int
    """Items that nobody was asked, as both responses are the same: each counts as a tie."""
    items: int
    rate: Share | None
    agreement: Agreement


@dataclass(frozen=True)
class Rater:
    """How much one rater answered, and how: the mean rating, the share of choices for what stood first."""

    name: str
    rated: int
    compared: int
    mean: float | None
    first: float | None


@dataclass(frozen=True)
class Scores:
    """All that was found."""

    page: str
    task: str | None
    items: int
    asked: tuple[int, int]
    """Texts to rate, and comparisons to make."""
    raters: tuple[Rater, ...]
    axes: tuple[AxisScores, ...]
    pairwise: tuple[Compared, ...]


def scores(key: Key, answers: Sequence[Answers]) -> Scores:
    """The figures of these answers, which must belong to the key."""
    sheet = key.sheet
    return Scores(
        page=key.page,
        task=key.task,
        items=len(sheet.prompts),
        asked=(len(sheet.texts) if sheet.axes else 0, len(sheet.pairs)),
        raters=tuple(_rater(one) for one in answers),
        axes=tuple(_axis(key, answers, number) for number in range(len(sheet.axes))),
        pairwise=tuple(_compared(key, answers, a, b) for a, b in combinations(key.runs, 2))
        if sheet.pairwise
        else (),
    )


def _axis(key: Key, answers: Sequence[Answers], number: int) -> AxisScores:
    """Ratings of one item are not independent of each other; its mean over raters is what is tested."""
    given = {
        text: [
            rating
            for one in answers
            if text in one.ratings and (rating := one.ratings[text][number]) is not None
        ]
        for text in key.sheet.texts
    }
    by_run = {
        run: [ratings for text, ratings in given.items() if run in key.wrote[text] and ratings]
        for run in key.runs
    }
    means = {run: [fmean(ratings) for ratings in by_run[run]] for run in key.runs}
    axis = key.sheet.axes[number]
    return AxisScores(
        axis.name,
        axis.question,
        tuple(_rated(run, means[run], [r for ratings in by_run[run] for r in ratings]) for run in key.runs),
        anova(means),
        tuple(tukey(means)),
        agreement(list(given.values()), ["ordinal", "interval"]),
    )


def _rated(run: str, means: Sequence[float], ratings: Sequence[int]) -> Rated:
    found = Counter(ratings)
    return Rated(run, estimate(means), len(ratings), tuple(found[level] for level in range(1, LEVELS + 1)))


def _compared(key: Key, answers: Sequence[Answers], a: str, b: str) -> Compared:
    asked = list(_choices(key, answers, a, b))
    said = [choices for choices in asked if choices]
    every = Counter(choice for choices in said for choice in choices)
    identical = sum(a in wrote and b in wrote for wrote in key.wrote.values())
    won = sum(fmean((choice + 1) / 2 for choice in choices) for choices in said) + identical / 2
    items = len(said) + identical if said else 0
    return Compared(
        (a, b),
        wins=every[1],
        ties=every[0],
        losses=every[-1],
        identical=identical,
        items=items,
        rate=wilson(won, items) if items else None,
        agreement=agreement(said, ["nominal"]),
    )


def _choices(key: Key, answers: Sequence[Answers], a: str, b: str) -> Iterator[list[int]]:
    """Of each comparison of two runs what raters said: 1 for the first run, −1 for the second, 0 for a tie."""
    for pair, (first, second) in key.sheet.pairs.items():
        for one, other in ((first, second), (second, first)):
            if a in key.wrote[one] and b in key.wrote[other]:
                sides = {one: 1, TIE: 0, other: -1}
                yield [sides[given.choices[pair].choice] for given in answers if pair in given.choices]


def _rater(one: Answers) -> Rater:
    ratings = [r for some in one.ratings.values() for r in some if r is not None]
    chosen = [c.choice == c.left for c in one.choices.values() if c.choice != TIE]
    return Rater(
        one.rater,
        rated=sum(any(r is not None for r in some) for some in one.ratings.values()),
        compared=len(one.choices),
        mean=fmean(ratings) if ratings else None,
        first=fmean(chosen) if chosen else None,
    )
