"""From rows to what the tables say; no formatting here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import fmean

from rlalign_study import plan, stats
from rlalign_study.core import ConfigError
from rlalign_study.file import Collapse, Overrides, Study, seeds
from rlalign_study.plan import Planned, Setting
from rlalign_study.rows import BROKE, FAILED, Results, Row
from rlalign_study.stats import Estimate, estimate

Runs = Mapping[int, Row]
"""One arm's runs, by seed."""
Count = tuple[int, int]
"""How many of how many."""


def collapsed(row: Row, rule: Collapse | None, curve: str = "curve") -> bool:
    """Whether a run broke off, or by this rule at any point after its start had collapsed.

    `own`, what training itself logs, need not hold all that is measured; the rule is about what it holds.
    """
    if row.status == BROKE:
        return True
    if rule is None or not row.curve:
        return False
    start = {name: values[0] for name, values in row.curve.items()}
    found: Mapping[str, Sequence[float]] = getattr(row, curve)
    if rule.metric not in found:
        return False
    keep, limits = (
        {name: x for name, x in of.items() if curve == "curve" or name in found}
        for of in (rule.keep, rule.max)
    )
    points = [dict(zip(found, at, strict=True)) for at in zip(*found.values(), strict=True)]
    best = 0.0
    for at in points[1:] if curve == "curve" else points:
        gain = at[rule.metric] - start[rule.metric]
        if not math.isfinite(gain) or (best >= rule.gain and gain < rule.kept * best):
            return True
        if rule.fall is not None and gain < -rule.fall:
            return True
        if any(at[name] < share * start[name] for name, share in keep.items()):
            return True
        if any(at[name] > most for name, most in limits.items()):
            return True
        best = max(best, gain)
    return False


def qualifies(study: Study, world: str, rows: Sequence[Row]) -> bool:
    """Whether a setting may be chosen, by its runs."""
    require = study.require_of(world)
    if any(row.status != "done" or collapsed(row, study.collapse_of(world)) for row in rows):
        return False
    if any(_mean(rows, name) > most for name, most in require.max.items()):
        return False
    for name, share in require.keep.items():
        start = fmean(row.curve[name.rpartition(".")[2]][0] for row in rows)
        if _mean(rows, name) < share * start:
            return False
    return True


def _mean(rows: Sequence[Row], name: str) -> float:
    if missing := [row.key for row in rows if name not in row.metrics]:
        known = ", ".join(sorted(set(rows[0].metrics)))
        raise ConfigError(f"tuning: there is no metric `{name}` in {missing[0]} (there are: {known})")
    return fmean(row.metrics[name] for row in rows)


def best(study: Study, world: str, tried: Mapping[str, Sequence[Row]]) -> str | None:
    """The setting to choose: the best that qualifies; the first wins a tie. None if no setting came to its end."""
    about = study.tuning
    assert about is not None
    ended = {label: rows for label, rows in tried.items() if all(row.status == "done" for row in rows)}
    if not ended:
        return None
    fit = [label for label, rows in ended.items() if qualifies(study, world, rows)]
    if not fit and about.otherwise == "least":
        least = about.least or about.best
        return min(ended, key=lambda label: _mean(ended[label], least))
    return max(fit or ended, key=lambda label: _mean(ended[label], about.best))


@dataclass(frozen=True)
class Comparison:
    """One arm against another over the seeds that both have."""

    arm: str
    other: str
    difference: Estimate
    p_t: float
    p_flips: float
    p_holm: float
    """Of the paired t-test, in its family."""
    detectable: float


@dataclass(frozen=True)
class Steadiness:
    """How much an arm's runs differ and how many collapsed; p-values corrected by Holm all together."""

    spread: float
    p_spread: float | None
    collapsed: Count
    in_tuning: Count
    own: Count
    p_collapsed: float | None
    """Main runs and tuning together."""


