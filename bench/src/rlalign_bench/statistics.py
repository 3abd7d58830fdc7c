"""The statistics of a leaderboard, on arrays: intervals, tests between algorithms, aggregates over tasks.

Shapes: S seeds, E examples, T tasks, A algorithms, N points, K thresholds, B draws. `scores_SE` is one algorithm on
one task: a row for each seed's run, a column for each example.

What is resampled, and why. Every run of a task answers the same examples, whatever its seed or algorithm: seeds and
examples are crossed, not nested. Drawing examples anew within each drawn seed would treat hard examples as bad luck
that more seeds average out, though all seeds meet the same ones. So a draw takes S seeds and, independently, E
examples, both with replacement, and all seeds (and, for a task, all algorithms) get the same examples. A drawn run
scores its seed's mean plus the shift that the drawn examples cause:

    score of a drawn run = seeds_S[picked] + mean over drawn examples of λ·(examples_E − mean)

Chance in single answers is in the seeds' means already; λ takes it out of the examples' so that it counts once
(Owen 2007, "The pigeonhole bootstrap", shows that it counts three times where rows and columns of scores are drawn).
Few seeds draw too narrow an interval: three of them reach from the worst to the best seed, which holds the true mean
three times in four. Draws are therefore stretched around the estimate: to the unbiased variance, and to the tails of a
t-distribution with Satterthwaite's degrees of freedom. Where only one seed or one example is there, only the other is
drawn, and the interval says nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rlalign_study.stats import EXACT, Estimate, sign_flips

Array = NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
CHUNK = 2_000_000
"""So many drawn examples are held at a time."""


# -- one algorithm on one task ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The variance of a mean over crossed seeds and examples, from the analysis of variance."""

    variance: float
    """Unbiased: of seeds, plus of examples what is not chance in single answers; nan of a single number."""
    df: float
    """Satterthwaite's degrees of freedom."""
    drawn: float
    """The variance that draws have before they are stretched."""
    shrink: float
    """λ: by what the examples' effects are multiplied before they are drawn."""


def spread(scores_SE: Array) -> Spread:
    """How far the mean would vary with other seeds and other examples."""
    check(scores_SE)
    S, E = scores_SE.shape
    seeds_S, examples_E = scores_SE.mean(1), scores_SE.mean(0)
    if S == E == 1:
        return Spread(math.nan, math.nan, 0.0, 0.0)
    of_seeds = _variance(seeds_S) / S if S > 1 else 0.0
    of_examples = _variance(examples_E) / E if E > 1 else 0.0
    if S == 1:
        return Spread(of_examples, E - 1, of_examples * (E - 1) / E, 1.0)
    if E == 1:
        return Spread(of_seeds, S - 1, of_seeds * (S - 1) / S, 0.0)
    rest_SE = scores_SE - seeds_S[:, None] - examples_E + scores_SE.mean()
    of_answers = float((rest_SE**2).sum()) / ((S - 1) * (E - 1) * S * E)
    own = max(0.0, of_examples - of_answers)
    squares = of_seeds**2 / (S - 1)
    if own > 0:
        squares += of_examples**2 / (E - 1) + of_answers**2 / ((S - 1) * (E - 1))
    variance = of_seeds + own
    # `own` is a difference, with which Satterthwaite's approximation can come close to 0.
    return Spread(
        variance,
        max(1.0, variance**2 / squares) if squares > 0 else S - 1,
        of_seeds * (S - 1) / S + own * (E - 1) / E,
        math.sqrt(own / of_examples) if own > 0 else 0.0,
    )


def check(scores_SE: Array) -> None:
    if scores_SE.ndim != 2 or scores_SE.size == 0:
        raise ValueError(
            f"scores have a row for each seed and a column for each example, found the shape {scores_SE.shape}"
        )
    if not np.isfinite(scores_SE).all():
        raise ValueError("a score is not a finite number: a run that diverged has no mean")


def pick_seeds(S: int, rng: np.random.Generator, draws: int = DRAWS) -> NDArray[np.int64]:
    """For each draw which seeds it holds: picks_BS."""
    return rng.integers(S, size=(draws, S))


