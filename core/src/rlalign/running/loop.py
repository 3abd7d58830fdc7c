"""A run from its first phase to its last: begun, resumed, saved, exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Pipeline
from rlalign.config.registry import Registry
from rlalign.errors import RLAlignError
from rlalign.randomness import global_seeds_kept
from rlalign.records import checkpoint
from rlalign.records.environment import refuse_if_different
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir
from rlalign.running.card import card
from rlalign.running.checkpointing import Saver, last_checkpoint
from rlalign.running.display import Display, make_display
from rlalign.running.evaluation import evaluate
from rlalign.running.exits import unfinished
from rlalign.running.iteration import run_iteration
from rlalign.running.lock import lock_of
from rlalign.running.models import save_folder
from rlalign.running.phase import RunningPhase
from rlalign.running.view import open_phase
from rlalign.running.workspace import Workspace


class Interrupted(RLAlignError):
    """The run was asked to stop, and stopped at a checkpoint."""

    exit_code = 130


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    path: Path
    metrics: Mapping[str, float]
    """The last evaluation's, or without evaluation the last iteration's."""


@unfinished()
@global_seeds_kept()
def start(
    pipeline: Pipeline,
    registry: Registry | None = None,
    *,
    root: Path | str = "runs",
    name: str | None = None,
    display: Display | None = None,
) -> Session:
    """A new run in a folder of its own."""
    session = Session(pipeline, registry or Registry(), display or make_display())
    session.create(Path(root), name)
    return session


@unfinished()
@global_seeds_kept()
def resume(
    path: Path | str,
    registry: Registry | None = None,
    *,
    inexact: bool = False,
    previous: bool = False,
    display: Display | None = None,
) -> Session:
    """A run that goes on from its last checkpoint (`previous`: from the last but one that is whole)."""
    directory = RunDir.open(path)
    try:
        registry = registry or Registry()
        pipeline = load_pipeline(directory.pipeline, registry=registry)
        session = Session(pipeline, registry, display or make_display())
        session.reopen(directory, inexact=inexact, previous=previous)
    except BaseException:
        directory.close()
        raise
    return session


class Session(Workspace):
    """A run in its folder: phases in turn, then the exported model."""

    phase: RunningPhase
    """The present one, once a phase has begun."""

    def __init__(self, pipeline: Pipeline, registry: Registry, display: Display) -> None:
        super().__init__(pipeline, registry, display)
        self.stopping = False
        """Set by whoever wants the run to stop at its next checkpoint."""
        self._is_over = False
        self._at = {"repeat": 0, "place": 0}
        self._phase_state: Mapping[str, Any] | None = None
        self._optimiser_state: Mapping[str, Any] | None = None
        self._last_saved: int | None = None

    # -- the run's folder -----------------------------------------------------------------------------

    def create(self, root: Path, name: str | None) -> None:
        """Look at the data, build the policy, then claim a folder: a run that cannot begin leaves nothing."""
        self.data.check(self.plans)
        self.build_policy()
        text = places.dump(places.escape(self.pipeline.resolved))
        self.dir = RunDir.create(root, self.pipeline.stem, name, pipeline=text, lock=lock_of(self, {}))
        self.logs = Logs(self.dir.path)

    def reopen(self, directory: RunDir, *, inexact: bool, previous: bool) -> None:
        """Take up a run at its last checkpoint; without one it starts again, finished it stays as it is."""
        self.dir = directory
        self.logs = Logs(directory.path)
        saved = last_checkpoint(directory, previous)
        if saved is not None and not previous and directory.model.exists():
            self._is_over, self.last = True, saved.loop["last"]
            return
        self.build_policy()
        old = json.loads(directory.lock.read_text())
        if not inexact:
            refuse_if_different(old, lock_of(self, old["budgets"]), str(directory.path))
        shutil.rmtree(directory.model, ignore_errors=True)  # of a course that is left
        checkpoint.settle(directory.checkpoints, saved.index if saved else -1)
        self.logs.cut(saved.logs if saved else {})
        if saved is None:
            self.display.note("no checkpoint yet: the run starts again")
            return
        self.load(saved)
        loop = saved.loop
        self._last_saved = saved.index
        self._at = {"repeat": loop["repeat"], "place": loop["place"]}
        if loop["done"]:
            self._at["place"] += 1
        else:
            self._phase_state, self._optimiser_state = loop["phase"], saved.optimiser

    # -- running --------------------------------------------------------------------------------------

    @unfinished()
    @global_seeds_kept()
    def run(self) -> Finished:
        """All phases that are still to be done."""
        saver = Saver(self, self._last_saved)
        try:
            self.display.started(self.dir.name, self.dir.path, [p.name for p in self.pipeline.phases])
            if self._is_over:
                self.display.note(f"{self.dir.path}: this run is finished; its model is in {self.dir.model}")
                return Finished(self.dir.path, self.last)
            for repeat in range(self._at["repeat"], self.pipeline.repeat):
                first = self._at["place"] if repeat == self._at["repeat"] else 0
                for place in range(first, len(self.plans)):
                    self._run_phase(repeat, place, saver)
            save_folder(self.models.policy, self.dir.model, card(self.dir.name, self.pipeline, self.last))
            self.display.finished(
                {
                    "folder": str(self.dir.path),
                    "model": str(self.dir.model),
                    "curves": f"tensorboard --logdir {self.dir.path}",
                }
            )
            return Finished(self.dir.path, self.last)
        finally:
            self.display.close()
            self.logs.close()
            self.dir.close()

    def _run_phase(self, repeat: int, place: int, saver: Saver) -> None:
        phase = self.phase = open_phase(self, self.plans[place], repeat, place)
        state, self._phase_state = self._phase_state, None
        phase.start(state)
        if self._optimiser_state and phase.learner is not None:
            phase.learner.optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        name = phase.settings.name
        self.display.phase(name if self.pipeline.repeat == 1 else f"{name} ({repeat + 1})", phase.iterations)
        is_last = place == len(self.plans) - 1 and repeat == self.pipeline.repeat - 1
        for iteration in iterate(phase):
            if phase.done or self.stopping or saver.due(iteration):
                saver.save(phase)
            if self.stopping and not (phase.done and is_last):
                raise Interrupted(
                    f"stopped after iteration {phase.iteration} of {name}, and saved; "
                    f"go on with `rlalign run --resume {self.dir.path}`"
                )
        if phase.ending:
            self.display.note(f"{name} ended: {phase.ending}")
        self.step, self.budget, self.head_chunk = phase.step, phase.engine.budget, phase.engine.head_chunk
        self.ticks += phase.iteration


def iterate(phase: RunningPhase) -> Iterator[int]:
    """Run the phase, evaluating now and then; yields after every iteration, at a point that can be saved."""
    asked = phase.settings.evaluate
    if phase.iteration == 0 and asked is not None:
        evaluate(phase)
    while not phase.done:
        metrics = run_iteration(phase)
        phase.log(metrics)
        phase.workspace.display.iteration(phase.iteration, metrics)
        if asked is not None and (phase.done or (asked.every and phase.iteration % asked.every == 0)):
            evaluate(phase)
        if phase.done:
            phase.models.check_guard()
        yield phase.iteration
