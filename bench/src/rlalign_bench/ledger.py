"""The entries of a suite: those of its own runs, and those that were sent in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlalign_bench import entry
from rlalign_bench.entry import Entry, Provenance
from rlalign_bench.suite import Suite
from rlalign_study import plan
from rlalign_study.analysis import Found
from rlalign_study.core import ConfigError
from rlalign_study.plan import Planned
from rlalign_study.rows import DONE, Results, Row

HARDWARE = ("platform", "cores", "python")
LOCKED = ("device", "dtype", "threads", "deterministic")
SAME = ("split", "examples", "use", "generation")
"""What a run may not say otherwise of its evaluation than the suite does."""


@dataclass(frozen=True)
class Ledger:
    """All that a leaderboard is made of: entries, and what is missing."""

    suite: Suite
    entries: list[Entry]
    """By task, algorithm and seed, in the suite's order; then those of algorithms that only others ran."""
    missing: list[str]
    """What the suite plans and no entry stands for: `TASK/ALGORITHM/SEED: why`."""

    @classmethod
    def read(cls, suite: Suite, folder: Path) -> Ledger:
        """What lies in a folder of results."""
        own, missing = _own(suite, folder)
        placed = [(f"run {one.key}", one) for one in own]
        known = {one.key: one for one in own}
        for place, one in sent_in(folder):
            ours = known.get(one.key)
            if ours is None or _numbers(ours) != _numbers(one):  # else the same run: it counts once
                placed.append((place, one))
        if wrong := entry.conflicts(placed):
            raise ConfigError("\n".join(wrong) + f"\ndelete what should not count from {folder}")
        tasks, algorithms = suite.tasks, suite.algorithms

        def order(one: Entry) -> tuple[int, int, str, int]:
            known = one.algorithm in algorithms
            place = algorithms.index(one.algorithm) if known else len(algorithms)
            return tasks.index(one.task), place, one.algorithm, one.seed

        entries = sorted((one for _, one in placed), key=order)
        there = {one.key for one in entries}
        return cls(suite, entries, [f"{key}: {why}" for key, why in missing.items() if key not in there])


def _numbers(one: Entry) -> Any:
    return one.metrics, one.per_example, one.provenance.hash


