"""One run, in a process of its own: made, read, measured, written down as a row."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rlalign_study import core
from rlalign_study.file import Study
from rlalign_study.plan import PREPARE, Planned, fill
from rlalign_study.rows import BROKE, DONE, FAILED, Row

Logged = Mapping[str, Any]
Curve = dict[str, list[float]]
LOCKED = ("plugins", "modules", "given", "data", "models", "device", "dtype", "threads", "deterministic")
"""What rows that keep each value keep of lock.json."""


@dataclass(frozen=True)
class Done:
    """A run that has ended, for a study's own measures."""

    planned: Planned
    pipeline: Mapping[str, Any]
    folder: Path
    work: Path
    logged: Sequence[Logged]
    """The lines of metrics.jsonl."""


@dataclass(frozen=True)
class Ground:
    """What the runs of a world and seed begin with, for the hook `prepare`: made below `work`."""

    study: Study
    given: Mapping[str, Any]
    world: str
    seed: int
    work: Path

    def measure(self, run: Path, how: dict[str, Any]) -> dict[str, float]:
        """A finished run's policy, measured as those of the study are; `how` changes `evaluate`."""
        return _measured(self.study, self.world, run, how)[0]


def main(study: Study, planned: Planned, work: Path, keep: bool, log: Path) -> None:
    """Make the run and leave its row in a file; what it prints goes to `log`."""
    _end_with(os.getppid())
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            row = made(study, planned, work, keep=keep)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            traceback.print_exc()
            row = failed(planned, f"{type(error).__name__}: {error}")
    left = result_of(log)
    beside = left.with_suffix(".part")
    beside.write_text(row.line, encoding="utf-8")
    beside.replace(left)  # there whole, or not at all


def result_of(log: Path) -> Path:
    return log.with_suffix(".json")


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: a killed study leaves no runs behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def failed(planned: Planned, why: str) -> Row:
    return _row(planned, status=FAILED, why=why, made=_machine(Path.cwd()))


def made(study: Study, planned: Planned, work: Path, *, keep: bool = False) -> Row:
    """The row of a run; its folder is deleted unless it is to be kept."""
    started = time.process_time()
    hooks, about = study.hooks, _machine(study.folder)
    if planned.stage == PREPARE:
        assert hooks.prepare is not None
        ground = Ground(study, planned.given, planned.world, planned.seed, work)
        found = hooks.prepare(ground)
        mark_of(planned, work).parent.mkdir(parents=True, exist_ok=True)
        mark_of(planned, work).write_text(planned.hash)
        return _row(planned, status=DONE, metrics=found | _cost(started), made=about)
    name = planned.key.replace("/", "+")
    shutil.rmtree(work / name, ignore_errors=True)  # of a run that was killed
    pipeline = fill(planned.pipeline, work=work)
    folder, broke = core.train(
        pipeline, study.folder, hooks.components, root=work, name=name, budget=planned.budget
    )
    logged = core.metrics(folder)
    names = study.metrics_of(planned.world)
    curve, own = curves(logged, names)
    metrics = _totals(logged)
    if hooks.of_run is not None:
        metrics |= hooks.of_run(Done(planned, pipeline, folder, work, logged))
    measured: dict[str, Any] = {}
    if broke is None:
        found, measured = _finals(study, planned, folder, curve, logged)
        metrics |= found
        if measured:
            about["lock"] = {key: part for key, part in core.lock(folder).items() if key in LOCKED}
    row = _row(
        planned,
        status=BROKE if broke else DONE,
        why=broke or "",
        metrics=metrics | _cost(started),
        curve=curve,
        own=own,
        measured=measured,
        code=_code(core.lock(folder)),
        made={**about, "packages": core.lock(folder)["packages"], **_signed(folder)},
    )
    if not keep:
        shutil.rmtree(folder)
    return row


def mark_of(planned: Planned, work: Path) -> Path:
    """The file that says what was prepared for a world and seed."""
    return work / ".prepared" / f"{planned.world}-{planned.seed}"


def _row(planned: Planned, **said: Any) -> Row:
    keep = ("stage", "world", "arm", "setting", "seed", "hash", "overrides")
    return Row(**{name: getattr(planned, name) for name in keep}, **said)


# -- what is read off the logs ----------------------------------------------------------------------------


def _evaluates(row: Logged) -> bool:
    return "eval/responses" in row


def curves(logged: Sequence[Logged], names: Mapping[str, str | list[str]]) -> tuple[Curve, Curve]:
    """The evaluations, and the means of what was learned from between them.

    Steps are counted from the first evaluation. Where phases meet, one step is measured twice: the first stands.
    """
    curve: list[dict[str, float]] = []
    own: list[dict[str, float]] = []
    between: list[Logged] = []
    tokens, first = 0, None
    for row in logged:
        if not _evaluates(row):
            if "responses" in row:
                between.append(row)
                tokens += int(row["tokens"])
            continue
        first = row["step"] if first is None else first
        at = {"iteration": row["iteration"], "step": row["step"] - first, "tokens": tokens}
        if between:
            known = [named(one, names, "reward/") for one in between]
            own.append(at | {name: fmean(one[name] for one in known) for name in known[0]})
            between = []
        if not curve or curve[-1]["step"] != at["step"]:
            curve.append(at | named(row, names, "eval/"))
    return _columns(curve), _columns(own)


