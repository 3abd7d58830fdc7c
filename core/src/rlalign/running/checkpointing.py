"""When a checkpoint is written, and what it holds."""

from __future__ import annotations

import time

from rlalign.errors import CheckpointError
from rlalign.records import checkpoint
from rlalign.records.rundir import RunDir
from rlalign.running.phase import RunningPhase
from rlalign.running.workspace import Workspace

SAVING_COST = 0.05
"""The share of the time that checkpoints may take unless the pipeline says how often to write them."""


class Saver:
    """Writes the checkpoints of a run."""

    def __init__(self, workspace: Workspace, previous: int | None = None) -> None:
        self._workspace = workspace
        self._previous = previous
        """The checkpoint before, whose unchanged files the next one shares."""
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
        }
        path = checkpoint.write(
            space.dir.checkpoints,
            index,
            models=space.models.state(),
            optimiser=optimiser,
            components=space.components.states(),
            loop=loop,
            logs=space.logs.sizes(),
            keep=space.pipeline.checkpoints.keep,
            previous=self._previous,
        )
        self._previous = index
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - started
        space.display.saved(path)


def last_checkpoint(run: RunDir, previous: bool) -> checkpoint.Checkpoint | None:
    """The last one, or the last whole one before it."""
    found = checkpoint.find(run.checkpoints)
    if not previous:
        return checkpoint.read(run.checkpoints, found[-1]) if found else None
    earlier = checkpoint.whole_before(run.checkpoints, found[-1]) if found else None
    if earlier is None:
        raise CheckpointError(
            f"{run.path}: there is no whole checkpoint before the last; leave out --previous"
        )
    return checkpoint.read(run.checkpoints, earlier)