def sent_in(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Entries that were taken in, each with its file."""
    for path in sorted((folder / "entries").glob("*.jsonl")):
        for one in entry.read(path):
            yield f"{path.parent.name}/{path.name}", one


# -- of its own runs --------------------------------------------------------------------------------------


def planned_of(suite: Suite, results: Results) -> list[Planned]:
    """The reported runs of a suite, as far as settings are chosen."""
    return [one for task in suite.tasks for one in Found(suite, task, results).planned]


def _own(suite: Suite, folder: Path) -> tuple[list[Entry], dict[str, str]]:
    results = Results.read(folder)
    missing = {
        f"{task}/{arm}": "no setting is chosen yet" for task in suite.tasks for arm in suite.arms_of(task)
    }
    found = []
    for one in planned_of(suite, results):
        missing.pop(f"{one.world}/{one.arm}", None)
        row = results.rows.get((one.key, one.hash))
        if row is not None and row.status == DONE:
            found.append(entry_of(suite, one, row))
        else:
            key = f"{one.world}/{one.arm}/{one.seed}"
            missing[key] = "not run yet" if row is None else f"{row.status}: {row.why}"
    return found, missing


def entry_of(suite: Suite, planned: Planned, row: Row) -> Entry:
    """A finished run as an entry."""
    kept, made = row.measured[suite.bench.final], row.made
    lock: Mapping[str, Any] = made["lock"]
    plugins = {
        name: {"version": about["version"], "code": about["code"]} for name, about in lock["plugins"].items()
    }
    about = Provenance(
        pipeline=planned.pipeline,
        evaluate=planned.final[suite.bench.final],
        names=kept["names"],
        budget=planned.budget,
        overrides=planned.overrides,
        examples=kept["examples"],
        examples_hash=kept["examples_hash"],
        data=lock["data"],
        models=lock["models"],
        plugins=plugins,
        modules={**lock["modules"], **{name: given["code"] for name, given in lock["given"].items()}},
        packages=made["packages"],
        hardware={key: made[key] for key in HARDWARE} | {key: lock[key] for key in LOCKED},
        date=made["date"],
        commit=made["commit"],
    )
    metrics: Mapping[str, float] = kept["metrics"]
    return Entry(
        suite=suite.name,
        task=planned.world,
        algorithm=planned.arm,
        seed=planned.seed,
        metrics=metrics,
        per_example=kept["per_example"],
        kl=metrics.get(suite.bench.kl) if suite.bench.kl else None,
        tokens=kept["tokens"],
        seconds=row.metrics["seconds"],
        provenance=replace(about, hash=about.what),
    )


# -- sent out, and taken in -------------------------------------------------------------------------------


def export(ledger: Ledger, file: Path) -> int:
    """Write all entries into one file that can be sent to anyone; how many they are."""
    if not ledger.entries:
        raise ConfigError(f"{ledger.suite.name}: no run is done, so there is nothing to export")
    if file.exists():
        raise ConfigError(f"{file}: exists; move it away, or choose another name")
    entry.write(file, ledger.entries)
    return len(ledger.entries)


def add(suite: Suite, folder: Path, file: Path) -> list[Entry]:
    """Take in a file of entries, all of them or none; those that are new."""
    taken = entry.read(file)
    wrong = [f"{file}: {one.key}: {text}" for one in taken for text in misfits(suite, one)]
    ledger = Ledger.read(suite, folder)
    there = {one.key: one for one in ledger.entries}
    new = [one for one in taken if one.key not in there or _numbers(there[one.key]) != _numbers(one)]
    wrong += entry.conflicts(
        [*(("the leaderboard", one) for one in ledger.entries), *((str(file), one) for one in new)]
    )
    if wrong:
        raise ConfigError("\n".join(wrong))
    target = folder / "entries" / f"{file.stem}.jsonl"
    if new and target.exists():
        raise ConfigError(f"{target}: exists; give {file} another name, by which its entries shall be known")
    if new:
        entry.write(target, new)
    return new


def misfits(suite: Suite, one: Entry) -> list[str]:
    """Why an entry is none of this suite: another task, evaluation, budget or policy to begin with."""
    if one.suite != suite.name:
        return [f"is of the suite `{one.suite}`, and this one is `{suite.name}`"]
    if one.task not in suite.worlds:
        return [f"there is no task `{one.task}`; the tasks are {', '.join(suite.tasks)}"]
    made, found = one.provenance, []
    for what, ours, theirs in (
        ("metrics", suite.metrics_of(one.task), made.names),
        ("final measurement", suite.measurement_of(one.task), made.evaluate),
        ("budget", suite.budget_of(one.task), made.budget),
    ):
        if entry.sha256(ours) != entry.sha256(theirs):
            found.append(f"its {what} is {dict(theirs)}, and the suite's {dict(ours)}")
    theirs = _terms(made.pipeline)
    allowed = [_terms(pipeline) for pipeline in _pipelines(suite, one.task)]
    if theirs not in allowed:
        differ = [key for key in theirs if theirs[key] != allowed[0].get(key)]
        found.append(
            f"its pipeline has another {', '.join(differ)} than the suite's: on a leaderboard every run begins with "
            "the same policy, and is evaluated in the same way"
        )
    if one.seed != made.pipeline.get("seed"):
        found.append(f"its pipeline has the seed {made.pipeline.get('seed')}")
    if suite.bench.kl and one.kl != one.metrics.get(suite.bench.kl):
        found.append(f"`kl` is {one.kl}, and its metric `{suite.bench.kl}` {one.metrics.get(suite.bench.kl)}")
    return found


def _pipelines(suite: Suite, task: str) -> Iterator[dict[str, Any]]:
    """What the suite's own algorithms run on a task."""
    chosen = {arm: plan.settings(suite, task, arm)[0] for arm in suite.arms_of(task)}
    for one in plan.main(suite, task, chosen):
        yield one.pipeline


def _terms(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for every run of a task: of the last phase, as it is the one that is measured."""
    phases = pipeline.get("phases") or [{}]
    last = phases[-1] if isinstance(phases, list) else list(phases.values())[-1]
    evaluate = {**(pipeline.get("evaluate") or {}), **(last.get("evaluate") or {})}
    return {
        "policy": pipeline.get("policy"),
        "task": last.get("task", pipeline.get("task")),
        **{f"evaluate.{key}": evaluate.get(key) for key in SAME},
    }
