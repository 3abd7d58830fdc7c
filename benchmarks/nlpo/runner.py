"""One run: made, read, and measured twice more."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import processes
from benchmarks.nlpo import plan
from benchmarks.nlpo.measures import Point, Record, curves, point

from rlalign import ComponentError
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.records import logs
from rlalign.running import loop
from rlalign.running.display import PlainDisplay
from rlalign.running.opening import open_run

IMPORTED = (
    "rlalign_plugin_hf",
    "rlalign_plugin_nlpo",
    "rlalign_plugin_ppo",
    "rlalign_plugin_table",
    "rlalign_plugin_toy_tasks",
    "tensorboardX",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.t5.modeling_t5",
)
"""What runs would import each by itself."""


def measured(planned: plan.Planned, work: Path, *, keep: bool) -> Record:
    """Run it and read its curve; measure what it made twice, and delete the run folder unless asked to keep it."""
    started = time.process_time()
    folder = processes.folder_of(work, planned.key)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    registry = Registry()
    broke = None
    with Path(os.devnull).open("w") as nowhere:
        pipeline = load_pipeline(work / "pipeline.yaml", registry=registry, text=json.dumps(planned.pipeline))
        session = loop.start(pipeline, registry, root=work, name=folder.name, display=PlainDisplay(nowhere))
        try:
            session.run()
        except ComponentError as error:
            if "not finite" not in str(error):
                raise
            broke = str(error).replace(str(folder), folder.name)
    rows = list(logs.read(folder / "metrics.jsonl"))
    trained = [row for row in rows if "responses" in row]
    curve, own = curves(rows, planned.world.reward)
    lock = json.loads((folder / "lock.json").read_text())
    record = Record(
        run=planned.key,
        digest=planned.digest,
        curve=tuple(curve),
        own=tuple(own),
        final=None if broke else _final(planned, folder, registry, plan.FINAL),
        nucleus=None if broke else _final(planned, folder, registry, plan.NUCLEUS),
        broke=broke,
        responses=int(sum(row["responses"] for row in trained)),
        steps=int(sum(row.get("optimiser_steps", 0) for row in trained)),
        code=processes.made_with(lock),
        seconds=round(time.process_time() - started, 1),
    )
    if not keep:
        shutil.rmtree(folder)
    return record


def _final(planned: plan.Planned, folder: Path, registry: Registry, how: Mapping[str, Any]) -> Point:
    """A finished run's policy on more responses than its curve has."""
    generation = [f"evaluate.generation.{k}={v}" for k, v in how.items() if k != "examples"]
    asked = {"evaluate": {"split": planned.split, "examples": how["examples"]}}
    opened = open_run(folder, asked, generation, registry=registry).ready()
    return point(opened.evaluate(), planned.world.reward)


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
