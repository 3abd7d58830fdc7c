"""Logs and references, then runs: each in a process of its own, measured at its end and at its best."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import processes
from benchmarks.offline import logs, measures, plan
from benchmarks.offline.limits import AtMost, Ending
from benchmarks.offline.measures import End, Prepared, Record

from rlalign import ComponentError
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.records import checkpoint
from rlalign.records import logs as run_logs
from rlalign.running import loop
from rlalign.running.display import PlainDisplay
from rlalign.running.opening import open_run

IMPORTED = (
    "rlalign_plugin_a_lol",
    "rlalign_plugin_dataset",
    "rlalign_plugin_hf",
    "rlalign_plugin_imitation",
    "rlalign_plugin_preference",
    "rlalign_plugin_toy_tasks",
    "transformers.models.gpt2.modeling_gpt2",
)
"""What runs would import each by itself."""


# -- logs and references --------------------------------------------------------------------------------------


def ready(ground: plan.Ground, work: Path) -> bool:
    """Whether log and reference lie there, made as the plan says now."""
    mark = _mark(ground, work)
    return mark.exists() and mark.read_text() == ground.digest


def _mark(ground: plan.Ground, work: Path) -> Path:
    return work / "references" / ground.name / "digest"


def prepared(ground: plan.Ground, work: Path) -> Prepared:
    """Write the log, clone it, and measure both."""
    started = time.process_time()
    reference = work / "references" / ground.name
    shutil.rmtree(reference, ignore_errors=True)
    logs.written(ground.log, ground.seed, work / "logs" / ground.name)
    pipeline = plan.clone(ground.log, ground.seed)
    measured = {"split": "test", **plan.EVALUATE}
    folder, broke = _made({**pipeline, "evaluate": measured}, work, ground.key)
    if broke is not None:
        raise RuntimeError(f"{ground.key}: {broke}")
    end = _end(folder, "test", 0)
    shutil.copytree(folder / "model", reference)
    shutil.rmtree(folder)
    _mark(ground, work).write_text(ground.digest)
    kinds = _kinds(work / "logs" / ground.name / "train.jsonl")
    return Prepared(ground.key, ground.digest, round(time.process_time() - started, 1), kinds, end)


def _kinds(path: Path) -> dict[str, tuple[int, float, float]]:
    """Of each kind of response, and of all: how many, their mean score, and the share that is grammatical."""
    found: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        for kind, score in zip(row["meta"]["kinds"], row["scores"], strict=True):
            found.setdefault(kind, []).append(score)
            found.setdefault("all", []).append(score)
    return {
        kind: (len(scores), round(fmean(scores), 4), round(fmean(score > 0 for score in scores), 4))
        for kind, scores in sorted(found.items())
    }


# -- a run ----------------------------------------------------------------------------------------------------


def measured(planned: plan.Planned, work: Path, *, keep: bool) -> Record:
    """Run it, read its curve, measure where it ended and where it was best; delete its folder unless asked not to."""
    started = time.process_time()
    pipeline = planned.pipeline
    folder, broke = _made(pipeline, work, planned.key)
    rows = list(run_logs.read(folder / "metrics.jsonl"))
    curve = measures.curve(rows)
    last = best = None
    if broke is None:
        last = _end(folder, planned.split, curve[-1].step)
        if planned.stage == "main":
            best = _best(folder, planned.split, curve, last)
    trained = [row for row in rows if "responses" in row]
    sampled = [row for row in trained if _is_sampled(pipeline, row)]
    responses, discarded = used(pipeline, trained, folder, work)
    record = Record(
        run=planned.key,
        digest=planned.digest,
        seconds=round(time.process_time() - started, 1),
        steps=int(sum(row.get("optimiser_steps", 0) for row in trained if row["phase"] != "value")),
        responses=responses,
        sampled=int(sum(row["responses"] for row in sampled)),
        tokens=int(sum(row["tokens"] for row in sampled)),
        discarded=round(discarded, 4),
        code=processes.made_with(json.loads((folder / "lock.json").read_text())),
        curve=tuple(curve),
        last=last,
        best=best,
        broke=broke,
    )
    if not keep:
        shutil.rmtree(folder)
    return record


def _registry() -> Registry:
    return Registry({"ending": Ending, "at-most": AtMost})


def _made(pipeline: Mapping[str, Any], work: Path, key: str) -> tuple[Path, str | None]:
    """Run a pipeline whose paths begin in `work`; its folder, and why it broke off if it did."""
    folder = processes.folder_of(work, key)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    registry = _registry()
    with Path(os.devnull).open("w") as nowhere:
        read = load_pipeline(work / "pipeline.yaml", registry=registry, text=json.dumps(pipeline))
        session = loop.start(read, registry, root=work, name=folder.name, display=PlainDisplay(nowhere))
        try:
            session.run()
        except ComponentError as error:
            if "not finite" not in str(error):
                raise
            return folder, str(error).replace(str(folder), folder.name)
    return folder, None


def _end(folder: Path, split: str, step: int) -> End:
    """The policy of a run's last commit point on more responses than its curve has."""
    asked = {"evaluate": {"split": split, "examples": plan.FINAL["examples"]}}
    how = [f"evaluate.generation.samples={plan.FINAL['samples']}"]
    return measures.end(open_run(folder, asked, how, registry=_registry()).ready().rows(), step)


