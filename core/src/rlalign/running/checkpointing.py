"""When a checkpoint is written, and what it holds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, NonNegativeInt, PositiveInt

from rlalign.errors import CheckpointError
from rlalign.records import checkpoint
from rlalign.records.files import inside, read_bytes, require_shape
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir
from rlalign.running.phase import RunningPhase
from rlalign.running.workspace import Workspace

SAVING_COST = 0.05
"""The share of the time that checkpoints may take unless the pipeline says how often to write them."""


class _Phase(BaseModel):
    iteration: NonNegativeInt
    iterations: NonNegativeInt
    step: NonNegativeInt
    ending: str | None
    draw: dict[str, Any]
    columns: dict[str, str]
    guarded: dict[str, str]
    budget: PositiveInt
    head_chunk: PositiveInt


class _Loop(BaseModel):
    """Where a run stands."""

    repeat: NonNegativeInt
    place: NonNegativeInt
    done: bool
    step: NonNegativeInt
    ticks: NonNegativeInt
    phase: _Phase
    recipes: dict[str, dict[str, str | None]]
    last: dict[str, float]
    lock: str


class Saver:
    """Writes the checkpoints of a run."""

    def __init__(self, workspace: Workspace, previous: int | None = None) -> None:
        self._workspace = workspace
        self._previous = previous
        """The checkpoint before, whose unchanged files the next one shares."""
        self._lock = fingerprint_of_lock(workspace.dir)
        self._saved_at = time.perf_counter()
        self._cost = 0.0

    def due(self, iteration: int) -> bool:
        every = self._workspace.pipeline.checkpoints.every
        if every is not None:
            return iteration % every == 0
        return self._cost <= SAVING_COST * (time.perf_counter() - self._saved_at)

    def save(self, phase: RunningPhase) -> None:
        space, started = self._workspace, time.perf_counter()
        index = space.ticks + phase.iteration
        optimiser = phase.learner.optimiser.state_dict() if phase.learner and not phase.done else {}
        loop = {
            "repeat": phase.repeat,
            "place": phase.place,
            "done": phase.done,
            "step": phase.step,
            "ticks": space.ticks + (phase.iteration if phase.done else 0),
            "phase": phase.state(),
            "recipes": space.models.recipes,
            "last": space.last,
            "lock": self._lock,
        }
        space.dir.require_mine()
        path = checkpoint.write(
            space.dir.checkpoints,
            index,
            models=space.models.state(),
            optimiser=optimiser,
            components=space.components.states(),
            loop=loop,
            logs=space.logs.sums(),
            keep=space.pipeline.checkpoints.keep,
            previous=self._previous,
        )
        self._previous = index
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - started
        space.display.saved(path)


def fingerprint_of_lock(run: RunDir) -> str:
    """A hash of lock.json, so that an edit of it shows."""
    return hashlib.sha256(read_bytes(run.lock)).hexdigest()


def is_cleaned(run: RunDir) -> bool:
    """Whether a run is finished and its checkpoints are deleted: its model is all that is left of it."""
    return run.model.is_dir() and not checkpoint.find(run.checkpoints)


def last_checkpoint(run: RunDir, previous: bool, logs: Logs | None = None) -> checkpoint.Checkpoint | None:
    """The last one, or the last whole one before it (`logs`: whose logs are whole too)."""
    found = checkpoint.find(run.checkpoints)
    if not previous:
        return _read(run, found[-1]) if found else None
    for earlier in reversed(found[:-1]):
        if is_whole(run, earlier, logs):
            return _read(run, earlier)
    raise CheckpointError(
        f"{run.path}: there is no whole checkpoint before the last{' with whole logs' if logs else ''}; "
        "leave out --previous"
    )


def is_whole(run: RunDir, index: int, logs: Logs | None) -> bool:
    """Whether a checkpoint is as it was written, and its logs too."""
    if checkpoint.damage(run.checkpoints / f"{index:08d}") is not None:
        return False
    return logs is None or not logs.damage(checkpoint.log_sums(run.checkpoints, index))


def _read(run: RunDir, index: int) -> checkpoint.Checkpoint:
    saved = checkpoint.read(run.checkpoints, index)
    require_shape(saved.loop, _Loop, saved.path / "state.json")
    require_shape(saved.components, dict[str, Any], saved.path / "state.json")
    for folder in saved.loop["phase"]["columns"].values():
        inside(run.columns, folder)
    return saved


def place_of(saved: checkpoint.Checkpoint, phases: Sequence[Any], repeats: int) -> tuple[int, int]:
    """The pass and the phase where a checkpoint stands, which the pipeline must have."""
    repeat, place = saved.loop["repeat"], saved.loop["place"]
    if repeat >= repeats or place >= len(phases):
        raise CheckpointError(
            f"{saved.path}: stands in pass {repeat + 1}, phase {place + 1}, but pipeline.yaml has {repeats} and "
            f"{len(phases)}: one of them was edited. Put it back, or start the run again."
        )
    return repeat, place
