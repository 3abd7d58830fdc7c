"""Everything a page shows, as plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rlalign.data.limits import in_words
from rlalign.records.listing import FIGURES
from rlalign_report import alarms, charts, compare, names
from rlalign_report.alarms import Alarm
from rlalign_report.curves import plain
from rlalign_report.run import Curve, Run, number
from rlalign_report.samples import BYTES, Shown

Tree = dict[str, Any]
STAGES = ("rollout", "score", "reward", "advantage", "update")
HASH, TOLD = 16, 200
"""Characters of a hash that are shown, and of what a task says of its data."""


def page_data(runs: Sequence[Run], *, live: bool = False) -> Tree:
    """The values of a page about these runs."""
    found = compare.groups(runs)
    several = len(runs) > 1
    axes, sections, limits = charts.charts_of(runs, found)
    return {
        "title": " · ".join(group.name for group in found),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": version("rlalign"),
        "live": live,
        "runs": [_run(run, BYTES // len(runs)) for run in runs],
        "groups": [{"name": group.name, "runs": list(group.runs)} for group in found],
        "differences": [list(one) for one in compare.differences(runs, found)] if several else [],
        "comparison": [_rounded(line) for line in compare.table(runs, found)] if several else [],
        "axes": axes,
        "sections": sections,
        "limits": limits,
    }


# -- one run ----------------------------------------------------------------------------------------------


def _run(run: Run, budget: int) -> Tree:
    pipeline = _mapping(run.lock.get("pipeline"))
    done = len(run.training.rows)
    logs = [log for log in (run.samples, run.learned) if log.evaluations]
    shown, learned = (Shown(log, budget // max(1, len(logs))) for log in (run.samples, run.learned))
    place = run.training.places[-1] if run.training.places else (0.0, 0.0, 0.0, 0.0)
    return {
        "name": run.name,
        "state": run.state,
        "ended": _ended(run),
        "algorithm": _said(pipeline, "algorithm"),
        "task": _said(pipeline, "task"),
        "policy": _said(pipeline, "policy"),
        "seed": run.lock.get("seed"),
        "iterations": done,
        "planned": _planned(pipeline),
        "steps": place[1],
        "tokens": place[2],
        "seconds": plain(max(place[3], run.evaluations.places[-1][3] if run.evaluations.places else 0.0)),
        "best": best(run),
        "figures": _figures(run),
        "phases": [[name, at] for name, at in run.phases],
        "alarms": [vars(alarm) for alarm in alarms_of(run)],
        "notes": run.notes,
        "times": _times(run),
        "samples": {**_samples(run, shown), "pairs": [_rounded(pair) for pair in shown.pairs()]},
        "learned": _samples(run, learned),
        "provenance": [*_provenance(run), *_costs(run)],
        "pipeline": run.pipeline,
    }


def _ended(run: Run) -> str:
    done = len(run.training.rows)
    return {
        "waiting": "has not begun: there is no such run yet",
        "running": f"is running, at iteration {done}",
        "stopped": f"stopped after iteration {done}: no process writes it, and it can be resumed",
        "finished": f"finished after {done} iterations",
    }[run.state]


def _said(pipeline: Mapping[str, Any], key: str) -> str:
    """The names of components at a place of the pipeline and of its phases."""
    phases = [p for p in pipeline.get("phases") or [] if isinstance(p, Mapping)]
    found = [name for part in (pipeline, *phases) for name in _components(part.get(key))]
    return ", ".join(dict.fromkeys(found))


def _components(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return list(map(str, value))
    return [name for part in value for name in _components(part)] if isinstance(value, list) else []


def _planned(pipeline: Mapping[str, Any]) -> int | None:
    """How many iterations there will be, where the pipeline says it plainly."""
    planned = _mapping(pipeline.get("train")).get("iterations")
    return planned if isinstance(planned, int) and "phases" not in pipeline else None


def best(run: Run) -> Tree | None:
    """The best evaluation: by `checkpoints.best` where the pipeline says it, else the highest reward or first score.

    The evaluation before the first iteration counts only where there is no other.
    """
    asked = _mapping(_mapping(run.lock.get("pipeline")).get("checkpoints")).get("best")
    name, end = next(iter(asked.items())) if isinstance(asked, Mapping) and asked else (asked, "high")
    series = run.evaluations.series(name) if isinstance(name, str) else []
    if not series:
        known = run.evaluations.names()
        name = next((one for one in (FIGURES[0], *_scores(run)) if one in known), None)
        series, end = (run.evaluations.series(name), "high") if name else ([], end)
    series = [at for at in series if at[0] > 0] or series
    if not series:
        return None
    sign = -1 if end == "low" else 1
    at, value = max(series, key=lambda one: sign * one[1])
    return {
        "name": name,
        "value": plain(value),
        "at": at,
        "first": plain(run.evaluations.series(str(name))[0][1]),
        "end": end,
    }


def _figures(run: Run) -> list[Tree]:
    """Of each evaluated figure the first value, the last, the least and the greatest."""
    found = []
    for name in run.evaluations.names():
        series = run.evaluations.series(name)
        if not name.startswith("eval/") or not series:
            continue
        low, high = min(series, key=lambda at: at[1]), max(series, key=lambda at: at[1])
        found.append(
            {
                "name": name,
                "about": names.about(name) or names.about(name.removeprefix("eval/")),
                "first": plain(series[0][1]),
                "last": plain(series[-1][1]),
                "low": [plain(low[1]), low[0]],
                "high": [plain(high[1]), high[0]],
            }
        )
    return found


def alarms_of(run: Run) -> list[Alarm]:
    """What went wrong, in the run's last phase; figures that are not finite anywhere."""
    start = run.phases[-1][1] if run.phases else 0

    def training(name: str) -> list[tuple[float, float]]:
        return [at for at in run.training.series(name) if at[0] > start]

    logged = run.training.names()
    found = [
        *(
            alarms.reward_against(
                training("reward/total"),
                [at for at in run.evaluations.series(name) if at[0] >= start],
                name,
            )
            for name in _scores(run)
        ),
        *(alarms.kl_runaway(training(name), name) for name in logged if name.endswith("/k1")),
        *(alarms.entropy_collapse(training(name), name) for name in logged if name.endswith("entropy")),
        alarms.length_drift(training("length")),
    ]
    evaluated = run.samples.evaluations
    if evaluated:
        found.append(
            alarms.duplicates(run.samples.repeated(evaluated[0]), run.samples.repeated(evaluated[-1]))
        )
    counts: dict[str, int] = {}
    for row in (*run.training.rows, *run.evaluations.rows):
        for name, value in row.items():
            if isinstance(value, str | float) and not math.isfinite(number(value)) and name != "phase":
                counts[name] = counts.get(name, 0) + 1
    found.append(alarms.not_finite(counts))
    return [alarm for alarm in found if alarm is not None]