def _best(folder: Path, split: str, curve: Sequence[measures.Point], last: End) -> End:
    """The same at the commit point of highest reward on `val`, the start apart. Later ones are deleted."""
    there = folder / "checkpoints"
    steps = {i: int(checkpoint.read(there, i).loop["phase"]["step"]) for i in checkpoint.find(there)}
    before = max(steps.values()) - last.step  # a value's
    points = {step - before: i for i, step in steps.items()}
    able = [at for at in curve[1:] if at.step in points]
    step = max(able, key=lambda at: at.reward).step
    if step == last.step:
        return last
    checkpoint.settle(there, points[step])
    return _end(folder, split, step)


# -- what it learned from -------------------------------------------------------------------------------------


def _phase(pipeline: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A phase by its name; a pipeline without phases is one itself."""
    named = [phase for phase in pipeline.get("phases", ()) if phase["name"] == name]
    return named[0] if named else pipeline


def _is_sampled(pipeline: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return bool(_phase(pipeline, row["phase"]).get("rewards"))


def _options(algorithm: Any) -> dict[str, Mapping[str, Any]]:
    """The items of `algorithm`, by name."""
    listed = algorithm if isinstance(algorithm, list) else [algorithm]
    return {
        name: options
        for item in listed
        for name, options in ({item: {}} if isinstance(item, str) else item).items()
    }


def used(
    pipeline: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], folder: Path, work: Path
) -> tuple[int, float]:
    """Responses learned from (behind a threshold an estimate), and the share of those given that never are."""
    learned = given = kept = 0.0
    log = work / pipeline["task"]["dataset"]["path"] / "train.jsonl"
    pool = cache(lambda repeat: _scores(folder / "rows" / f"grow-{repeat + 1}.jsonl") + _scores(log))
    for row in trained:
        phase = _phase(pipeline, row["phase"])
        algorithm = _options(phase["algorithm"])
        if algorithm.keys() & {"collect", "fit-value"}:
            continue
        drawn, share = row["responses"], next((x for key, x in row.items() if key.endswith("/kept")), 1.0)
        if share < 1:  # only what is kept is drawn at all
            given, kept, learned = given + drawn / share, kept + drawn, learned + drawn
            continue
        count = most = float(drawn)
        if "best-vs-worst" in algorithm:
            count = 2 * row["groups"]
        elif "best-of" in algorithm:
            count = row["groups"]
        elif "at-least" in algorithm:
            threshold = algorithm["at-least"]["threshold"]
            count = drawn * fmean(score > threshold for score in pool(row["repeat"]))
            most = algorithm["at-most"]["n"]
        given, kept = given + drawn, kept + count
        learned += min(count, most) * phase["train"].get("epochs", 1)
    return round(learned), 1 - kept / given


def _scores(file: Path) -> list[float]:
    return [score for line in file.read_text().splitlines() for score in json.loads(line)["scores"]]


# -- all of them ----------------------------------------------------------------------------------------------


def prepare_all(
    grounds: Sequence[plan.Ground], work: Path, workers: int, done: Callable[[Prepared], None]
) -> list[str]:
    make = partial(prepared, work=work)
    return processes.run_all(grounds, work, workers, make, Prepared.of, done, imported=IMPORTED)


def run_all(
    todo: Sequence[plan.Planned],
    work: Path,
    workers: int,
    done: Callable[[Record], None],
    *,
    keep: bool = False,
) -> list[str]:
    """Run them, `workers` at a time; `done` gets each record. Returns the runs that failed."""
    make = partial(measured, work=work, keep=keep)
    return processes.run_all(todo, work, workers, make, Record.of, done, imported=IMPORTED)
