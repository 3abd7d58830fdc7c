"""From records to what the tables say, and to the answers; no formatting of tables here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.common import comparisons, stats
from benchmarks.common.comparisons import Comparison, estimate
from benchmarks.common.tables import p_value, signed
from benchmarks.offline import logs, plan, results
from benchmarks.offline.logs import Log
from benchmarks.offline.measures import Prepared, Record, collapsed

Seeds = Mapping[int, Record]
"""One arm's runs, by seed."""
SURE = 0.05
THIRD = (0.28, 0.38)
"""About a third: the interval of the mean share lies within."""
FAMILY = ("a-lol", "a-lol-ref-free", "a-lol-seq", "a-lol-kl")


@dataclass(frozen=True)
class Measure:
    """A number of a run, and the words for it."""

    name: str
    of: Callable[[Record], float | None]


FINAL = Measure("final reward", lambda r: r.last.reward if r.last else None)
BEST = Measure("reward at the best checkpoint", lambda r: r.best.reward if r.best else None)
FALL = Measure(
    "fall from the best checkpoint to the last", lambda r: r.best.reward - r.end.reward if r.best else None
)
DIVERSITY = Measure(
    "diversity (distinct-3 of grammatical texts)", lambda r: r.last.distinct_grammatical if r.last else None
)
FAMILIES = (FINAL, BEST, DIVERSITY)
"""Each measure's comparisons on a log are a family of their own."""


@dataclass(frozen=True)
class Studied:
    """What there is of a log."""

    log: Log
    grounds: Mapping[int, Prepared]
    """By seed: the log, and its reference."""
    tuning: Mapping[str, Record]
    chosen: Mapping[str, plan.Trial]
    """By arm, where tuning is done."""
    main: Mapping[str, Seeds]
    """By arm."""

    @property
    def records(self) -> list[Record]:
        return [*self.tuning.values(), *(r for runs in self.main.values() for r in runs.values())]

    def tried(self, arm: str) -> dict[plan.Trial, list[Record]]:
        """An arm's runs in tuning, by trial."""
        found: dict[plan.Trial, list[Record]] = {}
        for one in plan.tuning(self.log, [arm]):
            if one.key in self.tuning:
                found.setdefault(one.trial, []).append(self.tuning[one.key])
        return found


def studied(log: Log, folder: Path) -> Studied:
    """Read what there is."""
    tuning = results.read(plan.tuning(log), folder)
    chosen = plan.choose(log, tuning)
    planned = plan.main(log, chosen)
    there = results.read(planned, folder)
    main: dict[str, dict[int, Record]] = {}
    for one in planned:
        if one.key in there:
            main.setdefault(one.arm.name, {})[one.seed] = there[one.key]
    wanted = {seed: plan.Ground(log, seed) for seed in (*range(plan.MORE_SEEDS), *plan.TUNING_SEEDS)}
    known = results.grounds(list(wanted.values()), folder)
    grounds = {seed: known[ground.key] for seed, ground in wanted.items() if ground.key in known}
    order = [arm for arm in plan.ARMS if arm in main]
    return Studied(log, grounds, tuning, chosen, {arm: main[arm] for arm in order})


