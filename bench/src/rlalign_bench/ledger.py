"""The entries of a suite: those of its own runs, and those that were sent in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlalign_bench import entry
from rlalign_bench.entry import Entry, Provenance
from rlalign_bench.suite import Suite, from_start
from rlalign_study import plan
from rlalign_study.analysis import Found
from rlalign_study.core import ITEM_KEYS, ConfigError
from rlalign_study.plan import Planned
from rlalign_study.rows import DONE, Results, Row

HARDWARE = ("platform", "cores", "python")
LOCKED = ("device", "dtype", "threads", "deterministic")
SAME = ("split", "examples", "use", "generation")
"""What a run may not say otherwise of its evaluation than the suite does."""
OVER = 1.25
"""By how much the last iteration of somebody's run may exceed the suite's budget of tokens."""


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
        wrong = list[str]()
        for place, one in sent_in(folder):
            wrong += [
                f"{place}: {one.key}: {text}" for text in misfits(suite, one)
            ]  # the suite may have changed
            ours = known.get(one.key)
            if ours is None or _numbers(ours) != _numbers(one):  # else the same run: it counts once
                placed.append((place, one))
        if wrong := wrong or entry.conflicts(placed):
            raise ConfigError(entry.shown("\n".join(wrong)) + f"\ndelete what should not count from {folder}")
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
        raise ConfigError(entry.shown("\n".join(wrong)))
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
    made, found = one.provenance, list[str]()
    for what, ours, theirs in (
        ("metrics", suite.metrics_of(one.task), made.names),
        ("final measurement", suite.measurement_of(one.task), made.evaluate),
        ("budget", suite.budget_of(one.task), made.budget),
    ):
        if entry.sha256(ours) != entry.sha256(theirs):
            found.append(f"its {what} is {dict(theirs)}, and the suite's {dict(ours)}")
    names = suite.metrics_of(one.task)
    try:
        theirs, comparable = _terms(made.pipeline, names), from_start(made.pipeline)
    except (AttributeError, KeyError, TypeError):
        return [
            *found,
            "its pipeline is none: `phases`, `models` or `evaluate` in it are no lists and mappings",
        ]
    planned = _planned(suite, one.task)
    allowed = [_terms(p.pipeline, names) for p in planned]
    if theirs not in allowed:
        differ = [key for key in theirs if theirs[key] != allowed[0].get(key)]
        found.append(
            f"its pipeline has another {', '.join(differ)} than the suite's: on a leaderboard every run begins with "
            "the same policy, and is evaluated in the same way"
        )
    own = any(
        (p.arm, p.seed) == (one.algorithm, one.seed)
        and entry.sha256(p.pipeline) == entry.sha256(made.pipeline)
        for p in planned
    )
    known = sorted({p.seed for p in planned})
    if one.algorithm in suite.arms and one.seed in known and not own:
        found.append(
            f"its pipeline is not that of the suite's `{one.algorithm}`; another algorithm, or other settings, "
            "need a name of their own"
        )
    if one.seed not in known:
        found.append(
            f"its seed is {one.seed}, and the suite's are {', '.join(map(str, known))}: whoever picks seeds could "
            "pick the lucky ones"
        )
    most = made.budget.get("tokens", math.inf)
    if one.tokens > OVER * most and not own:
        found.append(
            f"it used {one.tokens} tokens, and the budget is {most:g}: an iteration so large is a way around it"
        )
    score = suite.bench.scores[one.task].metric
    if score not in one.metrics or not one.metrics.keys() <= made.names.keys():
        found.append(
            f"its metrics are {', '.join(one.metrics)}, and `{score}` must be among them, and none that it does "
            "not name"
        )
    if one.seed != made.pipeline.get("seed"):
        found.append(f"its pipeline has the seed {made.pipeline.get('seed')}")
    if suite.bench.kl and not comparable:
        found.append(
            "its KL is to the model that its last phase began with; say `models: {reference: {of: start}}`"
        )
    if suite.bench.kl and one.kl != one.metrics.get(suite.bench.kl):
        found.append(f"`kl` is {one.kl}, and its metric `{suite.bench.kl}` {one.metrics.get(suite.bench.kl)}")
    return found


def _planned(suite: Suite, task: str) -> list[Planned]:
    """What the suite's own algorithms run on a task, with every setting that may be chosen."""
    return [
        one
        for arm in suite.arms_of(task)
        for setting in plan.settings(suite, task, arm)
        for one in plan.main(suite, task, {arm: setting})
    ]


def _terms(pipeline: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for every run of a task: of the last phase, as it is the one that is measured."""
    last = (pipeline.get("phases") or [{}])[-1]
    rewards = [*_listed(last.get("rewards")), *_listed(pipeline.get("rewards"))]
    evaluate = {**(pipeline.get("evaluate") or {}), **(last.get("evaluate") or {})}
    models = {**(pipeline.get("models") or {}), **(last.get("models") or {})}
    return {
        "policy": pipeline.get("policy"),
        "models.reference": models.get("reference"),
        "task": last.get("task", pipeline.get("task")),
        "rewards": _measured(rewards, evaluate.get("use"), names),
        **{f"evaluate.{key}": evaluate.get(key) for key in SAME},
    }


def _measured(rewards: list[Any], use: Any, names: Mapping[str, Any]) -> list[Any] | None:
    """The rewards of a pipeline where its evaluation names one of them, as what is measured then hangs on them.

    Wrappers change the scores of others, so all of them count; but for a `kl`, which algorithms may weigh as they
    like, unless its price is measured.
    """
    asked = {_name(item) for item in _listed(use)}
    if use is not None and asked.isdisjoint(map(_name, rewards)):
        return None
    means = {name.removeprefix("reward/") for said in names.values() for name in _listed(said)}
    return [item for item in rewards if not _is_kl(item) or means & {"total", _name(item)}]


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [] if said is None else [said]


def _is_kl(item: Any) -> bool:
    return item == "kl" or (isinstance(item, Mapping) and "kl" in item)


def _name(item: Any) -> str:
    """What a reward is called: by `as`, else by its component."""
    if isinstance(item, Mapping):
        item = item.get("as") or next((key for key in item if key not in ITEM_KEYS), "")
    return str(item).rpartition(":")[2]