def named(row: Logged, names: Mapping[str, str | list[str]], prefix: str) -> dict[str, float]:
    """The study's metrics in a line of metrics.jsonl, as far as they are there."""
    found = {}
    for name, keys in names.items():
        values = [row.get(prefix + key, row.get(key)) for key in ([keys] if isinstance(keys, str) else keys)]
        if None not in values:
            found[name] = fmean(map(float, values))
    return found


def _columns(points: Sequence[Mapping[str, float]]) -> Curve:
    shared = [key for key in points[0] if all(key in at for at in points)] if points else []
    return {key: [at[key] for at in points] for key in shared}


def _totals(logged: Sequence[Logged]) -> dict[str, float]:
    keys = {"responses": "responses", "tokens": "tokens", "optimiser_steps": "steps"}
    trained = [row for row in logged if "responses" in row]
    return {name: sum(row.get(key, 0) for row in trained) for key, name in keys.items()}


def _offset(logged: Sequence[Logged]) -> int:
    """The step of the first evaluation: that of a curve's start."""
    return next((int(row["step"]) for row in logged if _evaluates(row)), 0)


def _finals(
    study: Study, planned: Planned, run: Path, curve: Curve, logged: Sequence[Logged]
) -> tuple[dict[str, float], dict[str, Any]]:
    """A finished run measured once more: at its end, then where it was best, which deletes what came later.

    Figures of all measurements, and what is kept of those that keep each value.
    """
    found: dict[str, float] = {}
    kept: dict[str, Any] = {}
    known: dict[str, tuple[dict[str, float], dict[str, Any]]] = {}
    offset = _offset(logged)
    for name in sorted(planned.final, key=lambda name: study.final[name].at is not None):
        asked, about = planned.final[name], study.final[name]
        step = float(logged[-1]["step"] - offset) if curve else 0
        if about.at is not None:
            step = _best(planned, run, curve, about.at, offset)
        what = json.dumps([step, asked, about.each])
        if what not in known:
            figures, values = _measured(study, planned.world, run, asked, each=about.each)
            known[what] = {"step": step, **figures}, values
        figures, values = known[what]
        found |= {f"{name}.{key}": value for key, value in figures.items()}
        if about.each:
            kept[name] = {**values, "tokens": int(_totals(logged)["tokens"])}
    return found, kept


def _best(planned: Planned, run: Path, curve: Curve, by: str, offset: int) -> float:
    """The step whose evaluation was best, the start apart; the run goes back to its checkpoint."""
    there = core.steps_of_checkpoints(run)
    able = [i for i, step in enumerate(curve.get("step", [])) if i > 0 and step + offset in there]
    if not able:
        raise core.ConfigError(
            f"{planned.key}: no checkpoint stands where `{by}` was measured; say "
            "`checkpoints: {every: …, last: …}` in the pipeline so that one stands at each evaluation, and all are kept"
        )
    step = curve["step"][max(able, key=lambda i: curve[by][i])]
    if step != curve["step"][-1]:
        core.go_back(run, there[int(step + offset)])
    return step


def _measured(
    study: Study, world: str, run: Path, how: dict[str, Any], *, each: bool = False
) -> tuple[dict[str, float], dict[str, Any]]:
    """The study's metrics of a run; of each example, if that is asked, with what tells the examples."""
    hooks, names = study.hooks, study.metrics_of(world)
    if hooks.of_samples is not None:
        return hooks.of_samples(core.sampled(run, how, hooks.components)), {}
    if not each:
        return named(core.evaluated(run, how, hooks.components), names, "eval/"), {}
    figures, values, examples = core.evaluated_by_example(run, how, hooks.components)
    found, per_example = named(figures, names, "eval/"), by_example(values, names)
    found |= {name: math.fsum(some) / len(some) for name, some in per_example.items()}
    count = max(map(len, values.values()), default=0)
    about = {"names": names, "examples": count, "examples_hash": examples}
    return found, {"metrics": found, "per_example": per_example, **about}


def by_example(
    values: Mapping[str, Sequence[float]], names: Mapping[str, str | list[str]]
) -> dict[str, list[float]]:
    """The study's metrics, one value an example, as far as there are such values."""
    found = {}
    for name, said in names.items():
        keys = [f"eval/{key}" for key in ([said] if isinstance(said, str) else said)]
        if all(key in values for key in keys):
            found[name] = [fmean(each) for each in zip(*(values[key] for key in keys), strict=True)]
    return found


# -- what it was made with --------------------------------------------------------------------------------


def _cost(started: float) -> dict[str, float]:
    """Processor time, and the most memory at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(time.process_time() - started, 1), "memory_gb": round(peak / 1e9, 2)}


def _signed(run: Path) -> dict[str, Any]:
    """What its figures depend on, where they say so."""
    found = core.signatures(run)
    return {"signatures": found} if found else {}


def _code(lock: Mapping[str, Any]) -> dict[str, str]:
    """What can change a number; hashes of the plugins' code are cut short."""
    plugins = {name: about["code"][:8] for name, about in lock["plugins"].items()}
    return {"torch": lock["packages"]["torch"], "device": lock["device"]["model"], **plugins}


def _machine(folder: Path) -> dict[str, Any]:
    commit = ""
    with contextlib.suppress(OSError):
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "machine": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rlalign": importlib.metadata.version("rlalign"),
        "rlalign-study": importlib.metadata.version("rlalign-study"),
    }
