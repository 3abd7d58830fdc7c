"""From entries to what a leaderboard says; no formatting here. The mathematics is in `statistics`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from rlalign_bench import statistics
from rlalign_bench.entry import Entry
from rlalign_bench.statistics import Array, Difference, Spread
from rlalign_bench.suite import Score
from rlalign_study.core import ConfigError
from rlalign_study.stats import Estimate, holm


@dataclass(frozen=True)
class Cell:
    """One algorithm on one task: its runs in the order of their seeds."""

    task: str
    algorithm: str
    seeds: tuple[int, ...]
    scores_SE: Array
    """By the metric that ranks; one column if that exists for all examples together only."""
    entries: tuple[Entry, ...]

    @cached_property
    def estimate(self) -> Estimate:
        return statistics.estimate(self.scores_SE, _rng(self.task, "mean", *self.seeds))

    @cached_property
    def kl(self) -> Estimate | None:
        """Over seeds; None where a run has none."""
        values = [math.nan if entry.kl is None else entry.kl for entry in self.entries]
        return None if any(map(math.isnan, values)) else over_seeds(values)

    @property
    def tokens(self) -> float:
        return sum(entry.tokens for entry in self.entries) / len(self.entries)

    @property
    def seconds(self) -> float:
        return sum(entry.seconds for entry in self.entries) / len(self.entries)

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """By name all that each of its runs has measured."""
        names = [name for name in self.entries[0].metrics if all(name in one.metrics for one in self.entries)]
        return {
            name: statistics.estimate(_scores(self.entries, name), _rng(self.task, "mean", *self.seeds))
            for name in names
        }


@dataclass(frozen=True)
class Overall:
    """One algorithm over all tasks."""

    algorithm: str
    score: Estimate
    """The interquartile mean of scaled scores."""
    rank: Estimate
    profile_K: Array
    low_K: Array
    high_K: Array


@dataclass(frozen=True)
class Pair:
    """Two algorithms over all tasks: the mean of scaled differences, and how often a run is above one."""

    ours: str
    theirs: str
    difference: Estimate
    improvement: Estimate
    p: float
    p_holm: float


class Standings:
    """All that a table or figure asks of entries; `scores` says by task what it is ranked by. The order of entries
    changes nothing."""

    def __init__(
        self, entries: Iterable[Entry], scores: Mapping[str, Score], missing: Sequence[str] = ()
    ) -> None:
        every = sorted(entries, key=lambda entry: (entry.task, entry.algorithm, entry.seed))
        suites = sorted({entry.suite for entry in every})
        if not every:
            raise ConfigError(
                "there are no entries, so no leaderboard: `run` makes them, `add FILE` takes in others'"
            )
        if len(suites) > 1:
            raise ConfigError(f"a leaderboard is of one suite, found entries of {', '.join(suites)}")
        there = {entry.task: entry for entry in every}
        if unknown := sorted(set(there) - set(scores)):
            raise ConfigError(
                f"{there[unknown[0]].key}: nothing says which metric ranks the task `{unknown[0]}`"
            )
        self.suite, self.scores, self.not_there = suites[0], scores, list(missing)
        self.tasks = [task for task in scores if task in there]
        self.untouched = [task for task in scores if task not in there]
        """Tasks without any run: nothing counts them."""
        self.cells: dict[tuple[str, str], Cell] = {}
        for entry in every:
            at = (entry.task, entry.algorithm)
            if at not in self.cells:
                runs = tuple(one for one in every if (one.task, one.algorithm) == at)
                self.cells[at] = _cell(runs, scores[entry.task].metric)
        for task in self.tasks:
            counts = {cell.scores_SE.shape[1] for cell in self.cells.values() if cell.task == task}
            if len(counts) > 1:
                few, many = min(counts), max(counts)
                raise ConfigError(
                    f"{task}: some entries have {few} values of `{scores[task].metric}` and others {many}; "
                    "algorithms compare on the same examples"
                )

    # -- a task ---------------------------------------------------------------------------------------------

    @cached_property
    def algorithms(self) -> list[str]:
        """The best first: those with all tasks by their interquartile mean, then the others by name."""
        ranked = sorted(self.overall.values(), key=lambda one: (-one.score.mean, one.algorithm))
        every = sorted({algorithm for _, algorithm in self.cells})
        return [one.algorithm for one in ranked] + [name for name in every if name not in self.overall]

    def of(self, task: str) -> list[Cell]:
        """The cells of a task, the best first."""
        cells = [cell for cell in self.cells.values() if cell.task == task]
        return sorted(cells, key=lambda cell: (-self.scores[task].scaled(cell.estimate.mean), cell.algorithm))

    def less(self, task: str) -> bool:
        """Whether less of a task's metric is better."""
        return self.scores[task].best < self.scores[task].worst

    def missing(self, algorithm: str) -> list[str]:
        return [task for task in self.tasks if (task, algorithm) not in self.cells]

    @cached_property
    def behind(self) -> dict[tuple[str, str], tuple[Difference, float]]:
        """Each algorithm against the best of its task, and p by Holm over all of these; without pairs of runs none."""
        found = {}
        for task in self.tasks:
            best, *others = self.of(task)
            for cell in others:
                pair = _shared(best, cell)
                if pair is not None:
                    rng = _rng(task, "pair", *best.seeds)
                    found[task, cell.algorithm] = statistics.paired(*pair, rng)
        adjusted = _holm({f"{task}/{name}": one.p for (task, name), one in found.items()})
        return {at: (one, adjusted["/".join(at)]) for at, one in found.items()}

    def frontier(self, task: str) -> set[str]:
        """The algorithms that no other one beats in score and KL at once."""
        cells = self.of(task)
        kl_N = np.array([math.nan if cell.kl is None else cell.kl.mean for cell in cells])
        score_N = np.array([self.scores[task].scaled(cell.estimate.mean) for cell in cells])
        there = statistics.undominated(kl_N, score_N)
        return {cell.algorithm for cell, is_there in zip(cells, there, strict=True) if is_there}

    # -- all tasks ------------------------------------------------------------------------------------------

    @cached_property
    def thresholds(self) -> Array:
        """Where the performance profile is looked at: from below the lowest run to above the highest."""
        runs = np.concatenate([scores.mean(1) for name in self.complete for scores in self.scaled(name)])
        margin = 0.05 * (runs.max() - runs.min()) or 0.05
        return np.linspace(runs.min() - margin, runs.max() + margin, 201)

    @cached_property
    def complete(self) -> list[str]:
        every = sorted({algorithm for _, algorithm in self.cells})
        return [name for name in every if not self.missing(name)]

    @cached_property
    def overall(self) -> dict[str, Overall]:
        """By algorithm what it is over all tasks; of those that have all tasks."""
        if not self.complete:
            return {}
        runs = {name: [one.mean(1) for one in self.scaled(name)] for name in self.complete}
        ranks_A = statistics.mean_ranks(_means(runs))
        drawn_BA = statistics.mean_ranks(_means(self._drawn))
        found = {}
        for at, name in enumerate(self.complete):
            widen = statistics.stretch(self._spreads(name))
            seeds_S = np.concatenate(runs[name])
            score = statistics.interquartile_mean(runs[name])
            score_B = statistics.interquartile_mean(self._drawn[name])
            profile_K = statistics.profile(runs[name], self.thresholds)
            profile_BK = statistics.profile(self._drawn[name], self.thresholds)
            found[name] = Overall(
                name,
                statistics.interval(score, score_B, widen, seeds_S),
                statistics.interval(ranks_A[at], drawn_BA[:, at], widen, seeds_S, (1, len(runs))),
                profile_K,
                *statistics.band(profile_K, profile_BK, widen, (0, 1)),
            )
        return found

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs of algorithms that have all tasks, the better one first; without shared seeds there is none."""
        ranked = [name for name in self.algorithms if name in self.overall]
        found = []
        for ours, theirs in combinations(ranked, 2):
            shared = [_shared(self.cells[task, ours], self.cells[task, theirs]) for task in self.tasks]
            if any(pair is None for pair in shared):
                continue
            scores = [
                self._scale(task, pair[0]) - self._scale(task, pair[1])
                for task, pair in zip(self.tasks, shared, strict=True)
                if pair is not None
            ]
            found.append(self._pair(ours, theirs, scores))
        adjusted = _holm({f"{one.ours}/{one.theirs}": one.p for one in found})
        return [Pair(**{**vars(one), "p_holm": adjusted[f"{one.ours}/{one.theirs}"]}) for one in found]

    def _pair(self, ours: str, theirs: str, differences: Sequence[Array]) -> Pair:
        runs = [[scores_SE.mean(1) for scores_SE in self.scaled(name)] for name in (ours, theirs)]
        widen = statistics.stretch([*self._spreads(ours), *self._spreads(theirs)])
        chance = statistics.improvement(*runs)
        chance_B = statistics.improvement(self._drawn[ours], self._drawn[theirs])
        seeds_S = np.concatenate(runs[0])
        improvement = statistics.interval(chance, chance_B, widen, seeds_S, (0, 1))
        spreads = [statistics.spread(scores_SE) for scores_SE in differences]
        means = [float(scores_SE.mean()) for scores_SE in differences]
        p = statistics.p_value(sum(means), spreads)
        return Pair(ours, theirs, statistics.mean_of(means, spreads), improvement, p, p)

    def scaled(self, algorithm: str) -> list[Array]:
        """By task the scores on the suite's scale, on which worst is 0 and best is 1."""
        return [self._scale(task, self.cells[task, algorithm].scores_SE) for task in self.tasks]

    def _scale(self, task: str, scores: Array) -> Array:
        return statistics.scaled(scores, self.scores[task].worst, self.scores[task].best)

    def _spreads(self, algorithm: str) -> list[Spread]:
        return [statistics.spread(scores_SE) for scores_SE in self.scaled(algorithm)]

    @cached_property
    def _drawn(self) -> dict[str, list[Array]]:
        """By algorithm and task the scaled scores of drawn runs: the same examples, and the same seeds where
        algorithms have the same."""
        found: dict[str, list[Array]] = {name: [] for name in self.complete}
        for task in self.tasks:
            scores = [self._scale(task, self.cells[task, name].scores_SE) for name in self.complete]
            effects_EA = np.stack([statistics.effects(scores_SE) for scores_SE in scores], axis=1)
            shifts_BA = statistics.shift_examples(effects_EA, _rng(task, "examples"))
            for at, name in enumerate(self.complete):
                seeds = self.cells[task, name].seeds
                picks_BS = statistics.pick_seeds(len(seeds), _rng(task, "seeds", *seeds))
                found[name].append(statistics.drawn_runs(scores[at], picks_BS, shifts_BA[:, at]))
        return found


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean and its t-interval."""
    from rlalign_study.stats import estimate

    found = estimate(values)
    assert found is not None
    return found


def _cell(runs: tuple[Entry, ...], metric: str) -> Cell:
    seeds = tuple(entry.seed for entry in runs)
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise ConfigError(
            f"{runs[0].task}/{runs[0].algorithm}: two entries have the seed {twice}; a run counts once"
        )
    return Cell(runs[0].task, runs[0].algorithm, seeds, _scores(runs, metric), runs)


def _scores(runs: Sequence[Entry], metric: str) -> Array:
    """A row for each run: its examples, or where the metric exists for all of them together only, that."""
    for entry in runs:
        if metric not in entry.metrics:
            known = ", ".join(entry.metrics)
            raise ConfigError(f"{entry.key}: has no metric `{metric}`; it has {known}")
    rows = [entry.per_example.get(metric, [entry.metrics[metric]]) for entry in runs]
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(
            f"{runs[0].task}/{runs[0].algorithm}: runs have different numbers of values of `{metric}`: "
            + ", ".join(f"seed {entry.seed} {len(row)}" for entry, row in zip(runs, rows, strict=True))
        )
    scores_SE = np.array(rows, dtype=np.float64)
    for entry, row in zip(runs, scores_SE, strict=True):
        if not np.isfinite(row).all():
            raise ConfigError(f"{entry.key}: `{metric}` is not finite: a run that diverged has no score")
    return scores_SE


def _shared(ours: Cell, theirs: Cell) -> tuple[Array, Array] | None:
    """The rows of the seeds that both have."""
    seeds = sorted(set(ours.seeds) & set(theirs.seeds))
    if not seeds:
        return None
    first, second = ([cell.seeds.index(seed) for seed in seeds] for cell in (ours, theirs))
    return ours.scores_SE[first], theirs.scores_SE[second]


def _means(runs: Mapping[str, Sequence[Array]]) -> Array:
    """The means of runs: of each algorithm and task, on the last two axes."""
    return np.stack(
        [np.stack([task.mean(-1) for task in tasks], axis=-1) for tasks in runs.values()], axis=-2
    )


def _holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's p; of what could not be tested nan, and it does not count."""
    tested = holm({name: p for name, p in ps.items() if not math.isnan(p)})
    return {name: tested.get(name, math.nan) for name in ps}


def _rng(task: str, what: str, *seeds: int) -> np.random.Generator:
    """The same draws for the same entries, and other ones for each task."""
    return np.random.default_rng([zlib.crc32(f"{task}/{what}".encode()), *seeds])
