"""From records to what the tables say; no formatting here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from benchmarks.common import comparisons, stats
from benchmarks.common.comparisons import Comparison, Estimate, estimate
from benchmarks.nlpo import plan, results
from benchmarks.nlpo.measures import Record, collapsed, reward_at

Seeds = Mapping[int, Record]
"""One arm's runs, by seed."""


@dataclass(frozen=True)
class Measure:
    """A number of a run, and the words for it."""

    name: str
    of: Callable[[plan.World, Record], float | None]


FINAL = Measure("final reward", lambda world, r: r.final.reward if r.final else None)
NUCLEUS = Measure("final reward within the nucleus", lambda world, r: r.nucleus.reward if r.nucleus else None)
AT_KL = Measure("reward at equal KL", lambda world, r: reward_at(r.curve, world.kl_at))
FAMILIES = (FINAL, NUCLEUS, AT_KL)
"""Each measure's comparisons in a world are a family of their own."""


@dataclass(frozen=True)
class Studied:
    """What there is of a world."""

    world: plan.World
    tuning: Mapping[str, Record]
    chosen: Mapping[str, plan.Trial]
    main: Mapping[str, Seeds]
    """By arm."""
    ablation: Mapping[tuple[str, str], Seeds]
    """By arm and setting; the settings of the main runs among them, as far as their seeds are shared."""

    @property
    def records(self) -> list[Record]:
        groups = (*self.main.values(), *self.ablation.values())
        every = [*self.tuning.values(), *(r for group in groups for r in group.values())]
        return list({r.run: r for r in every}.values())


def studied(world: plan.World, folder: Path) -> Studied | None:
    """Read a world's results; None before its tuning is done."""
    tuning = plan.tuning(world)
    there = results.read(tuning, folder)
    if len(there) < len(tuning):
        return None
    chosen = plan.choose(world, there)
    main = _by_seed(plan.main(world, chosen), folder)
    ablation = _by_seed(plan.ablation(world, chosen), folder)
    for arm, setting in [*ablation] and plan.BASES:
        base = main.get((arm, ""), {})
        ablation[arm, setting] = {seed: base[seed] for seed in plan.ABLATION_SEEDS if seed in base}
    return Studied(world, there, chosen, {arm: runs for (arm, _), runs in main.items()}, ablation)


def _by_seed(planned: Sequence[plan.Planned], folder: Path) -> dict[tuple[str, str], dict[int, Record]]:
    there = results.read(planned, folder)
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for one in planned:
        if one.key in there:
            found.setdefault((one.arm.name, one.setting), {})[one.seed] = there[one.key]
    return found


def values(world: plan.World, runs: Seeds, measure: Measure) -> dict[int, float]:
    """By seed, where the run has this measure."""
    found = {seed: measure.of(world, record) for seed, record in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def family(study: Studied, measure: Measure) -> list[Comparison]:
    """The comparisons named before, by one measure, with Holm's correction."""
    by_arm = {arm: values(study.world, runs, measure) for arm, runs in study.main.items()}
    return comparisons.family(plan.COMPARISONS, by_arm)


@dataclass(frozen=True)
class Stability:
    """How much an arm's runs differ, and how many collapsed, against PPO's."""

    arm: str
    spread: float
    p_spread: float | None
    collapsed: tuple[int, int]
    """Main runs: how many of how many."""
    collapsed_tuning: tuple[int, int]
    """Over all that was tried in tuning."""
    collapsed_own: tuple[int, int]
    """Main runs, judged by the responses they learned from."""
    p_collapsed: float | None
    """Main runs and tuning together."""


def stability(study: Studied) -> list[Stability]:
    """One for each arm; the p-values, which are those against PPO, corrected by Holm all together."""
    world, raw = study.world, {}
    base = values(world, study.main.get(plan.PPO, {}), FINAL)
    counts = {arm: _collapses(study, arm) for arm in study.main}
    for arm, runs in study.main.items():
        if arm == plan.PPO or plan.PPO not in counts:
            continue
        ours = values(world, runs, FINAL)
        seeds = sorted(ours.keys() & base.keys())
        if len(seeds) > 2:
            raw[f"{arm} spread"] = stats.equal_spread([ours[s] for s in seeds], [base[s] for s in seeds])
        (a, of_a), (b, of_b) = (_sum(counts[name][:2]) for name in (arm, plan.PPO))
        raw[f"{arm} collapsed"] = stats.fisher(a, of_a, b, of_b)
    corrected = stats.holm(raw)
    made = []
    for arm, runs in study.main.items():
        final = list(values(world, runs, FINAL).values())
        spread = stdev(final) if len(final) > 1 else math.nan
        main, tuning, own = counts[arm]
        p = (corrected.get(f"{arm} spread"), corrected.get(f"{arm} collapsed"))
        made.append(Stability(arm, spread, p[0], main, tuning, own, p[1]))
    return made


Count = tuple[int, int]


def _collapses(study: Studied, arm: str) -> tuple[Count, Count, Count]:
    world = study.world
    main = list(study.main[arm].values())
    tuning = [record for key, record in study.tuning.items() if key.split("/")[2] == arm]
    own = sum(r.broke is not None or collapsed((r.curve[0], *r.own), world.kl_bound) for r in main)
    return fallen(world, main), fallen(world, tuning), (own, len(main))


def fallen(world: plan.World, records: Sequence[Record]) -> Count:
    """How many of the runs collapsed, or broke off."""
    bad = sum(r.broke is not None or collapsed(r.curve, world.kl_bound) for r in records)
    return bad, len(records)


def _sum(counts: Sequence[Count]) -> Count:
    return sum(k for k, _ in counts), sum(n for _, n in counts)


def against_base(study: Studied, arm: str, setting: str, base: str) -> Estimate | None:
    """The final reward of an ablation less that of the arm's own setting, seed by seed."""
    ours = values(study.world, study.ablation.get((arm, setting), {}), FINAL)
    theirs = values(study.world, study.ablation.get((arm, base), {}), FINAL)
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