def shift_examples(effects_EA: Array, rng: np.random.Generator, draws: int = DRAWS) -> Array:
    """For each draw of examples how far it moves each algorithm: shifts_BA. All algorithms get the same examples."""
    E = len(effects_EA)
    if not effects_EA.any():
        return np.zeros((draws, effects_EA.shape[1]))
    some = max(1, CHUNK // E)
    parts = []
    for first in range(0, draws, some):
        n = min(some, draws - first)
        drawn = rng.integers(E, size=(n, E)) + E * np.arange(n)[:, None]
        counts_BE = np.bincount(drawn.ravel(), minlength=n * E).reshape(n, E)
        parts.append(counts_BE @ effects_EA / E)
    return np.concatenate(parts)


def effects(scores_SE: Array) -> Array:
    """By how much each example, without chance in single answers, lies above the mean: what is drawn of examples."""
    return np.asarray(spread(scores_SE).shrink * (scores_SE.mean(0) - scores_SE.mean()))


def drawn_runs(scores_SE: Array, picks_BS: NDArray[np.int64], shifts_B: Array) -> Array:
    """The scores of the runs of each draw: runs_BS."""
    return np.asarray(scores_SE.mean(1)[picks_BS] + shifts_B[:, None])


def estimate(scores_SE: Array, rng: np.random.Generator, draws: int = DRAWS) -> Estimate:
    """The mean with its interval over seeds and examples; `spread` and `count` are of the seeds."""
    known = spread(scores_SE)
    picks_BS = pick_seeds(len(scores_SE), rng, draws)
    shifts_BA = shift_examples(effects(scores_SE)[:, None], rng, draws)
    runs_BS = drawn_runs(scores_SE, picks_BS, shifts_BA[:, 0])
    return interval(scores_SE.mean(), runs_BS.mean(1), stretch([known]), scores_SE.mean(1))


def stretch(spreads: Sequence[Spread]) -> float:
    """By what deviations of draws are multiplied: unbiased variance, and tails of t, of the sum of these means."""
    variance, drawn = sum(one.variance for one in spreads), sum(one.drawn for one in spreads)
    if math.isnan(variance):
        return math.nan
    if drawn == 0:
        return 1.0
    tails = stats.t.ppf(TAILS[1], freedom(spreads)) / stats.norm.ppf(TAILS[1])
    return float(tails * math.sqrt(variance / drawn))


def freedom(spreads: Sequence[Spread]) -> float:
    """Satterthwaite's degrees of freedom of the sum of independent means."""
    squares = sum(one.variance**2 / one.df for one in spreads)
    return sum(one.variance for one in spreads) ** 2 / squares if squares else spreads[0].df


def band(
    value: Any, draws_B: Array, widen: float, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[Any, Any]:
    """The limits of a statistic's interval, by its draws (along the first axis)."""
    low, high = np.quantile(draws_B, TAILS, axis=0)
    return np.clip(value + widen * (low - value), *bounds), np.clip(value + widen * (high - value), *bounds)


def interval(
    value: float,
    draws_B: Array,
    widen: float,
    seeds_S: Array,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    low, high = band(float(value), draws_B, widen, bounds)
    known = math.sqrt(_variance(seeds_S)) if len(seeds_S) > 1 else math.nan
    return Estimate(float(value), float(low), float(high), known, len(seeds_S))


# -- two algorithms ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far one algorithm is above another on shared seeds and examples."""

    estimate: Estimate
    p: float
    """Two-sided; over other seeds and other examples."""
    p_flips: float
    """By flipping the signs of examples: over other examples, with these very runs."""


def paired(ours_SE: Array, theirs_SE: Array, rng: np.random.Generator, draws: int = DRAWS) -> Difference:
    """Compare two algorithms seed by seed and example by example."""
    if ours_SE.shape != theirs_SE.shape:
        raise ValueError(f"pairs share seeds and examples, found {ours_SE.shape} and {theirs_SE.shape}")
    scores_SE = ours_SE - theirs_SE
    found = estimate(scores_SE, rng, draws)
    p = p_value(found.mean, [spread(scores_SE)])
    return Difference(found, p, flipped(scores_SE.mean(0), rng, draws))


def flipped(differences_E: Array, rng: np.random.Generator, draws: int = DRAWS) -> float:
    """Two-sided p of flipping the signs of examples' differences: exact for few of them; nan of a single one."""
    E = len(differences_E)
    if E == 1:
        return math.nan
    if E <= EXACT:
        return sign_flips(differences_E.tolist())
    total, some = differences_E.sum(), max(1, CHUNK // E)
    least = abs(total) * (1 - 1e-12)  # sums of the same numbers differ in their last bits
    hits = 0
    for first in range(0, draws, some):
        size = (min(some, draws - first), -(-E // 8))
        flips = np.unpackbits(rng.integers(256, size=size, dtype=np.uint8), axis=1, count=E)
        hits += int((np.abs(total - 2 * (flips @ differences_E)) >= least).sum())
    return (hits + 1) / (draws + 1)


def p_value(total: float, spreads: Sequence[Spread]) -> float:
    """Two-sided p of the t-test whether a sum of independent means is zero; nan of single numbers.

    With one example it is the t-test over seeds, with one seed that over examples.
    """
    variance = sum(one.variance for one in spreads)
    if math.isnan(variance):
        return math.nan
    if variance == 0:
        return 1.0 if total == 0 else 0.0
    return float(2 * stats.t.sf(abs(total) / math.sqrt(variance), freedom(spreads)))


def mean_of(means: Sequence[float], spreads: Sequence[Spread]) -> Estimate:
    """The mean of independent means, of several tasks, with its t-interval."""
    n, mean = len(means), math.fsum(means) / len(means)
    half = math.sqrt(sum(one.variance for one in spreads)) / n
    half *= float(stats.t.ppf(TAILS[1], freedom(spreads))) if half > 0 else 1.0
    known = math.sqrt(_variance(np.array(means))) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, known, n)


# -- over tasks: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice" --------------------
#
# Scores are scaled per task. `runs` has for each task an array whose last axis is that of seeds; axes before it,
# for instance of draws, stay. Tasks are not resampled: what is found holds for these tasks.


def scaled(scores: Array, worst: float, best: float) -> Array:
    """Worst is 0 and best is 1, whichever of them is the higher number."""
    return np.asarray((scores - worst) / (best - worst))


def interquartile_mean(runs: Sequence[Array]) -> Any:
    """The mean of the middle half of all runs of all tasks."""
    return stats.trim_mean(np.concatenate(runs, axis=-1), 0.25, axis=-1)


def profile(runs: Sequence[Array], at_K: Array) -> Array:
    """For each threshold the share of runs above it, each task counting alike."""
    shares = [(task[..., None] > at_K).mean(-2) for task in runs]
    return np.asarray(sum(shares) / len(shares))


def improvement(ours: Sequence[Array], theirs: Sequence[Array]) -> Any:
    """How likely a run of ours is above one of theirs on a task; equal ones count half; the mean over tasks."""
    chances = []
    for x, y in zip(ours, theirs, strict=True):
        above = np.sign(x[..., :, None] - y[..., None, :])
        chances.append((above.mean((-2, -1)) + 1) / 2)
    return sum(chances) / len(chances)


def mean_ranks(means_AT: Array) -> Array:
    """Each algorithm's rank by mean score (1 is the best, equals share), the mean over tasks."""
    return np.asarray(stats.rankdata(-means_AT, axis=-2).mean(-1))


# -- reward against KL ------------------------------------------------------------------------------------


def undominated(kl_N: Array, score_N: Array) -> NDArray[np.bool_]:
    """Which points no other one beats: none has at most its KL and at least its score, and is better in one of them.

    A point without a KL or a score is not on the frontier, and beats none.
    """
    known_N = np.isfinite(kl_N) & np.isfinite(score_N)
    no_worse_NN = (kl_N[:, None] <= kl_N) & (score_N[:, None] >= score_N)
    better_NN = (kl_N[:, None] < kl_N) | (score_N[:, None] > score_N)
    beaten_N = (no_worse_NN & better_NN & known_N[:, None]).any(0)
    return np.asarray(known_N & ~beaten_N)


def _variance(values: Array) -> float:
    return float(np.var(values, ddof=1)) if np.ptp(values) > 0 else 0.0