class Found:
    """What there is of a world: `tried` and `chosen` by arm, `main` by arm and seed, `ablated` by arm and setting."""

    def __init__(self, study: Study, world: str, results: Results) -> None:
        self.study, self.name, self.given = study, world, study.given_of(world)
        self.tuning = plan.tuning(study, world)
        rows = self._rows(self.tuning, results)
        self.tried: dict[str, dict[str, list[Row]]] = {}
        self.waiting: dict[str, int] = {}
        """By arm: tuning runs that are not there yet."""
        for one in self.tuning:
            if one.key in rows:
                self.tried.setdefault(one.arm, {}).setdefault(one.setting, []).append(rows[one.key])
            else:
                self.waiting[one.arm] = self.waiting.get(one.arm, 0) + 1
        self.chosen = self._choose()
        self.planned = plan.main(study, world, self.chosen)
        self.main: dict[str, dict[int, Row]] = {}
        for one, row in self._there(self.planned, results):
            self.main.setdefault(one.arm, {})[one.seed] = row
        self.ablations = plan.ablation(study, world, self.chosen)
        self.ablated: dict[tuple[str, str], dict[int, Row]] = {}
        for one, row in self._there(self.ablations, results):
            self.ablated.setdefault((one.arm, one.setting), {})[one.seed] = row
        self.prepared = self._rows(plan.prepared(study, [*self.tuning, *self.planned]), results)

    def _rows(self, planned: Sequence[Planned], results: Results) -> dict[str, Row]:
        derive = self.study.hooks.derive
        there = results.of(planned)
        if derive is None:
            return there
        return {
            key: row
            if row.status == FAILED
            else replace(row, metrics={**row.metrics, **derive(row, self.given)})
            for key, row in there.items()
        }

    def _there(self, planned: Sequence[Planned], results: Results) -> list[tuple[Planned, Row]]:
        rows = self._rows(planned, results)
        return [(one, rows[one.key]) for one in planned if one.key in rows]

    def _choose(self) -> dict[str, Setting]:
        """The setting of each arm whose tuning is done."""
        found = {}
        for arm in self.study.arms_of(self.name):
            some = {one.label: one for one in plan.settings(self.study, self.name, arm)}
            if not self.tuning:
                found[arm] = next(iter(some.values()))
            elif (
                arm not in self.waiting
                and (label := best(self.study, self.name, self.tried[arm])) is not None
            ):
                found[arm] = some[label]
        return found

    @property
    def rows(self) -> list[Row]:
        every = [row for tried in self.tried.values() for rows in tried.values() for row in rows]
        groups = (*self.main.values(), *self.ablated.values())
        every += [row for runs in groups for row in runs.values()]
        return sorted(every, key=lambda row: (plan.STAGES.index(row.stage), row.key))

    def values(self, runs: Runs, name: str) -> dict[int, float]:
        """By seed, where the run has this metric."""
        return {seed: row.metrics[name] for seed, row in runs.items() if row.metrics.get(name) is not None}

    def mean(self, runs: Runs, name: str) -> Estimate | None:
        return estimate(list(self.values(runs, name).values()), self.study.interval)

    def ablation(self, group: str, arm: str, name: str, changed: Overrides) -> Runs:
        """The runs of one setting; without a change those of the arm as it is."""
        return self.ablated.get((arm, plan.ablated(group, name)), {}) if changed else self.base(arm)

    def base(self, arm: str) -> Runs:
        """The main runs that ablations of an arm are compared with."""
        assert self.study.ablations is not None
        wanted = seeds(self.study.ablations.seeds)
        return {seed: row for seed, row in self.main.get(arm, {}).items() if seed in wanted}

    def difference(self, ours: Runs, theirs: Runs, name: str) -> list[float]:
        """Seed by seed, over the seeds that both have."""
        a, b = self.values(ours, name), self.values(theirs, name)
        return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]

    @cache  # noqa: B019  a world is looked at for as long as its report is written
    def family(self, name: str) -> dict[tuple[str, str], Comparison]:
        """The study's comparisons by one metric, with Holm's correction; pairs of fewer than three seeds left out."""
        pairs = self.study.compare.each if self.study.compare else []
        some = {(a, b): self.difference(self.main.get(a, {}), self.main.get(b, {}), name) for a, b in pairs}
        some = {pair: differences for pair, differences in some.items() if len(differences) > 2}
        raw = {" ".join(pair): stats.paired_t(differences) for pair, differences in some.items()}
        corrected = stats.holm(raw)
        found = {}
        for (a, b), differences in some.items():
            difference = estimate(differences, self.study.interval)
            assert difference is not None
            key, flips = f"{a} {b}", stats.sign_flips(differences)
            least = stats.detectable(differences)
            found[a, b] = Comparison(a, b, difference, raw[key], flips, corrected[key], least)
        return found

    def fallen(self, rows: Iterable[Row], curve: str = "curve") -> Count:
        """How many of the runs collapsed; those that could not be made do not count."""
        rule = self.study.collapse_of(self.name)
        some = [row for row in rows if row.status != "failed"]
        return sum(collapsed(row, rule, curve) for row in some), len(some)

    @cached_property
    def steadiness(self) -> dict[str, Steadiness]:
        """By arm, tested against the arm that the study names."""
        about = self.study.stability
        assert about is not None
        raw = {}
        counts = {arm: self._counts(arm) for arm in self.main}
        base = self.values(self.main.get(about.against, {}), about.of)
        for arm in self.main:
            if arm == about.against or about.against not in counts:
                continue
            ours = self.values(self.main[arm], about.of)
            shared = sorted(ours.keys() & base.keys())
            if about.spread and len(shared) > 2:
                raw[f"{arm} spread"] = stats.equal_spread(
                    [ours[s] for s in shared], [base[s] for s in shared]
                )
            (a, of_a), (b, of_b) = (
                (x[0] + y[0], x[1] + y[1]) for x, y, _ in (counts[arm], counts[about.against])
            )
            raw[f"{arm} collapsed"] = stats.fisher(a, of_a, b, of_b)
        p = stats.holm(raw)
        found = {}
        for arm, (main, tuning, own) in counts.items():
            one = self.mean(self.main[arm], about.of)
            spread = one.spread if one else math.nan
            found[arm] = Steadiness(
                spread, p.get(f"{arm} spread"), main, tuning, own, p.get(f"{arm} collapsed")
            )
        return found

    def _counts(self, arm: str) -> tuple[Count, Count, Count]:
        main = list(self.main[arm].values())
        tried = [row for rows in self.tried.get(arm, {}).values() for row in rows]
        return self.fallen(main), self.fallen(tried), self.fallen(main, "own")