def values(runs: Seeds, measure: Measure) -> dict[int, float]:
    """By seed, where the run has this measure."""
    found = {seed: measure.of(record) for seed, record in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def family(study: Studied, measure: Measure) -> list[Comparison]:
    """The comparisons named before, by one measure, with Holm's correction."""
    by_arm = {arm: values(runs, measure) for arm, runs in study.main.items()}
    return comparisons.family(plan.COMPARISONS, by_arm)


@dataclass(frozen=True)
class Stability:
    """How much an arm's runs differ, how far they fall, and how many collapsed, against A-LoL's."""

    arm: str
    spread: float
    fall: comparisons.Estimate | None
    collapsed: tuple[int, int]
    """Main runs: how many of how many."""
    collapsed_tuning: tuple[int, int]
    p_collapsed: float | None
    """Main runs and tuning together, by Fisher's test with Holm's correction."""


def stability(study: Studied) -> list[Stability]:
    counts = {arm: (_fallen(list(runs.values())), _tuning(study, arm)) for arm, runs in study.main.items()}
    raw = {arm: _fisher(counts[arm], counts[plan.ALOL]) for arm in counts if plan.ALOL in counts}
    raw.pop(plan.ALOL, None)
    corrected = stats.holm(raw)
    made = []
    for arm, runs in study.main.items():
        final = list(values(runs, FINAL).values())
        spread = stdev(final) if len(final) > 1 else math.nan
        fall = estimate(list(values(runs, FALL).values()))
        made.append(Stability(arm, spread, fall, *counts[arm], corrected.get(arm)))
    return made


Count = tuple[int, int]


def _tuning(study: Studied, arm: str) -> Count:
    return _fallen([r for found in study.tried(arm).values() for r in found])


def _fallen(records: Sequence[Record]) -> Count:
    return sum(map(collapsed, records)), len(records)


def _fisher(ours: tuple[Count, Count], theirs: tuple[Count, Count]) -> float:
    (a, of_a), (b, of_b) = ((sum(k for k, _ in c), sum(n for _, n in c)) for c in (ours, theirs))
    return stats.fisher(a, of_a, b, of_b)


# -- answers ------------------------------------------------------------------------------------------------


def answers(studies: Sequence[Studied]) -> list[str]:
    """The claims of README.md, each answered from the numbers by the rules named there."""
    said = []
    for study in studies:
        where = f"`{study.log.name}`" + (", the primary log" if study.log is logs.NOISY else "")
        for claim, answer in (
            ("A-LoL earns more than reward-weighted cloning", _better),
            ("It leaves out about a third of the log", _third),
            ("It keeps the highest diversity", _diverse),
            ("It is stable where its KL form can collapse", _stable),
        ):
            found = answer(study)
            if found is not None:
                said.append(f"- **{claim}** ({where}): {found}")
    return said


def verdict(found: Comparison) -> str:
    """What a comparison shows, in words."""
    if found.p_holm >= SURE:
        return "not shown"
    return "yes" if found.difference.mean > 0 else "no, the opposite"


def _against(study: Studied, other: str, measure: Measure) -> Comparison | None:
    return next((c for c in family(study, measure) if c.other == other), None)


def _better(study: Studied) -> str | None:
    found = _against(study, plan.WBC, FINAL)
    if found is None:
        return None
    said = f"{verdict(found)}. {signed(found.difference)} over {found.difference.count} seeds, corrected p "
    said += p_value(found.p_holm)
    if found.p_holm >= SURE:
        said += f"; before correction, {found.detectable:.3f} would have been found four times in five"
    return f"{said}."


def _third(study: Studied) -> str | None:
    found = estimate([r.discarded for r in study.main.get(plan.ALOL, {}).values()])
    if found is None or found.count < 2:
        return None
    low, high = found.mean - found.half, found.mean + found.half
    word = "yes" if THIRD[0] <= low and high <= THIRD[1] else "not shown"
    if low > THIRD[1] or high < THIRD[0]:
        word = "no, more" if low > THIRD[1] else "no, less"
    return f"{word}. {found.mean:.1%} ± {found.half:.1%} have no advantage."


def _diverse(study: Studied) -> str | None:
    compared = [c for c in family(study, DIVERSITY) if c.other not in FAMILY]
    if not compared:
        return None
    above = [c.other for c in compared if c.difference.mean < 0 and c.p_holm < SURE]
    open_ = [c.other for c in compared if c.p_holm >= SURE]
    below = [c.other for c in compared if c.difference.mean > 0 and c.p_holm < SURE]
    word = "no" if above else "not shown" if open_ else "yes"
    said = [f"{word}. A-LoL is more diverse than {_list(below)}"]
    if above:
        said.append(f"less than {_list(above)}")
    if open_:
        said.append(f"not told apart from {_list(open_)}")
    unmeasured = [a for a in study.main if a not in FAMILY and a not in {c.other for c in compared}]
    if unmeasured:
        said.append(f"{_list(unmeasured)} left too few grammatical texts to be compared")
    if not above:
        return f"{'; '.join(said)}."
    more = [arm for arm in above if arm in _as_much(study)]
    return f"{'; '.join(said)}. Of those above it, earning as much or more: {_list(more)}."


def _as_much(study: Studied) -> set[str]:
    """Arms whose mean final reward is at least A-LoL's."""
    means = {arm: list(values(runs, FINAL).values()) for arm, runs in study.main.items()}
    base = fmean(means[plan.ALOL])
    return {arm for arm, found in means.items() if found and fmean(found) >= base}


def _stable(study: Studied) -> str | None:
    found = {s.arm: s for s in stability(study)}
    if plan.ALOL not in found or plan.KL not in found:
        return None
    full, kl = (
        tuple(a + b for a, b in zip(found[arm].collapsed, found[arm].collapsed_tuning, strict=True))
        for arm in (plan.ALOL, plan.KL)
    )
    p = stats.fisher(kl[0], kl[1], full[0], full[1])
    fewer = full[0] / full[1] < kl[0] / kl[1]
    word = "not shown" if p >= SURE else "yes" if fewer else "no, the opposite"
    counts = f"{full[0]} of {full[1]} runs collapsed, tuning included, of the KL form {kl[0]} of {kl[1]}"
    return f"{word}. {counts} (p {p_value(p)})."


def _list(arms: Sequence[str]) -> str:
    return ", ".join(f"`{arm}`" for arm in arms) or "none"
