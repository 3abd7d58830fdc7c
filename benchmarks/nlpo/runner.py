"""Runs in processes of their own, some at a time: forked from one that has imported everything."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.nlpo import plan
from benchmarks.nlpo.measures import Point, Record, curves, point

from rlalign import ComponentError, loop
from rlalign.display import PlainDisplay
from rlalign.opened import open_run
from rlalign.pipeline import config
from rlalign.records import logs
from rlalign.registry import Registry

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


def prepare() -> None:
    """Import what every run needs, once, and stay with one thread."""
    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("transformers").logging.set_verbosity_error()


def measured(planned: plan.Planned, work: Path, *, keep: bool) -> Record:
    """Run it and read its curve; measure what it made twice, and delete the run folder unless asked to keep it."""
    started = time.process_time()
    folder = work / planned.key.replace("/", "+")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    registry = Registry()
    broke = None
    with Path(os.devnull).open("w") as nowhere:
        pipeline = config.load(work / "pipeline.yaml", registry=registry, text=json.dumps(planned.pipeline))
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
        code=_code(lock),
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
    return point(opened.figures(), planned.world.reward)


def _code(lock: Mapping[str, Any]) -> dict[str, str]:
    plugins = {name: about["code"][:8] for name, about in lock["plugins"].items()}
    return {"torch": lock["packages"]["torch"], "device": lock["device"]["model"], **plugins}


def run_all(
    todo: Sequence[plan.Planned],
    work: Path,
    workers: int,
    done: Callable[[Record], None],
    *,
    keep: bool = False,
) -> list[str]:
    """Run them, `workers` at a time; `done` gets each record. Returns the runs that failed for another reason
    than what they computed."""
    work.mkdir(parents=True, exist_ok=True)
    prepare()
    waiting, failed = list(reversed(todo)), []
    running: dict[int, plan.Planned] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                planned = waiting.pop()
                running[_forked(planned, work, keep)] = planned
            pid, status = os.wait()
            planned = running.pop(pid)
            result = _result(work, planned)
            if status == 0:
                done(Record.of(result.read_text()))
                result.unlink()
            else:
                failed.append(planned.key)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
    return failed


def _result(work: Path, planned: plan.Planned) -> Path:
    return work / f"{planned.key.replace('/', '+')}.json"


def _forked(planned: plan.Planned, work: Path, keep: bool) -> int:
    """A process that makes one run; it leaves its record in a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _result(work, planned).write_text(measured(planned, work, keep=keep).line())
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        print(f"{planned.key}:", file=sys.stderr)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
