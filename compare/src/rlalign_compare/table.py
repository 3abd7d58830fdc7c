"""Runs as a table: one row for the seeds of one pipeline, what can be said of two rows, and what cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

from rlalign.config.outline import declared
from rlalign.records.environment import changed_values
from rlalign_compare import settings
from rlalign_compare.runs import Run, by_prompt
from rlalign_study import stats
from rlalign_study.stats import Estimate

FEWEST = 3
"""Seeds that two rows must share to be tested, as in a study."""
FEWEST_PROMPTS = 6
"""Prompts that must be shared: of five, flipping signs finds nothing below 0.06."""
BUDGETS = {"responses": 1.05, "tokens": 1.25}
"""What rows may have learned from, as a ratio of the larger to the smaller, before it is told."""
WITH_INTERVAL = ("reward", "kl")


@dataclass
class Line:
    """Runs that differ in their seed only."""

    runs: list[Run]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.runs[0].name

    @cached_property
    def counted(self) -> dict[int, Run]:
        """By seed, the runs that figures are means of: of each seed the one that came furthest, if as far as any."""
        furthest: dict[int, Run] = {}
        for run in self.runs:
            there = furthest.get(run.seed)
            if there is None or len(run.training) > len(there.training):
                furthest[run.seed] = run
        most = max(len(run.training) for run in furthest.values())
        return {seed: run for seed, run in sorted(furthest.items()) if len(run.training) == most}

    @property
    def first(self) -> Run:
        return next(iter(self.counted.values()))

    @cached_property
    def figures(self) -> dict[str, Estimate | None]:
        """What is said of the training: means over seeds."""
        runs = self.counted.values()
        of: dict[str, list[float | None]] = {
            "iterations": [float(len(run.training)) for run in runs],
            "reward": [run.reward for run in runs],
            "kl": [run.kl for run in runs],
            "responses": [run.total("responses") for run in runs],
            "tokens": [run.total("tokens") for run in runs],
            "seconds": [run.total("time/iteration", "time/evaluate") for run in runs],
            "memory": [run.memory for run in runs],
        }
        return {name: mean(values) for name, values in of.items()}

    def last(self, metric: str) -> dict[int, float]:
        """By seed, the last evaluation of a metric."""
        found = {seed: run.evaluated(metric) for seed, run in self.counted.items()}
        return {seed: values[-1][1] for seed, values in found.items() if values}

    def start(self, metric: str) -> list[float | None]:
        """What it was before the first iteration, a seed each."""
        found = [run.evaluated(metric) for run in self.counted.values()]
        return [values[0][1] if values and values[0][0] == 0 else None for values in found]

    def best(self, metric: str) -> tuple[str, list[float | None], list[int]]:
        """Which end is good, if that is known; the best of each seed once training had begun, and where that was."""
        better = direction(self.first, metric)
        found = [[one for one in run.evaluated(metric) if one[0] > 0] for run in self.counted.values()]
        if not better or not all(found):
            return better, [], []
        pick = max if better == "higher" else min
        tops = [pick(values, key=lambda one: one[1]) for values in found]
        return better, [value for _, value in tops], [at for at, _ in tops]


def mean(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return stats.estimate(known) if len(known) == len(values) and known else None


def direction(run: Run, metric: str) -> str:
    """`higher`, `lower`, or nothing where it is not known which is better."""
    best = run.pipeline.get("checkpoints") or {}
    said = best.get("best") if isinstance(best, Mapping) else None
    if isinstance(said, Mapping) and metric in said:
        return "higher" if said[metric] == "high" else "lower"
    name = metric.removeprefix("eval/").removeprefix("reward/")
    if metric in ("eval/total", said):
        return "higher"
    for path, one in run.settings.items():
        if settings.without_phase(path) in (f"rewards.{name}", f"evaluate.use.{name}"):
            value = settings.entry_point(str(one.value))
            good = declared(value).attributes.get("higher_is_better", True) if value else None
            return "" if good is None else "higher" if good else "lower"
    return ""


def lines(runs: Sequence[Run]) -> list[Line]:
    """The runs, those of one pipeline and of one data together, in the order they were named."""
    found: list[Line] = []
    for run in runs:
        home = next((line for line in found if _is_same(line.runs[0], run)), None)
        if home is None:
            found.append(Line([run]))
        else:
            home.runs.append(run)
    for line in found:
        line.notes += _of_line(line)
    return found


def _is_same(a: Run, b: Run) -> bool:
    different = [
        p for p in settings.differing(a.settings, b.settings) if p != "seed" and not settings.is_moot(p)
    ]
    return not different and a.lock["data"] == b.lock["data"]


def _of_line(line: Line) -> Iterator[str]:
    """What is to be known of the runs of one row."""
    seeds: dict[int, list[Run]] = {}
    for run in line.runs:
        seeds.setdefault(run.seed, []).append(run)
    counted = list(line.counted.values())
    for seed, some in seeds.items():
        if len(some) > 1:
            names = " and ".join(run.name for run in some)
            told = (
                "the same to the bit"
                if _are_equal(some)
                else "not the same numbers: `rlalign diff` tells since when"
            )
            used = next((run.name for run in some if run in counted), "none")
            yield f"{names} have one seed, {seed}, so they count once ({used}); they are {told}"
    most = len(line.first.training)
    for run in line.runs:
        if run not in counted and len(run.training) < most:
            yield f"{run.name} has come to iteration {len(run.training)} of {most}, so no mean counts it"
        if run.inexact:
            yield f"{run.name} is not what its pipeline alone would make of it: see its inexact.jsonl"
    going = [run for run in line.runs if not run.finished]
    for run in going:
        said = run.standing
        what = f"damaged: {said.why}" if said.state == "damaged" else f"not finished, but {said.state}"
        yield f"{run.name} is {what}, so its last figures are not its end's"
    if other := _elsewhere(line.runs):
        yield f"the seeds of {line.name} were not all run with the same {other}"


def _are_equal(runs: Sequence[Run]) -> bool:
    def numbers(run: Run) -> list[dict[str, Any]]:
        return [{k: repr(x) for k, x in row.items() if not k.startswith("time/")} for row in run.rows]

    return all(numbers(run) == numbers(runs[0]) for run in runs[1:])


def _elsewhere(runs: Sequence[Run]) -> str:
    """Whether code, versions or machines differ, in words."""
    keys = {
        "packages": "versions",
        "python": "versions",
        "plugins": "code",
        "modules": "code",
        "given": "code",
    }
    keys |= {"device": "machine", "dtype": "precision", "threads": "number of threads", "world": "processes"}
    found: dict[str, None] = {}
    for run in runs[1:]:
        for path, was, now in changed_values(runs[0].lock, run.lock):
            top = path.partition(".")[0].partition("[")[0]
            if top in keys and None not in (was, now):
                found[keys[top]] = None
    return " and ".join(found)


# -- two rows --------------------------------------------------------------------------------------------------


@dataclass
class Test:
    """How far one row is above another by one metric."""

    metric: str
    line: int
    against: int
    over: str
    """`seeds` or `prompts`."""
    difference: Estimate
    p: float
    p_holm: float = math.nan
    of: int | None = None
    """Prompts that were evaluated, of which some are stored."""


@dataclass
class Pair:
    """Two rows: what is tested of them, and why something is not."""

    line: int
    against: int
    tests: list[Test] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def pairs(found: Sequence[Line]) -> list[Pair]:
    """Each row against the first; p-values of one metric are corrected by Holm together."""
    made = [_pair(found, i) for i in range(1, len(found))]
    families: dict[tuple[str, str], list[Test]] = {}
    for pair in made:
        for test in pair.tests:
            families.setdefault((test.metric, test.over), []).append(test)
    for tests in families.values():
        corrected = stats.holm({str(test.line): test.p for test in tests})
        for test in tests:
            test.p_holm = corrected[str(test.line)]
    return made


def _pair(found: Sequence[Line], i: int) -> Pair:
    ours, theirs, pair = found[i], found[0], Pair(i, 0)
    both = f"{theirs.name} and {ours.name}"
    if other := _other_questions(ours.first, theirs.first):
        pair.notes.append(f"{both} were evaluated on other data ({other}), so no test compares them")
        return pair
    metrics = [name for name in theirs.first.metrics if name in ours.first.metrics]
    shared = sorted(ours.counted.keys() & theirs.counted.keys())
    if len(shared) >= FEWEST:
        for metric in metrics:
            a, b = ours.last(metric), theirs.last(metric)
            differences = [a[seed] - b[seed] for seed in shared if seed in a and seed in b]
            difference = stats.estimate(differences)
            if len(differences) >= FEWEST and difference is not None and all(map(math.isfinite, differences)):
                p = stats.paired_t(differences)
                pair.tests.append(Test(metric, i, 0, "seeds", difference, p))
    elif min(len(ours.counted), len(theirs.counted)) >= FEWEST:
        pair.notes.append(
            f"{both} share {len(shared)} seeds: a test pairs runs of one seed, and needs {FEWEST}"
        )
    pair.tests += _over_prompts(ours, theirs, i, shared)
    if not pair.tests:
        pair.notes.append(
            f"between {both} nothing can be tested: that needs {FEWEST} shared seeds, or in samples.jsonl "
            f"scores of {FEWEST_PROMPTS} different prompts (`evaluate.show` stores more)"
        )
    elif len(shared) < FEWEST:
        pair.notes.append(
            f"{both} are tested over prompts only: whether other seeds would differ in the same way cannot be told"
        )
    pair.notes += _unlike(ours, theirs)
    return pair


def _over_prompts(ours: Line, theirs: Line, i: int, shared: Sequence[int]) -> Iterator[Test]:
    """Prompt by prompt, where the scores of single prompts are stored: says something of other prompts, not seeds."""
    couples = [(ours.counted[seed], theirs.counted[seed]) for seed in shared] or [(ours.first, theirs.first)]
    by_seed = []
    for a, b in couples:
        x, y = by_prompt(a.shown), by_prompt(b.shown)
        count = min(len(x), len(y))
        if count < FEWEST_PROMPTS or [p for p, _ in x[:count]] != [p for p, _ in y[:count]]:
            return
        by_seed.append([(mine, other) for (_, mine), (_, other) in zip(x[:count], y[:count], strict=True)])
    count = min(map(len, by_seed))
    for name in by_seed[0][0][0]:
        if not all(name in mine and name in other for rows in by_seed for mine, other in rows):
            continue
        differences = [fmean(rows[k][0][name] - rows[k][1][name] for rows in by_seed) for k in range(count)]
        metric = next((m for m in (f"eval/reward/{name}", f"eval/{name}") if m in ours.first.metrics), "")
        difference = stats.estimate(differences)
        if metric and difference is not None and all(map(math.isfinite, differences)):
            of = settings.value_of(ours.first.settings, "evaluate.examples")
            yield Test(metric, i, 0, "prompts", difference, stats.sign_flips(differences), of=of)


def _other_questions(a: Run, b: Run) -> str:
    """What shows that two runs were evaluated on other examples; empty where nothing does."""
    # a digest of what is evaluated ends with how many examples: `task/val[:256]`
    known = [{key: x for key, x in run.lock["data"].items() if "[:" in key} for run in (b, a)]
    if all(known) and known[0] != known[1]:
        names = [", ".join(sorted(one)) for one in known]
        return f"{names[0]} has another digest" if names[0] == names[1] else f"{names[0]} and {names[1]}"
    for path in settings.differing(b.settings, a.settings) if not all(known) else ():
        inner = settings.without_phase(path)
        if inner in ("task", "evaluate.split", "evaluate.examples") or inner.startswith("task."):
            one, other = (run.settings.get(path) for run in (b, a))
            return f"{path}: {_short(one)} and {_short(other)}"
    prompts = [[prompt for prompt, _ in by_prompt(run.shown)] for run in (a, b)]
    count = min(map(len, prompts))
    if prompts[0][:count] != prompts[1][:count]:
        return "their prompts are not the same ones"
    return ""


def _short(one: settings.Setting | None) -> str:
    text = "not said" if one is None else str(one.value)
    return text if len(text) < 60 else f"{text[:57]}…"


def _unlike(ours: Line, theirs: Line) -> Iterator[str]:
    """What makes a difference of two rows say less than it seems to."""
    both = f"{theirs.name} and {ours.name}"
    for name, most in BUDGETS.items():
        a, b = theirs.figures[name], ours.figures[name]
        if a and b and max(a.mean, b.mean) > most * min(a.mean, b.mean):
            told = f"{a.mean:,.0f} and {b.mean:,.0f} {name}"
            yield f"{both} learned from budgets that differ, {told}: a difference may come of that"
            break
    sampled = [
        path
        for path in settings.differing(ours.first.settings, theirs.first.settings)
        if settings.without_phase(path).startswith("evaluate.generation.")
    ]
    if sampled:
        yield f"{both} were sampled otherwise in evaluations: {', '.join(sampled)}"
    signed, also = theirs.first.signatures, ours.first.signatures
    if names := [name for name in signed if name in also and signed[name] != also[name]]:
        yield f"{both} do not mean the same by {', '.join(names)}: see their signatures.jsonl"
    if other := _elsewhere([theirs.first, ours.first]):
        yield f"{both} were not run with the same {other}"


def of_all(found: Sequence[Line]) -> Iterator[str]:
    """What is to be known of several rows: which have one seed; which differ by their data only."""
    if alone := [line.name for line in found if len(line.counted) == 1]:
        names = ", ".join(alone)
        yield (
            f"{names}: one seed{' each' if len(alone) > 1 else ''}, so how far another seed would come out elsewhere "
            "cannot be told; `rlalign run FILE --seed N` makes more"
        )
    for one, another in combinations(found, 2):
        different = settings.differing(one.first.settings, another.first.settings)
        if not [p for p in different if p != "seed" and not settings.is_moot(p)]:
            data = [p for p, was, now in changed_values(one.first.lock["data"], another.first.lock["data"])]
            yield f"{one.name} and {another.name} say the same pipeline, but their data differ ({', '.join(data)})"