def _scores(run: Run) -> list[str]:
    """Evaluated scores, of which more is better: the trained reward, counts and prices on a KL apart."""
    logged = set(run.training.names())
    apart = {"total", "responses", "tokens", "length", "finished"}
    short = [name.removeprefix("eval/") for name in run.evaluations.names() if name.startswith("eval/")]
    kept = [name for name in short if name not in apart and "/" not in name.removeprefix("reward/")]
    return [f"eval/{name}" for name in kept if f"{name}/k1" not in logged and f"{name}/k1" not in short]


def _times(run: Run) -> list[list[Any]]:
    """Seconds of all iterations by stage, and of evaluations."""

    def total(curve: Curve, name: str) -> float:
        return math.fsum(y for _, y in curve.series(name))

    found = {stage: total(run.training, f"time/{stage}") for stage in STAGES}
    rest = total(run.training, "time/iteration") - sum(found.values())
    found |= {"other": max(0.0, rest), "evaluate": total(run.evaluations, "time/evaluate")}
    return [[stage, plain(seconds)] for stage, seconds in found.items() if seconds > 0]


def _samples(run: Run, shown: Shown) -> Tree:
    before = dict(run.phases)

    def at(phase: str, repeat: int, iteration: int) -> int:
        named = f"{phase}, pass {repeat + 1}" if repeat else phase
        return before.get(named, 0) + iteration

    return {
        "evaluations": [
            {"phase": name[0], "at": at(*name), "rows": [_rounded(row) for row in rows]}
            for name, rows in shown.evaluations
        ],
        "prompts": shown.prompts,
        "parts": shown.parts,
        "steps": shown.steps,
        "left_out": shown.left_out,
    }


def _provenance(run: Run) -> list[Tree]:
    """What the run's numbers depend on, as its lock says it."""
    lock = run.lock
    if not lock:
        return []
    device = _mapping(lock.get("device"))
    world = _mapping(lock.get("world"))
    where = {
        "seed": lock.get("seed"),
        "python": lock.get("python"),
        "platform": lock.get("platform"),
        "device": " · ".join(str(one) for one in device.values() if one),
        "precision": lock.get("dtype"),
        "threads": lock.get("threads"),
        "deterministic": lock.get("deterministic"),
        **{f"processes: {key}": value for key, value in world.items()},
        "folder": str(run.folder),
    }
    plugins = {
        name: f"{_mapping(about).get('version')} · {_short(_mapping(about).get('code'))}"
        for name, about in _mapping(lock.get("plugins")).items()
    }
    changes = [one for one in lock.get("changes") or [] if isinstance(one, Mapping)]
    told = {
        f"checkpoint {one.get('checkpoint')}": ", ".join(
            f"{value.get('key')}: {value.get('from')} → {value.get('to')}"
            for value in one.get("values") or []
            if isinstance(value, Mapping)
        )
        for one in changes
    }
    parts = {
        "Run": where,
        "Data": {name: _short(value) for name, value in _mapping(lock.get("data")).items()},
        "Models": {name: _short(value) for name, value in _mapping(lock.get("models")).items()},
        "Plugins, and a hash of their code": plugins,
        "Packages": _mapping(lock.get("packages")),
        "Changed on the way": told,
    }
    return [
        {"title": title, "rows": [[name, str(value)] for name, value in rows.items() if value is not None]}
        for title, rows in parts.items()
        if rows
    ]


def _short(value: Any) -> str:
    """A hash by its first characters, words as they stand."""
    text = str(value)
    if re.fullmatch("[0-9a-f]{32,}", text):
        return text[:HASH]
    return text if len(text) <= TOLD else f"{text[:TOLD]}…"


def _costs(run: Run) -> list[Tree]:
    """What an iteration of each phase took; in brackets what was estimated before the first."""
    parts = []
    for phase, one in run.costs.items():
        took, guess, unit = (_mapping(one).get(key) for key in ("measured", "estimated", "unit"))
        rows = []
        for name in _mapping(took):
            figures = [number(_mapping(each).get(name)) for each in (took, guess)]
            if not all(map(math.isfinite, figures)):
                continue
            if name == "memory":
                rows.append(["memory at most", "{} ({})".format(*map(in_words, figures))])
            else:
                rows.append([f"{name}, {unit}", "{:.3g} ({:.3g})".format(*figures)])
        if rows:
            parts.append({"title": f"An iteration of {phase} took (estimated)", "rows": rows})
    return parts


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rounded(value: Any) -> Any:
    """The same with numbers as a page shows them; what JSON has no number for is None."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
